//! Sums over rows: `total[i, c] += Σ_m left[m, i]·right[m, c]`, one partial from +0 per example, its rows ascending (LAW A7).

use super::pack::{self, Left, Room};
use super::product::Strips;
use super::tile::{Ahead, Lines, Tile, fetch};
use crate::panels::PANEL;
use runtime::{Isa, Pool, Shared};
use std::ops::Range;

/// Rows of one block at most: what a panel of 32 columns may take of a first-level cache.
const BLOCK: usize = 256;
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

    /// Strips of all columns for rows `m`: the whole ones, then the last one in its own width.
    fn strips(&self, isa: Isa, strips: Strips, out: &mut [f32], m: Range<usize>) {
        let whole = strips.rows / strips.height * strips.height;
        self.cut(isa, out, strips.height, (0, whole), m.clone());
        if let Some((at, rows, width)) = strips.each().last().filter(|s| s.0 == whole) {
            self.cut(isa, &mut out[at * m.len()..], width, (at, rows), m);
        }
    }
}

/// The blocks of an example's rows: equal ones, so that none is too short to pay for its accumulators' way.
fn blocks(start: usize, end: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let rows = (end - start).max(1);
    let block = rows.div_ceil(rows.div_ceil(most));
    (start..end).step_by(block).map(move |first| first..(first + block).min(end))
}

/// Both operands brought into strips and panels once for all tasks of a call, block of rows by block of rows.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    /// [M, I] as blocks [strips][rows][width].
    left: &'a [f32],
    /// [M, C] as blocks [panels][rows][32].
    right: &'a [f32],
    /// Columns of the left operand, padded to strips.
    i: usize,
    /// Columns of the right operand, every part padded to panels.
    c: usize,
}

impl<'a> Packed<'a> {
    /// Floats for `m` rows of `i` columns and of parts of `n` columns.
    pub fn size(isa: Isa, m: usize, i: usize, n: &[usize]) -> usize {
        m * (Strips::new(isa, i).padded() + panels(n) * PANEL)
    }

    /// Packs `left` and the parts of `right`, `n` columns each, into `room` ([`Packed::size`] floats).
    pub fn new(
        pool: &Pool,
        room: &'a mut [f32],
        (left, right): (Columns<'_>, Columns<'_>),
        n: &[usize],
        examples: &[u32],
    ) -> Packed<'a> {
        let (isa, strips) = (pool.isa(), Strips::new(pool.isa(), left.count));
        let (i, c) = (strips.padded(), panels(n) * PANEL);
        let (to_left, to_right) = room.split_at_mut(room.len() / (i + c) * i);
        let all: Vec<Range<usize>> = examples.chunks_exact(2).flat_map(|e| blocks(e[0] as usize, e[1] as usize, BLOCK)).collect();
        let (shared_left, shared_right) = (Shared::new(&mut *to_left), Shared::new(&mut *to_right));
        pool.run(2 * all.len(), 0, &|task, _| {
            let m = &all[task / 2];
            if task % 2 == 0 {
                // SAFETY: examples have disjoint rows, and so have their blocks.
                left.strips(isa, strips, unsafe { shared_left.slice(m.start * i..m.end * i) }, m.clone());
                return;
            }
            // SAFETY: as above.
            let mut to = unsafe { shared_right.slice(m.start * c..m.end * c) };
            let mut first = 0;
            for &n in n {
                let (part, rest) = to.split_at_mut(n.next_multiple_of(PANEL) * m.len());
                right.cut(isa, part, PANEL, (first, n), m.clone());
                (to, first) = (rest, first + n);
            }
        });
        Packed { left: to_left, right: to_right, i, c }
    }
}

/// Panels of parts of `n` columns each.
fn panels(n: &[usize]) -> usize {
    n.iter().map(|n| n.div_ceil(PANEL)).sum()
}

/// One task: some columns of the left operand against some panels of the right one.
pub(crate) struct Outer<'a> {
    /// Instruction set.
    pub isa: Isa,
    /// [M, I]: one value for all lanes.
    pub left: Columns<'a>,
    /// [M, C]: lanes.
    pub right: Columns<'a>,
    /// Where both lie packed, and the first panel of `right` there; `left` then starts a strip. Else the task packs for itself.
    pub packed: Option<(Packed<'a>, usize)>,
}

impl Outer<'_> {
    /// Floats of scratch for `i` left and `c` right columns.
    pub fn size(isa: Isa, i: usize, c: usize, packed: bool) -> usize {
        Room::size(&Outer::pieces(isa, i, c, packed))
    }

    fn pieces(isa: Isa, i: usize, c: usize, packed: bool) -> [usize; 3] {
        let (i, c) = (Strips::new(isa, i).padded(), c.next_multiple_of(PANEL));
        let block = if packed { 0 } else { BLOCK };
        [i * block, c * block, i * c]
    }

    /// For every example ({start, end} of its rows, in order) gives each finished tile to `emit(tile, first column of the left, panel
    /// of the right)`, which sets where it goes and runs it.
    pub fn run(&self, examples: &[u32], scratch: &mut [f32], emit: &mut dyn FnMut(Tile, usize, usize)) {
        let mut room = Room::new(scratch);
        let [packed, lanes, waiting] =
            Outer::pieces(self.isa, self.left.count, self.right.count, self.packed.is_some()).map(|p| room.take(p));
        let strips = Strips::new(self.isa, self.left.count);
        // Lanes that serve few strips are not worth a copy; then fewer rows at a time keep within the pages that are at hand.
        let in_place = self.packed.is_none() && strips.count() <= 2 && self.right.count.is_multiple_of(PANEL);
        let block = if in_place && self.right.ld > 512 { NEAR } else { BLOCK };
        for example in examples.chunks_exact(2) {
            let (start, end) = (example[0] as usize, example[1] as usize);
            for rows in blocks(start, end, block) {
                let (packed, lanes): (&[f32], &[f32]) = match &self.packed {
                    Some((p, panel)) => (
                        &p.left[rows.start * p.i + self.left.first * rows.len()..],
                        &p.right[rows.start * p.c + panel * PANEL * rows.len()..],
                    ),
                    None => {
                        self.left.strips(self.isa, strips, packed, rows.clone());
                        if !in_place {
                            self.right.cut(self.isa, lanes, PANEL, (0, self.right.count), rows.clone());
                        }
                        (packed, lanes)
                    }
                };
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
                    for (i, (at, used, width)) in strips.each().enumerate() {
                        let wait = waiting[(panel * strips.padded() + at) * PANEL..].as_mut_ptr();
                        let mut t = Tile::new(width, width, PANEL, wait, PANEL);
                        t.a = packed[at * rows.len()..].as_ptr();
                        (t.b, t.step, t.len) = if in_place {
                            let from = &self.right.data[rows.start * self.right.ld + self.right.first + panel * PANEL..];
                            (Lines::F32(from.as_ptr()), self.right.ld, rows.len())
                        } else {
                            (Lines::F32(lanes[panel * rows.len() * PANEL..].as_ptr()), PANEL, rows.len())
                        };
                        if !in_place && panel + 1 < panels {
                            let next = &lanes[(panel + 1) * rows.len() * PANEL..][..rows.len() * PANEL];
                            t.ahead = Ahead::share(next, (i, strips.count()), rows.len());
                        }
                        if rows.start > start {
                            t.from = wait;
                        }
                        if rows.end == end {
                            t.rows = used;
                            emit(t, at, panel);
                        } else {
                            // SAFETY: the packed strip, the lanes and the accumulators have these sizes by `pieces` or `Packed`.
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
}
