//! Moving operands into the layouts that [`super::tile`] reads: strips of rows with k outside, and transposed blocks.

use super::tile::fetch;
use crate::cpu::{Lanes, Stored, WIDTH};
use half::{bf16, f16};
use runtime::Isa;
use std::ops::Range;

/// Rows between the one being cut and the one asked for.
const DISTANCE: usize = 6;

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

    /// Where row `m` starts.
    #[inline(always)]
    pub fn start(&self, m: usize) -> usize {
        self.index.map_or(m, |index| index[m] as usize) * self.ld
    }

    /// Columns `k` of row `m`.
    #[inline(always)]
    pub fn row(&self, m: usize, k: Range<usize>) -> &'a [f32] {
        &self.data[self.start(m) + k.start..self.start(m) + k.end]
    }
}

/// `out[k·width + i] = rows[i][k]` for all k of the shortest row.
pub(crate) fn interleave<const N: usize>(isa: Isa, out: &mut [f32], width: usize, rows: [&[f32]; N]) {
    let len = rows.iter().map(|r| r.len()).min().unwrap_or(0);
    assert!(len == 0 || (len - 1) * width + N <= out.len(), "interleave: {len} columns of {width} into {}", out.len());
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::portable() {
        done = len / 8 * 8;
        // SAFETY: both other levels have AVX; the loads end at `done`, the stores where the assertion says.
        unsafe {
            match N {
                8 => avx::eight(out.as_mut_ptr(), width, rows.as_slice(), done),
                4 => avx::four(out.as_mut_ptr(), width, rows.as_slice(), done),
                _ => done = 0,
            }
        }
    }
    for k in done..len {
        for i in 0..N {
            out[k * width + i] = rows[i][k];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx {
    use std::arch::x86_64::*;

    /// Interleaves the first `len` (a multiple of 8) columns of eight rows.
    #[target_feature(enable = "avx")]
    pub unsafe fn eight(out: *mut f32, width: usize, rows: &[&[f32]], len: usize) {
        for k in (0..len).step_by(8) {
            // SAFETY: the caller checked rows and `out`.
            unsafe {
                // Row i and row i + 4 share a register, so that the rest is shuffles within halves.
                let half = |i: usize, k: usize| _mm_loadu_ps(rows[i].as_ptr().add(k));
                let pair = |i: usize, k: usize| _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(half(i, k)), half(i + 4, k));
                for k in [k, k + 4] {
                    let (a, b, c, d) = (pair(0, k), pair(1, k), pair(2, k), pair(3, k));
                    let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                    let (ef, gh) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                    let to = out.add(k * width);
                    _mm256_storeu_ps(to, _mm256_shuffle_ps::<0x44>(ab, cd));
                    _mm256_storeu_ps(to.add(width), _mm256_shuffle_ps::<0xee>(ab, cd));
                    _mm256_storeu_ps(to.add(2 * width), _mm256_shuffle_ps::<0x44>(ef, gh));
                    _mm256_storeu_ps(to.add(3 * width), _mm256_shuffle_ps::<0xee>(ef, gh));
                }
            }
        }
    }

    /// Interleaves the first `len` (a multiple of 8) columns of four rows.
    #[target_feature(enable = "avx")]
    pub unsafe fn four(out: *mut f32, width: usize, rows: &[&[f32]], len: usize) {
        for k in (0..len).step_by(4) {
            // SAFETY: the caller checked rows and `out`.
            unsafe {
                let row = |i: usize| _mm_loadu_ps(rows[i].as_ptr().add(k));
                let (a, b, c, d) = (row(0), row(1), row(2), row(3));
                let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
                let (ef, gh) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
                let to = out.add(k * width);
                _mm_storeu_ps(to, _mm_movelh_ps(ab, cd));
                _mm_storeu_ps(to.add(width), _mm_movehl_ps(cd, ab));
                _mm_storeu_ps(to.add(2 * width), _mm_movelh_ps(ef, gh));
                _mm_storeu_ps(to.add(3 * width), _mm_movehl_ps(gh, ef));
            }
        }
    }
}

/// Packs rows `m` (at most `width`) of columns `k` as [len][width]; absent rows are zero.
pub(crate) fn strip(isa: Isa, out: &mut [f32], width: usize, left: Left<'_>, m: Range<usize>, k: Range<usize>) {
    if k.is_empty() {
        return;
    }
    let mut at = 0;
    while at + 8 <= m.len() {
        interleave::<8>(isa, &mut out[at..], width, std::array::from_fn(|i| left.row(m.start + at + i, k.clone())));
        at += 8;
    }
    while at + 4 <= m.len() {
        interleave::<4>(isa, &mut out[at..], width, std::array::from_fn(|i| left.row(m.start + at + i, k.clone())));
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
fn cut_body<S: Lanes>(out: &mut [f32], width: usize, left: Left<'_>, columns: Range<usize>, m: Range<usize>) {
    let (len, strips) = (m.len(), columns.len().div_ceil(width));
    for (i, m) in m.enumerate() {
        let row = &left.data[left.start(m) + columns.start..];
        // Rows lie a page or so apart, where the machine's own prefetch stops.
        let later = row.as_ptr().wrapping_add(DISTANCE * left.ld);
        (0..columns.len()).step_by(WIDTH).for_each(|c| fetch(later.wrapping_add(c)));
        for s in 0..strips {
            let (from, to) = (s * width, &mut out[(s * len + i) * width..]);
            let used = width.min(columns.len() - from);
            // A vector may run over what the rows after this one will fill, and over nothing else.
            let reach = width.next_multiple_of(WIDTH);
            let whole = used == width && i * width + reach <= len * width && from + reach <= row.len();
            let mut v = 0;
            while whole && v < width {
                // SAFETY: both slices have 16 elements from here.
                unsafe { S::store(to[v..v + WIDTH].as_mut_ptr(), S::load(row[from + v..from + v + WIDTH].as_ptr())) };
                v += WIDTH;
            }
            if !whole {
                to[..used].copy_from_slice(&row[from..from + used]);
                to[used..width].fill(0.0);
            }
        }
    }
}

crate::per_isa! {
    /// Cuts columns of rows `m` into strips [strips][rows][width], absent columns zero.
    pub(crate) fn cut(out: &mut [f32], width: usize, left: Left<'_>, columns: Range<usize>, m: Range<usize>) = cut_body
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
