//! The room's cases for [`crate::selftest`].

use super::{Heads, Params, ROOT, backward, forward};
use crate::selftest::inputs::{Kind, rows as batch};
use crate::selftest::{Case, Operand};
use runtime::{Result, Stream, View};

/// Rows of each sequence of a batch that is cut between sequences.
const LEN: usize = 5;
/// Query heads, kv heads, head dim, softcap, window.
const SHAPES: [(usize, usize, usize, f32, u32); 4] =
    [(2, 1, 16, 0.0, 0), (4, 2, 48, 0.0, 0), (1, 1, 64, 30.0, 0), (3, 3, 20, 0.0, 3)];

/// Forward, and forward with backward: over sequences that know nothing of each other, one for every four rows, and over a forest that
/// shares prompts.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    rows.iter().enumerate().flat_map(|(i, &n)| shape(i, seed + 8 * i as u64, n / 4 + 1)).collect()
}

fn shape(i: usize, seed: u64, n: usize) -> Vec<Case> {
    let (h, k, d, softcap, window) = SHAPES[i % SHAPES.len()];
    let (heads, params) = (Heads { h, k, d }, Params { scale: 1.0 / (d as f32).sqrt(), softcap, window, causal: true });
    // Moderate scores: what matters is their order.
    let kind = [Kind::Normal, Kind::EqualRows][i % 2];
    let operands = |rows: usize, per: usize| {
        let output = |name, width| Operand::output::<f32>(name, rows * width).per_row(per * width);
        let qkv = Operand::input("qkv", &batch(kind, seed, rows, heads.stride())).per_row(per * heads.stride());
        let dout = Operand::input("dout", &batch(Kind::Normal, seed + 1, rows, h * d)).per_row(per * h * d);
        let m = Operand::output::<i32>("m", rows * h).per_row(per * h);
        (vec![output("out", h * d), m, output("l", h), qkv], output("dqkv", heads.stride()), dout)
    };
    let apart = |len: usize| (0..len / LEN).flat_map(|i| [(i * LEN) as u32, LEN as u32, 0, ROOT]).collect::<Vec<u32>>();
    let (there, dqkv, dout) = operands(n * LEN, LEN);
    let both = [&there[..], &[dqkv, dout]].concat();
    let named = |what: &str| format!("attention::{what} {n} h{h} k{k} d{d} {kind:?}");
    let run = move |s: &Stream, v: &[View<'_>], segments: &[u32]| -> Result<()> {
        let segments = s.upload(segments)?;
        forward(s, v[0], v[1], v[2], v[3], segments.view(), heads, params)?;
        if let [.., dqkv, dout] = v[4..] {
            backward(s, dqkv, dout, v[0], v[3], v[1], v[2], segments.view(), heads, params)?;
        }
        Ok(())
    };
    // A prompt of 70 rows, so that a block of keys is shared, and up to 8 answers to it of 1 to 3 rows.
    let (mut forest, mut at) = (vec![0, 70, 0, ROOT], 70u32);
    for answer in 0..n.min(8) as u32 {
        forest.extend([at, answer % 3 + 1, 70, 0]);
        at += answer % 3 + 1;
    }
    let (shared, dqkv, dout) = operands(at as usize, 1);
    let shared = [&shared[..], &[dqkv, dout]].concat();
    vec![
        Case::new(named("forward"), there, move |s, v| run(s, v, &apart(v[3].len() / heads.stride()))).cut(n),
        Case::new(named("backward"), both, move |s, v| run(s, v, &apart(v[3].len() / heads.stride()))).cut(n),
        Case::new(named("backward of a shared prompt"), shared, move |s, v| run(s, v, &forest)),
    ]
}
