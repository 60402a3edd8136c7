//! The CPU form: plain loops, whose operations vectorise without changing.
// A body of plain loops meets its instruction set only as compiler features.
#![allow(clippy::extra_unused_type_parameters)]

use super::Constants;
use crate::cpu::Lanes;
use runtime::{Pool, Shared};
use std::ops::Range;

#[inline(always)]
fn step_elements<S: Lanes>(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], k: Constants) {
    for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
        let g = g * k.scale;
        *m += k.first * (g - *m);
        *v += k.second * (g * g - *v);
        *p -= k.decay * *p + k.rate * (*m / (v.sqrt() / k.root + k.eps));
    }
}
per_isa! { fn step_on(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], k: Constants) = step_elements }

pub fn step(pool: &Pool, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], k: Constants) {
    let (m, v) = (Shared::new(m), Shared::new(v));
    pool.rows(p, 1, 1 << 12, 0, &|first, p, _| {
        let part = first..first + p.len();
        // SAFETY: tasks have disjoint elements.
        let (m, v) = unsafe { (m.slice(part.clone()), v.slice(part.clone())) };
        step_on(pool.isa(), p, m, v, &g[part], k);
    });
}

/// Tensors of one job: their sums wait on the stack to be added in order.
const TENSORS: usize = 64;

pub fn sum_of_squares(pool: &Pool, g: &[f32], tensors: &[Range<usize>]) -> f64 {
    let mut total = 0.0;
    for tensors in tensors.chunks(TENSORS) {
        let mut sums = [0f64; TENSORS];
        pool.rows(&mut sums[..tensors.len()], 1, 1, 0, &|first, sums, _| {
            for (sum, t) in sums.iter_mut().zip(&tensors[first..]) {
                // A square of an f32 is exact in f64.
                *sum = g[t.clone()].iter().fold(0.0, |sum, &g| sum + f64::from(g) * f64::from(g));
            }
        });
        total = sums[..tensors.len()].iter().fold(total, |total, sum| total + sum);
    }
    total
}
