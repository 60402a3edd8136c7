//! The room's cases for [`crate::selftest`], and those of [`crate::kv_store`], which fills the pages: each device has its own layout of keys.

use super::{forward, prefill};
use crate::attention::{Heads, Params, ROOT};
use crate::kv_store::{self, PAGE, Pages};
use crate::selftest::inputs::{Kind, rows as batch};
use crate::selftest::{Case, Operand};
use runtime::{Result, Stream, View};

/// Positions of a path: two pages, of which the second begins.
const LEN: usize = 66;
/// Rows that a path's prefill asks for.
const ASKED: usize = 3;
/// Query heads, kv heads, head dim, softcap, window.
const SHAPES: [(usize, usize, usize, f32, u32); 4] =
    [(2, 1, 16, 0.0, 0), (4, 2, 20, 0.0, 7), (1, 1, 65, 30.0, 0), (3, 1, 8, 0.0, 0)];

/// Decoding and prefilling of paths that know nothing of each other, a path for every four rows.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    rows.iter().enumerate().flat_map(|(i, &n)| shape(i, seed + 8 * i as u64, n / 4 + 1)).collect()
}

/// Stores the rows of all paths, every path in two pages, and calls `f` with the pages, pieces and where a path's pieces begin.
fn stored(s: &Stream, cache: View<'_>, heads: Heads, f: impl FnOnce(Pages<'_>, View<'_>, View<'_>) -> Result<()>) -> Result<()> {
    let (paths, page) = (cache.len() / heads.stride() / LEN, heads.k * heads.d * PAGE);
    let held = [s.zeros::<f32>(2 * paths * page)?, s.zeros::<f32>(2 * paths * page)?];
    let pages = Pages { k: held[0].view(), v: held[1].view() };
    let slots: Vec<u32> = (0..paths).flat_map(|path| (0..LEN).map(move |pos| (2 * path * PAGE + pos) as u32)).collect();
    kv_store::forward(s, pages, cache, s.upload(&slots)?.view(), heads)?;
    let piece = |path: u32| [[2 * path, 0, 0, PAGE as u32], [2 * path + 1, 1, 0, (LEN - PAGE) as u32]].concat();
    let pieces: Vec<u32> = (0..paths as u32).flat_map(piece).collect();
    let first: Vec<u32> = (0..=paths as u32).map(|path| 2 * path).collect();
    f(pages, s.upload(&pieces)?.view(), s.upload(&first)?.view())
}

fn shape(i: usize, seed: u64, n: usize) -> Vec<Case> {
    let (h, k, d, softcap, window) = SHAPES[i % SHAPES.len()];
    let (heads, params) = (Heads { h, k, d }, Params { scale: 1.0 / (d as f32).sqrt(), softcap, window, causal: true });
    let (kind, stride) = ([Kind::Normal, Kind::EqualRows][i % 2], heads.stride());
    let output = |name, rows: usize, width: usize| Operand::output::<f32>(name, n * rows * width).per_row(rows * width);
    let rows = |name, seed, rows: usize| Operand::input(name, &batch(kind, seed, n * rows, stride)).per_row(rows * stride);
    let named = |what: &str| format!("decode_attention::{what} {n} h{h} k{k} d{d} {kind:?}");
    let one = vec![output("out", 1, h * d), rows("qkv", seed, 1), rows("cache", seed + 1, LEN)];
    let m = Operand::output::<i32>("m", n * ASKED * h).per_row(ASKED * h);
    let several =
        vec![output("out", ASKED, h * d), m, output("l", ASKED, h), rows("qkv", seed + 2, ASKED), rows("cache", seed + 3, LEN)];
    let decode = move |s: &Stream, v: &[View<'_>]| {
        let pos = s.upload(&vec![LEN as u32 - 1; v[1].len() / stride])?;
        stored(s, v[2], heads, |pages, pieces, first| forward(s, v[0], v[1], pages, pieces, first, pos.view(), heads, params))
    };
    let fill = move |s: &Stream, v: &[View<'_>]| {
        let segment = |path: usize| [(path * ASKED) as u32, ASKED as u32, (LEN - ASKED) as u32, ROOT];
        let segments: Vec<u32> = (0..v[3].len() / stride / ASKED).flat_map(segment).collect();
        let segments = s.upload(&segments)?;
        stored(s, v[4], heads, |pages, pieces, first| {
            prefill(s, v[0], v[1], v[2], v[3], segments.view(), pages, pieces, first, heads, params)
        })
    };
    vec![Case::new(named("forward"), one, decode).cut(n), Case::new(named("prefill"), several, fill).cut(n)]
}
