//! Lanes: the one vocabulary in which every `cpu.rs` is written. A lane path and the scalar path of the same source perform the
//! same IEEE operations per element, so portable, AVX2 and AVX-512 give the same bits (LAW A8).
//!
//! A room writes a body generic over [`Lanes`] and gets its three instantiations from `per_isa!`.

use half::{bf16, f16};

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use portable::{Portable, Scalar};
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// Lanes per vector of every instruction set, as LAW A2 counts them.
pub const WIDTH: usize = 16;

/// One f32 or sixteen of them, with the operations that math and rooms use. Every operation rounds by itself; `fma` rounds once.
pub trait Lanes: Copy + Send + Sync + 'static {
    /// f32 lanes.
    type V: Copy;
    /// i32 lanes.
    type I: Copy;
    /// One truth value per lane.
    type M: Copy;
    /// 1 or 16.
    const LANES: usize;

    /// The same value in every lane.
    fn splat(x: f32) -> Self::V;
    /// Reads `LANES` values.
    ///
    /// # Safety
    /// `p` points to that many.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Writes `LANES` values.
    ///
    /// # Safety
    /// `p` points to that many.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Widens `LANES` bf16 exactly.
    ///
    /// # Safety
    /// `p` points to that many.
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    /// Widens `LANES` f16 exactly.
    ///
    /// # Safety
    /// `p` points to that many.
    unsafe fn load_f16(p: *const f16) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a + b`
    fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`, IEEE.
    fn div(a: Self::V, b: Self::V) -> Self::V;
    /// IEEE square root.
    fn sqrt(a: Self::V) -> Self::V;
    /// Largest integer not above.
    fn floor(a: Self::V) -> Self::V;
    /// `a > b ? a : b`, so b if either is NaN.
    fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`, so b if either is NaN.
    fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Clears the sign bit.
    fn abs(a: Self::V) -> Self::V;
    /// `a` with the sign bit of `sign` (for `a` without one).
    fn with_sign(a: Self::V, sign: Self::V) -> Self::V;
    /// `a < b`, false if either is NaN.
    fn lt(a: Self::V, b: Self::V) -> Self::M;
    /// Lane below `n` (for ragged ends).
    fn first(n: usize) -> Self::M;
    /// `m ? a : b`
    fn select(m: Self::M, a: Self::V, b: Self::V) -> Self::V;
    /// Truncation to i32 for values within its range.
    fn to_int(a: Self::V) -> Self::I;
    /// Exact for |i| < 2^24.
    fn from_int(i: Self::I) -> Self::V;
    /// The bits.
    fn bits(a: Self::V) -> Self::I;
    /// The bits as a float.
    fn from_bits(i: Self::I) -> Self::V;
    /// The same integer in every lane.
    fn splat_int(i: i32) -> Self::I;
    /// Wrapping sum.
    fn add_int(a: Self::I, b: Self::I) -> Self::I;
    /// `a & b`
    fn and_int(a: Self::I, b: Self::I) -> Self::I;
    /// Shift left by `N`.
    fn shl<const N: u32>(a: Self::I) -> Self::I;
    /// Arithmetic shift right by `N`.
    fn shr<const N: u32>(a: Self::I) -> Self::I;
    /// LAW A2's last step: `l += l+8, l += l+4, l += l+2, l += l+1`.
    fn sum(a: Self::V) -> f32;
}

/// A storage type of frozen weights, widened exactly to f32 lanes.
pub trait Stored: runtime::Element {
    /// Reads `LANES` values.
    ///
    /// # Safety
    /// `p` points to that many.
    unsafe fn lanes<S: Lanes>(p: *const Self) -> S::V;
    /// One value.
    fn widen(self) -> f32;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn lanes<S: Lanes>(p: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Stored for bf16 {
    #[inline(always)]
    unsafe fn lanes<S: Lanes>(p: *const bf16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(p) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn lanes<S: Lanes>(p: *const f16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_f16(p) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// Defines `fn name(isa, args…)` that runs `body::<S>(args…)` compiled for the given instruction set. `body` and what it calls
/// must be `#[inline(always)]` to be compiled with the features.
#[macro_export]
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($life:lifetime),*>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident $(::<$($extra:ident),*>)?) => {
        $(#[$meta])*
        $vis fn $name $(<$($life),*>)? (isa: runtime::Isa, $($arg: $ty),*) $(-> $ret)? {
            match isa.level() {
                #[cfg(target_arch = "x86_64")]
                runtime::cpu::Level::Avx512 => {
                    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                    fn avx512 $(<$($life),*>)? ($($arg: $ty),*) $(-> $ret)? {
                        $body::<$crate::cpu::Avx512 $(, $($extra),*)?>($($arg),*)
                    }
                    // SAFETY: a value of this level exists only where the features were detected.
                    unsafe { avx512($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                runtime::cpu::Level::Avx2 => {
                    #[target_feature(enable = "avx2,fma,f16c")]
                    fn avx2 $(<$($life),*>)? ($($arg: $ty),*) $(-> $ret)? {
                        $body::<$crate::cpu::Avx2 $(, $($extra),*)?>($($arg),*)
                    }
                    // SAFETY: as above.
                    unsafe { avx2($($arg),*) }
                }
                _ => $body::<$crate::cpu::Portable $(, $($extra),*)?>($($arg),*),
            }
        }
    };
}

/// Row sums of LAW A2 over slices: element i goes to accumulator i mod 16.
pub mod rows {
    use super::{Lanes, WIDTH};

    /// Rows of one task, so that a task has some thousand elements.
    pub fn grain(columns: usize) -> usize {
        4096usize.div_ceil(columns)
    }

    /// What a norm multiplies by: w, or offset + w.
    #[inline(always)]
    pub fn factor(offset: f32, w: f32) -> f32 {
        if offset == 0.0 { w } else { offset + w }
    }

    /// x, or where there is a delta x + delta, which is written to `sum`.
    #[inline(always)]
    pub fn residual<'a>(sum: &'a mut [f32], x: &'a [f32], delta: &[f32]) -> &'a [f32] {
        if delta.is_empty() {
            return x;
        }
        for ((s, x), d) in sum.iter_mut().zip(x).zip(delta) {
            *s = x + d;
        }
        sum
    }

    /// Runs `step(i, acc)` for every whole group of lanes, then hands the ragged end's lane count to `tail`.
    #[inline(always)]
    fn accumulate<S: Lanes>(
        len: usize,
        mut step: impl FnMut(usize, S::V) -> S::V,
        tail: impl FnOnce(usize, usize, S::V) -> S::V,
    ) -> f32 {
        debug_assert_eq!(S::LANES, WIDTH);
        let mut acc = S::splat(0.0);
        let whole = len / WIDTH * WIDTH;
        for i in (0..whole).step_by(WIDTH) {
            acc = step(i, acc);
        }
        if whole < len {
            acc = tail(whole, len - whole, acc);
        }
        S::sum(acc)
    }

    /// `sum a_i * b_i`, products entering by fma.
    #[inline(always)]
    pub fn dot<S: Lanes>(a: &[f32], b: &[f32]) -> f32 {
        let len = a.len().min(b.len());
        accumulate::<S>(
            len,
            // SAFETY: i + 16 <= len.
            |i, acc| unsafe { S::fma(S::load(a.as_ptr().add(i)), S::load(b.as_ptr().add(i)), acc) },
            |i, n, acc| {
                let (mut x, mut y) = ([0.0; WIDTH], [0.0; WIDTH]);
                x[..n].copy_from_slice(&a[i..i + n]);
                y[..n].copy_from_slice(&b[i..i + n]);
                // SAFETY: arrays of 16.
                unsafe { S::select(S::first(n), S::fma(S::load(x.as_ptr()), S::load(y.as_ptr()), acc), acc) }
            },
        )
    }

    /// `sum a_i`, terms entering by add.
    #[inline(always)]
    pub fn sum<S: Lanes>(a: &[f32]) -> f32 {
        accumulate::<S>(
            a.len(),
            // SAFETY: i + 16 <= len.
            |i, acc| unsafe { S::add(acc, S::load(a.as_ptr().add(i))) },
            |i, n, acc| {
                let mut x = [0.0; WIDTH];
                x[..n].copy_from_slice(&a[i..i + n]);
                // SAFETY: an array of 16.
                unsafe { S::select(S::first(n), S::add(acc, S::load(x.as_ptr())), acc) }
            },
        )
    }
}
