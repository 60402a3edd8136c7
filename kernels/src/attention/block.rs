//! One block of 64 keys against a chunk of query rows: scores, weights, values, join. Training, scoring and decoding call the same
//! functions, so a query's bits do not depend on which of them asked.

use super::Params;
use super::chains::{Chains, Left, Right, Span, covers, sweep};
use super::weights::{exponents, fits, vectors, weights};
use crate::cpu::{Lanes, WIDTH};
use crate::math::power;
use std::ops::Range;

/// Positions of a block and of a page.
pub const KEYS: usize = 64;
/// Most query rows of one call.
pub const CHUNK: usize = 64;

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
    let (links, b) = ([Span { from: 0, to: d }; CHUNK], Right::dense(keys, KEYS));
    let links = &links[..spans.len()];
    covers(q, b, links);
    assert!(fits(spans, s), "scores out of range");
    // SAFETY: asserted above.
    unsafe { sweep::<S>(q, b, links, &mut Scores { s: s.as_mut_ptr(), spans }) }
}
crate::per_isa! {
    /// `s [rows, 64]` = A1(q `[rows, d]`, keys `[d, 64]`); only vectors with a visible slot are written.
    pub fn scores(s: &mut [f32], q: Left<'_>, keys: &[f32], d: usize, spans: &[Span]) = scores_lanes
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
        rows <= CHUNK && fits(spans, s) && rows * width <= state.o.len() && width.is_multiple_of(WIDTH),
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
    covers(w, values, spans);
    // SAFETY: asserted above.
    unsafe { sweep::<S>(w, values, spans, &mut Joined { o: state.o.as_mut_ptr(), width, joins: &joins }) }
}
crate::per_isa! {
    /// Turns the scores `s [rows, 64]` of a block into weights, multiplies them into `values [64, width]` and joins the block to the
    /// rows' state. Rows with an empty span keep theirs.
    pub fn attend(state: State<'_>, s: &mut [f32], values: Right<'_>, spans: &[Span], params: Params) = attend_lanes
}
