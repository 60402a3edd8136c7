//! `out = left · right` in LAW A1's order: a task packs a block of rows, walks over its panels of 32 columns, and runs one tile per
//! strip and panel. The reduction is cut only where a block would not stay in the second-level cache; accumulators wait in scratch.

use super::pack::{self, Left, Room};
use super::tile::{Ahead, Lines, Tile, fetch_near, strip_below, strip_rows, strip_width};
use crate::panels::PANEL;
use runtime::{Isa, Pool, Shared};
use std::ops::Range;

/// Floats of packed rows that one task keeps: half of a second-level cache of 1 MiB.
const PACKED: usize = 144 << 10;
/// Rows of one task at most.
const ROWS: usize = 256;
/// Floats of waiting accumulators of one task.
const WAITING: usize = 192 << 10;
/// Floats of right panels that are copied once for all row blocks, at most; larger ones are copied block by block.
const SHARED: usize = 8 << 20;
/// Tasks per thread, so that threads end together.
const TASKS: usize = 4;
/// Lanes that a projection's tile reads and writes.
const SLOTS: usize = 16;

/// Which columns of S (or dS) one LoRA adapter owns, and which stretch of the reduction makes them.
pub(crate) struct Projection {
    /// Columns of S.
    pub ranks: Range<usize>,
    /// Part of the reduction.
    pub span: Range<usize>,
}

/// What continues the chains of one panel.
#[derive(Default)]
pub(crate) struct Tail {
    /// Columns of S.
    pub ranks: Range<usize>,
    /// Whether 32 values of bias stand behind the tail's rows.
    pub bias: bool,
}

/// The right operand of a product, panel by panel.
pub(crate) trait Right: Sync {
    /// Length of the reduction.
    fn len(&self) -> usize;
    /// Longest reduction block.
    fn limit(&self) -> usize;
    /// Panels of at most 32 columns.
    fn panels(&self) -> usize;
    /// Columns of `out` that a panel covers.
    fn columns(&self, panel: usize) -> Range<usize>;
    /// Rows `k` of a panel, [len][32]: in place, or written to `room` ([len][32]). `strips` says how often they will be read.
    fn block(&self, isa: Isa, panel: usize, k: Range<usize>, strips: usize, room: &mut [f32]) -> Lines;
    /// Whether `block` writes to its room when there are several strips.
    fn copies(&self) -> bool;
    /// Writes a whole panel to `out` [len][32].
    fn copy(&self, isa: Isa, panel: usize, out: &mut [f32]);
    /// Share `i` of `of` of what `block` will read, over `steps` steps.
    fn ahead(&self, panel: usize, k: Range<usize>, share: (usize, usize), steps: usize) -> Ahead;
    /// Writes the tail's rows [ranks][32] and then the bias [32] to `room`.
    fn tail(&self, panel: usize, room: &mut [f32]) -> Tail;
    /// Columns of S in all.
    fn ranks(&self) -> usize;
    /// The adapters, one a part.
    fn projections(&self) -> usize;
    /// Adapter `p`.
    fn projection(&self, p: usize) -> Projection;
    /// Writes rows `k` of columns `j` (counted within the adapter) of what projects to S, as [len][j].
    fn project(&self, isa: Isa, p: usize, j: Range<usize>, k: Range<usize>, out: &mut [f32]);
}

/// Rows cut into strips.
#[derive(Clone, Copy)]
pub(crate) struct Strips {
    /// Rows in all.
    pub rows: usize,
    /// Rows of a full strip.
    pub height: usize,
}

impl Strips {
    /// Cuts `rows` for an instruction set.
    pub fn new(isa: Isa, rows: usize) -> Strips {
        Strips { rows, height: strip_rows(isa) }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    /// Rows with the padding of the last strip at its most.
    pub fn padded(&self) -> usize {
        self.rows.next_multiple_of(self.height)
    }

    /// First row, rows and packed width of each strip.
    pub fn each(self) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..self.rows).step_by(self.height).map(move |first| {
            let rows = self.height.min(self.rows - first);
            (first, rows, strip_width(rows))
        })
    }

    /// Packs columns `k` of rows `first..first + rows` of `left`, strip after strip.
    pub fn pack(self, isa: Isa, out: &mut [f32], left: Left<'_>, first: usize, k: Range<usize>) {
        for (at, rows, width) in self.each() {
            let to = &mut out[at * k.len()..][..width * k.len()];
            pack::strip(isa, to, width, left, first + at..first + at + rows, k.clone());
        }
    }
}

