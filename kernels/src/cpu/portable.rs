//! Plain Rust: one lane, and the sixteen that the vector paths are held against.

use super::{Lanes, WIDTH};
use half::{bf16, f16};

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
