//! Backward on the CPU. The scores are recomputed block by block; a task keeps dq of its tile in scratch and dk, dv in place, so every
//! chain runs in the order of the law however the work is cut.

use super::block::{CHUNK, KEYS, scores};
use super::chains::{Left, Right, Span, extend};
use super::forest::Forest;
use super::layout::{Rows, deltas, fetch, near, pack, transpose, unpack};
use super::scratch::Backward as Scratch;
use super::tile::{Layout, Part};
use super::weights::{Known, slopes};
use super::{Heads, Params};
use runtime::{Isa, Pool, Shared};
use std::ops::Range;

/// What forward left, and the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// `[N, h·d]`
    pub dout: &'a [f32],
    /// `[N, h·d]`
    pub out: &'a [f32],
    /// `[N, (h + 2k)·d]`
    pub qkv: &'a [f32],
    /// `[N, h]`
    pub m: &'a [i32],
    /// `[N, h]`
    pub l: &'a [f32],
}

/// Everything a task reads, and where it writes.
struct Pass<'a> {
    saved: Saved<'a>,
    dqkv: Shared<'a, f32>,
    forest: Forest<'a>,
    heads: Heads,
    params: Params,
    tile: Layout,
    isa: Isa,
}

/// What a task is to do with its queries.
struct Work {
    /// The kv head.
    head: usize,
    /// Rows whose dk and dv it owns.
    keys: Range<usize>,
    /// Whether it owns dq of the queries.
    dq: bool,
}

/// For each slot of a block, the entries of a chunk that see it. Entries ascend by position, so each slot's are one run.
fn turned(spans: &[Span], own: &[bool; KEYS]) -> [Span; KEYS] {
    let (mut from, mut to) = (0, 0);
    std::array::from_fn(|slot| {
        while from < spans.len() && spans[from].to <= slot {
            from += 1;
        }
        while to < spans.len() && spans[to].from <= slot {
            to += 1;
        }
        if own[slot] { Span { from: from.min(to), to } } else { Span::default() }
    })
}

