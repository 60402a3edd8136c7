//! Forward on the CPU: a task is a tile of query rows times one kv head. Each block of keys is gathered once per tile and met by the
//! tile's rows chunk by chunk.

use super::block::{CHUNK, State, attend, scores};
use super::chains::{Left, Right};
use super::forest::Forest;
use super::layout::{Rows, divide, fetch, near, pack, transpose};
use super::scratch::Forward as Scratch;
use super::tile::{Layout, Part};
use super::{Heads, Params};
use runtime::{Isa, Pool, Shared};

/// Brings a block of a segment's path, of one kv head, to keys `[d, 64]` and values `[64, width]`: segment, block, head.
pub type Gather<'a> = dyn Fn(usize, usize, usize, &mut [f32], &mut [f32]) + Sync + 'a;

/// Everything a task reads, and where it writes.
struct Pass<'a> {
    out: Shared<'a, f32>,
    m: Shared<'a, i32>,
    l: Shared<'a, f32>,
    qkv: &'a [f32],
    forest: Forest<'a>,
    /// Where keys and values are if not in the rows.
    elsewhere: Option<&'a Gather<'a>>,
    heads: Heads,
    tile: Layout,
    params: Params,
    isa: Isa,
}

impl Pass<'_> {
    /// Heads `part`… of successive rows from `row` on.
    fn rows(&self, row: usize, part: usize, group: usize) -> Rows<'_> {
        Rows::of(self.qkv, row, self.heads.stride(), part, group, self.heads.d)
    }

    /// out, m, l of the heads of a group.
    ///
    /// # Safety
    /// The task owns them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn results(&self, row: usize, head: usize) -> (&mut [f32], &mut [i32], &mut [f32]) {
        let (group, d) = (self.tile.group, self.tile.d);
        let at = row * self.heads.h + head * group..row * self.heads.h + (head + 1) * group;
        // SAFETY: the caller's promise.
        unsafe { (self.out.slice(at.start * d..at.end * d), self.m.slice(at.clone()), self.l.slice(at)) }
    }

    /// Keys and values of a block on a part's path; those of the next one are asked for.
    fn gather(&self, part: &Part, block: usize, head: usize, x: &mut Scratch<'_>) {
        let (width, Heads { h, k, .. }) = (self.tile.width, self.heads);
        if let Some(gather) = self.elsewhere {
            return gather(part.index, block, head, x.keys, x.values);
        }
        self.forest.runs(part.index, block, |slots, row| {
            let places = slots.start * width..slots.end * width;
            transpose(x.keys, slots, self.rows(row, h + head, 1));
            pack(&mut x.values[places], self.rows(row, h + k + head, 1), width);
        });
        if block + 1 < part.blocks().end {
            self.forest.runs(part.index, block + 1, |slots, row| {
                fetch(self.rows(row, h + head, 1), slots.len());
                fetch(self.rows(row, h + k + head, 1), slots.len());
            });
        }
    }

    fn part(&self, part: &Part, head: usize, x: &mut Scratch<'_>) {
        let Layout { group, width, d, .. } = self.tile;
        let count = part.entries();
        let queries = self.rows(part.rows.start, head * group, group);
        fetch(queries, part.rows.len());
        // SAFETY: a task owns its rows' entries of its kv head.
        part.rows.clone().for_each(|row| near(unsafe { self.results(row, head) }.0));
        pack(&mut x.q[..count * width], queries, width);
        x.top[..count].fill(f32::NEG_INFINITY);
        for block in part.blocks() {
            self.gather(part, block, head, x);
            for first in (0..count).step_by(CHUNK) {
                let chunk = first..(first + CHUNK).min(count);
                let Some(spans) = part.spans(chunk.clone(), block) else { continue };
                let spans = &spans[..chunk.len()];
                scores(self.isa, x.s, Left { data: &x.q[first * width..], row: width, step: 1 }, x.keys, d, spans);
                let o = &mut x.o[first * width..chunk.end * width];
                let state = State { o, top: &mut x.top[chunk.clone()], sum: &mut x.sum[chunk] };
                attend(self.isa, state, x.s, Right::dense(x.values, width), spans, self.params);
            }
        }
        for (row, first) in part.rows.clone().zip((0..).step_by(group)) {
            let entries = first..first + group;
            // SAFETY: a task owns its rows' entries of its kv head.
            let (out, m, l) = unsafe { self.results(row, head) };
            divide(self.isa, out, &x.o[first * width..entries.end * width], &x.sum[entries.clone()], d, width);
            l.copy_from_slice(&x.sum[entries.clone()]);
            m.iter_mut().zip(&x.top[entries]).for_each(|(m, top)| *m = *top as i32);
        }
    }
}

/// `out`, `m`, `l` of all rows, with keys and values from the rows or from `elsewhere`.
pub fn forward(
    pool: &Pool,
    out: &mut [f32],
    m: &mut [i32],
    l: &mut [f32],
    qkv: &[f32],
    (forest, elsewhere): (Forest<'_>, Option<&Gather<'_>>),
    heads: Heads,
    params: Params,
) {
    let n = qkv.len() / heads.stride();
    let tile = Layout::new(heads, n, pool.threads());
    let (out, m, l) = (Shared::new(out), Shared::new(m), Shared::new(l));
    let pass = Pass { out, m, l, qkv, forest, elsewhere, heads, tile, params, isa: pool.isa() };
    let tiles = n.div_ceil(tile.rows);
    pool.run(tiles * heads.k, Scratch::len(tile), &|task, scratch| {
        // Later rows of a long tree see more keys: they go first.
        let (row, head) = ((tiles - 1 - task / heads.k) * tile.rows, task % heads.k);
        let mut scratch = Scratch::cut(scratch, tile);
        let rows = row..(row + tile.rows).min(n);
        Part::each(forest, rows, tile.group, params, |part| pass.part(&part, head, &mut scratch));
    });
}