/// Where a product goes: [M, ld], written by tasks that never meet.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    /// Row 0.
    pub at: *mut f32,
    /// Elements between two rows.
    pub ld: usize,
}

// SAFETY: tasks write disjoint rows and columns of it.
unsafe impl Sync for Out {}

/// How a product is cut into tasks.
#[derive(Clone, Copy)]
struct Cut {
    rows: usize,
    row_blocks: usize,
    block: usize,
    blocks: usize,
    group: usize,
    groups: usize,
}

impl Cut {
    fn new(pool: &Pool, m: usize, right: &dyn Right) -> Cut {
        let (strip, threads, len) = (strip_rows(pool.isa()), pool.threads(), right.len().max(1));
        let blocks = len.div_ceil(right.limit());
        let block = len.div_ceil(blocks);
        let most = (PACKED / block).clamp(strip, ROWS) / strip * strip;
        let row_blocks = m.div_ceil(most);
        let row_blocks = if row_blocks > 1 { row_blocks.next_multiple_of(threads) } else { row_blocks };
        let rows = m.div_ceil(row_blocks.max(1)).next_multiple_of(strip).min(m).max(1);
        let row_blocks = m.div_ceil(rows);
        let panels = right.panels();
        let share = if threads == 1 { 1 } else { (TASKS * threads).div_ceil(row_blocks.max(1)) };
        let waiting = if blocks > 1 { WAITING / (rows.next_multiple_of(strip) * PANEL) } else { panels };
        let group = panels.div_ceil(share).min(waiting).max(1);
        Cut { rows, row_blocks, block, blocks, group, groups: panels.div_ceil(group) }
    }
}

/// `out = chain over left·right, continued by S·tail, then + bias`; `s` [M, ranks] is written (chains of their own) on the way.
/// Without `out` only `s` is made.
pub(crate) fn run(pool: &Pool, out: Option<Out>, s: &mut [f32], left: Left<'_>, m: usize, right: &dyn Right) {
    let cut = Cut::new(pool, m, right);
    if m == 0 || (out.is_none() && right.ranks() == 0) {
        return;
    }
    let floats = if out.is_some() { copied(right, cut.row_blocks) } else { 0 };
    let mut room = pool.shared(floats);
    copy_panels(pool, &mut room[..floats], right);
    let copy = if floats > 0 { Some(&room[..floats]) } else { None };
    let pieces = Task::pieces(pool.isa(), cut, right);
    let scratch = Room::size(&pieces);
    let apart = right.ranks() > 0 && (out.is_none() || cut.groups > 1);
    let blocks = |i: usize| i * cut.rows..((i + 1) * cut.rows).min(m);
    let task = |i: usize, out: Option<Out>, panels: Range<usize>, s: S<'_>, scratch: &mut [f32]| {
        let mut room = Room::new(scratch);
        let room = pieces.map(|p| room.take(p));
        Task { isa: pool.isa(), cut, left, right, copy, rows: blocks(i), strips: Strips::new(pool.isa(), blocks(i).len()), room }
            .run(out, panels, s);
    };
    if apart || cut.groups <= 1 {
        let out = if apart { None } else { out };
        let shared = Shared::new(&mut *s);
        pool.run(cut.row_blocks, scratch, &|i, scratch| {
            let (rows, r) = (blocks(i), right.ranks());
            // SAFETY: tasks have disjoint rows.
            let s = unsafe { shared.slice(rows.start * r..rows.end * r) };
            let panels = if out.is_some() { 0..right.panels() } else { 0..0 };
            task(i, out, panels, S::Make(s), scratch);
        });
        if !apart {
            return;
        }
    }
    if out.is_some() {
        let s = Left::new(s, right.ranks());
        pool.run(cut.row_blocks * cut.groups, scratch, &|i, scratch| {
            let (row, group) = (i / cut.groups, i % cut.groups);
            let panels = group * cut.group..((group + 1) * cut.group).min(right.panels());
            task(row, out, panels, S::Given(s), scratch);
        });
    }
}

