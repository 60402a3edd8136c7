//! The CPU form: plain loops, whose operations vectorise without changing.
// A body of plain loops meets its instruction set only as compiler features.
#![allow(clippy::extra_unused_type_parameters)]

use crate::cpu::Lanes;
use runtime::Pool;

/// Rows of `stride`; `pos` is theirs.
#[inline(always)]
fn rotate_rows<S: Lanes>(x: &mut [f32], pos: &[u32], table: &[f32], heads: usize, d: usize, stride: usize, back: bool) {
    for (row, &p) in x.chunks_exact_mut(stride).zip(pos) {
        let turn = &table[p as usize * d..(p as usize + 1) * d];
        for head in row[..heads * d].chunks_exact_mut(d) {
            let (a, b) = head.split_at_mut(d / 2);
            for ((a, b), t) in a.iter_mut().zip(b).zip(turn.chunks_exact(2)) {
                let (cos, sin) = (t[0], if back { -t[1] } else { t[1] });
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
per_isa! {
    fn rotate_on(x: &mut [f32], pos: &[u32], table: &[f32], heads: usize, d: usize, stride: usize, back: bool) = rotate_rows
}

pub fn rotate(pool: &Pool, x: &mut [f32], pos: &[u32], table: &[f32], heads: usize, d: usize, stride: usize, back: bool) {
    pool.rows(x, stride, 4096usize.div_ceil(heads.max(1) * d), 0, &|first, x, _| {
        rotate_on(pool.isa(), x, &pos[first..], table, heads, d, stride, back);
    });
}
