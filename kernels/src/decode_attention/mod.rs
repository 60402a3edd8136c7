//! Attention of one query row per running sequence over pages: the formula and the bits of [`crate::attention`].
//!
//! Row b of `qkv [B, (h + 2k)·d]` f32 asks from position `pos[b]` (its own key is already in the pages); keys at positions up to it are
//! visible, and above pos − window if there is one. `pieces [·, 4]` u32 = {page, block, from, to}: positions 64·block + from … 64·block + to
//! (exclusive) of the row's path lie at the same offsets of that page; row b has pieces `first[b] … first[b + 1]`, ascending, without a
//! gap among the visible positions. Several pieces may share a block: a child that starts inside a page has its first block in two
//! places. Offsets outside a piece are never read into a result.
//!
//! [`prefill`] is [`crate::attention::forward`] for rows whose keys and values are in pages: a segment without a parent may go on from
//! positions that are there alone. Its pieces count by segment, and cover what the segment's rows see.
//!
//! On CUDA pieces are the caller's word: a visible position that none of them holds makes NaN; the CPU refuses it.
//!
//! `out [B, h·d]` f32 =. 4·d FLOPs and, per kv head, 8·d bytes of pages per visible key. order: law (A1, A2, A3).

mod cases;
mod cpu;
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::attention::forest::Forest;
use crate::attention::{self, Heads, Params, operand};
use crate::kv_store::{PAGE, Pages};
pub(crate) use cases::cases;
pub(crate) use cuda::KERNELS;
use runtime::{DType, Result, Stream, View, disjoint, ensure};

const ROOM: &str = "decode_attention";

/// {page, block, from, to} of a row's pieces.
type Piece = [u32; 4];

/// Checks one row's pieces: inside the pages, ascending, no gap among positions `from` to `pos`.
fn check(row: usize, pieces: &[Piece], count: usize, (from, pos): (usize, usize)) -> Result<()> {
    let (mut past, mut wanted) = (0, from);
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

/// The pieces of a row.
fn own<'a>(row: usize, pieces: &'a [Piece], first: &[u32]) -> Result<&'a [Piece]> {
    let ends = &first[row..row + 2];
    let found = pieces.get(ends[0] as usize..ends[1] as usize);
    ensure!(found.is_some(), "{ROOM}: first: row {row}: pieces {ends:?} of {}", pieces.len());
    Ok(found.unwrap_or_default())
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
    heads.check(ROOM)?;
    params.check(ROOM)?;
    let (b, count) = (pos.len(), pages.count(ROOM, heads)?);
    operand(ROOM, "out", out, b * heads.h * heads.d, DType::F32)?;
    operand(ROOM, "qkv", qkv, b * heads.stride(), DType::F32)?;
    operand(ROOM, "pieces", pieces, pieces.len() / 4 * 4, DType::U32)?;
    operand(ROOM, "first", first, b + 1, DType::U32)?;
    operand(ROOM, "pos", pos, b, DType::U32)?;
    disjoint(ROOM, &[out], &[qkv, pages.k, pages.v, pieces, first, pos])?;
    let paths = cuda::Paths { pages, count, pieces, first };
    let Some(pool) = s.host() else { return cuda::forward(s, out, qkv, pos, paths, heads, params) };
    // SAFETY: the device is the CPU, and `disjoint` showed that the output overlaps no other operand.
    unsafe {
        let pieces: &[Piece] = pieces.host::<u32>()?.as_chunks().0;
        let (first, pos) = (first.host::<u32>()?, pos.host::<u32>()?);
        for (row, &pos) in pos.iter().enumerate() {
            check(row, own(row, pieces, first)?, count, (params.first(pos as usize), pos as usize))?;
        }
        let store = cpu::Store { k: pages.k.host()?, v: pages.v.host()?, pieces, first };
        cpu::forward(pool, out.host_mut()?, qkv.host()?, store, pos, heads, params);
    }
    Ok(())
}

/// `out`, `m`, `l` = attention of the rows of a forest over the pages of its segments' paths; a segment without a parent may begin
/// anywhere. `segments [S, 4]` as in [`crate::attention`], `first [S + 1]`.
pub fn prefill(
    s: &Stream,
    out: View<'_>,
    m: View<'_>,
    l: View<'_>,
    qkv: View<'_>,
    segments: View<'_>,
    pages: Pages<'_>,
    pieces: View<'_>,
    first: View<'_>,
    heads: Heads,
    params: Params,
) -> Result<()> {
    let n = attention::rows(DType::F32, qkv, m, l, segments, heads, params)?;
    let count = pages.count(ROOM, heads)?;
    ensure!(params.causal, "{ROOM}: pages want causal order");
    operand(ROOM, "out", out, n * heads.h * heads.d, DType::F32)?;
    operand(ROOM, "pieces", pieces, pieces.len() / 4 * 4, DType::U32)?;
    operand(ROOM, "first", first, segments.len() / 4 + 1, DType::U32)?;
    disjoint(ROOM, &[out, m, l], &[qkv, segments, pages.k, pages.v, pieces, first])?;
    let paths = cuda::Paths { pages, count, pieces, first };
    let Some(pool) = s.host() else { return cuda::prefill(s, [out, m, l], qkv, segments, paths, heads, params) };
    // SAFETY: the device is the CPU, and `disjoint` showed that no output overlaps another operand.
    unsafe {
        let forest = Forest::cut(segments.host()?, n)?;
        let (pieces, first): (&[Piece], &[u32]) = (pieces.host::<u32>()?.as_chunks().0, first.host()?);
        for i in (0..forest.len()).filter(|&i| forest.get(i).len > 0) {
            let segment = forest.get(i);
            check(i, own(i, pieces, first)?, count, (params.first(segment.pos0), segment.past() - 1))?;
        }
        let store = cpu::Store { k: pages.k.host()?, v: pages.v.host()?, pieces, first };
        let to = cpu::Outputs { out: out.host_mut()?, m: m.host_mut()?, l: l.host_mut()? };
        cpu::prefill(pool, to, qkv.host()?, forest, store, heads, params);
    }
    Ok(())
}