/// Floats of a copy of all panels, 0 if blocks are better read or made one by one.
fn copied(right: &dyn Right, row_blocks: usize) -> usize {
    let len = right.panels() * right.len() * PANEL;
    if row_blocks > 1 && right.copies() && len <= SHARED { len } else { 0 }
}

/// Copies all panels [panels][len][32].
fn copy_panels(pool: &Pool, out: &mut [f32], right: &dyn Right) {
    let panel = right.len() * PANEL;
    if out.is_empty() {
        return;
    }
    let shared = Shared::new(out);
    pool.run(right.panels(), 0, &|p, _| {
        // SAFETY: tasks have disjoint panels.
        right.copy(pool.isa(), p, unsafe { shared.slice(p * panel..(p + 1) * panel) });
    });
}

/// Where S of a task comes from.
enum S<'a> {
    /// It makes its rows [rows, ranks].
    Make(&'a mut [f32]),
    /// All rows are there.
    Given(Left<'a>),
}

/// One block of rows.
struct Task<'a> {
    isa: Isa,
    cut: Cut,
    left: Left<'a>,
    right: &'a dyn Right,
    /// The panels of `right` [panels][len][32], where blocks share a copy.
    copy: Option<&'a [f32]>,
    rows: Range<usize>,
    strips: Strips,
    room: [&'a mut [f32]; 7],
}

impl Task<'_> {
    /// Scratch: packed rows, panel block, waiting accumulators, tail, packed S, unfinished S, projecting rows.
    fn pieces(isa: Isa, cut: Cut, right: &dyn Right) -> [usize; 7] {
        let (rows, ranks) = (Strips::new(isa, cut.rows).padded(), right.ranks());
        let waiting = if cut.blocks > 1 { cut.group * rows * PANEL } else { 0 };
        [
            rows * cut.block + SLOTS,
            cut.block * PANEL,
            waiting,
            (ranks + 1) * PANEL,
            rows * ranks,
            rows.div_ceil(strip_rows(isa)) * ranks * SLOTS,
            if ranks > 0 { cut.block * strip_rows(isa) } else { 0 },
        ]
    }

    fn run(mut self, out: Option<Out>, panels: Range<usize>, mut s: S<'_>) {
        let len = self.right.len();
        for block in 0..self.cut.blocks {
            let k = block * self.cut.block..((block + 1) * self.cut.block).min(len);
            self.strips.pack(self.isa, self.room[0], self.left, self.rows.start, k.clone());
            if let S::Make(_) = s {
                (0..self.right.projections()).for_each(|p| self.project(p, &k));
            }
            if k.end == len {
                self.finish(&mut s);
            }
            if let Some(out) = out {
                for (i, panel) in panels.clone().enumerate() {
                    let next = if panel + 1 < panels.end {
                        Some((panel + 1, k.clone()))
                    } else if k.end < len {
                        Some((panels.start, k.end..(k.end + self.cut.block).min(len)))
                    } else {
                        None
                    };
                    self.panel(out, i, panel, &k, next);
                }
            }
        }
    }

    /// Advances the columns of S that adapter `p` owns over the reduction block `k`.
    fn project(&mut self, p: usize, k: &Range<usize>) {
        let Projection { ranks, span } = self.right.projection(p);
        let own = span.start.max(k.start)..span.end.min(k.end);
        let (all, len) = (self.right.ranks(), k.len());
        let [packed, _, _, _, _, unfinished, rows] = &mut self.room;
        let mut j = 0;
        while j < ranks.len() && own.start < own.end {
            let width = strip_below(self.isa, ranks.len() - j);
            self.right.project(self.isa, p, j..j + width, own.clone(), rows);
            for (i, (at, columns, step)) in self.strips.each().enumerate() {
                let slot = (i * all + ranks.start + j) * SLOTS;
                let to = unfinished[slot..slot + width * SLOTS].as_mut_ptr();
                let from = packed[at * len + (own.start - k.start) * step..].as_ptr();
                let mut t = Tile::new(width, width, SLOTS, to, SLOTS);
                (t.a, t.b, t.step, t.len) = (rows.as_ptr(), Lines::F32(from), step, own.len());
                if own.start > span.start {
                    (t.from, t.from_ld) = (to, SLOTS);
                }
                debug_assert!(columns <= SLOTS);
                // SAFETY: `rows` holds [own][width]; the packed strip has `own` rows of `step` and 16 floats behind the last; `to`
                // has width rows of 16.
                unsafe { t.run(self.isa) };
            }
            j += width;
        }
    }

    /// Brings S into strips [ranks][width], and out if this task made it.
    fn finish(&mut self, s: &mut S<'_>) {
        let ranks = self.right.ranks();
        let [_, _, _, _, packed, unfinished, _] = &mut self.room;
        match s {
            S::Given(s) => self.strips.pack(self.isa, packed, *s, self.rows.start, 0..ranks),
            S::Make(out) => {
                for (i, (at, rows, width)) in self.strips.each().enumerate() {
                    for j in 0..ranks {
                        let from = &unfinished[(i * ranks + j) * SLOTS..][..SLOTS];
                        packed[at * ranks + j * width..][..width].copy_from_slice(&from[..width]);
                        for (r, &value) in from.iter().enumerate().take(rows) {
                            out[(at + r) * ranks + j] = value;
                        }
                    }
                }
            }
        }
    }

    /// All strips of one panel over the reduction block `k`; what the `next` one needs is asked for on the way.
    fn panel(&mut self, out: Out, slot: usize, panel: usize, k: &Range<usize>, next: Option<(usize, Range<usize>)>) {
        let (last, all, padded) = (k.end == self.right.len(), self.right.ranks(), self.strips.padded());
        let [packed, room, waiting, behind, s, _, _] = &mut self.room;
        let count = self.strips.count();
        let lines = match self.copy {
            Some(copy) => Lines::F32(copy[(panel * self.right.len() + k.start) * PANEL..].as_ptr()),
            None => self.right.block(self.isa, panel, k.clone(), count, room),
        };
        let tail = if last { self.right.tail(panel, behind) } else { Tail::default() };
        let columns = self.right.columns(panel);
        for (i, (at, rows, width)) in self.strips.each().enumerate() {
            let wait =
                if self.cut.blocks > 1 { waiting[(slot * padded + at) * PANEL..].as_mut_ptr() } else { std::ptr::null_mut() };
            let mut t = if last {
                // SAFETY: the row and the column exist.
                let to = unsafe { out.at.add((self.rows.start + at) * out.ld + columns.start) };
                (0..rows).for_each(|r| [0, 16, 31].iter().for_each(|c| fetch_near(to.wrapping_add(r * out.ld + c))));
                Tile::new(width, rows, columns.len(), to, out.ld)
            } else {
                Tile::new(width, width, PANEL, wait, PANEL)
            };
            (t.a, t.b, t.len) = (packed[at * k.len()..].as_ptr(), lines, k.len());
            if let Some((panel, ahead)) = &next {
                t.ahead = match self.copy {
                    Some(copy) => {
                        let start = (panel * self.right.len() + ahead.start) * PANEL;
                        Ahead::share(&copy[start..start + ahead.len() * PANEL], (i, count), k.len())
                    }
                    None => self.right.ahead(*panel, ahead.clone(), (i, count), k.len()),
                };
            }
            if k.start > 0 {
                t.from = wait;
            }
            if !tail.ranks.is_empty() {
                t.tail_a = s[at * all + tail.ranks.start * width..].as_ptr();
                (t.tail_b, t.tail) = (behind.as_ptr(), tail.ranks.len());
            }
            if tail.bias {
                t.bias = behind[tail.ranks.len() * PANEL..].as_ptr();
            }
            // SAFETY: strips, panel block, tail and accumulators have these sizes by `pieces`; the rows and columns of `out` are
            // this task's alone.
            unsafe { t.run(self.isa) };
        }
    }
}
