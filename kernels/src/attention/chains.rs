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

/// Element (k, c) of B lies at `k * stride + c`.
#[derive(Clone, Copy, Debug)]
pub struct Right<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// From link to link.
    pub stride: usize,
    /// Columns: a multiple of 16.
    pub width: usize,
}

impl<'a> Right<'a> {
    /// Rows of `width` columns one behind the other.
    pub fn dense(data: &'a [f32], width: usize) -> Right<'a> {
        Right { data, stride: width, width }
    }
}

/// Rows that share a loaded vector of B.
const ROWS: usize = 4;

/// Vectors of a row that share a broadcast of A: as many as keep `ROWS` rows of accumulators in registers.
const fn vectors<S: Lanes>() -> usize {
    if align_of::<S::V>() == WIDTH * size_of::<f32>() { 4 } else { 1 }
}

/// The chains of R rows and V vectors. No closures: they would not carry the instruction set.
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
    let (mut low, mut high, mut from, mut to) = (spans[0].from, spans[0].to, spans[0].from, spans[0].to);
    for s in &spans[1..] {
        (low, high, from, to) = (low.min(s.from), high.max(s.to), from.max(s.from), to.min(s.to));
    }
    // The links that all rows have run unguarded.
    let (from, to) = if from < to { (from, to) } else { (high, high) };
    macro_rules! link {
        ($k:ident, $has:expr) => {{
            let mut of_b = [S::splat(0.0); V];
            for v in 0..V {
                // SAFETY: the caller's promise.
                of_b[v] = unsafe { S::load(b.add($k * width + v * WIDTH)) };
            }
            for r in 0..R {
                if $has(spans[r]) {
                    // SAFETY: the caller's promise.
                    let x = S::splat(unsafe { *a.add(r * row + $k * step) });
                    for v in 0..V {
                        acc[r][v] = S::fma(x, of_b[v], acc[r][v]);
                    }
                }
            }
        }};
    }
    for k in low..from {
        link!(k, |s: Span| s.has(k));
    }
    for k in from..to {
        link!(k, |_| true);
    }
    for k in to..high {
        link!(k, |s: Span| s.has(k));
    }
}

/// Where chains begin and what becomes of them. A trait and not closures, which would not carry the instruction set.
pub trait Chains<S: Lanes> {
    /// The vectors wanted of a group of rows.
    fn columns(&self, rows: Range<usize>) -> Range<usize>;
    /// C0 of row r, columns c…c+15.
    ///
    /// # Safety
    /// The row has a span, and the columns are among those wanted.
    unsafe fn begin(&self, r: usize, c: usize) -> S::V;
    /// Takes the result.
    ///
    /// # Safety
    /// As for `begin`.
    unsafe fn end(&mut self, r: usize, c: usize, value: S::V);
}

/// Runs the chains of `spans.len()` rows.
///
/// # Safety
/// For every row r, link k of its span and vector v wanted of it: A has (r, k), B has (k, 16v … 16v + 15).
#[inline(always)]
pub unsafe fn sweep<S: Lanes>(a: Left<'_>, b: Right<'_>, spans: &[Span], chains: &mut impl Chains<S>) {
    macro_rules! run {
        ($r:expr, $v:expr, $first:ident, $c:ident) => {{
            let Some(group) = spans[$first..].first_chunk::<$r>() else { return };
            let mut acc = [[S::splat(0.0); $v]; $r];
            let (a_at, b_at) = (a.data.as_ptr().wrapping_add($first * a.row), b.data.as_ptr().wrapping_add($c * WIDTH));
            // SAFETY: the caller's promise; the addresses are those of row `first` and column 16c.
            unsafe {
                for r in 0..$r {
                    for v in 0..$v {
                        acc[r][v] = chains.begin($first + r, ($c + v) * WIDTH);
                    }
                }
                tile::<S, $r, $v>(&mut acc, a_at, (a.row, a.step), b_at, b.stride, group);
                for r in 0..$r {
                    for v in 0..$v {
                        chains.end($first + r, ($c + v) * WIDTH, acc[r][v]);
                    }
                }
            }
        }};
    }
    let (mut first, most) = (0, vectors::<S>());
    while first < spans.len() {
        let rows = if spans.len() - first >= ROWS { ROWS } else { 1 };
        let idle = spans[first..first + rows].iter().all(|s| s.is_empty());
        let wanted = if idle { 0..0 } else { chains.columns(first..first + rows) };
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

/// Asserts what [`sweep`] needs: the callers' sizes are computed, never a user's.
#[inline(always)]
pub fn covers(a: Left<'_>, b: Right<'_>, spans: &[Span]) {
    let Some(last) = spans.iter().filter(|s| !s.is_empty()).map(|s| s.to - 1).max() else { return };
    // Rows without a link still have B's rows loaded beside those that have some.
    let of_b = spans.iter().map(|s| s.to).fold(last, |most, to| most.max(to.saturating_sub(1)));
    assert!(
        (spans.len() - 1) * a.row + last * a.step < a.data.len() && of_b * b.stride + b.width <= b.data.len(),
        "chain out of range"
    );
}

/// C `[rows, width]` goes on where it is.
struct InPlace {
    c: *mut f32,
    width: usize,
}

impl<S: Lanes> Chains<S> for InPlace {
    #[inline(always)]
    fn columns(&self, _: Range<usize>) -> Range<usize> {
        0..self.width / WIDTH
    }
    #[inline(always)]
    unsafe fn begin(&self, r: usize, c: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load(self.c.add(r * self.width + c)) }
    }
    #[inline(always)]
    unsafe fn end(&mut self, r: usize, c: usize, value: S::V) {
        // SAFETY: the caller's promise.
        unsafe { S::store(self.c.add(r * self.width + c), value) }
    }
}

#[inline(always)]
fn extend_lanes<S: Lanes>(c: &mut [f32], a: Left<'_>, b: Right<'_>, spans: &[Span]) {
    covers(a, b, spans);
    assert!(spans.len() * b.width <= c.len() && b.width.is_multiple_of(WIDTH), "chain results out of range");
    // SAFETY: asserted above; C has `spans.len()` rows of `width`.
    unsafe { sweep::<S>(a, b, spans, &mut InPlace { c: c.as_mut_ptr(), width: b.width }) }
}
crate::per_isa! {
    /// C `[spans.len(), width]` continues its chains over the spans of A and B; C += in the order of the law.
    pub fn extend(c: &mut [f32], a: Left<'_>, b: Right<'_>, spans: &[Span]) = extend_lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "chain out of range")]
    fn an_empty_span_counts_for_what_is_loaded() {
        let (a, b, mut c) = ([1.0; 64], [1.0; 4 * WIDTH], [0.0; 4 * WIDTH]);
        let (some, none) = (Span { from: 0, to: 4 }, Span { from: 16, to: 16 });
        let left = Left { data: &a, row: 16, step: 1 };
        extend(runtime::Isa::portable(), &mut c, left, Right::dense(&b, WIDTH), &[some, none, some, some]);
    }
}
