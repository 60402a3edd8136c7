//! The room's cases for [`crate::selftest`].

use super::{Params, Table, Target, grad_norm, step, step_clipped};
use crate::selftest::inputs::{Kind, normal, rows as batch};
use crate::selftest::{Case, Limit, Operand};
use crate::weight::{Layout, row};
use runtime::{DType, Stream, View};

const PARAMS: Params = Params { lr: 3e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 7, grad_scale: 0.37 };

/// A step, whose rows are its elements, and the gradient norm.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    rows.iter().enumerate().flat_map(|(i, &n)| shape(Kind::nth(i), seed + 8 * i as u64, 61 * n)).collect()
}

/// A step over a matrix that has a copy in bf16, of so many outputs.
pub fn cases_in_bf16(rows: &[usize], seed: u64) -> Vec<Case> {
    rows.iter().enumerate().map(|(i, &n)| copied(Kind::nth(i), seed + 8 * i as u64, n, 16 * i + 3)).collect()
}

/// p, m, v and g, rows of `width`.
fn state(kind: Kind, seed: u64, n: usize, width: usize) -> Vec<Operand> {
    let both = |name, values: &[f32]| Operand::both(name, values).per_row(width);
    let squares: Vec<f32> = normal(seed + 2, n).iter().map(|v| 1e-3 * v * v).collect();
    let state = vec![both("p", &normal(seed, n)), both("m", &normal(seed + 1, n)), both("v", &squares)];
    [state, vec![Operand::input("g", &batch(kind, seed + 3, 1, n)).per_row(width)]].concat()
}

/// On a device a weight [n, k], on the CPU, which keeps no copies, what was stepped over.
fn copied(kind: Kind, seed: u64, n: usize, k: usize) -> Case {
    let ld = row(k, 0);
    let copy = Operand::output::<f32>("copy", n * ld).per_row(ld).acts();
    let operands = [vec![copy], state(kind, seed, n * ld, ld)].concat();
    let call = move |s: &Stream, o: &[View<'_>]| {
        if o[0].dtype() == DType::F32 {
            step(s, o[1], o[2], o[3], o[4], &PARAMS)?;
            return o[0].copy(s, o[1]);
        }
        let n = o[1].len() / ld;
        let weight = Layout::of(s, &[]).weight(o[0], &[n], k, 0)?.rows("adamw")?;
        let table = Table::new(s, &[Target::whole(0..n * ld, weight)])?;
        step_clipped(s, o[1], o[2], o[3], o[4], &PARAMS, None, Some(&table.over(o[0])?))
    };
    Case::new(format!("adamw::step and copy {n}x{k}"), operands, call).cut(n).in_bf16()
}

fn shape(kind: Kind, seed: u64, n: usize) -> Vec<Case> {
    let g = batch(kind, seed + 3, 1, n);
    let operands = state(kind, seed, n, 1);
    let norm = vec![Operand::output::<f32>("norm", 1), Operand::input("g", &g)];
    let tensors = [0..n, n / 2..n / 2, 0..1, 1..n];
    vec![
        Case::new(format!("adamw::step {n}"), operands, |s, v| step(s, v[0], v[1], v[2], v[3], &PARAMS)).cut(n),
        // On a device the sum has another order: its own.
        Case::new(format!("adamw::grad_norm {n}"), norm, move |s, v| v[0].write(s, &[grad_norm(s, v[1], &tensors)? as f32]))
            .within(Limit::Norm { tensor: 1e-7, row: 1e-7 }),
    ]
}
