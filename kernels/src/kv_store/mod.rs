//! Keys and values of new rows go to their pages.
//!
//! Row n of `qkv [N, (h + 2k)·d]` f32 has its keys and values (after RoPE) copied to page `slots[n] / 64`, offset `slots[n] mod 64`:
//! `k [P, kv heads, d, 64]` f32 (offsets side by side, as the CPU's scores want them; on CUDA as v), `v [P, kv heads, 64, d]` f32.
//! `slots [N]` u32; u32::MAX: the row is not stored, nor on CUDA one whose page does not exist, which the CPU refuses. Of two rows with one slot the later stays. Everything else in the pages is left as it was.
//!
//! No FLOPs; 16·k·d bytes per row. order: law (copies).

mod cpu;
#[cfg(test)]
mod tests;

use crate::attention::{Heads, operand};
use crate::cuda::{blocks, kernel, size};
use runtime::{DType, Kernel, Result, Stream, View, disjoint, ensure};

pub(crate) const KERNELS: [Kernel; 1] = [kernel!("kv_store_forward", "kv_store.cu")];

/// Positions of a page: one block.
pub const PAGE: usize = crate::attention::block::KEYS;
/// A slot that stores nothing.
pub const NOWHERE: u32 = u32::MAX;

/// The pages of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// `[P, kv heads, d, 64]` f32, on CUDA `[P, kv heads, 64, d]`
    pub k: View<'a>,
    /// `[P, kv heads, 64, d]` f32
    pub v: View<'a>,
}

impl Pages<'_> {
    /// P, after checking that both views hold that many pages.
    pub fn count(&self, room: &str, heads: Heads) -> Result<usize> {
        let page = heads.k * heads.d * PAGE;
        let count = self.k.len() / page;
        operand(room, "pages.k", self.k, count * page, DType::F32)?;
        operand(room, "pages.v", self.v, count * page, DType::F32)?;
        Ok(count)
    }
}

/// Stores the keys and values of the rows of `qkv` in `pages`.
pub fn forward(s: &Stream, pages: Pages<'_>, qkv: View<'_>, slots: View<'_>, heads: Heads) -> Result<()> {
    heads.check("kv_store")?;
    let (n, count) = (slots.len(), pages.count("kv_store", heads)?);
    operand("kv_store", "qkv", qkv, n * heads.stride(), DType::F32)?;
    operand("kv_store", "slots", slots, n, DType::U32)?;
    disjoint("kv_store", &[pages.k, pages.v], &[qkv, slots])?;
    let Some(pool) = s.host() else {
        let views = [(pages.k, DType::F32), (pages.v, DType::F32), (qkv, DType::F32), (slots, DType::U32)];
        let views = views.map(|(view, dtype)| crate::cuda::operand("kv_store", view, dtype));
        let sizes = [n, count, heads.h, heads.k, heads.d].map(|n| size("kv_store", n));
        let args = views.into_iter().chain(sizes).collect::<Result<Vec<_>>>()?;
        // SAFETY: the kernel's arguments, checked to be [P, k, 64, d], [N, (h + 2k)·d] and `[N]`; it writes no page that is not there.
        return unsafe { s.launch(&KERNELS[0], &blocks(n)?, &args) };
    };
    // SAFETY: the device is the CPU, and `disjoint` showed that the pages overlap no other operand.
    unsafe {
        let slots = slots.host::<u32>()?;
        let wrong = slots.iter().position(|&slot| slot != NOWHERE && slot as usize / PAGE >= count);
        ensure!(wrong.is_none(), "kv_store: slots: row {wrong:?} lies behind the last of {count} pages");
        cpu::forward(pool, pages.k.host_mut()?, pages.v.host_mut()?, qkv.host()?, slots, heads);
    }
    Ok(())
}
