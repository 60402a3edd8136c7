//! The room's cases for [`crate::selftest`].

use super::{backward, forward};
use crate::selftest::inputs::{Kind, rows as batch};
use crate::selftest::{Case, Operand};

const WIDTHS: [usize; 4] = [1, 45, 768, 333];

/// Forward and backward.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    rows.iter().enumerate().flat_map(|(i, &n)| shape(Kind::nth(i), seed + 8 * i as u64, n, WIDTHS[i % 4])).collect()
}

fn shape(kind: Kind, seed: u64, n: usize, f: usize) -> Vec<Case> {
    let gate_up = Operand::input("gate_up", &batch(kind, seed, n, 2 * f)).per_row(2 * f).acts();
    let dy = Operand::input("dy", &batch(kind, seed + 1, n, f)).per_row(f).acts();
    let output = |name, width| Operand::output::<f32>(name, n * width).per_row(width).acts().apart(width);
    let named = |what: &str| format!("swiglu::{what} {n}x{f} {kind:?}");
    let there = vec![output("y", f), gate_up.clone()];
    let back = vec![output("dgate_up", 2 * f), dy, gate_up];
    vec![
        Case::new(named("forward"), there, move |s, v| forward(s, v[0], v[1], f)).cut(n),
        Case::new(named("backward"), back, move |s, v| backward(s, v[0], v[1], v[2], f)).cut(n),
    ]
}
