//! One block of 64 keys against a chunk of query rows: scores, weights, values, join. Training, scoring and decoding call the same
//! functions, so a query's bits do not depend on which of them asked.

use super::Params;
use super::chains::{Left, Right, Span, covers, sweep};
use crate::cpu::{Lanes, WIDTH, rows};
use crate::math::{LOG2_E, lanes, power};

/// Positions of a block and of a page.
pub const KEYS: usize = 64;
/// Most query rows of one call.
pub const CHUNK: usize = 64;
/// e is an integer within i32; this f32 stands for both its ends.
const EDGE: f32 = 2147483648.0;

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
fn vectors(spans: &[Span]) -> std::ops::Range<usize> {
    let from = spans.iter().filter(|s| !s.is_empty()).map(|s| s.from).min().unwrap_or(0);
    let to = spans.iter().map(|s| s.to).max().unwrap_or(0);
    from / WIDTH..to.div_ceil(WIDTH)
}

/// Largest lane, in the order of LAW A2's last step.
#[inline(always)]
fn largest<S: Lanes>(v: S::V) -> f32 {
    let mut x = [0.0f32; WIDTH];
    // SAFETY: an array of 16.
    unsafe { S::store(x.as_mut_ptr(), v) };
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] = if x[i] > x[i + half] { x[i] } else { x[i + half] };
        }
    }
    x[0]
}

