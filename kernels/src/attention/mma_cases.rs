//! The room's cases for [`crate::selftest`] in bf16: every head dim that there is a kernel for.

use super::{Heads, Params, ROOT, backward, forward};
use crate::selftest::inputs::{Kind, rounded, rows as batch};
use crate::selftest::{Case, Limit, Operand};
use runtime::{Result, Stream, View};

/// Rows of each sequence.
const LEN: usize = 5;
/// Query heads, kv heads, head dim, softcap, window.
const SHAPES: [(usize, usize, usize, f32, u32); 5] =
    [(2, 1, 16, 0.0, 0), (4, 2, 24, 0.0, 3), (1, 1, 64, 30.0, 0), (2, 1, 104, 0.0, 0), (1, 1, 256, 0.0, 0)];
const OUT: Limit = Limit::Norm { tensor: 3e-3, row: 3e-3 };
const GRADIENT: Limit = Limit::Norm { tensor: 5e-3, row: 5e-3 };

/// Forward and backward of sequences that know nothing of each other, a sequence for every four rows.
pub fn cases_in_bf16(rows: &[usize], seed: u64) -> Vec<Case> {
    let first = (0..SHAPES.len()).map(|i| shape(i, seed + 4 * i as u64, 1));
    first.chain(rows.iter().enumerate().map(|(i, &n)| shape(i, seed + 4 * i as u64 + 2, n / 4 + 1))).collect()
}

fn shape(i: usize, seed: u64, n: usize) -> Case {
    let (h, k, d, softcap, window) = SHAPES[i % SHAPES.len()];
    let (heads, params) = (Heads { h, k, d }, Params { scale: 1.0 / (d as f32).sqrt(), softcap, window, causal: true });
    let output = |name, width: usize, limit| {
        Operand::output::<f32>(name, n * LEN * width).per_row(LEN * width).acts().apart(width).within(limit)
    };
    let input =
        |name, seed, width: usize| Operand::input(name, &batch(Kind::Normal, seed, n * LEN, width)).per_row(LEN * width).acts();
    let (out, dqkv) = (output("out", h * d, OUT), output("dqkv", heads.stride(), GRADIENT));
    let operands = vec![out, dqkv, input("qkv", seed, heads.stride()), input("dout", seed + 1, h * d)];
    let run = move |s: &Stream, v: &[View<'_>]| -> Result<()> {
        let rows = v[2].len() / heads.stride();
        let (m, l) = (s.zeros::<i32>(rows * h)?, s.zeros::<f32>(rows * h)?);
        let segments: Vec<u32> = (0..rows / LEN).flat_map(|i| [(i * LEN) as u32, LEN as u32, 0, ROOT]).collect();
        let g = s.upload(&segments)?;
        forward(s, v[0], m.view(), l.view(), v[2], g.view(), heads, params)?;
        if s.host().is_some() {
            // The backward of what was stored of it.
            let mut out = vec![0f32; v[0].len()];
            v[0].read(s, &mut out)?;
            v[0].write(s, &rounded(&out))?;
        }
        backward(s, v[1], v[3], v[0], v[2], m.view(), l.view(), g.view(), heads, params)
    };
    Case::new(format!("attention::backward {n} h{h} k{k} d{d}"), operands, run).cut(n).in_bf16()
}
