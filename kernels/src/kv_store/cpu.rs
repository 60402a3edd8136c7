//! Copies on the CPU: a task is one kv head times a share of the pages, so rows that name one slot meet in one task, in row order.

use super::{NOWHERE, PAGE};
use crate::attention::Heads;
use runtime::{Pool, Shared};

/// Stores every row.
pub fn forward(pool: &Pool, k: &mut [f32], v: &mut [f32], qkv: &[f32], slots: &[u32], heads: Heads) {
    let (stride, d) = (heads.stride(), heads.d);
    let shares = pool.threads().min(slots.len() / 256 + 1);
    let (k, v) = (Shared::new(k), Shared::new(v));
    pool.run(heads.k * shares, 0, &|task, _| {
        let (head, share) = (task % heads.k, task / heads.k);
        for (row, &slot) in qkv.chunks_exact(stride).zip(slots) {
            let (page, offset) = (slot as usize / PAGE, slot as usize % PAGE);
            if slot == NOWHERE || page % shares != share {
                continue;
            }
            let at = (page * heads.k + head) * d * PAGE;
            // SAFETY: a task owns its head in its share of the pages.
            let (k, v) = unsafe { (k.slice(at..at + d * PAGE), v.slice(at + offset * d..at + (offset + 1) * d)) };
            let (key, value) = (&row[(heads.h + head) * d..], &row[(heads.h + heads.k + head) * d..]);
            for (i, x) in key[..d].iter().enumerate() {
                k[i * PAGE + offset] = *x;
            }
            v.copy_from_slice(&value[..d]);
        }
    });
}
