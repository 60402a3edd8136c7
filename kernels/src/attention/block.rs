//! One block of 64 keys against a chunk of query rows: scores, weights, values, join. Training, scoring and decoding call the same
//! functions, so a query's bits do not depend on which of them asked.

use super::Params;
use super::chains::{Chains, Left, Right, Span, covers, sweep};
use crate::cpu::{Lanes, WIDTH};
use crate::math::{EXP2, LOG2_E, lanes, power};
use std::ops::Range;

/// Positions of a block and of a page.
pub const KEYS: usize = 64;
/// Most query rows of one call.
pub const CHUNK: usize = 64;
/// e is an integer within i32; this f32 stands for both its ends.
const EDGE: f32 = 2147483648.0;
/// Every slot of a block.
const WHOLE: Span = Span { from: 0, to: KEYS };

/// The running state of a chunk of query rows.
#[derive(Debug)]
pub struct State<'a> {
    /// `[rows, width]` values so far.
    pub o: &'a mut [f32],
    /// `[rows]` integer maximum so far; −inf before the first visible block.
    pub top: &'a mut [f32],
    /// `[rows]` denominator so far.
    pub sum: &'a mut [f32],
}

/// How a row's new block joins what it has.
#[derive(Clone, Copy)]
enum Join {
    /// No visible key.
    Skip,
    /// The first visible block is the state.
    First,
    /// The state has the smaller maximum and is scaled.
    ScaleOld(f32),
    /// The block has the smaller maximum and is scaled.
    ScaleNew(f32),
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

/// The vectors that hold a visible slot of any of these rows.
#[inline(always)]
fn vectors(spans: &[Span]) -> Range<usize> {
    let from = spans.iter().filter(|s| !s.is_empty()).map(|s| s.from).min().unwrap_or(0);
    let to = spans.iter().map(|s| s.to).max().unwrap_or(0);
    from / WIDTH..to.div_ceil(WIDTH)
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

/// Scores go to rows of 64; only vectors with a visible slot are wanted.
struct Scores<'a> {
    s: *mut f32,
    spans: &'a [Span],
}

impl<S: Lanes> Chains<S> for Scores<'_> {
    #[inline(always)]
    fn columns(&self, rows: Range<usize>) -> Range<usize> {
        vectors(&self.spans[rows])
    }
    #[inline(always)]
    unsafe fn begin(&self, _: usize, _: usize) -> S::V {
        S::splat(0.0)
    }
    #[inline(always)]
    unsafe fn end(&mut self, r: usize, c: usize, value: S::V) {
        // SAFETY: `s` has a row of 64 for every span.
        unsafe { S::store(self.s.add(r * KEYS + c), value) }
    }
}

#[inline(always)]
fn scores_lanes<S: Lanes>(s: &mut [f32], q: Left<'_>, keys: &[f32], d: usize, spans: &[Span]) {
    let (links, b) = ([Span { from: 0, to: d }; CHUNK], Right { data: keys, width: KEYS });
    let links = &links[..spans.len()];
    covers(q, b, links, KEYS);
    assert!(spans.len() * KEYS <= s.len(), "scores out of range");
    // SAFETY: asserted above.
    unsafe { sweep::<S>(q, b, links, &mut Scores { s: s.as_mut_ptr(), spans }) }
}
crate::per_isa! {
    /// `s [rows, 64]` = A1(q `[rows, d]`, keys `[d, 64]`); only vectors with a visible slot are written.
    pub fn scores(s: &mut [f32], q: Left<'_>, keys: &[f32], d: usize, spans: &[Span]) = scores_lanes
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
unsafe fn exponents<S: Lanes>(s: *mut f32, span: Span, params: Params) -> f32 {
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
unsafe fn weights<S: Lanes>(s: *mut f32, span: Span, top: f32) -> f32 {
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

/// Joins a block's M and l to a row's state and says how the values follow.
#[inline(always)]
fn join(top: &mut f32, sum: &mut f32, (top_b, sum_b): (f32, f32)) -> Join {
    if *top == f32::NEG_INFINITY {
        (*top, *sum) = (top_b, sum_b);
        return Join::First;
    }
    let delta = if top_b > *top { *top - top_b } else { top_b - *top };
    let scale = if delta < -126.0 { 0.0 } else { power(delta as i32) };
    if top_b > *top {
        (*top, *sum) = (top_b, sum.mul_add(scale, sum_b));
        Join::ScaleOld(scale)
    } else {
        *sum = sum_b.mul_add(scale, *sum);
        Join::ScaleNew(scale)
    }
}

/// Values of a block join the rows' state.
struct Joined<'a> {
    o: *mut f32,
    width: usize,
    joins: &'a [Join; CHUNK],
}

impl<S: Lanes> Chains<S> for Joined<'_> {
    #[inline(always)]
    fn columns(&self, _: Range<usize>) -> Range<usize> {
        0..self.width / WIDTH
    }
    #[inline(always)]
    unsafe fn begin(&self, _: usize, _: usize) -> S::V {
        S::splat(0.0)
    }
    #[inline(always)]
    unsafe fn end(&mut self, r: usize, c: usize, block: S::V) {
        // SAFETY: `o` has a row of `width` for every span.
        unsafe {
            let at = self.o.add(r * self.width + c);
            match self.joins[r] {
                Join::Skip => {}
                Join::First => S::store(at, block),
                Join::ScaleOld(by) => S::store(at, S::fma(S::load(at), S::splat(by), block)),
                Join::ScaleNew(by) => S::store(at, S::fma(block, S::splat(by), S::load(at))),
            }
        }
    }
}

#[inline(always)]
fn attend_lanes<S: Lanes>(state: State<'_>, s: &mut [f32], values: Right<'_>, spans: &[Span], params: Params) {
    let mut joins = [Join::Skip; CHUNK];
    let (rows, width) = (spans.len(), values.width);
    assert!(
        rows <= CHUNK && rows * KEYS <= s.len() && rows * width <= state.o.len() && width.is_multiple_of(WIDTH),
        "block out of range"
    );
    let mut tops = [0.0; CHUNK];
    // Two passes, so that rows overlap while a row's maximum is gathered from its lanes.
    for (r, span) in spans.iter().enumerate() {
        if !span.is_empty() {
            // SAFETY: `s` has a row of 64 for every span.
            tops[r] = unsafe { exponents::<S>(s.as_mut_ptr().add(r * KEYS), *span, params) };
        }
    }
    for (r, span) in spans.iter().enumerate() {
        if !span.is_empty() {
            // SAFETY: as above.
            let sum = unsafe { weights::<S>(s.as_mut_ptr().add(r * KEYS), *span, tops[r]) };
            joins[r] = join(&mut state.top[r], &mut state.sum[r], (tops[r], sum));
        }
    }
    let w = Left { data: s, row: KEYS, step: 1 };
    covers(w, values, spans, width);
    // SAFETY: asserted above.
    unsafe { sweep::<S>(w, values, spans, &mut Joined { o: state.o.as_mut_ptr(), width, joins: &joins }) }
}
crate::per_isa! {
    /// Turns the scores `s [rows, 64]` of a block into weights, multiplies them into `values [64, width]` and joins the block to the
    /// rows' state. Rows with an empty span keep theirs.
    pub fn attend(state: State<'_>, s: &mut [f32], values: Right<'_>, spans: &[Span], params: Params) = attend_lanes
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
    assert!(spans.len() * KEYS <= s.len().min(dp.len()), "block out of range");
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
