//! Scores become weights: forward's 2^(t−e)·2^(e−M_b) and backward's p and dt, from one sequence of operations.

use super::Params;
use super::block::KEYS;
use super::chains::Span;
use crate::cpu::{Lanes, WIDTH};
use crate::math::{EXP2, LOG2_E, lanes};
use std::ops::Range;

/// e is an integer within i32; this f32 stands for both its ends.
const EDGE: f32 = 2147483648.0;
/// Every slot of a block.
pub const WHOLE: Span = Span { from: 0, to: KEYS };

/// Whether `s` has a row of 64 for every span, and every span lies in its row.
#[inline(always)]
pub fn fits(spans: &[Span], s: &[f32]) -> bool {
    spans.len() * KEYS <= s.len() && spans.iter().map(|s| s.to).max().unwrap_or(0) <= KEYS
}

/// The vectors that hold a visible slot of any of these rows.
#[inline(always)]
pub fn vectors(spans: &[Span]) -> Range<usize> {
    let (mut from, mut to) = (KEYS, 0);
    for span in spans {
        if !span.is_empty() {
            (from, to) = (from.min(span.from), to.max(span.to));
        }
    }
    from / WIDTH..to.div_ceil(WIDTH)
}

/// `x`'s lanes from `span`, `other` elsewhere; `c` is the first lane's slot.
#[inline(always)]
fn visible<S: Lanes>(span: Span, c: usize, x: S::V, other: S::V) -> S::V {
    if span.from <= c && c + WIDTH <= span.to {
        return x;
    }
    let below = S::select(S::first(span.from.saturating_sub(c)), other, x);
    S::select(S::first(span.to.saturating_sub(c)), below, other)
}

/// Largest lane.
#[inline(always)]
fn largest<S: Lanes>(v: S::V) -> f32 {
    let mut x = [0.0f32; WIDTH];
    // SAFETY: an array of 16.
    unsafe { S::store(x.as_mut_ptr(), v) };
    macro_rules! fold {
        ($($half:expr),*) => {
            $(for i in 0..$half {
                x[i] = if x[i] > x[i + $half] { x[i] } else { x[i + $half] };
            })*
        };
    }
    fold!(8, 4, 2, 1);
    x[0]
}

/// t of the law: the score scaled, capped and in powers of two; beside it the capped score.
#[inline(always)]
fn exponent<S: Lanes>(s: S::V, params: Params) -> (S::V, S::V) {
    let mut t = S::mul(s, S::splat(params.scale));
    if params.softcap > 0.0 {
        let cap = S::splat(params.softcap);
        t = S::mul(cap, lanes::tanh::<S>(S::div(t, cap)));
    }
    (S::mul(t, S::splat(LOG2_E)), t)
}

/// exp2 on [0, 1]: [`crate::math::exp2`] without the steps that change nothing there. NaN stays.
#[inline(always)]
fn exp2_unit<S: Lanes>(f: S::V) -> S::V {
    let mut acc = S::splat(f32::from_bits(EXP2[0]));
    for &c in &EXP2[1..] {
        acc = S::add(S::mul(acc, f), S::splat(f32::from_bits(c)));
    }
    S::add(S::mul(acc, f), S::splat(1.0))
}

/// exp2(t − floor(t)) · 2^(e − top), e = floor(t) within i32. Only against a top near the ends of i32 does it matter that e keeps within.
#[inline(always)]
fn weight<S: Lanes>(t: S::V, top: f32) -> S::V {
    let floor = S::floor(t);
    let e = if top.abs() < EDGE / 2.0 { floor } else { S::max(S::splat(-EDGE), S::min(S::splat(EDGE), floor)) };
    S::mul(exp2_unit::<S>(S::sub(t, floor)), lanes::power::<S>(S::sub(e, S::splat(top))))
}

