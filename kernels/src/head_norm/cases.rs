//! The room's cases for [`crate::selftest`].

use super::{Shape, backward, backward_weight, forward};
use crate::selftest::inputs::{Kind, normal, rows as batch};
use crate::selftest::{Case, Operand};

const EPS: f32 = 1e-5;
/// H, K, D, columns after the heads, offset of the weights.
const SHAPES: [([usize; 4], f32); 4] =
    [([1, 1, 1, 0], 0.0), ([4, 2, 16, 32], 1.0), ([3, 3, 45, 135], 0.0), ([2, 1, 256, 7], 1.0)];

/// Forward, backward, the gradients of both weights.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    let one = |(i, &n): (usize, &usize)| shape(Kind::nth(i), seed + 8 * i as u64, n, SHAPES[i % 4]);
    rows.iter().enumerate().flat_map(one).collect()
}

fn shape(kind: Kind, seed: u64, n: usize, ([queries, keys, d, rest], offset): ([usize; 4], f32)) -> Vec<Case> {
    let heads = queries + keys;
    let shape = Shape { queries, keys, d, stride: heads * d + rest };
    let (x, dy) = (batch(kind, seed, n, shape.stride), batch(kind, seed + 1, n, shape.stride));
    let rstd: Vec<f32> = normal(seed + 2, n * heads).iter().map(|v| v * v + 0.1).collect();
    let [x, dy] = [("x", &x), ("d", &dy)].map(|(name, values)| Operand::input(name, values).per_row(shape.stride).acts());
    let [wq, wk] = [("wq", 3), ("wk", 4)].map(|(name, i)| Operand::input(name, &normal(seed + i, d)));
    let y = Operand::output::<f32>("y", n * shape.stride).per_row(shape.stride).acts();
    let in_place = Operand::both("d", &batch(kind, seed + 1, n, shape.stride)).per_row(shape.stride).acts().apart(shape.stride);
    let rstd_out = Operand::output::<f32>("rstd", n * heads).per_row(heads);
    let rstd = Operand::input("rstd", &rstd).per_row(heads);
    let [dwq, dwk] = [("dwq", 5), ("dwk", 6)].map(|(name, i)| Operand::both(name, &normal(seed + i, d)));
    let ends = Operand::input("examples", &[0, n as u32 / 3, n as u32 / 3, n as u32]);
    let named = |what: &str| format!("head_norm::{what} {n} rows of {shape:?} {kind:?}");
    let there = vec![y, rstd_out, x.clone(), wq.clone(), wk.clone()];
    let back = vec![in_place, x.clone(), rstd.clone(), wq, wk];
    let weight = vec![dwq, dwk, dy, x, rstd, ends];
    vec![
        Case::new(named("forward"), there, move |s, v| forward(s, v[0], v[1], v[2], [v[3], v[4]], shape, EPS, offset)).cut(n),
        Case::new(named("backward"), back, move |s, v| backward(s, v[0], v[1], v[2], [v[3], v[4]], shape, offset)).cut(n),
        Case::new(named("backward_weight"), weight, move |s, v| backward_weight(s, [v[0], v[1]], v[2], v[3], v[4], v[5], shape)),
    ]
}
