//! Attention of one query row per running sequence over pages: the formula and the bits of [`crate::attention`].
//!
//! Row b of `qkv [B, (h + 2k)·d]` f32 asks from position `pos[b]` (its own key is already in the pages); keys at positions up to it are
//! visible, and above pos − window if there is one. `pieces [·, 4]` u32 = {page, block, from, to}: positions 64·block + from … 64·block + to
//! (exclusive) of the row's path lie at the same offsets of that page; row b has pieces `first[b] … first[b + 1]`, ascending, without a
//! gap among the visible positions. Several pieces may share a block: a child that starts inside a page has its first block in two
//! places. Offsets outside a piece are never read into a result.
//!
//! `out [B, h·d]` f32 =. 4·d FLOPs and, per kv head, 8·d bytes of pages per visible key. order: law (A1, A2, A3).

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::attention::{Heads, Params, operand};
use crate::kv_store::{PAGE, Pages};
use runtime::{DType, Result, Stream, View, disjoint, ensure};

/// {page, block, from, to} of a row's pieces.
type Piece = [u32; 4];

/// Checks one row's pieces: inside the pages, ascending, no gap among the visible positions.
fn check(row: usize, pieces: &[Piece], count: usize, pos: usize, params: Params) -> Result<()> {
    let (mut past, mut wanted) = (0, params.first(pos));
    for (i, &[page, block, from, to]) in pieces.iter().enumerate() {
        let inside = (page as usize) < count && from < to && to as usize <= PAGE;
        ensure!(inside, "decode_attention: row {row}: piece {i}: page {page} of {count}, offsets {from} to {to}");
        let (start, end) = (block as usize * PAGE + from as usize, block as usize * PAGE + to as usize);
        ensure!(start >= past, "decode_attention: row {row}: piece {i}: position {start} after {past}");
        ensure!(start <= wanted || wanted > pos, "decode_attention: row {row}: piece {i}: no page holds position {wanted}");
        wanted = wanted.max(end);
        past = end;
    }
    ensure!(wanted > pos, "decode_attention: row {row}: no page holds position {wanted} of {pos}");
    Ok(())
}

/// `out` = attention of each row over the pages of its path.
pub fn forward(
    s: &Stream,
    out: View<'_>,
    qkv: View<'_>,
    pages: Pages<'_>,
    pieces: View<'_>,
    first: View<'_>,
    pos: View<'_>,
    heads: Heads,
    params: Params,
) -> Result<()> {
    const ROOM: &str = "decode_attention";
    let pool = s.pool("decode_attention::forward")?;
    heads.check(ROOM)?;
    params.check(ROOM)?;
    let (b, count) = (pos.len(), pages.count(ROOM, heads)?);
    operand(ROOM, "out", out, b * heads.h * heads.d, DType::F32)?;
    operand(ROOM, "qkv", qkv, b * heads.stride(), DType::F32)?;
    operand(ROOM, "pieces", pieces, pieces.len() / 4 * 4, DType::U32)?;
    operand(ROOM, "first", first, b + 1, DType::U32)?;
    operand(ROOM, "pos", pos, b, DType::U32)?;
    disjoint(ROOM, &[out], &[qkv, pages.k, pages.v, pieces, first, pos])?;
    // SAFETY: the device is the CPU, and `disjoint` showed that the output overlaps no other operand.
    unsafe {
        let pieces: &[Piece] = pieces.host::<u32>()?.as_chunks().0;
        let (first, pos) = (first.host::<u32>()?, pos.host::<u32>()?);
        for (row, (ends, pos)) in first.windows(2).zip(pos).enumerate() {
            let of_row = pieces.get(ends[0] as usize..ends[1] as usize);
            ensure!(of_row.is_some(), "{ROOM}: first: row {row}: pieces {ends:?} of {}", pieces.len());
            check(row, of_row.unwrap_or(&[]), count, *pos as usize, params)?;
        }
        let store = cpu::Store { k: pages.k.host()?, v: pages.v.host()?, pieces, first, pos };
        cpu::forward(pool, out.host_mut()?, qkv.host()?, store, heads, params);
    }
    Ok(())
}
