//! Decoding on the CPU: a task is one row times one kv head. Pages are read in place; a block in several pieces is gathered first.

use super::Piece;
use crate::attention::block::{CHUNK, KEYS, State, attend, scores};
use crate::attention::chains::{Left, Right};
use crate::attention::cpu as attention;
use crate::attention::forest::Forest;
use crate::attention::layout::{Rows, divide, near, pack};
use crate::attention::scratch::take;
use crate::attention::tile::slots;
use crate::attention::{Heads, Params};
use crate::cpu::WIDTH;
use runtime::{Isa, Pool, Shared};

/// Keys and values of a head are asked for ahead up to this many.
const FETCHED: usize = 1024;

/// Pages of one layer and who reads what of them. Where segments read, `first` counts segments.
#[derive(Clone, Copy, Debug)]
pub struct Store<'a> {
    /// `[P, kv heads, d, 64]`
    pub k: &'a [f32],
    /// `[P, kv heads, 64, d]`
    pub v: &'a [f32],
    /// {page, block, from, to}
    pub pieces: &'a [Piece],
    /// `[B + 1]`
    pub first: &'a [u32],
}

impl<'a> Store<'a> {
    /// The pieces of a row.
    fn of(&self, row: usize) -> &'a [Piece] {
        &self.pieces[self.first[row] as usize..self.first[row + 1] as usize]
    }

    /// Keys `[d, 64]` of one head of a piece's page, and everything from its values `[64, d]` on.
    fn page(&self, piece: &Piece, head: usize, heads: Heads) -> (&'a [f32], &'a [f32]) {
        let at = (piece[0] as usize * heads.k + head) * heads.d * KEYS;
        (&self.k[at..at + heads.d * KEYS], &self.v[at..])
    }
}

/// Copies the offsets of a piece: keys `[d, 64]`, values `[64, width]` with zeros behind d.
fn gather(keys: &mut [f32], values: &mut [f32], k: &[f32], v: &[f32], [_, _, from, to]: Piece, d: usize, width: usize) {
    let (from, to) = (from as usize, to as usize);
    for i in 0..d {
        keys[i * KEYS + from..i * KEYS + to].copy_from_slice(&k[i * KEYS + from..i * KEYS + to]);
    }
    pack(&mut values[from * width..to * width], Rows { data: &v[from * d..], stride: d, group: 1, d }, width);
}

/// The scratch of a task.
struct Scratch<'a> {
    /// `[group, width]`
    o: &'a mut [f32],
    /// `[group]`
    top: &'a mut [f32],
    sum: &'a mut [f32],
    /// `[d, 64]`
    keys: &'a mut [f32],
    /// `[64, width]`
    values: &'a mut [f32],
    /// `[64, 64]`
    s: &'a mut [f32],
}

/// The query heads `q [group, d]` of row `row` over the row's blocks.
fn row(
    isa: Isa,
    (row, pos): (usize, usize),
    head: usize,
    q: &[f32],
    store: Store<'_>,
    heads: Heads,
    params: Params,
    x: &mut Scratch<'_>,
) {
    let (d, width, group) = (heads.d, heads.d.next_multiple_of(WIDTH), heads.group());
    let seen = params.first(pos)..pos + 1;
    let mut pieces = store.of(row);
    x.top.fill(f32::NEG_INFINITY);
    while let Some(&[_, block, ..]) = pieces.first() {
        let (of_block, rest) = pieces.split_at(pieces.iter().take_while(|p| p[1] == block).count());
        pieces = rest;
        let span = slots(seen.clone(), block as usize);
        if span.is_empty() {
            continue;
        }
        let page = |piece: &Piece| store.page(piece, head, heads);
        // A short head ends before the machine sees that it is read in order.
        if let Some(next) = pieces.first().filter(|_| d * KEYS <= FETCHED) {
            let (k, v) = page(next);
            near(k);
            near(&v[..d * KEYS]);
        }
        let (keys, values) = match of_block {
            // Whole vectors may reach into the values behind a row, but not behind the last page.
            [piece] if (span.to - 1) * d + width <= page(piece).1.len() => {
                let (k, v) = page(piece);
                (k, Right { data: v, stride: d, width })
            }
            _ => {
                for piece in of_block {
                    let (k, v) = page(piece);
                    gather(x.keys, x.values, k, v, *piece, d, width);
                }
                (&*x.keys, Right::dense(x.values, width))
            }
        };
        for first in (0..group).step_by(CHUNK) {
            let chunk = first..(first + CHUNK).min(group);
            let spans = &[span; CHUNK][..chunk.len()];
            scores(isa, x.s, Left { data: &q[first * d..], row: d, step: 1 }, keys, d, spans);
            let o = &mut x.o[first * width..chunk.end * width];
            let state = State { o, top: &mut x.top[chunk.clone()], sum: &mut x.sum[chunk] };
            attend(isa, state, x.s, values, spans, params);
        }
    }
}

/// `out` of all rows.
pub fn forward(pool: &Pool, out: &mut [f32], qkv: &[f32], store: Store<'_>, pos: &[u32], heads: Heads, params: Params) {
    let (group, d, width, isa) = (heads.group(), heads.d, heads.d.next_multiple_of(WIDTH), pool.isa());
    let out = Shared::new(out);
    let scratch = group * (width + 2) + KEYS * (d + width) + CHUNK * KEYS;
    pool.run(pos.len() * heads.k, scratch, &|task, mut rest| {
        let (b, head) = (task / heads.k, task % heads.k);
        let mut next = |len| take(&mut rest, len);
        let mut x = Scratch {
            o: next(group * width),
            top: next(group),
            sum: next(group),
            keys: next(KEYS * d),
            values: next(KEYS * width),
            s: next(CHUNK * KEYS),
        };
        let q = &qkv[b * heads.stride() + head * group * d..][..group * d];
        row(isa, (b, pos[b] as usize), head, q, store, heads, params, &mut x);
        let at = (b * heads.h + head * group) * d;
        // SAFETY: a task owns its row's heads.
        let out = unsafe { out.slice(at..at + group * d) };
        divide(isa, out, x.o, x.sum, d, width);
    });
}

/// Outputs of a forest's rows.
pub struct Outputs<'a> {
    /// `[N, h·d]`
    pub out: &'a mut [f32],
    /// `[N, h]`
    pub m: &'a mut [i32],
    /// `[N, h]`
    pub l: &'a mut [f32],
}

/// All rows of a forest, every segment over its pieces.
pub fn prefill(pool: &Pool, to: Outputs<'_>, qkv: &[f32], forest: Forest<'_>, store: Store<'_>, heads: Heads, params: Params) {
    let width = heads.d.next_multiple_of(WIDTH);
    let gather_block = |segment: usize, block: usize, head: usize, keys: &mut [f32], values: &mut [f32]| {
        for piece in store.of(segment).iter().filter(|piece| piece[1] as usize == block) {
            let (k, v) = store.page(piece, head, heads);
            gather(keys, values, k, v, *piece, heads.d, width);
        }
    };
    attention::forward(pool, to.out, to.m, to.l, qkv, (forest, Some(&gather_block)), heads, params);
}