impl Pass<'_> {
    /// The values of `row` that belong to the query heads of a kv head (0), its key (1) or its value (2).
    ///
    /// # Safety
    /// The task owns them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn gradient(&self, row: usize, head: usize, which: usize) -> &mut [f32] {
        let Heads { h, k, d } = self.heads;
        let at = row * self.heads.stride() + [head * self.tile.group, h + head, h + k + head][which] * d;
        let len = if which == 0 { self.tile.group * d } else { d };
        // SAFETY: the caller's promise.
        unsafe { self.dqkv.slice(at..at + len) }
    }

    /// Heads `part`… of successive rows of qkv from `row` on.
    fn rows(&self, row: usize, part: usize, group: usize) -> Rows<'_> {
        Rows::of(self.saved.qkv, row, self.heads.stride(), part, group, self.heads.d)
    }

    /// Runs the tiles of `queries`: their dq if `work.dq`, and what they add to dk, dv of `work.keys`.
    fn task(&self, queries: Range<usize>, work: Work, scratch: &mut [f32]) {
        let mut scratch = Scratch::cut(scratch, self.tile);
        let above = (!work.dq).then(|| self.forest.at(work.keys.start));
        for row in queries.clone().step_by(self.tile.rows) {
            let rows = row..(row + self.tile.rows).min(queries.end);
            Part::each(self.forest, rows, self.tile.group, self.params, |part| {
                if above.is_none_or(|above| self.forest.on_path(above, part.index)) {
                    self.part(&part, &work, &mut scratch);
                }
            });
        }
    }

    /// Asks for what the task will write of the rows of `part`.
    fn near(&self, part: &Part, work: &Work) {
        for row in part.rows.clone() {
            // SAFETY: the task owns dq of its queries, dk and dv of its keys.
            unsafe {
                if work.dq {
                    near(self.gradient(row, work.head, 0));
                }
                if work.keys.contains(&row) {
                    near(self.gradient(row, work.head, 1));
                    near(self.gradient(row, work.head, 2));
                }
            }
        }
    }

    fn part(&self, part: &Part, work: &Work, x: &mut Scratch<'_>) {
        let (Layout { group, width, .. }, Heads { h, d, .. }, saved) = (self.tile, self.heads, self.saved);
        let (count, row, first_head) = (part.entries(), part.rows.start, work.head * group);
        let of = |data| Rows::of(data, row, h * d, first_head, group, d);
        let (q, dout, out) = (self.rows(row, first_head, group), of(saved.dout), of(saved.out));
        [q, dout, out].into_iter().for_each(|rows| fetch(rows, part.rows.len()));
        self.near(part, work);
        pack(&mut x.q[..count * width], q, width);
        pack(&mut x.dout[..count * width], dout, width);
        deltas(self.isa, &mut x.delta[..count], dout, out);
        x.dq[..count * width].fill(0.0);
        for (row, first) in part.rows.clone().zip((0..).step_by(group)) {
            let at = row * h + first_head;
            x.sum[first..first + group].copy_from_slice(&saved.l[at..at + group]);
            x.top[first..first + group].iter_mut().zip(&saved.m[at..]).for_each(|(top, m)| *top = *m as f32);
        }
        for block in part.blocks() {
            self.block(part, block, work, x);
        }
        for (row, first) in part.rows.clone().zip((0..).step_by(group)).filter(|_| work.dq) {
            // SAFETY: the task owns dq of its queries.
            let dq = unsafe { self.gradient(row, work.head, 0) };
            unpack(dq, &x.dq[first * width..(first + group) * width], d, width);
        }
    }

    /// One part of a tile against one block of its path.
    fn block(&self, part: &Part, block: usize, work: &Work, x: &mut Scratch<'_>) {
        let (Layout { width, d, .. }, count) = (self.tile, part.entries());
        let mut own = [false; KEYS];
        self.forest.runs(part.index, block, |slots, row| {
            slots.zip(row..).for_each(|(slot, row)| own[slot] = work.keys.contains(&row));
        });
        let any = own.contains(&true);
        if !work.dq && !any {
            return;
        }
        self.gather(part, block, &own, work.head, x);
        for first in (0..count).step_by(CHUNK) {
            let chunk = first..(first + CHUNK).min(count);
            let Some(spans) = part.spans(chunk.clone(), block) else { continue };
            let spans = &spans[..chunk.len()];
            let padded = first * width..chunk.end * width;
            let (q, dout) = (&x.q[padded.clone()], &x.dout[padded.clone()]);
            scores(self.isa, x.s, Left { data: q, row: width, step: 1 }, x.keys, d, spans);
            scores(self.isa, x.dp, Left { data: dout, row: width, step: 1 }, x.values, d, spans);
            let known = Known { top: &x.top[chunk.clone()], sum: &x.sum[chunk.clone()], delta: &x.delta[chunk] };
            slopes(self.isa, x.s, x.dp, known, spans, self.params);
            if any {
                let turned = turned(spans, &own);
                extend(self.isa, x.dk, Left { data: x.dp, row: 1, step: KEYS }, Right::dense(q, width), &turned);
                extend(self.isa, x.dv, Left { data: x.s, row: 1, step: KEYS }, Right::dense(dout, width), &turned);
            }
            if work.dq {
                let (dt, keys) = (Left { data: x.dp, row: KEYS, step: 1 }, Right::dense(x.key_rows, width));
                extend(self.isa, &mut x.dq[padded], dt, keys, spans);
            }
        }
        self.forest.runs(part.index, block, |slots, row| {
            for (slot, row) in slots.zip(row..).filter(|(slot, _)| own[*slot]) {
                // SAFETY: the task owns dk and dv of its keys.
                let (dk, dv) = unsafe { (self.gradient(row, work.head, 1), self.gradient(row, work.head, 2)) };
                dk.copy_from_slice(&x.dk[slot * width..][..d]);
                dv.copy_from_slice(&x.dv[slot * width..][..d]);
            }
        });
    }

    /// Brings a block's keys and values, and what its keys of this task have so far.
    fn gather(&self, part: &Part, block: usize, own: &[bool; KEYS], head: usize, x: &mut Scratch<'_>) {
        let (Layout { width, d, .. }, Heads { h, k, .. }) = (self.tile, self.heads);
        self.forest.runs(part.index, block, |slots, row| {
            let (keys, values) = (self.rows(row, h + head, 1), self.rows(row, h + k + head, 1));
            transpose(x.keys, slots.clone(), keys);
            transpose(x.values, slots.clone(), values);
            pack(&mut x.key_rows[slots.start * width..slots.end * width], keys, width);
            for (slot, row) in slots.zip(row..).filter(|(slot, _)| own[*slot]) {
                let (dk, dv) = (&mut x.dk[slot * width..][..width], &mut x.dv[slot * width..][..width]);
                if part.begins(row) {
                    dk.fill(0.0);
                    dv.fill(0.0);
                } else {
                    // SAFETY: the task owns dk and dv of its keys.
                    let (from_k, from_v) = unsafe { (self.gradient(row, head, 1), self.gradient(row, head, 2)) };
                    dk[..d].copy_from_slice(from_k);
                    dv[..d].copy_from_slice(from_v);
                }
            }
        });
        if block + 1 < part.blocks().end {
            self.forest.runs(part.index, block + 1, |slots, row| {
                fetch(self.rows(row, h + head, 1), slots.len());
                fetch(self.rows(row, h + k + head, 1), slots.len());
            });
        }
    }
}

