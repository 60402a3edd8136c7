//! The room's cases for [`crate::selftest`].

use super::{backward, forward, table};
use crate::selftest::inputs::{Kind, below, rows as batch};
use crate::selftest::{Case, Operand};

/// Heads, head dim, elements of a row; some rows go on behind their heads.
const HEADS: [[usize; 3]; 4] = [[3, 2, 7], [2, 16, 48], [5, 48, 240], [2, 64, 128]];
const POSITIONS: usize = 300;

/// Forward and backward.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    rows.iter().enumerate().flat_map(|(i, &n)| shape(Kind::nth(i), seed + 8 * i as u64, n, HEADS[i % 4])).collect()
}

fn shape(kind: Kind, seed: u64, n: usize, [heads, d, stride]: [usize; 3]) -> Vec<Case> {
    let operands = || {
        let x = Operand::both("x", &batch(kind, seed, n, stride)).per_row(stride).acts().apart(stride);
        let pos = Operand::input("pos", &below(seed + 1, n, POSITIONS as u32)).per_row(1);
        vec![x, pos, Operand::input("table", &table(POSITIONS, d, 5e5, None))]
    };
    let named = |what: &str| format!("rope::{what} {n}x{heads}x{d} of {stride} {kind:?}");
    vec![
        Case::new(named("forward"), operands(), move |s, v| forward(s, v[0], v[1], v[2], heads, d, stride)).cut(n),
        Case::new(named("backward"), operands(), move |s, v| backward(s, v[0], v[1], v[2], heads, d, stride)).cut(n),
    ]
}
