//! Moving operands into the layouts that [`super::tile`] reads: strips of rows with k outside, and transposed blocks.

use crate::cpu::{Lanes, Stored, WIDTH};
use half::{bf16, f16};
use runtime::Isa;
use std::ops::Range;

/// Row-major rows [M, ld], in place or picked by index.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    /// The rows.
    pub data: &'a [f32],
    /// Elements between two rows.
    pub ld: usize,
    /// Which rows stand for 0, 1, …; all of them in order if absent.
    pub index: Option<&'a [u32]>,
}

impl<'a> Left<'a> {
    /// Rows in place.
    pub fn new(data: &'a [f32], ld: usize) -> Left<'a> {
        Left { data, ld, index: None }
    }

    /// Columns `k` of row `m`.
    #[inline(always)]
    pub fn row(&self, m: usize, k: Range<usize>) -> &'a [f32] {
        let m = self.index.map_or(m, |index| index[m] as usize);
        &self.data[m * self.ld + k.start..m * self.ld + k.end]
    }
}

/// `out[k·width + at + i] = rows[i][k]`
#[inline(always)]
pub(crate) fn interleave(out: &mut [f32], width: usize, at: usize, rows: [&[f32]; 4]) {
    let len = rows.iter().map(|r| r.len()).min().unwrap_or(0);
    assert!(len == 0 || (len - 1) * width + at + 4 <= out.len(), "interleave: {len} columns of {width} into {}", out.len());
    let mut k = 0;
    #[cfg(target_arch = "x86_64")]
    while k + 4 <= len {
        use std::arch::x86_64::*;
        // SAFETY: SSE is part of x86_64; the loads end at k + 4 ≤ len, the stores where the assertion says.
        unsafe {
            let r = rows.map(|r| _mm_loadu_ps(r.as_ptr().add(k)));
            let (a, b) = (_mm_unpacklo_ps(r[0], r[1]), _mm_unpacklo_ps(r[2], r[3]));
            let (c, d) = (_mm_unpackhi_ps(r[0], r[1]), _mm_unpackhi_ps(r[2], r[3]));
            let to = out.as_mut_ptr().add(k * width + at);
            _mm_storeu_ps(to, _mm_movelh_ps(a, b));
            _mm_storeu_ps(to.add(width), _mm_movehl_ps(b, a));
            _mm_storeu_ps(to.add(2 * width), _mm_movelh_ps(c, d));
            _mm_storeu_ps(to.add(3 * width), _mm_movehl_ps(d, c));
        }
        k += 4;
    }
    for k in k..len {
        for i in 0..4 {
            out[k * width + at + i] = rows[i][k];
        }
    }
}

/// Packs rows `m` (at most `width`) of columns `k` as [len][width]; absent rows are zero.
pub(crate) fn strip(out: &mut [f32], width: usize, left: Left<'_>, m: Range<usize>, k: Range<usize>) {
    let mut at = 0;
    while at + 4 <= m.len() {
        interleave(out, width, at, std::array::from_fn(|i| left.row(m.start + at + i, k.clone())));
        at += 4;
    }
    for at in at..width {
        let row = if at < m.len() { left.row(m.start + at, k.clone()) } else { &[] };
        for i in 0..k.len() {
            out[i * width + at] = row.get(i).copied().unwrap_or(0.0);
        }
    }
}

#[inline(always)]
fn widen_body<S: Lanes, T: Stored>(out: &mut [f32], from: &[T]) {
    let whole = from.len().min(out.len()) / WIDTH * WIDTH;
    for i in (0..whole).step_by(WIDTH) {
        // SAFETY: i + 16 is within both.
        unsafe { S::store(out.as_mut_ptr().add(i), T::lanes::<S>(from.as_ptr().add(i))) };
    }
    for (out, from) in out[whole..].iter_mut().zip(&from[whole..]) {
        *out = from.widen();
    }
}

crate::per_isa! { fn widen_f32(out: &mut [f32], from: &[f32]) = widen_body::<f32> }
crate::per_isa! { fn widen_bf16(out: &mut [f32], from: &[bf16]) = widen_body::<bf16> }
crate::per_isa! { fn widen_f16(out: &mut [f32], from: &[f16]) = widen_body::<f16> }

/// Packed weights in their storage type.
#[derive(Clone, Copy)]
pub(crate) enum Stock<'a> {
    /// 32 bits.
    F32(&'a [f32]),
    /// 16 bits.
    Bf16(&'a [bf16]),
    /// 16 bits.
    F16(&'a [f16]),
}

impl Stock<'_> {
    /// Copies elements `range` to `out` as f32.
    pub fn widen(&self, isa: Isa, out: &mut [f32], range: Range<usize>) {
        match self {
            Stock::F32(w) => widen_f32(isa, out, &w[range]),
            Stock::Bf16(w) => widen_bf16(isa, out, &w[range]),
            Stock::F16(w) => widen_f16(isa, out, &w[range]),
        }
    }
}

/// Scratch of one task, handed out piece by piece at cache lines.
pub(crate) struct Room<'a>(&'a mut [f32]);

impl<'a> Room<'a> {
    /// Floats to ask of the pool for pieces of these lengths.
    pub fn size(pieces: &[usize]) -> usize {
        pieces.iter().map(|p| p.next_multiple_of(16)).sum::<usize>() + 16
    }

    /// Starts at the first cache line.
    pub fn new(scratch: &'a mut [f32]) -> Room<'a> {
        let skip = scratch.as_ptr().align_offset(64).min(scratch.len());
        Room(&mut scratch[skip..])
    }

    /// The next `len` floats.
    pub fn take(&mut self, len: usize) -> &'a mut [f32] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(len.next_multiple_of(16));
        self.0 = rest;
        &mut piece[..len]
    }
}
