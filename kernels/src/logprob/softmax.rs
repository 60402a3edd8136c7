//! LAW A4 on a tile of up to 256 logits, wherever they lie: the one place where a logit becomes a part of a log-probability.

use super::Scaling;
use crate::cpu::{Lanes, Scalar, WIDTH};
use crate::math::{self, lanes};
use crate::panels::PANEL;

/// Ids of one tile.
pub(crate) const TILE: usize = 256;

/// Where the second form begins.
const FAR: f32 = 60.0;

/// Logits of one tile of one row: element i lies at `(i/32)·stride + i%32` from the start.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Elements between groups of 32.
    pub stride: usize,
    /// Ids of the tile.
    pub count: usize,
    /// The target's place in the tile; `usize::MAX` if it is elsewhere or counts like every other id.
    pub target: usize,
}

/// What a softmax refers to.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    /// Subtracted from every logit: the target's or the largest.
    pub reference: f32,
    /// s of the first form, Σ of the second.
    pub sum: f32,
    /// Which.
    pub first: bool,
}

impl Form {
    /// What probabilities are divided by.
    pub fn under(self) -> f32 {
        if self.first { 1.0 + self.sum } else { self.sum }
    }
}

impl Form {
    /// What `forward` kept of a row.
    pub fn kept(z_target: f32, sum: f32, max: f32) -> Form {
        let first = max == f32::INFINITY;
        Form { reference: if first { z_target } else { max }, sum, first }
    }
}

/// Whether a row takes the second form.
pub(crate) fn far(max: f32, z_target: f32) -> bool {
    max - z_target > FAR
}

/// The log-probability of the first form.
pub(crate) fn near_value(sum: f32) -> f32 {
    -math::log1p(sum)
}

/// The log-probability of the second form.
pub(crate) fn far_value(z_target: f32, max: f32, sum: f32) -> f32 {
    (z_target - max) - math::log(sum)
}

/// Logit after the cap, and after the temperature too.
#[inline(always)]
fn squash<S: Lanes>(z: S::V, scaling: Scaling) -> (S::V, S::V) {
    let capped = if scaling.softcap > 0.0 {
        let cap = S::splat(scaling.softcap);
        S::mul(cap, lanes::tanh::<S>(S::div(z, cap)))
    } else {
        z
    };
    (capped, S::mul(capped, S::splat(scaling.inv_temperature)))
}

/// One logit after cap and temperature.
pub(crate) fn scaled(z: f32, scaling: Scaling) -> f32 {
    squash::<Scalar>(z, scaling).1
}

/// Derivative of the capped logit by the raw one, given the capped one.
#[inline(always)]
fn slope<S: Lanes>(capped: S::V, cap: f32) -> S::V {
    let q = S::div(capped, S::splat(cap));
    S::sub(S::splat(1.0), S::mul(q, q))
}

/// The same for one raw logit.
pub(crate) fn slope_of(z: f32, softcap: f32) -> f32 {
    slope::<Scalar>(squash::<Scalar>(z, Scaling { softcap, inv_temperature: 1.0 }).0, softcap)
}

/// Group `g` of 16 logits and how many of them exist; absent ones are +0.
#[inline(always)]
fn group<S: Lanes>(z: &[f32], place: Place, g: usize) -> (S::V, usize) {
    let (at, n) = (g / 2 * place.stride + g % 2 * WIDTH, (place.count - g * WIDTH).min(WIDTH));
    let from = &z[at..at + n];
    if n == WIDTH {
        // SAFETY: 16 elements.
        return (unsafe { S::load(from.as_ptr()) }, n);
    }
    let mut whole = [0f32; WIDTH];
    whole[..n].copy_from_slice(from);
    // SAFETY: 16 elements.
    (unsafe { S::load(whole.as_ptr()) }, n)
}

/// Σ exp(t − reference) over the tile without the target, and the larger of `max` and all of the tile. With `weigh` the logits are
/// replaced by e on the way, lanes up to the next multiple of 16 too.
#[inline(always)]
fn tile_body<S: Lanes>(z: &mut [f32], place: Place, reference: f32, max: f32, scaling: Scaling, weigh: bool) -> (f32, f32) {
    let (mut acc, mut most, r) = (S::splat(0.0), S::splat(max), S::splat(reference));
    for g in 0..place.count.div_ceil(WIDTH) {
        let (raw, n) = group::<S>(z, place, g);
        let (capped, t) = squash::<S>(raw, scaling);
        let mut e = lanes::exp::<S>(S::sub(t, r));
        let (mut next, mut top) = (S::add(acc, e), S::max(t, most));
        if n < WIDTH {
            (next, top) = (S::select(S::first(n), next, acc), S::select(S::first(n), top, most));
        }
        if place.target / WIDTH == g {
            let l = place.target % WIDTH;
            next = S::select(S::first(l), next, S::select(S::first(l + 1), acc, next));
            e = S::select(S::first(l), e, S::select(S::first(l + 1), S::splat(0.0), e));
        }
        (acc, most) = (next, top);
        if weigh {
            if scaling.softcap > 0.0 {
                e = S::mul(e, slope::<S>(capped, scaling.softcap));
            }
            let at = g / 2 * place.stride + g % 2 * WIDTH;
            // SAFETY: the slice has 16 elements from here.
            unsafe { S::store(z[at..at + WIDTH].as_mut_ptr(), e) };
        }
    }
    let mut tops = [0f32; WIDTH];
    // SAFETY: 16 elements.
    unsafe { S::store(tops.as_mut_ptr(), most) };
    (S::sum(acc), tops.into_iter().fold(max, |a, b| if b > a { b } else { a }))
}

