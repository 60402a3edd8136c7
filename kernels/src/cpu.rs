//! Lanes: the one vocabulary in which every `cpu.rs` is written. A lane path and the scalar path of the same source perform the
//! same IEEE operations per element, so portable, AVX2 and AVX-512 give the same bits (LAW A8).
//!
//! A room writes a body generic over [`Lanes`] and gets its three instantiations from `per_isa!`.

use half::{bf16, f16};

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

/// One lane: what single values go through.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

impl Lanes for Scalar {
    type V = f32;
    type I = i32;
    type M = bool;
    const LANES: usize = 1;

    #[inline(always)]
    fn splat(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *p }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: f32) {
        // SAFETY: the caller's promise.
        unsafe { *p = v }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { (*p).to_f32() }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { (*p).to_f32() }
    }
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn add(a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn sqrt(a: f32) -> f32 {
        a.sqrt()
    }
    #[inline(always)]
    fn floor(a: f32) -> f32 {
        a.floor()
    }
    #[inline(always)]
    fn max(a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn min(a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn abs(a: f32) -> f32 {
        a.abs()
    }
    #[inline(always)]
    fn with_sign(a: f32, sign: f32) -> f32 {
        f32::from_bits(a.to_bits() | (sign.to_bits() & 0x8000_0000))
    }
    #[inline(always)]
    fn lt(a: f32, b: f32) -> bool {
        a < b
    }
    #[inline(always)]
    fn first(n: usize) -> bool {
        n > 0
    }
    #[inline(always)]
    fn select(m: bool, a: f32, b: f32) -> f32 {
        if m { a } else { b }
    }
    #[inline(always)]
    fn to_int(a: f32) -> i32 {
        a as i32
    }
    #[inline(always)]
    fn from_int(i: i32) -> f32 {
        i as f32
    }
    #[inline(always)]
    fn bits(a: f32) -> i32 {
        a.to_bits() as i32
    }
    #[inline(always)]
    fn from_bits(i: i32) -> f32 {
        f32::from_bits(i as u32)
    }
    #[inline(always)]
    fn splat_int(i: i32) -> i32 {
        i
    }
    #[inline(always)]
    fn add_int(a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn and_int(a: i32, b: i32) -> i32 {
        a & b
    }
    #[inline(always)]
    fn shl<const N: u32>(a: i32) -> i32 {
        a << N
    }
    #[inline(always)]
    fn shr<const N: u32>(a: i32) -> i32 {
        a >> N
    }
    #[inline(always)]
    fn sum(a: f32) -> f32 {
        a
    }
}

/// Sixteen lanes in plain Rust: the law that the vector paths are held against.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

#[inline(always)]
fn each<A: Copy, B: Copy, R>(a: [A; WIDTH], b: [B; WIDTH], f: impl Fn(A, B) -> R) -> [R; WIDTH] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Lanes for Portable {
    type V = [f32; WIDTH];
    type I = [i32; WIDTH];
    type M = [bool; WIDTH];
    const LANES: usize = WIDTH;

    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        [x; WIDTH]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller's promise; unaligned reads are allowed.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: as in `load`.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::V {
        // SAFETY: the caller's promise.
        std::array::from_fn(|i| unsafe { (*p.add(i)).to_f32() })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: the caller's promise.
        std::array::from_fn(|i| unsafe { (*p.add(i)).to_f32() })
    }
    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        each(a, b, Scalar::add)
    }
    #[inline(always)]
    fn sub(a: Self::V, b: Self::V) -> Self::V {
        each(a, b, Scalar::sub)
    }
    #[inline(always)]
    fn mul(a: Self::V, b: Self::V) -> Self::V {
        each(a, b, Scalar::mul)
    }
    #[inline(always)]
    fn div(a: Self::V, b: Self::V) -> Self::V {
        each(a, b, Scalar::div)
    }
    #[inline(always)]
    fn sqrt(a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn floor(a: Self::V) -> Self::V {
        a.map(f32::floor)
    }
    #[inline(always)]
    fn max(a: Self::V, b: Self::V) -> Self::V {
        each(a, b, Scalar::max)
    }
    #[inline(always)]
    fn min(a: Self::V, b: Self::V) -> Self::V {
        each(a, b, Scalar::min)
    }
    #[inline(always)]
    fn abs(a: Self::V) -> Self::V {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn with_sign(a: Self::V, sign: Self::V) -> Self::V {
        each(a, sign, Scalar::with_sign)
    }
    #[inline(always)]
    fn lt(a: Self::V, b: Self::V) -> Self::M {
        each(a, b, Scalar::lt)
    }
    #[inline(always)]
    fn first(n: usize) -> Self::M {
        std::array::from_fn(|i| i < n)
    }
    #[inline(always)]
    fn select(m: Self::M, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if m[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn to_int(a: Self::V) -> Self::I {
        a.map(Scalar::to_int)
    }
    #[inline(always)]
    fn from_int(i: Self::I) -> Self::V {
        i.map(Scalar::from_int)
    }
    #[inline(always)]
    fn bits(a: Self::V) -> Self::I {
        a.map(Scalar::bits)
    }
    #[inline(always)]
    fn from_bits(i: Self::I) -> Self::V {
        i.map(Scalar::from_bits)
    }
    #[inline(always)]
    fn splat_int(i: i32) -> Self::I {
        [i; WIDTH]
    }
    #[inline(always)]
    fn add_int(a: Self::I, b: Self::I) -> Self::I {
        each(a, b, Scalar::add_int)
    }
    #[inline(always)]
    fn and_int(a: Self::I, b: Self::I) -> Self::I {
        each(a, b, Scalar::and_int)
    }
    #[inline(always)]
    fn shl<const N: u32>(a: Self::I) -> Self::I {
        a.map(|x| x << N)
    }
    #[inline(always)]
    fn shr<const N: u32>(a: Self::I) -> Self::I {
        a.map(|x| x >> N)
    }
    #[inline(always)]
    fn sum(mut a: Self::V) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                a[i] += a[i + half];
            }
        }
        a[0]
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Every function here is inlined into a body that [`super::per_isa!`] compiles with the features switched on, and is reached
    //! only through an `Isa` that was detected.
    use super::{Lanes, WIDTH};
    use half::{bf16, f16};
    use std::arch::x86_64::*;

    /// Sixteen lanes in one register.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx512;

    /// Sixteen lanes in two registers.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx2;

    /// Wraps intrinsics whose only precondition is the instruction set.
    macro_rules! op {
        ($body:expr) => {
            // SAFETY: an `Isa` of this level was detected before any body of this type runs.
            unsafe { $body }
        };
    }

    impl Lanes for Avx512 {
        type V = __m512;
        type I = __m512i;
        type M = __mmask16;
        const LANES: usize = WIDTH;

        #[inline(always)]
        fn splat(x: f32) -> __m512 {
            op!(_mm512_set1_ps(x))
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            op!(_mm512_loadu_ps(p))
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            op!(_mm512_storeu_ps(p, v))
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> __m512 {
            op!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))))
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> __m512 {
            op!(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast())))
        }
        #[inline(always)]
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            op!(_mm512_fmadd_ps(a, b, c))
        }
        #[inline(always)]
        fn add(a: __m512, b: __m512) -> __m512 {
            op!(_mm512_add_ps(a, b))
        }
        #[inline(always)]
        fn sub(a: __m512, b: __m512) -> __m512 {
            op!(_mm512_sub_ps(a, b))
        }
        #[inline(always)]
        fn mul(a: __m512, b: __m512) -> __m512 {
            op!(_mm512_mul_ps(a, b))
        }
        #[inline(always)]
        fn div(a: __m512, b: __m512) -> __m512 {
            op!(_mm512_div_ps(a, b))
        }
        #[inline(always)]
        fn sqrt(a: __m512) -> __m512 {
            op!(_mm512_sqrt_ps(a))
        }
        #[inline(always)]
        fn floor(a: __m512) -> __m512 {
            op!(_mm512_roundscale_ps::<0x09>(a))
        }
        #[inline(always)]
        fn max(a: __m512, b: __m512) -> __m512 {
            op!(_mm512_max_ps(a, b))
        }
        #[inline(always)]
        fn min(a: __m512, b: __m512) -> __m512 {
            op!(_mm512_min_ps(a, b))
        }
        #[inline(always)]
        fn abs(a: __m512) -> __m512 {
            op!(_mm512_abs_ps(a))
        }
        #[inline(always)]
        fn with_sign(a: __m512, sign: __m512) -> __m512 {
            op!(_mm512_or_ps(a, _mm512_and_ps(sign, _mm512_set1_ps(-0.0))))
        }
        #[inline(always)]
        fn lt(a: __m512, b: __m512) -> __mmask16 {
            op!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
        }
        #[inline(always)]
        fn first(n: usize) -> __mmask16 {
            if n >= WIDTH { !0 } else { (1 << n) - 1 }
        }
        #[inline(always)]
        fn select(m: __mmask16, a: __m512, b: __m512) -> __m512 {
            op!(_mm512_mask_blend_ps(m, b, a))
        }
        #[inline(always)]
        fn to_int(a: __m512) -> __m512i {
            op!(_mm512_cvttps_epi32(a))
        }
        #[inline(always)]
        fn from_int(i: __m512i) -> __m512 {
            op!(_mm512_cvtepi32_ps(i))
        }
        #[inline(always)]
        fn bits(a: __m512) -> __m512i {
            op!(_mm512_castps_si512(a))
        }
        #[inline(always)]
        fn from_bits(i: __m512i) -> __m512 {
            op!(_mm512_castsi512_ps(i))
        }
        #[inline(always)]
        fn splat_int(i: i32) -> __m512i {
            op!(_mm512_set1_epi32(i))
        }
        #[inline(always)]
        fn add_int(a: __m512i, b: __m512i) -> __m512i {
            op!(_mm512_add_epi32(a, b))
        }
        #[inline(always)]
        fn and_int(a: __m512i, b: __m512i) -> __m512i {
            op!(_mm512_and_si512(a, b))
        }
        #[inline(always)]
        fn shl<const N: u32>(a: __m512i) -> __m512i {
            op!(_mm512_slli_epi32::<N>(a))
        }
        #[inline(always)]
        fn shr<const N: u32>(a: __m512i) -> __m512i {
            op!(_mm512_srai_epi32::<N>(a))
        }
        #[inline(always)]
        fn sum(a: __m512) -> f32 {
            op!(Avx2::fold(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a))))
        }
    }

    impl Avx2 {
        /// The last three steps of LAW A2 over eight partial sums.
        #[inline(always)]
        unsafe fn fold(l: __m256) -> f32 {
            op!({
                let l = _mm_add_ps(_mm256_castps256_ps128(l), _mm256_extractf128_ps::<1>(l));
                let l = _mm_add_ps(l, _mm_movehl_ps(l, l));
                _mm_cvtss_f32(_mm_add_ss(l, _mm_movehdup_ps(l)))
            })
        }
    }

    /// Two registers.
    type V2 = [__m256; 2];
    type I2 = [__m256i; 2];

    #[inline(always)]
    fn two<A: Copy, R>(a: [A; 2], f: impl Fn(A) -> R) -> [R; 2] {
        [f(a[0]), f(a[1])]
    }

    #[inline(always)]
    fn pair<A: Copy, B: Copy, R>(a: [A; 2], b: [B; 2], f: impl Fn(A, B) -> R) -> [R; 2] {
        [f(a[0], b[0]), f(a[1], b[1])]
    }

    impl Lanes for Avx2 {
        type V = V2;
        type I = I2;
        type M = V2;
        const LANES: usize = WIDTH;

        #[inline(always)]
        fn splat(x: f32) -> V2 {
            op!([_mm256_set1_ps(x); 2])
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> V2 {
            op!([_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))])
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: V2) {
            op!({
                _mm256_storeu_ps(p, v[0]);
                _mm256_storeu_ps(p.add(8), v[1]);
            })
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> V2 {
            op!([0, 8].map(|i| {
                let half = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(i).cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(half))
            }))
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> V2 {
            op!([0, 8].map(|i| _mm256_cvtph_ps(_mm_loadu_si128(p.add(i).cast()))))
        }
        #[inline(always)]
        fn fma(a: V2, b: V2, c: V2) -> V2 {
            op!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
        }
        #[inline(always)]
        fn add(a: V2, b: V2) -> V2 {
            pair(a, b, |a, b| op!(_mm256_add_ps(a, b)))
        }
        #[inline(always)]
        fn sub(a: V2, b: V2) -> V2 {
            pair(a, b, |a, b| op!(_mm256_sub_ps(a, b)))
        }
        #[inline(always)]
        fn mul(a: V2, b: V2) -> V2 {
            pair(a, b, |a, b| op!(_mm256_mul_ps(a, b)))
        }
        #[inline(always)]
        fn div(a: V2, b: V2) -> V2 {
            pair(a, b, |a, b| op!(_mm256_div_ps(a, b)))
        }
        #[inline(always)]
        fn sqrt(a: V2) -> V2 {
            two(a, |a| op!(_mm256_sqrt_ps(a)))
        }
        #[inline(always)]
        fn floor(a: V2) -> V2 {
            two(a, |a| op!(_mm256_floor_ps(a)))
        }
        #[inline(always)]
        fn max(a: V2, b: V2) -> V2 {
            pair(a, b, |a, b| op!(_mm256_max_ps(a, b)))
        }
        #[inline(always)]
        fn min(a: V2, b: V2) -> V2 {
            pair(a, b, |a, b| op!(_mm256_min_ps(a, b)))
        }
        #[inline(always)]
        fn abs(a: V2) -> V2 {
            two(a, |a| op!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a)))
        }
        #[inline(always)]
        fn with_sign(a: V2, sign: V2) -> V2 {
            pair(a, sign, |a, s| op!(_mm256_or_ps(a, _mm256_and_ps(s, _mm256_set1_ps(-0.0)))))
        }
        #[inline(always)]
        fn lt(a: V2, b: V2) -> V2 {
            pair(a, b, |a, b| op!(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
        }
        #[inline(always)]
        fn first(n: usize) -> V2 {
            op!({
                let n = _mm256_set1_epi32(n.min(WIDTH) as i32);
                let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                [0, 8].map(|base| _mm256_castsi256_ps(_mm256_cmpgt_epi32(n, _mm256_add_epi32(lane, _mm256_set1_epi32(base)))))
            })
        }
        #[inline(always)]
        fn select(m: V2, a: V2, b: V2) -> V2 {
            op!([_mm256_blendv_ps(b[0], a[0], m[0]), _mm256_blendv_ps(b[1], a[1], m[1])])
        }
        #[inline(always)]
        fn to_int(a: V2) -> I2 {
            two(a, |a| op!(_mm256_cvttps_epi32(a)))
        }
        #[inline(always)]
        fn from_int(i: I2) -> V2 {
            two(i, |i| op!(_mm256_cvtepi32_ps(i)))
        }
        #[inline(always)]
        fn bits(a: V2) -> I2 {
            two(a, |a| op!(_mm256_castps_si256(a)))
        }
        #[inline(always)]
        fn from_bits(i: I2) -> V2 {
            two(i, |i| op!(_mm256_castsi256_ps(i)))
        }
        #[inline(always)]
        fn splat_int(i: i32) -> I2 {
            op!([_mm256_set1_epi32(i); 2])
        }
        #[inline(always)]
        fn add_int(a: I2, b: I2) -> I2 {
            pair(a, b, |a, b| op!(_mm256_add_epi32(a, b)))
        }
        #[inline(always)]
        fn and_int(a: I2, b: I2) -> I2 {
            pair(a, b, |a, b| op!(_mm256_and_si256(a, b)))
        }
        #[inline(always)]
        fn shl<const N: u32>(a: I2) -> I2 {
            two(a, |a| op!(_mm256_sll_epi32(a, _mm_cvtsi32_si128(N as i32))))
        }
        #[inline(always)]
        fn shr<const N: u32>(a: I2) -> I2 {
            two(a, |a| op!(_mm256_sra_epi32(a, _mm_cvtsi32_si128(N as i32))))
        }
        #[inline(always)]
        fn sum(a: V2) -> f32 {
            op!(Avx2::fold(_mm256_add_ps(a[0], a[1])))
        }
    }
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
