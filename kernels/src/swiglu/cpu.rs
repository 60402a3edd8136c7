//! The CPU form: sixteen lanes at a time, the ragged end of a row one by one.

use crate::cpu::{Lanes, Scalar};
use crate::math::lanes::sigmoid;
use runtime::Pool;

/// Elements of one task.
const GRAIN: usize = 2048;

/// Calls `wide` at every whole group of lanes below `len` and `one` at every element after them.
#[inline(always)]
fn each<S: Lanes>(len: usize, mut wide: impl FnMut(usize), one: impl FnMut(usize)) {
    let whole = len / S::LANES * S::LANES;
    (0..whole).step_by(S::LANES).for_each(&mut wide);
    (whole..len).for_each(one);
}

/// # Safety
/// Every pointer has `LANES` elements.
#[inline(always)]
unsafe fn forward_group<S: Lanes>(y: *mut f32, g: *const f32, u: *const f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let (g, u) = (S::load(g), S::load(u));
        S::store(y, S::mul(S::mul(g, sigmoid::<S>(g)), u));
    }
}

#[inline(always)]
fn forward_rows<S: Lanes>(y: &mut [f32], gate_up: &[f32], f: usize) {
    for (y, row) in y.chunks_exact_mut(f).zip(gate_up.chunks_exact(2 * f)) {
        let (y, (g, u)) = (y.as_mut_ptr(), row.split_at(f));
        let (g, u) = (g.as_ptr(), u.as_ptr());
        each::<S>(
            f,
            // SAFETY: all three have f elements.
            |i| unsafe { forward_group::<S>(y.add(i), g.add(i), u.add(i)) },
            // SAFETY: as above.
            |i| unsafe { forward_group::<Scalar>(y.add(i), g.add(i), u.add(i)) },
        );
    }
}
per_isa! { fn forward_on(y: &mut [f32], gate_up: &[f32], f: usize) = forward_rows }

pub fn forward(pool: &Pool, y: &mut [f32], gate_up: &[f32], f: usize) {
    pool.rows(y, f, GRAIN.div_ceil(f), 0, &|first, y, _| forward_on(pool.isa(), y, &gate_up[2 * first * f..], f));
}

/// # Safety
/// Every pointer has `LANES` elements.
#[inline(always)]
unsafe fn backward_group<S: Lanes>(dg: *mut f32, du: *mut f32, dy: *const f32, g: *const f32, u: *const f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let (dy, g, u, one) = (S::load(dy), S::load(g), S::load(u), S::splat(1.0));
        let sigma = sigmoid::<S>(g);
        let slope = S::mul(sigma, S::add(one, S::mul(g, S::sub(one, sigma))));
        S::store(dg, S::mul(S::mul(dy, u), slope));
        S::store(du, S::mul(dy, S::mul(g, sigma)));
    }
}

#[inline(always)]
fn backward_rows<S: Lanes>(dgate_up: &mut [f32], dy: &[f32], gate_up: &[f32], f: usize) {
    for ((out, dy), row) in dgate_up.chunks_exact_mut(2 * f).zip(dy.chunks_exact(f)).zip(gate_up.chunks_exact(2 * f)) {
        let ((dg, du), (g, u)) = (out.split_at_mut(f), row.split_at(f));
        let (dg, du, dy, g, u) = (dg.as_mut_ptr(), du.as_mut_ptr(), dy.as_ptr(), g.as_ptr(), u.as_ptr());
        each::<S>(
            f,
            // SAFETY: all five have f elements.
            |i| unsafe { backward_group::<S>(dg.add(i), du.add(i), dy.add(i), g.add(i), u.add(i)) },
            // SAFETY: as above.
            |i| unsafe { backward_group::<Scalar>(dg.add(i), du.add(i), dy.add(i), g.add(i), u.add(i)) },
        );
    }
}
per_isa! { fn backward_on(dgate_up: &mut [f32], dy: &[f32], gate_up: &[f32], f: usize) = backward_rows }

pub fn backward(pool: &Pool, dgate_up: &mut [f32], dy: &[f32], gate_up: &[f32], f: usize) {
    pool.rows(dgate_up, 2 * f, GRAIN.div_ceil(f), 0, &|first, out, _| {
        backward_on(pool.isa(), out, &dy[first * f..], &gate_up[2 * first * f..], f);
    });
}
