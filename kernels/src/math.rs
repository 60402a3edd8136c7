//! Elementary functions (LAW A5): the only ones a row path may use. Each is one sequence of IEEE operations on f32, the same for one
//! lane and for sixteen and on every device; multiplications and additions round separately. Coefficients are minimax fits.
//!
//! Errors are measured against f64 in the tests of this file.

use crate::cpu::{Lanes, Scalar};

/// log2(e), rounded.
pub const LOG2_E: f32 = f32::from_bits(0x3fb8_aa3b);
/// ln(2), rounded.
pub const LN_2: f32 = f32::from_bits(0x3f31_7218);
/// ln(2) with its low 12 bits cleared, so that small integers times it are exact, and the rest.
const LN_2_HI: f32 = f32::from_bits(0x3f31_7000);
const LN_2_LO: f32 = f32::from_bits(0x3805_fdf4);

/// (2^f − 1)/f on [0, 1), highest power first.
pub const EXP2: [u32; 6] = [0x3962_a0cb, 0x3aa3_6b20, 0x3c1e_85ca, 0x3d63_4488, 0x3e75_feac, 0x3f31_7216];
/// (ln((1+z)/(1−z)) − 2z)/z³ in z², |z| ≤ 0.1716, highest power first.
pub const LOG: [u32; 4] = [0x3e71_7b88, 0x3e92_1c6a, 0x3ecc_cd3d, 0x3f2a_aaaa];
/// (tanh(x) − x)/x³ in x², |x| ≤ 0.625, highest power first.
pub const TANH: [u32; 5] = [0xbbbb_5606, 0x3ca9_2b6a, 0xbd5c_2224, 0x3e08_83b4, 0xbeaa_aa9a];
/// erf(x)/x in x², |x| ≤ 1, highest power first.
pub const ERF: [u32; 7] = [0x38a5_7261, 0xba52_42f3, 0x3baa_0cfa, 0xbcdb_fdda, 0x3de7_1690, 0xbec0_939f, 0x3f90_6eba];
/// −ln(1 − erf(x)) on [1, 4], highest power first.
pub const ERFC: [u32; 9] =
    [0xb5d6_b934, 0x383d_fe5a, 0xba1a_b7cf, 0x3b9a_eab0, 0xbcd7_acca, 0x3de1_1857, 0x3f21_cba2, 0x3f90_a7c3, 0xb998_943d];

/// Horner's rule; every product and every sum rounds.
#[inline(always)]
fn horner<S: Lanes>(x: S::V, coefficients: &[u32]) -> S::V {
    let mut acc = S::splat(f32::from_bits(coefficients[0]));
    for &c in &coefficients[1..] {
        acc = S::add(S::mul(acc, x), S::splat(f32::from_bits(c)));
    }
    acc
}

/// Lane forms, generic over the width.
pub mod lanes {
    use super::*;

    /// 2^i for −127 < i ≤ 127; +0 at −127 and below; +inf at 128.
    #[inline(always)]
    pub fn power<S: Lanes>(i: S::V) -> S::V {
        let bounded = S::max(i, S::splat(-127.0));
        S::from_bits(S::shl::<23>(S::add_int(S::to_int(bounded), S::splat_int(127))))
    }

    /// 2^x. Exactly 1 at 0; +0 below −126; +inf from 128 on; NaN stays.
    #[inline(always)]
    pub fn exp2<S: Lanes>(x: S::V) -> S::V {
        // The order of the operands lets NaN through.
        let x = S::min(S::splat(128.0), S::max(S::splat(-127.0), x));
        let e = S::floor(x);
        let f = S::sub(x, e);
        let p = S::add(S::mul(horner::<S>(f, &EXP2), f), S::splat(1.0));
        S::mul(p, power::<S>(e))
    }

    /// e^x as exp2(x·log2 e).
    #[inline(always)]
    pub fn exp<S: Lanes>(x: S::V) -> S::V {
        exp2::<S>(S::mul(x, S::splat(LOG2_E)))
    }

