//! Forward on the CPU: a task is a tile of query rows times one kv head. Each block of keys is gathered once per tile and met by the
//! tile's rows chunk by chunk.

use super::block::{CHUNK, KEYS, State, attend, copy, divide, scores, transpose};
use super::chains::{Left, Right, Span};
use super::forest::{Forest, Segment};
use super::{Heads, Params};
use crate::cpu::WIDTH;
use runtime::{Pool, Shared};
use std::ops::Range;

/// Query rows times heads of a group in one tile, unless the group alone is larger.
const ENTRIES: usize = 256;

/// How a tile is laid out: entry i is row `i / group`, head `i % group` of the group; d is padded to whole vectors.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Heads per kv head.
    pub group: usize,
    /// Values per head.
    pub d: usize,
    /// Values per padded row.
    pub width: usize,
    /// Query rows.
    pub rows: usize,
}

impl Layout {
    /// A tile of at most `ENTRIES` entries, smaller where the work would not feed the threads.
    pub fn new(heads: Heads, n: usize, threads: usize) -> Layout {
        let group = heads.group();
        let whole = (ENTRIES / group).max(1);
        let few = threads > 1 && n * heads.k < 4 * threads * whole;
        let rows = if few { whole.div_ceil(4) } else { whole };
        Layout { group, d: heads.d, width: heads.d.next_multiple_of(WIDTH), rows }
    }

    /// Entries of a tile.
    pub fn entries(self) -> usize {
        self.rows * self.group
    }
}

/// Cuts the front off a thread's scratch memory.
pub fn take<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (front, back) = std::mem::take(rest).split_at_mut(len);
    *rest = back;
    front
}

/// The positions that a row at `pos` of `segment` sees.
pub fn sees(segment: Segment, pos: usize, params: Params) -> Range<usize> {
    params.first(pos)..if params.causal { pos + 1 } else { segment.past() }
}

/// The slots of `block` among `positions`.
pub fn slots(positions: &Range<usize>, block: usize) -> Span {
    let slot = |pos: usize| pos.saturating_sub(block * KEYS).min(KEYS);
    Span { from: slot(positions.start), to: slot(positions.end) }
}

/// The blocks that rows `rows` of `segment` see.
pub fn blocks(segment: Segment, rows: &Range<usize>, params: Params) -> Range<usize> {
    let first = sees(segment, segment.pos0 + rows.start - segment.start, params);
    let last = sees(segment, segment.pos0 + rows.end - 1 - segment.start, params);
    first.start / KEYS..last.end.div_ceil(KEYS)
}

/// The parts of `rows` that lie in one segment each.
pub fn parts(forest: Forest<'_>, rows: Range<usize>, mut part: impl FnMut(usize, Segment, Range<usize>)) {
    let mut i = forest.at(rows.start);
    while i < forest.len() && forest.get(i).start < rows.end {
        let s = forest.get(i);
        let inside = s.start.max(rows.start)..s.end().min(rows.end);
        if !inside.is_empty() {
            part(i, s, inside);
        }
        i += 1;
    }
}

/// Gathers the heads of a kv group from rows `stride` apart into entries `[·, width]`, zeros behind d.
pub fn pack(entries: &mut [f32], rows: &[f32], stride: usize, tile: Layout) {
    for (i, entry) in entries.chunks_exact_mut(tile.width).enumerate() {
        let from = i / tile.group * stride + i % tile.group * tile.d;
        entry[..tile.d].copy_from_slice(&rows[from..from + tile.d]);
        entry[tile.d..].fill(0.0);
    }
}

/// `out`, `m`, `l` of all rows.
pub fn forward(
    pool: &Pool,
    out: &mut [f32],
    m: &mut [i32],
    l: &mut [f32],
    qkv: &[f32],
    forest: Forest<'_>,
    heads: Heads,
    params: Params,
) {
    let (n, stride, isa) = (qkv.len() / heads.stride(), heads.stride(), pool.isa());
    let tile = Layout::new(heads, n, pool.threads());
    let (entries, width, group, d) = (tile.entries(), tile.width, tile.group, tile.d);
    let scratch = entries * (2 * width + 2) + KEYS * (d + width) + CHUNK * KEYS;
    let (out, m, l) = (Shared::new(out), Shared::new(m), Shared::new(l));
    let tiles = n.div_ceil(tile.rows);
    pool.run(tiles * heads.k, scratch, &|task, mut rest| {
        // Later rows of a long tree see more keys: they go first.
        let (row, head) = ((tiles - 1 - task / heads.k) * tile.rows, task % heads.k);
        let (q, o) = (take(&mut rest, entries * width), take(&mut rest, entries * width));
        let (top, sum) = (take(&mut rest, entries), take(&mut rest, entries));
        let (keys, values, s) = (take(&mut rest, KEYS * d), take(&mut rest, KEYS * width), take(&mut rest, CHUNK * KEYS));
        parts(forest, row..(row + tile.rows).min(n), |i, segment, rows| {
            let count = rows.len() * group;
            pack(&mut q[..count * width], &qkv[rows.start * stride + head * group * d..], stride, tile);
            top[..count].fill(f32::NEG_INFINITY);
            for block in blocks(segment, &rows, params) {
                forest.runs(i, block, |slots, first| {
                    let (k_at, v_at) = ((heads.h + head) * d, (heads.h + heads.k + head) * d);
                    transpose(keys, slots.clone(), &qkv[first * stride + k_at..], stride, d);
                    copy(values, slots, &qkv[first * stride + v_at..], stride, d, width);
                });
                for first in (0..count).step_by(CHUNK) {
                    let chunk = first..(first + CHUNK).min(count);
                    let mut spans = [Span::default(); CHUNK];
                    let spans = &mut spans[..chunk.len()];
                    for (span, entry) in spans.iter_mut().zip(chunk.clone()) {
                        let pos = segment.pos0 + rows.start - segment.start + entry / group;
                        *span = slots(&sees(segment, pos, params), block);
                    }
                    let q = Left { data: &q[first * width..], row: width, step: 1 };
                    scores(isa, s, q, keys, d, spans);
                    let state =
                        State { o: &mut o[first * width..chunk.end * width], top: &mut top[chunk.clone()], sum: &mut sum[chunk] };
                    attend(isa, state, s, Right { data: values, width }, spans, params);
                }
            }
            for (i, row) in rows.enumerate() {
                let first = i * group;
                // SAFETY: a task owns its rows' entries of its kv head.
                let (out, m, l) = unsafe {
                    let at = row * heads.h + head * group;
                    (out.slice(at * d..(at + group) * d), m.slice(at..at + group), l.slice(at..at + group))
                };
                for g in 0..group {
                    let o = &mut o[(first + g) * width..(first + g + 1) * width];
                    divide(isa, o, sum[first + g]);
                    out[g * d..(g + 1) * d].copy_from_slice(&o[..d]);
                    (m[g], l[g]) = (top[first + g] as i32, sum[first + g]);
                }
            }
        });
    });
}