/// Whether whole trees feed the threads: computing dq, dk and dv together takes 10 FLOPs where apart they take 14.
fn by_tree(forest: Forest<'_>, heads: Heads, threads: usize) -> bool {
    let (mut all, mut largest, mut trees) = (0.0f64, 0.0f64, 0usize);
    for i in (0..forest.len()).filter(|&i| forest.get(i).parent.is_none()) {
        let work = (forest.tree(i).len() as f64).powi(2);
        (all, largest, trees) = (all + work, largest.max(work), trees + 1);
    }
    let tasks = trees * heads.k;
    let together = largest.max(all / trees.max(1) as f64 * tasks.div_ceil(threads) as f64);
    10.0 * together <= 14.0 * all * heads.k as f64 / threads as f64
}

/// `dqkv` of all rows.
pub fn backward(pool: &Pool, dqkv: &mut [f32], saved: Saved<'_>, forest: Forest<'_>, heads: Heads, params: Params) {
    let (n, k) = (saved.qkv.len() / heads.stride(), heads.k);
    let together = by_tree(forest, heads, pool.threads());
    let tile = Layout::new(heads, n, if together { 1 } else { pool.threads() });
    let pass = Pass { saved, dqkv: Shared::new(dqkv), forest, heads, params, tile, isa: pool.isa() };
    let scratch = Scratch::len(tile);
    if together {
        pool.run(forest.len() * k, scratch, &|task, scratch| {
            if forest.get(task / k).parent.is_none() {
                let tree = forest.tree(task / k);
                pass.task(tree.clone(), Work { head: task % k, keys: tree, dq: true }, scratch);
            }
        });
        return;
    }
    // Keys first, early ones first: most rows see them. Then dq, late rows first.
    let tiles = n.div_ceil(tile.rows);
    pool.run(2 * tiles * k, scratch, &|task, scratch| {
        let (index, head) = (task / k, task % k);
        let rows = |index: usize| index * tile.rows..((index + 1) * tile.rows).min(n);
        if index >= tiles {
            pass.task(rows(2 * tiles - 1 - index), Work { head, keys: 0..0, dq: true }, scratch);
            return;
        }
        Part::each(forest, rows(index), tile.group, params, |part| {
            let past = forest.tree(forest.root(part.index)).end;
            let queries = if params.causal { part.rows.start } else { part.segment.start }..past;
            pass.task(queries, Work { head, keys: part.rows, dq: false }, scratch);
        });
    });
}