    /// Exponent and mantissa: u = m·2^e with m in [√½, √2), u normal and positive.
    #[inline(always)]
    fn split<S: Lanes>(u: S::V) -> (S::V, S::V) {
        // 0x3f3504f3 is √½: adding the distance to 1 moves the cut there.
        let shifted = S::add_int(S::bits(u), S::splat_int(0x3f80_0000 - 0x3f35_04f3));
        let e = S::add_int(S::shr::<23>(shifted), S::splat_int(-127));
        let mantissa = S::add_int(S::and_int(shifted, S::splat_int(0x007f_ffff)), S::splat_int(0x3f35_04f3));
        (S::from_int(e), S::from_bits(mantissa))
    }

    /// ln(1 + f) for 1 + f in [√½, √2), f exact.
    #[inline(always)]
    fn log_near_one<S: Lanes>(f: S::V) -> S::V {
        let z = S::div(f, S::add(S::splat(2.0), f));
        let t = S::mul(z, z);
        let tail = S::mul(S::mul(z, t), horner::<S>(t, &LOG));
        S::add(S::add(z, z), tail)
    }

    /// ln(1 + s) for s ≥ 0; +inf at +inf, NaN stays.
    #[inline(always)]
    pub fn log1p<S: Lanes>(s: S::V) -> S::V {
        let u = S::add(S::splat(1.0), s);
        let (e, m) = split::<S>(u);
        // What the sum lost: s − (u − 1), relative to u.
        let lost = S::div(S::sub(s, S::sub(u, S::splat(1.0))), u);
        let f = S::sub(m, S::splat(1.0));
        let large =
            S::add(S::mul(e, S::splat(LN_2_HI)), S::add(log_near_one::<S>(f), S::add(S::mul(e, S::splat(LN_2_LO)), lost)));
        let small = log_near_one::<S>(s);
        let y = S::select(S::lt(s, S::splat(0.414)), small, large);
        S::select(S::lt(s, S::splat(f32::INFINITY)), y, S::add(s, s))
    }

    /// ln(x) for normal x > 0 (no special values: callers hand sums that are at least 1).
    #[inline(always)]
    pub fn log<S: Lanes>(x: S::V) -> S::V {
        let (e, m) = split::<S>(x);
        let f = S::sub(m, S::splat(1.0));
        S::add(S::mul(e, S::splat(LN_2_HI)), S::add(log_near_one::<S>(f), S::mul(e, S::splat(LN_2_LO))))
    }

    /// log2(x) for normal x > 0.
    #[inline(always)]
    pub fn log2<S: Lanes>(x: S::V) -> S::V {
        let (e, m) = split::<S>(x);
        let f = S::sub(m, S::splat(1.0));
        S::add(e, S::mul(log_near_one::<S>(f), S::splat(LOG2_E)))
    }

