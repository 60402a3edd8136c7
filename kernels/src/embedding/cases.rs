//! The room's cases for [`crate::selftest`].

use super::{backward, forward};
use crate::panels::{Panels, index, packed_len};
use crate::selftest::inputs::{Kind, below, normal, rows as batch};
use crate::selftest::{Case, Operand};
use half::{bf16, f16};
use runtime::Element;

/// Ids and columns.
const TABLES: [[usize; 2]; 4] = [[1, 1], [33, 7], [70, 48], [500, 129]];

/// Forward for each storage of the table, and backward.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    rows.iter().enumerate().flat_map(|(i, &n)| shape(Kind::nth(i), seed + 8 * i as u64, n, TABLES[i % 4])).collect()
}

fn shape(kind: Kind, seed: u64, n: usize, [v, c]: [usize; 2]) -> Vec<Case> {
    let mut table = vec![0f32; packed_len(v, c)];
    normal(seed, v * c).into_iter().enumerate().for_each(|(i, w)| table[index(i / c, i % c, c)] = w);
    let tokens = Operand::input("tokens", &below(seed + 1, n, v as u32)).per_row(1);
    let dx = Operand::input("dx", &batch(kind, seed + 2, n, c)).per_row(c);
    let dtable = Operand::both("dtable", &vec![0f32; packed_len(v, c)]);
    let named = |what: &str| format!("embedding::{what} {n}x{c} of {v}");
    vec![
        look_up(named("forward f32"), n, c, v, &tokens, &table, 0.7),
        look_up(named("forward bf16"), n, c, v, &tokens, &table.iter().map(|w| bf16::from_f32(*w)).collect::<Vec<_>>(), 1.0),
        look_up(named("forward f16"), n, c, v, &tokens, &table.iter().map(|w| f16::from_f32(*w)).collect::<Vec<_>>(), 3.3),
        Case::new(named("backward"), vec![dtable, dx, tokens], move |s, o| backward(s, o[0], o[1], o[2], v)),
    ]
}

fn look_up<T: Element>(name: String, n: usize, c: usize, v: usize, tokens: &Operand, table: &[T], scale: f32) -> Case {
    let operands = vec![Operand::output::<f32>("x", n * c).per_row(c), tokens.clone(), Operand::input("table", table)];
    Case::new(name, operands, move |s, o| forward(s, o[0], o[1], Panels::new(o[2], v, c)?, scale)).cut(n)
}
