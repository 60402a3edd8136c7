//! AVX2 and AVX-512.
//!
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