/// One row's t in place of its scores; returns M_b.
///
/// # Safety
/// `s` points to 64 values.
#[inline(always)]
pub unsafe fn exponents<S: Lanes>(s: *mut f32, span: Span, params: Params) -> f32 {
    let mut most = S::splat(f32::NEG_INFINITY);
    macro_rules! step {
        ($c:expr, $seen:expr) => {{
            // SAFETY: c < 64.
            let (t, _) = exponent::<S>(unsafe { S::load(s.add($c)) }, params);
            // SAFETY: as above.
            unsafe { S::store(s.add($c), t) };
            most = S::max($seen(t, most), most);
        }};
    }
    if span == WHOLE {
        for v in 0..KEYS / WIDTH {
            step!(v * WIDTH, |t, _| t);
        }
    } else {
        for v in vectors(&[span]) {
            step!(v * WIDTH, |t, most| visible::<S>(span, v * WIDTH, t, most));
        }
    }
    largest::<S>(most).floor().clamp(-EDGE, EDGE)
}

/// One row's w in place of its t; returns l_b.
///
/// # Safety
/// `s` points to 64 values.
#[inline(always)]
pub unsafe fn weights<S: Lanes>(s: *mut f32, span: Span, top: f32) -> f32 {
    let mut sum = S::splat(0.0);
    macro_rules! step {
        ($c:expr, $seen:expr) => {{
            // SAFETY: c < 64.
            let w = weight::<S>(unsafe { S::load(s.add($c)) }, top);
            // SAFETY: as above.
            unsafe { S::store(s.add($c), w) };
            sum = S::add(sum, $seen(w));
        }};
    }
    if span == WHOLE {
        for v in 0..KEYS / WIDTH {
            step!(v * WIDTH, |w| w);
        }
    } else {
        // An absent slot adds +0 to a sum of weights, which is to leave it out.
        for v in vectors(&[span]) {
            step!(v * WIDTH, |w| visible::<S>(span, v * WIDTH, w, S::splat(0.0)));
        }
    }
    S::sum(sum)
}

/// What backward knows of a chunk of query rows.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// `[rows]` M.
    pub top: &'a [f32],
    /// `[rows]` l.
    pub sum: &'a [f32],
    /// `[rows]` D = dot(dO, O).
    pub delta: &'a [f32],
}

#[inline(always)]
fn slopes_lanes<S: Lanes>(s: &mut [f32], dp: &mut [f32], known: Known<'_>, spans: &[Span], params: Params) {
    assert!(fits(spans, s) && fits(spans, dp), "block out of range");
    for (r, span) in spans.iter().enumerate() {
        let (top, sum, delta) = (known.top[r], S::splat(known.sum[r]), S::splat(known.delta[r]));
        for v in vectors(&[*span]) {
            // SAFETY: `s` and `dp` have a row of 64 for every span.
            unsafe {
                let (at_s, at_dp) = (s.as_mut_ptr().add(r * KEYS + v * WIDTH), dp.as_mut_ptr().add(r * KEYS + v * WIDTH));
                let (t, capped) = exponent::<S>(S::load(at_s), params);
                let p = S::div(weight::<S>(t, top), sum);
                let mut dt = S::mul(p, S::sub(S::load(at_dp), delta));
                if params.softcap > 0.0 {
                    let ratio = S::div(capped, S::splat(params.softcap));
                    dt = S::mul(dt, S::sub(S::splat(1.0), S::mul(ratio, ratio)));
                }
                S::store(at_s, p);
                S::store(at_dp, S::mul(dt, S::splat(params.scale)));
            }
        }
    }
}
crate::per_isa! {
    /// Scores `s [rows, 64]` become p, `dp [rows, 64]` becomes dt, in the visible slots of each row.
    pub fn slopes(s: &mut [f32], dp: &mut [f32], known: Known<'_>, spans: &[Span], params: Params) = slopes_lanes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Scalar;

    #[test]
    fn the_short_exp2_has_the_bits_of_the_long_one() {
        let last = 1f32.to_bits();
        for bits in (0..=last).step_by(97).chain(last - 1000..=last) {
            let f = f32::from_bits(bits);
            assert_eq!(exp2_unit::<Scalar>(f).to_bits(), crate::math::exp2(f).to_bits(), "{f:e}");
        }
        assert!(exp2_unit::<Scalar>(f32::NAN).is_nan());
    }
}
