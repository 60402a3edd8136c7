//! How the CPU cuts attention into pieces: tiles of query rows, the blocks they see, and which slots each row sees. None of it shows in
//! the results.

use super::block::{CHUNK, KEYS};
use super::chains::Span;
use super::forest::{Forest, Segment};
use super::{Heads, Params};
use crate::cpu::WIDTH;
use std::ops::Range;

/// Query rows times heads of a group in one tile, unless the group alone is larger.
const ENTRIES: usize = 256;

/// How a tile lies in scratch: entry i is row `i / group`, head `i % group` of the group; d is padded to whole vectors.
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
    /// A tile of at most `ENTRIES` entries, smaller where `n` rows in such tiles would not feed the threads.
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

/// The rows of a tile that lie in one segment.
#[derive(Clone, Debug)]
pub struct Part {
    /// Index of the segment.
    pub index: usize,
    /// The segment.
    pub segment: Segment,
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Heads per kv head.
    group: usize,
    params: Params,
}

impl Part {
    /// Calls `each` with the parts of `rows`.
    pub fn each(forest: Forest<'_>, rows: Range<usize>, group: usize, params: Params, mut each: impl FnMut(Part)) {
        for index in forest.at(rows.start)..forest.len() {
            let segment = forest.get(index);
            if segment.start >= rows.end {
                return;
            }
            let inside = segment.start.max(rows.start)..segment.end().min(rows.end);
            if !inside.is_empty() {
                each(Part { index, segment, rows: inside, group, params });
            }
        }
    }

    /// Rows times heads.
    pub fn entries(&self) -> usize {
        self.rows.len() * self.group
    }

    /// The positions that entry `i` sees.
    fn sees(&self, i: usize) -> Range<usize> {
        let pos = self.segment.pos0 + self.rows.start - self.segment.start + i / self.group;
        self.params.first(pos)..if self.params.causal { pos + 1 } else { self.segment.past() }
    }

    /// The blocks that any of the rows sees.
    pub fn blocks(&self) -> Range<usize> {
        self.sees(0).start / KEYS..self.sees(self.entries() - 1).end.div_ceil(KEYS)
    }

    /// The slots of `block` that each entry of `chunk` sees, or none if none sees any.
    pub fn spans(&self, chunk: Range<usize>, block: usize) -> Option<[Span; CHUNK]> {
        let span = |i: usize| slots(self.sees(i), block);
        let mut spans = [Span { from: 0, to: KEYS }; CHUNK];
        // Both ends of a span ascend with the entry.
        let (first, last) = (span(chunk.start), span(chunk.end - 1));
        if first.from == KEYS || last.to == 0 {
            return None;
        }
        if last.from > 0 || first.to < KEYS {
            spans.iter_mut().zip(chunk).for_each(|(s, i)| *s = span(i));
        }
        Some(spans)
    }

    /// Whether the keys of `row` meet their first query here.
    pub fn begins(&self, row: usize) -> bool {
        if self.params.causal { self.rows.contains(&row) } else { self.rows.start == self.segment.start }
    }
}

/// The slots of `block` among `positions`.
pub fn slots(positions: Range<usize>, block: usize) -> Span {
    let slot = |pos: usize| pos.saturating_sub(block * KEYS).min(KEYS);
    Span { from: slot(positions.start), to: slot(positions.end) }
}