#[inline(always)]
fn scores_lanes<S: Lanes>(s: &mut [f32], q: Left<'_>, keys: &[f32], d: usize, spans: &[Span]) {
    let (links, b) = ([Span { from: 0, to: d }; CHUNK], Right { data: keys, width: KEYS });
    let links = &links[..spans.len()];
    covers(q, b, links, KEYS);
    assert!(spans.len() * KEYS <= s.len(), "scores out of range");
    let s = s.as_mut_ptr();
    let store = |r: usize, c: usize, value| {
        // SAFETY: `s` has a row of 64 for every span.
        unsafe { S::store(s.add(r * KEYS + c), value) }
    };
    // SAFETY: asserted above.
    unsafe { sweep::<S>(q, b, links, |rows| vectors(&spans[rows]), |_, _| S::splat(0.0), store) }
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

/// floor(t) within i32; NaN stays.
#[inline(always)]
fn integer<S: Lanes>(t: S::V) -> S::V {
    S::max(S::splat(-EDGE), S::min(S::splat(EDGE), S::floor(t)))
}

/// exp2(t − floor(t)) · 2^(e − top).
#[inline(always)]
fn weight<S: Lanes>(t: S::V, top: S::V) -> S::V {
    S::mul(lanes::exp2::<S>(S::sub(t, S::floor(t))), lanes::power::<S>(S::sub(integer::<S>(t), top)))
}

/// One row's w over its block in place of its scores; returns M_b and l_b.
///
/// # Safety
/// `s` points to 64 values.
#[inline(always)]
unsafe fn weigh<S: Lanes>(s: *mut f32, span: Span, params: Params) -> (f32, f32) {
    let mut most = S::splat(f32::NEG_INFINITY);
    let range = vectors(&[span]);
    for v in range.clone() {
        // SAFETY: v < 4.
        unsafe {
            let at = s.add(v * WIDTH);
            let (t, _) = exponent::<S>(S::load(at), params);
            S::store(at, t);
            most = S::max(visible::<S>(span, v * WIDTH, t, most), most);
        }
    }
    let top = largest::<S>(most).floor().clamp(-EDGE, EDGE);
    let mut sum = S::splat(0.0);
    for v in range {
        // SAFETY: v < 4.
        unsafe {
            let at = s.add(v * WIDTH);
            let w = weight::<S>(S::load(at), S::splat(top));
            S::store(at, w);
            // Absent slots add +0 to sums of weights, which is to leave them out.
            sum = S::add(sum, visible::<S>(span, v * WIDTH, w, S::splat(0.0)));
        }
    }
    (top, S::sum(sum))
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

#[inline(always)]
fn attend_lanes<S: Lanes>(state: State<'_>, s: &mut [f32], values: Right<'_>, spans: &[Span], params: Params) {
    let mut joins = [Join::Skip; CHUNK];
    let (rows, width) = (spans.len(), values.width);
    assert!(
        rows <= CHUNK && rows * KEYS <= s.len() && rows * width <= state.o.len() && width.is_multiple_of(WIDTH),
        "block out of range"
    );
    for (r, span) in spans.iter().enumerate() {
        if !span.is_empty() {
            // SAFETY: `s` has a row of 64 for every span.
            let of_block = unsafe { weigh::<S>(s.as_mut_ptr().add(r * KEYS), *span, params) };
            joins[r] = join(&mut state.top[r], &mut state.sum[r], of_block);
        }
    }
    let w = Left { data: s, row: KEYS, step: 1 };
    covers(w, values, spans, width);
    let o = state.o.as_mut_ptr();
    let finish = |r: usize, c: usize, block: S::V| {
        // SAFETY: `o` has a row of `width` for every span.
        unsafe {
            let at = o.add(r * width + c);
            match joins[r] {
                Join::Skip => {}
                Join::First => S::store(at, block),
                Join::ScaleOld(by) => S::store(at, S::fma(S::load(at), S::splat(by), block)),
                Join::ScaleNew(by) => S::store(at, S::fma(block, S::splat(by), S::load(at))),
            }
        }
    };
    // SAFETY: asserted above.
    unsafe { sweep::<S>(w, values, spans, |_| 0..width / WIDTH, |_, _| S::splat(0.0), finish) }
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
        let (top, sum, delta) = (S::splat(known.top[r]), S::splat(known.sum[r]), S::splat(known.delta[r]));
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

#[inline(always)]
fn divide_lanes<S: Lanes>(o: &mut [f32], by: f32) {
    assert!(o.len().is_multiple_of(WIDTH), "a row of whole vectors");
    for x in o.chunks_exact_mut(WIDTH) {
        // SAFETY: chunks of 16.
        unsafe { S::store(x.as_mut_ptr(), S::div(S::load(x.as_ptr()), S::splat(by))) };
    }
}
crate::per_isa! {
    /// `o /= by`, for whole vectors.
    pub fn divide(o: &mut [f32], by: f32) = divide_lanes
}

#[inline(always)]
fn deltas_lanes<S: Lanes>(delta: &mut [f32], dout: &[f32], out: &[f32], d: usize) {
    for (delta, (a, b)) in delta.iter_mut().zip(dout.chunks_exact(d).zip(out.chunks_exact(d))) {
        *delta = rows::dot::<S>(a, b);
    }
}
crate::per_isa! {
    /// D of consecutive heads: A2 over d of fma(dO, O).
    pub fn deltas(delta: &mut [f32], dout: &[f32], out: &[f32], d: usize) = deltas_lanes
}

/// Copies keys or values of one head, given as rows `stride` apart, to the slots of a block: `columns [d, 64]`.
pub fn transpose(columns: &mut [f32], slots: std::ops::Range<usize>, rows: &[f32], stride: usize, d: usize) {
    for (slot, row) in slots.zip(rows.chunks(stride)) {
        for (i, x) in row[..d].iter().enumerate() {
            columns[i * KEYS + slot] = *x;
        }
    }
}

/// The same to `lines [64, width]`, zeros behind d.
pub fn copy(lines: &mut [f32], slots: std::ops::Range<usize>, rows: &[f32], stride: usize, d: usize, width: usize) {
    for (slot, row) in slots.zip(rows.chunks(stride)) {
        let line = &mut lines[slot * width..(slot + 1) * width];
        line[..d].copy_from_slice(&row[..d]);
        line[d..].fill(0.0);
    }
}
