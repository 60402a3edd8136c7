//! Sums over rows: `total[i, c] += Σ_m left[m, i]·right[m, c]`, one partial from +0 per example, its rows ascending (LAW A7).

use super::pack::{self, Left, Room};
use super::product::Strips;
use super::tile::{Lines, Tile, fetch};
use crate::panels::PANEL;
use runtime::Isa;
use std::ops::Range;

/// Rows of one block: what a panel of 32 columns may take of a first-level cache.
const BLOCK: usize = 192;
/// Rows of one block that is read in place with a page or so between rows.
const NEAR: usize = 64;

/// Columns of a row-major matrix [M, ld].
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    /// The rows.
    pub data: &'a [f32],
    /// Elements between two rows.
    pub ld: usize,
    /// First column.
    pub first: usize,
    /// How many.
    pub count: usize,
}

impl<'a> Columns<'a> {
    /// Columns `first..first + count` of the rows in place.
    pub fn new(data: &'a [f32], ld: usize, first: usize, count: usize) -> Columns<'a> {
        Columns { data, ld, first, count }
    }

    /// Cuts columns `at..at + count` of rows `m` into strips [strips][rows][width].
    fn cut(&self, isa: Isa, out: &mut [f32], width: usize, (at, count): (usize, usize), m: Range<usize>) {
        let left = Left { data: self.data, ld: self.ld, index: None };
        pack::cut(isa, out, width, left, self.first + at..self.first + at + count, m);
    }
}

/// One task: some columns of the left operand against some panels of the right one.
pub(crate) struct Outer<'a> {
    /// Instruction set.
    pub isa: Isa,
    /// [M, I]: one value for all lanes.
    pub left: Columns<'a>,
    /// [M, C]: lanes.
    pub right: Columns<'a>,
}

impl Outer<'_> {
    /// Floats of scratch for `i` left and `c` right columns.
    pub fn size(isa: Isa, i: usize, c: usize) -> usize {
        Room::size(&Outer::pieces(isa, i, c))
    }

    fn pieces(isa: Isa, i: usize, c: usize) -> [usize; 3] {
        let (i, c) = (Strips::new(isa, i).padded(), c.next_multiple_of(PANEL));
        [i * BLOCK, c * BLOCK, i * c]
    }

    /// For every example ({start, end} of its rows, in order) gives each finished tile to `emit(tile, first column of the left, panel
    /// of the right)`, which sets where it goes and runs it.
    pub fn run(&self, examples: &[u32], scratch: &mut [f32], emit: &mut dyn FnMut(Tile, usize, usize)) {
        let mut room = Room::new(scratch);
        let [packed, lanes, waiting] = Outer::pieces(self.isa, self.left.count, self.right.count).map(|p| room.take(p));
        let strips = Strips::new(self.isa, self.left.count);
        // Lanes that serve few strips are not worth a copy; then fewer rows at a time keep within the pages that are at hand.
        let in_place = strips.count() <= 2 && self.right.count.is_multiple_of(PANEL);
        let block = if in_place && self.right.ld > 512 { NEAR } else { BLOCK };
        for example in examples.chunks_exact(2) {
            let (start, end) = (example[0] as usize, example[1] as usize);
            for first in (start..end).step_by(block) {
                let rows = first..(first + block).min(end);
                self.pack(strips, packed, rows.clone());
                if !in_place {
                    self.right.cut(self.isa, lanes, PANEL, (0, self.right.count), rows.clone());
                }
                let panels = self.right.count.div_ceil(PANEL);
                for panel in 0..panels {
                    if block == NEAR {
                        let next = if panel + 1 < panels {
                            (panel + 1, rows.clone())
                        } else {
                            (0, rows.end..(rows.end + block).min(end))
                        };
                        self.fetch(next.0, next.1);
                    }
                    for (at, used, width) in strips.each() {
                        let wait = waiting[(panel * strips.padded() + at) * PANEL..].as_mut_ptr();
                        let mut t = Tile::new(width, width, PANEL, wait, PANEL);
                        t.a = packed[at * rows.len()..].as_ptr();
                        (t.b, t.step, t.len) = if in_place {
                            let from = &self.right.data[rows.start * self.right.ld + self.right.first + panel * PANEL..];
                            (Lines::F32(from.as_ptr()), self.right.ld, rows.len())
                        } else {
                            (Lines::F32(lanes[panel * rows.len() * PANEL..].as_ptr()), PANEL, rows.len())
                        };
                        if first > start {
                            t.from = wait;
                        }
                        if rows.end == end {
                            t.rows = used;
                            emit(t, at, panel);
                        } else {
                            // SAFETY: the packed strip, the lanes and the accumulators have these sizes by `pieces`.
                            unsafe { t.run(self.isa) };
                        }
                    }
                }
            }
        }
    }

    /// Asks for rows `m` of a panel of the right operand.
    fn fetch(&self, panel: usize, m: Range<usize>) {
        for m in m {
            let row = &self.right.data[m * self.right.ld + self.right.first + panel * PANEL..][..PANEL];
            row.chunks(16).for_each(|line| fetch(line.as_ptr()));
        }
    }

    /// Strips of the left columns for rows `m`: the whole ones, then the last one in its own width.
    fn pack(&self, strips: Strips, packed: &mut [f32], m: Range<usize>) {
        let whole = strips.rows / strips.height * strips.height;
        self.left.cut(self.isa, packed, strips.height, (0, whole), m.clone());
        if let Some((at, rows, width)) = strips.each().last().filter(|s| s.0 == whole) {
            self.left.cut(self.isa, &mut packed[at * m.len()..], width, (at, rows), m);
        }
    }
}
