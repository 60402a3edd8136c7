//! Chains of fma over a shared operand: the only matrix arithmetic of the attention rooms.
//!
//! `C[r, c] = C0[r, c]`, then `C[r, c] = fma(A[r, k], B[k, c], C[r, c])` for k ascending over the row's own span. Lanes run over c and
//! registers over rows, never over k, so a row's bits do not depend on what is computed beside it.

use crate::cpu::{Lanes, WIDTH};
use std::ops::Range;

/// The half-open range of indices that a row's chain runs over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First index.
    pub from: usize,
    /// One past the last.
    pub to: usize,
}

impl Span {
    /// Whether the chain has this link.
    #[inline(always)]
    pub fn has(self, k: usize) -> bool {
        self.from <= k && k < self.to
    }
    /// Whether there is nothing in it.
    #[inline(always)]
    pub fn is_empty(self) -> bool {
        self.from >= self.to
    }
}

/// Element (r, k) of A lies at `r * row + k * step`.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// From row to row.
    pub row: usize,
    /// From link to link.
    pub step: usize,
}

/// Element (k, c) of B lies at `k * width + c`.
#[derive(Clone, Copy, Debug)]
pub struct Right<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// From link to link: a multiple of 16.
    pub width: usize,
}

/// Rows that share a loaded vector of B.
const ROWS: usize = 4;

/// Vectors of a row that share a broadcast of A: as many as keep `ROWS` rows of accumulators in registers.
const fn vectors<S: Lanes>() -> usize {
    if align_of::<S::V>() == WIDTH * size_of::<f32>() { 4 } else { 1 }
}

/// The chains of R rows and V vectors.
///
/// # Safety
/// Every link of every span lies inside `a` and `b`.
#[inline(always)]
unsafe fn tile<S: Lanes, const R: usize, const V: usize>(
    acc: &mut [[S::V; V]; R],
    a: *const f32,
    (row, step): (usize, usize),
    b: *const f32,
    width: usize,
    spans: &[Span; R],
) {
    let low = spans.iter().map(|s| s.from).min().unwrap_or(0);
    let high = spans.iter().map(|s| s.to).max().unwrap_or(0);
    let from = spans.iter().map(|s| s.from).max().unwrap_or(0);
    let to = spans.iter().map(|s| s.to).min().unwrap_or(0);
    // The links that all rows have run unguarded.
    let (from, to) = if from < to { (from, to) } else { (high, high) };
    let link = |acc: &mut [[S::V; V]; R], k: usize, guarded: bool| {
        // SAFETY: the caller's promise.
        let b: [S::V; V] = std::array::from_fn(|v| unsafe { S::load(b.add(k * width + v * WIDTH)) });
        for r in 0..R {
            if !guarded || spans[r].has(k) {
                // SAFETY: the caller's promise.
                let x = S::splat(unsafe { *a.add(r * row + k * step) });
                for v in 0..V {
                    acc[r][v] = S::fma(x, b[v], acc[r][v]);
                }
            }
        }
    };
    (low..from).for_each(|k| link(acc, k, true));
    (from..to).for_each(|k| link(acc, k, false));
    (to..high).for_each(|k| link(acc, k, true));
}

/// Runs the chains of `spans.len()` rows. `columns(group)` names the vectors wanted of the rows `group`, `begin(r, c)` gives C0 and
/// `end(r, c, value)` takes the result of row r, columns c…c+15.
///
/// # Safety
/// For every row r, link k of its span and vector v wanted of it: A has (r, k), B has (k, 16v … 16v + 15).
#[inline(always)]
pub unsafe fn sweep<S: Lanes>(
    a: Left<'_>,
    b: Right<'_>,
    spans: &[Span],
    columns: impl Fn(Range<usize>) -> Range<usize>,
    begin: impl Fn(usize, usize) -> S::V,
    mut end: impl FnMut(usize, usize, S::V),
) {
    macro_rules! run {
        ($r:expr, $v:expr, $first:ident, $c:ident) => {{
            let Some(group) = spans[$first..].first_chunk::<$r>() else { return };
            let mut acc: [[S::V; $v]; $r] = std::array::from_fn(|r| std::array::from_fn(|v| begin($first + r, ($c + v) * WIDTH)));
            let (a_at, b_at) = (a.data.as_ptr().wrapping_add($first * a.row), b.data.as_ptr().wrapping_add($c * WIDTH));
            // SAFETY: the caller's promise; the addresses are those of row `first` and column 16c.
            unsafe { tile::<S, $r, $v>(&mut acc, a_at, (a.row, a.step), b_at, b.width, group) };
            for (r, row) in acc.into_iter().enumerate() {
                for (v, value) in row.into_iter().enumerate() {
                    end($first + r, ($c + v) * WIDTH, value);
                }
            }
        }};
    }
    let (mut first, most) = (0, vectors::<S>());
    while first < spans.len() {
        let rows = if spans.len() - first >= ROWS { ROWS } else { 1 };
        let idle = spans[first..first + rows].iter().all(|s| s.is_empty());
        let wanted = if idle { 0..0 } else { columns(first..first + rows) };
        let mut c = wanted.start;
        while c < wanted.end {
            let v = (wanted.end - c).min(most);
            match (rows, v) {
                (ROWS, 4) if most == 4 => run!(ROWS, 4, first, c),
                (ROWS, 3) if most == 4 => run!(ROWS, 3, first, c),
                (ROWS, 2) if most == 4 => run!(ROWS, 2, first, c),
                (ROWS, _) => run!(ROWS, 1, first, c),
                (_, 4) if most == 4 => run!(1, 4, first, c),
                (_, 3) if most == 4 => run!(1, 3, first, c),
                (_, 2) if most == 4 => run!(1, 2, first, c),
                _ => run!(1, 1, first, c),
            }
            c += v;
        }
        first += rows;
    }
}

/// Asserts what [`sweep`] needs for `width` columns: the callers' sizes are computed, never a user's.
#[inline(always)]
pub fn covers(a: Left<'_>, b: Right<'_>, spans: &[Span], width: usize) {
    let Some(last) = spans.iter().filter(|s| !s.is_empty()).map(|s| s.to - 1).max() else { return };
    assert!(
        (spans.len() - 1) * a.row + last * a.step < a.data.len() && last * b.width + width <= b.data.len(),
        "chain out of range"
    );
}

#[inline(always)]
fn extend_lanes<S: Lanes>(c: &mut [f32], a: Left<'_>, b: Right<'_>, spans: &[Span]) {
    covers(a, b, spans, b.width);
    assert!(spans.len() * b.width <= c.len() && b.width.is_multiple_of(WIDTH), "chain results out of range");
    let c = c.as_mut_ptr();
    // SAFETY: asserted above; C has `spans.len()` rows of `width`.
    unsafe {
        sweep::<S>(
            a,
            b,
            spans,
            |_| 0..b.width / WIDTH,
            |r, i| S::load(c.add(r * b.width + i)),
            |r, i, value| S::store(c.add(r * b.width + i), value),
        )
    }
}
crate::per_isa! {
    /// C `[spans.len(), width]` continues its chains over the spans of A and B; C += in the order of the law.
    pub fn extend(c: &mut [f32], a: Left<'_>, b: Right<'_>, spans: &[Span]) = extend_lanes
}
