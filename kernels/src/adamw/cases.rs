//! The room's cases for [`crate::selftest`].

use super::{Params, grad_norm, step};
use crate::selftest::inputs::{Kind, normal, rows as batch};
use crate::selftest::{Case, Limit, Operand};

const PARAMS: Params = Params { lr: 3e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 7, grad_scale: 0.37 };

/// A step, whose rows are its elements, and the gradient norm.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    rows.iter().enumerate().flat_map(|(i, &n)| shape(Kind::nth(i), seed + 8 * i as u64, 61 * n)).collect()
}

fn shape(kind: Kind, seed: u64, n: usize) -> Vec<Case> {
    let both = |name, values: &[f32]| Operand::both(name, values).per_row(1);
    let squares: Vec<f32> = normal(seed + 2, n).iter().map(|v| 1e-3 * v * v).collect();
    let g = batch(kind, seed + 3, 1, n);
    let state = vec![both("p", &normal(seed, n)), both("m", &normal(seed + 1, n)), both("v", &squares)];
    let operands = [state, vec![Operand::input("g", &g).per_row(1)]].concat();
    let norm = vec![Operand::output::<f32>("norm", 1), Operand::input("g", &g)];
    let tensors = [0..n, n / 2..n / 2, 0..1, 1..n];
    vec![
        Case::new(format!("adamw::step {n}"), operands, |s, v| step(s, v[0], v[1], v[2], v[3], &PARAMS)).cut(n),
        // On a device the sum has another order: its own.
        Case::new(format!("adamw::grad_norm {n}"), norm, move |s, v| v[0].write(s, &[grad_norm(s, v[1], &tensors)? as f32]))
            .within(Limit::Norm { tensor: 1e-7, row: 1e-7 }),
    ]
}