/// Replaces the logits of the tile by dz for dlogp `c`; lanes up to the next multiple of 16 become 0.
#[inline(always)]
fn gradient_body<S: Lanes>(z: &mut [f32], place: Place, form: Form, c: f32, scaling: Scaling) {
    let (r, sum) = (S::splat(form.reference), S::splat(form.sum));
    let under = S::splat(form.under());
    for g in 0..place.count.div_ceil(WIDTH) {
        let (raw, n) = group::<S>(z, place, g);
        let (capped, t) = squash::<S>(raw, scaling);
        let p = S::div(lanes::exp::<S>(S::sub(t, r)), under);
        let mut d = S::sub(S::splat(0.0), p);
        if place.target / WIDTH == g {
            let own = if form.first { S::div(sum, under) } else { S::sub(S::splat(1.0), p) };
            let l = place.target % WIDTH;
            d = S::select(S::first(l), d, S::select(S::first(l + 1), own, d));
        }
        d = S::mul(S::mul(S::splat(c), d), S::splat(scaling.inv_temperature));
        if scaling.softcap > 0.0 {
            d = S::mul(d, slope::<S>(capped, scaling.softcap));
        }
        if n < WIDTH {
            d = S::select(S::first(n), d, S::splat(0.0));
        }
        let at = g / 2 * place.stride + g % 2 * WIDTH;
        // SAFETY: the slice has 16 elements from here.
        unsafe { S::store(z[at..at + WIDTH].as_mut_ptr(), d) };
    }
    if (1..=WIDTH).contains(&(place.count % PANEL)) {
        let at = place.count / PANEL * place.stride + WIDTH;
        z[at..at + WIDTH].fill(0.0);
    }
}

crate::per_isa! {
    /// The contributions of one tile: see the body.
    pub(crate) fn tile(z: &mut [f32], place: Place, reference: f32, max: f32, scaling: Scaling, weigh: bool) -> (f32, f32) = tile_body
}
/// `way = fma(factor, w, 0 − way)`, 32 columns.
#[inline(always)]
fn turn_body<S: Lanes>(way: &mut [f32; PANEL], w: &[f32; PANEL], factor: f32) {
    for i in (0..PANEL).step_by(WIDTH) {
        // SAFETY: both have 16 elements from i.
        unsafe {
            let chain = S::sub(S::splat(0.0), S::load(way.as_ptr().add(i)));
            S::store(way.as_mut_ptr().add(i), S::fma(S::splat(factor), S::load(w.as_ptr().add(i)), chain));
        }
    }
}

crate::per_isa! {
    /// From a chain over the vocabulary to the way of an entry: see the body.
    pub(crate) fn turn(way: &mut [f32; PANEL], w: &[f32; PANEL], factor: f32) = turn_body
}
crate::per_isa! {
    /// The gradient of one tile: see the body.
    pub(crate) fn gradient(z: &mut [f32], place: Place, form: Form, c: f32, scaling: Scaling) = gradient_body
}

/// One output of LAW A1: x [C] against output `v` of a packed matrix with C columns, of which `column` starts at (v, 0).
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
fn dot_body<S: Lanes, T: crate::cpu::Stored>(x: &[f32], column: &[T]) -> f32 {
    x.iter().zip(column.iter().step_by(PANEL)).fold(0.0, |acc, (x, w)| x.mul_add(w.widen(), acc))
}

use half::{bf16, f16};
crate::per_isa! { pub(crate) fn dot_f32(x: &[f32], column: &[f32]) -> f32 = dot_body::<f32> }
crate::per_isa! { pub(crate) fn dot_bf16(x: &[f32], column: &[bf16]) -> f32 = dot_body::<bf16> }
crate::per_isa! { pub(crate) fn dot_f16(x: &[f32], column: &[f16]) -> f32 = dot_body::<f16> }
