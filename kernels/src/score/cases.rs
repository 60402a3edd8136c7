//! The room's cases for [`crate::selftest`].

use super::{backward, backward_weight, forward};
use crate::selftest::inputs::{Kind, below, normal, rows as batch};
use crate::selftest::{Case, Operand};

const WIDTHS: [usize; 4] = [1, 45, 288, 333];

/// Forward, backward to the rows and to the head.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    rows.iter().enumerate().flat_map(|(i, &n)| shape(Kind::nth(i), seed + 8 * i as u64, n, WIDTHS[i % 4])).collect()
}

fn shape(kind: Kind, seed: u64, n: usize, c: usize) -> Vec<Case> {
    let m = n + 2;
    // Entries name rows out of order and some twice.
    let entries = Operand::input("rows", &below(seed, m, n as u32)).per_row(1);
    let x = Operand::input("x", &batch(kind, seed + 1, n, c)).acts();
    let w = Operand::input("w", &normal(seed + 2, c));
    let dout = Operand::input("dout", &normal(seed + 3, m));
    let spans = Operand::input("examples", &[0, m as u32 / 3, m as u32 / 3, m as u32]);
    let named = |what: &str| format!("score::{what} {m} of {n}x{c} {kind:?}");
    let there = vec![Operand::output::<f32>("out", m).per_row(1), x.clone(), entries.clone(), w.clone()];
    let back = vec![Operand::output::<f32>("dx", n * c).acts(), dout.clone(), entries.clone(), w];
    let weight = vec![Operand::both("dw", &normal(seed + 4, c)), dout, x, entries, spans];
    vec![
        Case::new(named("forward"), there, |s, v| forward(s, v[0], v[1], v[2], v[3])).cut(m),
        Case::new(named("backward"), back, |s, v| backward(s, v[0], v[1], v[2], v[3])),
        Case::new(named("backward_weight"), weight, |s, v| backward_weight(s, v[0], v[1], v[2], v[3], v[4])),
    ]
}
