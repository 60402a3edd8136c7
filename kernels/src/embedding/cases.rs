//! The room's cases for [`crate::selftest`].

use super::{backward, forward};
use crate::panels;
use crate::selftest::inputs::{Kind, below, normal, rounded, rows as batch};
use crate::selftest::{Case, Operand, in_bf16};
use crate::weight::{self, Layout};
use half::bf16;
use runtime::DType;

/// Ids and columns.
const TABLES: [[usize; 2]; 4] = [[1, 1], [33, 7], [70, 48], [500, 129]];

/// Forward and backward over an f32 table; a device lays it as it keeps weights.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    rows.iter().enumerate().flat_map(|(i, &n)| shape(Kind::nth(i), seed + 8 * i as u64, n, TABLES[i % 4])).collect()
}

/// The same with x, dx and the table in bf16.
pub fn cases_in_bf16(rows: &[usize], seed: u64) -> Vec<Case> {
    in_bf16(cases(rows, seed))
}

/// The table is one that bf16 holds exactly.
fn shape(kind: Kind, seed: u64, n: usize, [v, c]: [usize; 2]) -> Vec<Case> {
    let table = rounded(&normal(seed, v * c));
    let tokens = Operand::input("tokens", &below(seed + 1, n, v as u32)).per_row(1);
    let dx = Operand::input("dx", &batch(kind, seed + 2, n, c)).per_row(c).acts();
    let named = |what: &str| format!("embedding::{what} {n}x{c} of {v}");
    let operands = vec![Operand::output::<f32>("x", n * c).per_row(c).acts(), tokens.clone()];
    let look_up = Case::new(named("forward"), operands, move |s, o| {
        let layout = Layout::of(s, &[]);
        let len = layout.len(&[v], c);
        if o[0].dtype() == DType::Bf16 {
            let (held, stored) = (s.zeros::<bf16>(len)?, table.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>());
            let laid = layout.weight(held.view(), &[v], c, 0)?;
            weight::load(s, laid, bytemuck::cast_slice(&stored))?;
            return forward(s, o[0], o[1], laid, 0.7);
        }
        let held = s.zeros::<f32>(len)?;
        let laid = layout.weight(held.view(), &[v], c, 0)?;
        weight::load(s, laid, bytemuck::cast_slice(&table))?;
        forward(s, o[0], o[1], laid, 0.7)
    });
    let gather = |scale: f32| {
        let operands = vec![Operand::output::<f32>("dtable", v * c), dx.clone(), tokens.clone()];
        Case::new(named(&format!("backward by {scale}")), operands, move |s, o| {
            let layout = Layout::of(s, &[]);
            let (part, held) = (s.zeros::<f32>(layout.len(&[v], c))?, s.zeros::<f32>(layout.len(&[v], c))?);
            backward(s, part.view(), o[1], o[2], v, scale)?;
            panels::accumulate(s, held.view(), part.view())?;
            o[0].write(s, &weight::read(s, layout.weight(held.view(), &[v], c, 0)?)?)
        })
    };
    vec![look_up.cut(n), gather(1.0), gather(3.3)]
}
