//! Sums over rows: `total[i, c] += Σ_m left[m, i]·right[m, c]`, one partial from +0 per example, its rows ascending (LAW A7).

use super::pack::Room;
use super::product::Strips;
use super::tile::{Lines, Tile};
use crate::panels::PANEL;
use runtime::Isa;
use std::ops::Range;

/// Rows of one block: what a panel of 32 columns may take of a first-level cache.
const BLOCK: usize = 192;

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
    /// Which rows stand for 0, 1, …; all of them in order if absent.
    pub index: Option<&'a [u32]>,
}

impl<'a> Columns<'a> {
    /// Columns `first..first + count` of the rows in place.
    pub fn new(data: &'a [f32], ld: usize, first: usize, count: usize) -> Columns<'a> {
        Columns { data, ld, first, count, index: None }
    }

    fn row(&self, m: usize, columns: Range<usize>) -> &'a [f32] {
        let m = self.index.map_or(m, |index| index[m] as usize);
        &self.data[m * self.ld + self.first..][columns]
    }

    /// Copies columns `at..at + width` of rows `m` to [len][width]; columns beyond the last become zero.
    fn pack(&self, out: &mut [f32], width: usize, at: usize, m: Range<usize>) {
        let end = (at + width).min(self.count);
        for (to, m) in out.chunks_exact_mut(width).zip(m) {
            let from = self.row(m, at..end);
            to[..from.len()].copy_from_slice(from);
            to[from.len()..].fill(0.0);
        }
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
        let i = Strips::new(isa, i).padded();
        [i * BLOCK, BLOCK * PANEL, i * c.next_multiple_of(PANEL)]
    }

    /// For every example ({start, end} of its rows, in order) gives each finished tile to `emit(tile, first column of the left, panel
    /// of the right)`, which sets where it goes and runs it.
    pub fn run(&self, examples: &[u32], scratch: &mut [f32], emit: &mut dyn FnMut(Tile, usize, usize)) {
        let mut room = Room::new(scratch);
        let [packed, lanes, waiting] = Outer::pieces(self.isa, self.left.count, self.right.count).map(|p| room.take(p));
        let strips = Strips::new(self.isa, self.left.count);
        for example in examples.chunks_exact(2) {
            let (start, end) = (example[0] as usize, example[1] as usize);
            for first in (start..end).step_by(BLOCK) {
                let rows = first..(first + BLOCK).min(end);
                for (at, _, width) in strips.each() {
                    self.left.pack(&mut packed[at * rows.len()..][..width * rows.len()], width, at, rows.clone());
                }
                for panel in 0..self.right.count.div_ceil(PANEL) {
                    let (lines, step) = self.lanes(lanes, panel, rows.clone(), strips.count());
                    for (at, used, width) in strips.each() {
                        let wait = waiting[(panel * strips.padded() + at) * PANEL..].as_mut_ptr();
                        let mut t = Tile::new(width, width, PANEL, wait, PANEL);
                        (t.a, t.b, t.step, t.len) = (packed[at * rows.len()..].as_ptr(), Lines::F32(lines), step, rows.len());
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

    /// Rows `m` of a panel of the right operand: in place if it is whole and serves few strips, else copied to [len][32].
    fn lanes(&self, room: &mut [f32], panel: usize, m: Range<usize>, strips: usize) -> (*const f32, usize) {
        if strips <= 2 && self.right.index.is_none() && (panel + 1) * PANEL <= self.right.count {
            let from = self.right.row(m.start, panel * PANEL..self.right.count);
            return (from.as_ptr(), self.right.ld);
        }
        self.right.pack(&mut room[..m.len() * PANEL], PANEL, panel * PANEL, m);
        (room.as_ptr(), PANEL)
    }
}
