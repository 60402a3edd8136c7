//! Backward on the CPU. The scores are recomputed block by block; a task keeps dq of its tile in scratch and dk, dv in place, so every
//! chain runs in the order of the law however the work is cut.

use super::block::{CHUNK, KEYS, Known, copy, deltas, scores, slopes, transpose};
use super::chains::{Left, Right, Span, extend};
use super::cpu::{Layout, blocks, pack, parts, sees, slots, take};
use super::forest::{Forest, Segment};
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

/// Scratch of a task.
struct Scratch<'a> {
    /// `[entries, width]`
    q: &'a mut [f32],
    dout: &'a mut [f32],
    dq: &'a mut [f32],
    /// `[entries]`
    top: &'a mut [f32],
    sum: &'a mut [f32],
    delta: &'a mut [f32],
    /// `[d, 64]`: keys and values with the slots side by side.
    keys: &'a mut [f32],
    values: &'a mut [f32],
    /// `[64, width]`
    key_rows: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    /// `[64, 64]`
    s: &'a mut [f32],
    dp: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn len(tile: Layout) -> usize {
        tile.entries() * (3 * tile.width + 3) + KEYS * (2 * tile.d + 3 * tile.width) + 2 * CHUNK * KEYS
    }

    fn cut(mut rest: &'a mut [f32], tile: Layout) -> Scratch<'a> {
        let mut next = |len| take(&mut rest, len);
        let (entries, width) = (tile.entries(), tile.width);
        Scratch {
            q: next(entries * width),
            dout: next(entries * width),
            dq: next(entries * width),
            top: next(entries),
            sum: next(entries),
            delta: next(entries),
            keys: next(KEYS * tile.d),
            values: next(KEYS * tile.d),
            key_rows: next(KEYS * width),
            dk: next(KEYS * width),
            dv: next(KEYS * width),
            s: next(CHUNK * KEYS),
            dp: next(CHUNK * KEYS),
        }
    }
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

    /// dq of `queries` if `dq`, and what they add to dk, dv of the rows `keys`.
    fn task(&self, queries: Range<usize>, keys: Range<usize>, dq: bool, head: usize, scratch: &mut [f32]) {
        let mut scratch = Scratch::cut(scratch, self.tile);
        let above = (!keys.is_empty() && !dq).then(|| self.forest.at(keys.start));
        for row in keys.clone() {
            // SAFETY: the task owns dk and dv of its keys.
            unsafe {
                self.gradient(row, head, 1).fill(0.0);
                self.gradient(row, head, 2).fill(0.0);
            }
        }
        for row in queries.clone().step_by(self.tile.rows) {
            parts(self.forest, row..(row + self.tile.rows).min(queries.end), |i, segment, rows| {
                if above.is_none_or(|above| self.forest.on_path(above, i)) {
                    self.rows(i, segment, rows, &keys, dq, head, &mut scratch);
                }
            });
        }
    }

    /// One part of a tile: consecutive rows of segment `i`.
    fn rows(
        &self,
        i: usize,
        segment: Segment,
        rows: Range<usize>,
        keys: &Range<usize>,
        dq: bool,
        head: usize,
        x: &mut Scratch<'_>,
    ) {
        let (Heads { h, d, .. }, tile) = (self.heads, self.tile);
        let (saved, group, count) = (self.saved, tile.group, rows.len() * tile.group);
        pack(
            &mut x.q[..count * tile.width],
            &saved.qkv[rows.start * self.heads.stride() + head * group * d..],
            self.heads.stride(),
            tile,
        );
        pack(&mut x.dout[..count * tile.width], &saved.dout[rows.start * h * d + head * group * d..], h * d, tile);
        x.dq[..count * tile.width].fill(0.0);
        for (row, first) in rows.clone().zip((0..).step_by(group)) {
            let at = row * h + head * group;
            let of_row = first..first + group;
            let (dout, out) = (&saved.dout[at * d..(at + group) * d], &saved.out[at * d..(at + group) * d]);
            deltas(self.isa, &mut x.delta[of_row.clone()], dout, out, d);
            x.sum[of_row.clone()].copy_from_slice(&saved.l[at..at + group]);
            x.top[of_row].iter_mut().zip(&saved.m[at..]).for_each(|(top, m)| *top = *m as f32);
        }
        for block in blocks(segment, &rows, self.params) {
            self.block(i, segment, &rows, block, keys, dq, head, x);
        }
        if dq {
            for (row, first) in rows.zip((0..).step_by(group)) {
                // SAFETY: the task owns dq of its queries.
                let out = unsafe { self.gradient(row, head, 0) };
                for (g, out) in out.chunks_exact_mut(d).enumerate() {
                    out.copy_from_slice(&x.dq[(first + g) * tile.width..][..d]);
                }
            }
        }
    }

    /// Those rows against one block of their path.
    fn block(
        &self,
        i: usize,
        segment: Segment,
        rows: &Range<usize>,
        block: usize,
        keys: &Range<usize>,
        dq: bool,
        head: usize,
        x: &mut Scratch<'_>,
    ) {
        let (Heads { h, k, d }, tile, stride) = (self.heads, self.tile, self.heads.stride());
        let (width, qkv) = (tile.width, self.saved.qkv);
        let mut own = [false; KEYS];
        self.forest.runs(i, block, |slots, first| {
            slots.zip(first..).for_each(|(slot, row)| own[slot] = keys.contains(&row));
        });
        let any = own.contains(&true);
        if !dq && !any {
            return;
        }
        self.forest.runs(i, block, |slots, first| {
            transpose(x.keys, slots.clone(), &qkv[first * stride + (h + head) * d..], stride, d);
            transpose(x.values, slots.clone(), &qkv[first * stride + (h + k + head) * d..], stride, d);
            copy(x.key_rows, slots.clone(), &qkv[first * stride + (h + head) * d..], stride, d, width);
            for (slot, row) in slots.zip(first..).filter(|(slot, _)| own[*slot]) {
                // SAFETY: the task owns dk and dv of its keys.
                unsafe {
                    x.dk[slot * width..][..d].copy_from_slice(self.gradient(row, head, 1));
                    x.dv[slot * width..][..d].copy_from_slice(self.gradient(row, head, 2));
                }
            }
        });
        let count = rows.len() * tile.group;
        for first in (0..count).step_by(CHUNK) {
            let chunk = first..(first + CHUNK).min(count);
            let mut spans = [Span::default(); CHUNK];
            let spans = &mut spans[..chunk.len()];
            for (span, entry) in spans.iter_mut().zip(chunk.clone()) {
                let pos = segment.pos0 + rows.start - segment.start + entry / tile.group;
                *span = slots(&sees(segment, pos, self.params), block);
            }
            let padded = first * width..chunk.end * width;
            let (q, dout) = (&x.q[padded.clone()], &x.dout[padded.clone()]);
            scores(self.isa, x.s, Left { data: q, row: width, step: 1 }, x.keys, d, spans);
            scores(self.isa, x.dp, Left { data: dout, row: width, step: 1 }, x.values, d, spans);
            let known = Known { top: &x.top[chunk.clone()], sum: &x.sum[chunk.clone()], delta: &x.delta[chunk] };
            slopes(self.isa, x.s, x.dp, known, spans, self.params);
            if any {
                let turned = turned(spans, &own);
                extend(self.isa, x.dk, Left { data: x.dp, row: 1, step: KEYS }, Right { data: q, width }, &turned);
                extend(self.isa, x.dv, Left { data: x.s, row: 1, step: KEYS }, Right { data: dout, width }, &turned);
            }
            if dq {
                extend(
                    self.isa,
                    &mut x.dq[padded],
                    Left { data: x.dp, row: KEYS, step: 1 },
                    Right { data: x.key_rows, width },
                    spans,
                );
            }
        }
        self.forest.runs(i, block, |slots, first| {
            for (slot, row) in slots.zip(first..).filter(|(slot, _)| own[*slot]) {
                // SAFETY: the task owns dk and dv of its keys.
                unsafe {
                    self.gradient(row, head, 1).copy_from_slice(&x.dk[slot * width..][..d]);
                    self.gradient(row, head, 2).copy_from_slice(&x.dv[slot * width..][..d]);
                }
            }
        });
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
            let (i, head) = (task / k, task % k);
            if forest.get(i).parent.is_none() {
                let rows = forest.tree(i);
                pass.task(rows.clone(), rows, true, head, scratch);
            }
        });
        return;
    }
    // Keys first, early ones first: most rows see them. Then dq, late rows first.
    let tiles = n.div_ceil(tile.rows);
    pool.run(2 * tiles * k, scratch, &|task, scratch| {
        let (index, head) = (task / k, task % k);
        let first = |index: usize| index * tile.rows..((index + 1) * tile.rows).min(n);
        if index >= tiles {
            pass.task(first(2 * tiles - 1 - index), 0..0, true, head, scratch);
            return;
        }
        parts(forest, first(index), |i, segment, keys| {
            let past = forest.tree(forest.root(i)).end;
            let queries = if params.causal { keys.start..past } else { segment.start..past };
            pass.task(queries, keys, false, head, scratch);
        });
    });
}