    /// tanh(x), odd by construction.
    #[inline(always)]
    pub fn tanh<S: Lanes>(x: S::V) -> S::V {
        let a = S::abs(x);
        let t = S::mul(a, a);
        let small = S::add(a, S::mul(S::mul(a, t), horner::<S>(t, &TANH)));
        let large = S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(exp::<S>(S::add(a, a)), S::splat(1.0))));
        S::with_sign(S::select(S::lt(a, S::splat(0.625)), small, large), x)
    }

    /// erf(x), odd by construction.
    #[inline(always)]
    pub fn erf<S: Lanes>(x: S::V) -> S::V {
        let a = S::abs(x);
        let small = S::mul(a, horner::<S>(S::mul(a, a), &ERF));
        let b = S::min(S::splat(4.0), a);
        let large = S::sub(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), horner::<S>(b, &ERFC))));
        S::with_sign(S::select(S::lt(a, S::splat(1.0)), small, large), x)
    }

    /// 1/(1 + e^−x).
    #[inline(always)]
    pub fn sigmoid<S: Lanes>(x: S::V) -> S::V {
        S::div(S::splat(1.0), S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

/// 2^x; see [`lanes::exp2`].
pub fn exp2(x: f32) -> f32 {
    lanes::exp2::<Scalar>(x)
}
/// e^x; see [`lanes::exp`].
pub fn exp(x: f32) -> f32 {
    lanes::exp::<Scalar>(x)
}
/// 2^i, +0 below −126; see [`lanes::power`].
pub fn power(i: i32) -> f32 {
    if i < -126 { 0.0 } else { f32::from_bits(((i.min(127) + 127) as u32) << 23) }
}
/// ln(1 + s), s ≥ 0; see [`lanes::log1p`].
pub fn log1p(s: f32) -> f32 {
    lanes::log1p::<Scalar>(s)
}
/// ln(x), x normal and positive; see [`lanes::log`].
pub fn log(x: f32) -> f32 {
    lanes::log::<Scalar>(x)
}
/// log2(x), x normal and positive; see [`lanes::log2`].
pub fn log2(x: f32) -> f32 {
    lanes::log2::<Scalar>(x)
}
/// tanh(x); see [`lanes::tanh`].
pub fn tanh(x: f32) -> f32 {
    lanes::tanh::<Scalar>(x)
}
/// erf(x); see [`lanes::erf`].
pub fn erf(x: f32) -> f32 {
    lanes::erf::<Scalar>(x)
}
/// 1/(1 + e^−x); see [`lanes::sigmoid`].
pub fn sigmoid(x: f32) -> f32 {
    lanes::sigmoid::<Scalar>(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Lanes;

    #[inline(always)]
    fn apply<S: Lanes>(which: usize, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks_exact(16).zip(y.chunks_exact_mut(16)) {
            // SAFETY: chunks of 16.
            unsafe {
                let v = S::load(x.as_ptr());
                let r = match which {
                    0 => lanes::exp2::<S>(v),
                    1 => lanes::exp::<S>(v),
                    2 => lanes::log1p::<S>(v),
                    3 => lanes::log::<S>(v),
                    4 => lanes::log2::<S>(v),
                    5 => lanes::tanh::<S>(v),
                    6 => lanes::erf::<S>(v),
                    _ => lanes::sigmoid::<S>(v),
                };
                S::store(y.as_mut_ptr(), r);
            }
        }
    }
    crate::per_isa! { fn on(which: usize, x: &[f32], y: &mut [f32]) = apply }

    const SCALAR: [fn(f32) -> f32; 8] = [exp2, exp, log1p, log, log2, tanh, erf, sigmoid];

    /// Every bit pattern with a stride, so that all exponents and signs are met.
    fn patterns(positive: bool) -> Vec<f32> {
        let all = (0..=u32::MAX / 4099).map(|i| f32::from_bits(i * 4099));
        let mut v: Vec<f32> = all.filter(|x| !positive || (x.is_normal() && *x > 0.0)).collect();
        v.truncate(v.len() / 16 * 16);
        v
    }

    #[test]
    fn sixteen_lanes_equal_one_on_every_instruction_set() {
        for (which, scalar) in SCALAR.iter().enumerate() {
            let x = patterns(matches!(which, 2..=4));
            let mut y = vec![f32::NAN; x.len()];
            for isa in runtime::Isa::all() {
                on(isa, which, &x, &mut y);
                for (x, y) in x.iter().zip(&y) {
                    let want = scalar(*x);
                    assert!(
                        want.to_bits() == y.to_bits() || (want.is_nan() && y.is_nan()),
                        "{which} {isa} x {x:e} want {want:e} got {y:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn on_cuda_the_constants_are_these() {
        let text = include_str!("common.cuh");
        for (name, values) in [("EXP2", &EXP2[..]), ("LOG", &LOG), ("TANH", &TANH), ("ERF", &ERF), ("ERFC", &ERFC)] {
            let list: Vec<String> = values.iter().map(|v| format!("{v:#010x}u")).collect();
            let line = format!("#define {name} {{{}}}\n", list.join(", "));
            assert!(text.contains(&line), "{line}");
        }
        for (name, value) in [("LOG2_E", LOG2_E), ("LN_2", LN_2), ("LN_2_HI", LN_2_HI), ("LN_2_LO", LN_2_LO)] {
            let line = format!("#define {name} __uint_as_float({:#010x}u)\n", value.to_bits());
            assert!(text.contains(&line), "{line}");
        }
    }

    #[test]
    fn on_cuda_the_functions_have_the_same_bits() {
        let kernel = crate::cuda::kernel!("elementary", "math.cu");
        crate::check::on_cuda("math", |s| {
            for (which, scalar) in SCALAR.iter().enumerate() {
                let x: Vec<f32> = patterns(matches!(which, 2..=4)).into_iter().step_by(61).collect();
                let (y, from) = (s.upload(&vec![f32::NAN; x.len()])?, s.upload(&x)?);
                let args = [
                    runtime::Arg::Ptr(y.view().ptr()),
                    runtime::Arg::Ptr(from.view().ptr()),
                    runtime::Arg::U32(x.len() as u32),
                    runtime::Arg::U32(which as u32),
                ];
                // SAFETY: the kernel's arguments; both buffers have as many elements as it is told.
                unsafe { s.launch(&kernel, &crate::cuda::elements(x.len())?, &args)? };
                for (x, y) in x.iter().zip(y.to_vec()?) {
                    let want = scalar(*x);
                    let same = want.to_bits() == y.to_bits() || (want.is_nan() && y.is_nan());
                    assert!(same, "{which} x {x:e} want {want:e} got {y:e}");
                }
            }
            runtime::Result::Ok(())
        });
    }

    /// Largest error in units of the last place of the f32 nearest to the truth, and where.
    fn worst(f: fn(f32) -> f32, truth: fn(f64) -> f64, low: f32, high: f32) -> (f64, f32) {
        let n = 400_000;
        let xs = (0..=n).map(|i| (low as f64 + (high - low) as f64 * i as f64 / n as f64) as f32);
        let ulps = |x: f32| {
            let want = truth(x as f64);
            let ulp = ((want as f32).abs().max(f32::MIN_POSITIVE).to_bits() + 1) as f64;
            let unit = f32::from_bits(ulp as u32) as f64 - f32::from_bits(ulp as u32 - 1) as f64;
            (f(x) as f64 - want).abs() / unit
        };
        xs.map(|x| (ulps(x), x)).fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a })
    }

    /// Name, function, truth, interval, limit in ulp.
    type Limit = (&'static str, fn(f32) -> f32, fn(f64) -> f64, f32, f32, f64);

    #[test]
    fn errors_against_f64() {
        let limits: [Limit; 8] = [
            ("exp2", exp2, f64::exp2, -126.0, 127.9, 2.0),
            ("exp near 0", exp, f64::exp, -1.0, 1.0, 2.6),
            ("log1p small", log1p, f64::ln_1p, 1e-6, 1.0, 2.0),
            ("log1p", log1p, f64::ln_1p, 1.0, 40000.0, 2.0),
            ("log", log, f64::ln, 1.5, 40000.0, 2.0),
            ("tanh", tanh, f64::tanh, -6.0, 6.0, 4.0),
            ("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -1.0, 20.0, 3.0),
            ("log2", log2, f64::log2, 1.5, 40000.0, 2.0),
        ];
        for (name, f, truth, low, high, limit) in limits {
            let (error, at) = worst(f, truth, low, high);
            println!("{name}: {error:.2} ulp at {at}");
            assert!(error <= limit, "{name}: {error} ulp at {at}");
        }
    }

    #[test]
    fn special_values() {
        assert_eq!(exp2(0.0).to_bits(), 1f32.to_bits());
        assert_eq!(exp2(-126.0), f32::MIN_POSITIVE);
        assert_eq!(exp2(-126.001).to_bits(), 0);
        assert_eq!(exp2(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!((exp2(127.0), exp2(128.0), exp2(f32::INFINITY)), (1.7014118e38, f32::INFINITY, f32::INFINITY));
        assert!(
            exp2(f32::NAN).is_nan()
                && log1p(f32::NAN).is_nan()
                && tanh(f32::NAN).is_nan()
                && erf(f32::NAN).is_nan()
                && sigmoid(f32::NAN).is_nan()
        );
        assert_eq!((log1p(0.0).to_bits(), log1p(f32::INFINITY), log(1.0).to_bits()), (0, f32::INFINITY, 0));
        assert_eq!((tanh(40.0), tanh(-40.0), erf(9.0), erf(f32::NEG_INFINITY)), (1.0, -1.0, 1.0, -1.0));
        assert_eq!((sigmoid(0.0), sigmoid(200.0), sigmoid(-200.0)), (0.5, 1.0, 0.0));
        // Hand-known erf values (tables): erf(0.5), erf(1), erf(2).
        for (x, want) in [(0.5, 0.520_499_9), (1.0, 0.842_700_8), (2.0, 0.995_322_3)] {
            assert!((erf(x) - want).abs() < 2e-7, "erf({x}) = {}", erf(x));
        }
        for i in -140..=127 {
            assert_eq!(power(i), if i < -126 { 0.0 } else { 2f64.powi(i) as f32 });
            assert_eq!(lanes::power::<Scalar>(i as f32), power(i));
        }
    }
}
