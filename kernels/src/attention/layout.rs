//! Moving rows of heads between their place in a batch and the scratch of a task. Nothing here rounds, but the last division.

use super::block::KEYS;
use crate::cpu::{Lanes, WIDTH, rows};
use std::ops::Range;

/// Rows of a batch as a kv head sees them: head g of row r begins at `r * stride + g * d`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// From the first row's first head on.
    pub data: &'a [f32],
    /// From row to row.
    pub stride: usize,
    /// Heads side by side.
    pub group: usize,
    /// Values of a head.
    pub d: usize,
}

impl<'a> Rows<'a> {
    /// Heads `part` … `part + group` of the rows from `row` on.
    pub fn of(data: &'a [f32], row: usize, stride: usize, part: usize, group: usize, d: usize) -> Rows<'a> {
        Rows { data: &data[row * stride + part * d..], stride, group, d }
    }
}

/// Asks for values to come near, where the machine has a way to ask: the rows of one head lie far apart, which hides them from it.
#[inline(always)]
pub fn near(values: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(WIDTH) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch of memory that may be read.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Asks for the heads of `count` successive rows.
pub fn fetch(from: Rows<'_>, count: usize) {
    for row in 0..count {
        near(&from.data[row * from.stride..][..from.group * from.d]);
    }
}

/// Fills lines `[·, width]` from the heads of successive rows, zeros behind d.
pub fn pack(lines: &mut [f32], from: Rows<'_>, width: usize) {
    let (mut row, mut g) = (0, 0);
    for line in lines.chunks_exact_mut(width) {
        let (values, padding) = line.split_at_mut(from.d);
        values.copy_from_slice(&from.data[row + g * from.d..][..from.d]);
        padding.fill(0.0);
        g += 1;
        if g == from.group {
            (row, g) = (row + from.stride, 0);
        }
    }
}

/// One row's heads, side by side, from lines `[·, width]`.
pub fn unpack(row: &mut [f32], lines: &[f32], d: usize, width: usize) {
    for (to, line) in row.chunks_exact_mut(d).zip(lines.chunks_exact(width)) {
        to.copy_from_slice(&line[..d]);
    }
}

#[inline(always)]
fn divide_lanes<S: Lanes>(row: &mut [f32], lines: &[f32], by: &[f32], d: usize, width: usize) {
    for ((to, line), by) in row.chunks_exact_mut(d).zip(lines.chunks_exact(width)).zip(by) {
        for (to, line) in to.chunks_mut(WIDTH).zip(line.chunks_exact(WIDTH)) {
            // SAFETY: an array and chunks of 16, of which `to` is one unless it ends the row.
            unsafe {
                let quotient = S::div(S::load(line.as_ptr()), S::splat(*by));
                if to.len() == WIDTH {
                    S::store(to.as_mut_ptr(), quotient);
                } else {
                    let mut end = [0.0; WIDTH];
                    S::store(end.as_mut_ptr(), quotient);
                    to.copy_from_slice(&end[..to.len()]);
                }
            }
        }
    }
}
crate::per_isa! {
    /// One row's heads = lines `[·, width]`, each divided by its own number.
    pub fn divide(row: &mut [f32], lines: &[f32], by: &[f32], d: usize, width: usize) = divide_lanes
}

/// Four rows of four values become four columns of four.
///
/// # Safety
/// `from` points to four rows `stride` apart, `to` to four rows of 64.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn turn(to: *mut f32, from: *const f32, stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise; every x86-64 has these instructions.
    unsafe {
        let (a, b) = (_mm_loadu_ps(from), _mm_loadu_ps(from.add(stride)));
        let (c, d) = (_mm_loadu_ps(from.add(2 * stride)), _mm_loadu_ps(from.add(3 * stride)));
        let (ab, ab_high) = (_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
        let (cd, cd_high) = (_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
        _mm_storeu_ps(to, _mm_movelh_ps(ab, cd));
        _mm_storeu_ps(to.add(KEYS), _mm_movehl_ps(cd, ab));
        _mm_storeu_ps(to.add(2 * KEYS), _mm_movelh_ps(ab_high, cd_high));
        _mm_storeu_ps(to.add(3 * KEYS), _mm_movehl_ps(cd_high, ab_high));
    }
}

/// As above.
///
/// # Safety
/// As above.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
unsafe fn turn(to: *mut f32, from: *const f32, stride: usize) {
    for i in 0..16 {
        // SAFETY: the caller's promise.
        unsafe { *to.add(i / 4 * KEYS + i % 4) = *from.add(i % 4 * stride + i / 4) };
    }
}

/// Columns `[d, 64]`: the first head of successive rows to successive slots.
pub fn transpose(columns: &mut [f32], slots: Range<usize>, from: Rows<'_>) {
    let Rows { data, stride, d, .. } = from;
    let (count, rows, values) = (slots.len(), slots.len() / 4 * 4, d / 4 * 4);
    assert!(slots.end <= KEYS && d * KEYS <= columns.len() && (count == 0 || (count - 1) * stride + d <= data.len()));
    for row in (0..rows).step_by(4) {
        for i in (0..values).step_by(4) {
            // SAFETY: asserted: row + 3 < count, i + 3 < d.
            unsafe { turn(columns.as_mut_ptr().add(i * KEYS + slots.start + row), data.as_ptr().add(row * stride + i), stride) };
        }
    }
    for row in 0..count {
        for i in if row < rows { values..d } else { 0..d } {
            columns[i * KEYS + slots.start + row] = data[row * stride + i];
        }
    }
}

#[inline(always)]
fn deltas_lanes<S: Lanes>(delta: &mut [f32], dout: Rows<'_>, out: Rows<'_>) {
    let (mut row, mut g) = (0, 0);
    for delta in delta {
        let at = row + g * out.d;
        *delta = rows::dot::<S>(&dout.data[at..at + out.d], &out.data[at..at + out.d]);
        g += 1;
        if g == out.group {
            (row, g) = (row + out.stride, 0);
        }
    }
}
crate::per_isa! {
    /// D of the heads of successive rows: A2 over d of fma(dO, O). Both have one layout.
    pub fn deltas(delta: &mut [f32], dout: Rows<'_>, out: Rows<'_>) = deltas_lanes
}
