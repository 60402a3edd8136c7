//! The room's cases for [`crate::selftest`].

use super::{Curve, backward, forward};
use crate::selftest::inputs::{Kind, rows as batch};
use crate::selftest::{Case, Operand};

const WIDTHS: [usize; 4] = [1, 45, 768, 333];

/// Forward and backward by both curves, plain and gated.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    let forms = [(Curve::Tanh, 1), (Curve::Tanh, 2), (Curve::Erf, 1), (Curve::Erf, 2)];
    let one = |(i, &n): (usize, &usize)| {
        let of = move |(curve, parts)| shape(Kind::nth(i), seed + 8 * i as u64, n, WIDTHS[i % 4], curve, parts);
        forms.into_iter().flat_map(of)
    };
    rows.iter().enumerate().flat_map(one).collect()
}

/// `parts`: how often a row of x has the columns of y.
fn shape(kind: Kind, seed: u64, n: usize, f: usize, curve: Curve, parts: usize) -> Vec<Case> {
    let x = Operand::input("x", &batch(kind, seed, n, parts * f)).per_row(parts * f).acts();
    let dy = Operand::input("dy", &batch(kind, seed + 1, n, f)).per_row(f).acts();
    let output = |name, width| Operand::output::<f32>(name, n * width).per_row(width).acts().apart(width);
    let named = |what: &str| format!("gelu::{what} {curve:?} {n}x{}, {parts} of {f} {kind:?}", parts * f);
    let there = vec![output("y", f), x.clone()];
    let back = vec![output("dx", parts * f), dy, x];
    vec![
        Case::new(named("forward"), there, move |s, v| forward(s, v[0], v[1], f, curve)).cut(n),
        Case::new(named("backward"), back, move |s, v| backward(s, v[0], v[1], v[2], f, curve)).cut(n),
    ]
}
