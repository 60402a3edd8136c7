//! The CPU form: sixteen lanes at a time, the ragged end of a row one by one.

use super::Curve;
use crate::cpu::{Lanes, Scalar};
use crate::math::lanes::{erf, exp, sigmoid};
use runtime::Pool;

/// Elements of one task.
const GRAIN: usize = 2048;

const CUBIC: f32 = 0.044715;
const CUBIC_3: f32 = 0.134145;
const TWICE_ROOT_2_OVER_PI: f32 = 1.595_769_2;
const ONE_OVER_ROOT_2_PI: f32 = 0.398_942_3;

/// h and the slope of x·h.
#[inline(always)]
fn curve_at<S: Lanes>(x: S::V, curve: Curve) -> (S::V, S::V) {
    let (one, half, square) = (S::splat(1.0), S::splat(0.5), S::mul(x, x));
    match curve {
        Curve::Tanh => {
            let k = S::splat(TWICE_ROOT_2_OVER_PI);
            let z = S::mul(S::mul(k, x), S::add(one, S::mul(S::splat(CUBIC), square)));
            let (h, rest) = (sigmoid::<S>(z), sigmoid::<S>(S::sub(S::splat(0.0), z)));
            let inner = S::mul(k, S::add(one, S::mul(S::splat(CUBIC_3), square)));
            (h, S::add(h, S::mul(x, S::mul(S::mul(h, rest), inner))))
        }
        Curve::Erf => {
            let h = S::mul(half, S::add(one, erf::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2)))));
            let bell = S::mul(exp::<S>(S::mul(S::splat(-0.5), square)), S::splat(ONE_OVER_ROOT_2_PI));
            (h, S::add(h, S::mul(x, bell)))
        }
    }
}

/// Calls `wide` at every whole group of lanes below `len` and `one` at every element after them.
#[inline(always)]
fn each<S: Lanes>(len: usize, mut wide: impl FnMut(usize), one: impl FnMut(usize)) {
    let whole = len / S::LANES * S::LANES;
    (0..whole).step_by(S::LANES).for_each(&mut wide);
    (whole..len).for_each(one);
}

/// # Safety
/// Every pointer has `LANES` elements, `x` also `LANES` at `up` if that is not 0.
#[inline(always)]
unsafe fn forward_group<S: Lanes>(y: *mut f32, x: *const f32, up: usize, curve: Curve) {
    // SAFETY: the caller's promise.
    unsafe {
        let g = S::load(x);
        let a = S::mul(g, curve_at::<S>(g, curve).0);
        S::store(y, if up == 0 { a } else { S::mul(a, S::load(x.add(up))) });
    }
}

/// `up` is where u begins in a row of x, 0 without a gate.
#[inline(always)]
fn forward_rows<S: Lanes>(y: &mut [f32], x: &[f32], f: usize, up: usize, curve: Curve) {
    for (y, x) in y.chunks_exact_mut(f).zip(x.chunks_exact(f + up)) {
        let (y, x) = (y.as_mut_ptr(), x.as_ptr());
        each::<S>(
            f,
            // SAFETY: y has f elements, x as many and again as many at `up`.
            |i| unsafe { forward_group::<S>(y.add(i), x.add(i), up, curve) },
            // SAFETY: as above.
            |i| unsafe { forward_group::<Scalar>(y.add(i), x.add(i), up, curve) },
        );
    }
}
per_isa! { fn forward_on(y: &mut [f32], x: &[f32], f: usize, up: usize, curve: Curve) = forward_rows }

pub fn forward(pool: &Pool, y: &mut [f32], x: &[f32], f: usize, gated: bool, curve: Curve) {
    let up = if gated { f } else { 0 };
    pool.rows(y, f, GRAIN.div_ceil(f), 0, &|first, y, _| forward_on(pool.isa(), y, &x[first * (f + up)..], f, up, curve));
}

/// # Safety
/// Every pointer has `LANES` elements, `dx` and `x` also `LANES` at `up` if that is not 0.
#[inline(always)]
unsafe fn backward_group<S: Lanes>(dx: *mut f32, dy: *const f32, x: *const f32, up: usize, curve: Curve) {
    // SAFETY: the caller's promise.
    unsafe {
        let (dy, g) = (S::load(dy), S::load(x));
        let (h, slope) = curve_at::<S>(g, curve);
        if up == 0 {
            return S::store(dx, S::mul(dy, slope));
        }
        S::store(dx, S::mul(S::mul(dy, S::load(x.add(up))), slope));
        S::store(dx.add(up), S::mul(dy, S::mul(g, h)));
    }
}

#[inline(always)]
fn backward_rows<S: Lanes>(dx: &mut [f32], dy: &[f32], x: &[f32], f: usize, up: usize, curve: Curve) {
    for ((dx, dy), x) in dx.chunks_exact_mut(f + up).zip(dy.chunks_exact(f)).zip(x.chunks_exact(f + up)) {
        let (dx, dy, x) = (dx.as_mut_ptr(), dy.as_ptr(), x.as_ptr());
        each::<S>(
            f,
            // SAFETY: dy has f elements, dx and x as many and again as many at `up`.
            |i| unsafe { backward_group::<S>(dx.add(i), dy.add(i), x.add(i), up, curve) },
            // SAFETY: as above.
            |i| unsafe { backward_group::<Scalar>(dx.add(i), dy.add(i), x.add(i), up, curve) },
        );
    }
}
per_isa! { fn backward_on(dx: &mut [f32], dy: &[f32], x: &[f32], f: usize, up: usize, curve: Curve) = backward_rows }

pub fn backward(pool: &Pool, dx: &mut [f32], dy: &[f32], x: &[f32], f: usize, gated: bool, curve: Curve) {
    let up = if gated { f } else { 0 };
    pool.rows(dx, f + up, GRAIN.div_ceil(f), 0, &|first, dx, _| {
        backward_on(pool.isa(), dx, &dy[first * f..], &x[first * (f + up)..], f, up, curve);
    });
}
