//! Attention against f64, against finite differences, against bad input. `law` holds the bits (against
//! `scalar`), `fixtures` the shared cases, `cuda` and `bf16` what the emulated
//! device does.

mod bf16;
mod cuda;
pub(crate) mod fixtures;
mod law;
mod scalar;

use super::*;
use runtime::{Isa, Stream};

/// Standard normal values from a small generator.
pub(crate) fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) as f64 + 0.5) / (1u64 << 31) as f64
    };
    (0..len).map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32).collect()
}

pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| *x as f64).collect()
}

pub(crate) fn flat(segments: &[[u32; 4]]) -> Vec<u32> {
    segments.as_flattened().to_vec()
}

/// Rows of all segments.
pub(crate) fn rows_of(segments: &[[u32; 4]]) -> usize {
    segments.iter().map(|s| s[1] as usize).sum()
}

/// Segments given as (len, parent or −1).
pub(crate) fn forest_of(parts: &[(u32, i32)]) -> Vec<[u32; 4]> {
    let mut segments: Vec<[u32; 4]> = Vec::new();
    let mut start = 0;
    for &(len, parent) in parts {
        let (pos0, parent) = match usize::try_from(parent) {
            Ok(p) => (segments[p][2] + segments[p][1], p as u32),
            Err(_) => (0, ROOT),
        };
        segments.push([start, len, pos0, parent]);
        start += len;
    }
    segments
}

/// ‖got − want‖ / ‖want‖.
pub(crate) fn relative(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (*g as f64 - w).powi(2)).sum();
    let size: f64 = want.iter().map(|w| w * w).sum();
    // NaN must not pass a comparison.
    if difference.is_nan() { f64::INFINITY } else { (difference / size.max(1e-300)).sqrt() }
}

/// Forward's three outputs.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    pub out: Vec<f32>,
    pub m: Vec<i32>,
    pub l: Vec<f32>,
}

impl Saved {
    /// log Σ exp per row and head.
    pub(crate) fn lse(&self) -> Vec<f32> {
        let of = |(m, l): (&i32, &f32)| ((*m as f64 + (*l as f64).log2()) * std::f64::consts::LN_2) as f32;
        self.m.iter().zip(&self.l).map(of).collect()
    }
}

pub(crate) fn run_forward(s: &Stream, qkv: &[f32], segments: &[[u32; 4]], heads: Heads, params: Params) -> Result<Saved> {
    let n = rows_of(segments);
    let out = s.upload(&vec![f32::NAN; n * heads.h * heads.d])?;
    let (m, l) = (s.upload(&vec![i32::MIN; n * heads.h])?, s.upload(&vec![f32::NAN; n * heads.h])?);
    let (qkv, segments) = (s.upload(qkv)?, s.upload(&flat(segments))?);
    forward(s, out.view(), m.view(), l.view(), qkv.view(), segments.view(), heads, params)?;
    Ok(Saved { out: out.to_vec()?, m: m.to_vec()?, l: l.to_vec()? })
}

pub(crate) fn run_backward(
    s: &Stream,
    dout: &[f32],
    saved: &Saved,
    qkv: &[f32],
    segments: &[[u32; 4]],
    heads: Heads,
    params: Params,
) -> Result<Vec<f32>> {
    let dqkv = s.upload(&vec![f32::NAN; qkv.len()])?;
    let (dout, out, qkv) = (s.upload(dout)?, s.upload(&saved.out)?, s.upload(qkv)?);
    let (m, l, segments) = (s.upload(&saved.m)?, s.upload(&saved.l)?, s.upload(&flat(segments))?);
    let v = (dqkv.view(), dout.view(), out.view(), qkv.view(), m.view(), l.view(), segments.view());
    backward(s, v.0, v.1, v.2, v.3, v.4, v.5, v.6, heads, params)?;
    dqkv.to_vec()
}

pub(crate) const CAUSAL: Params = Params { scale: 0.25, softcap: 0.0, window: 0, causal: true };

#[test]
fn reference_gradients_equal_finite_differences() {
    let heads = Heads { h: 4, k: 2, d: 3 };
    let tree = forest_of(&[(4, -1), (3, 0), (2, 1), (3, 0), (2, -1)]);
    let single = forest_of(&[(5, -1), (4, -1)]);
    for (segments, params) in [
        (&tree, Params { scale: 0.7, ..CAUSAL }),
        (&tree, Params { scale: 0.7, softcap: 1.5, window: 3, causal: true }),
        (&single, Params { scale: 0.7, softcap: 2.0, window: 4, causal: false }),
    ] {
        let n = rows_of(segments);
        let (qkv, dout) = (wide(&normal(n * heads.stride(), 1)), wide(&normal(n * heads.h * heads.d, 2)));
        let loss = |qkv: &[f64]| -> f64 {
            reference::forward(qkv, segments, heads, params).out.iter().zip(&dout).map(|(o, g)| o * g).sum()
        };
        let g = reference::backward(&dout, &qkv, segments, heads, params);
        for i in 0..qkv.len() {
            let moved = |by: f64| {
                let mut qkv = qkv.clone();
                qkv[i] += by;
                loss(&qkv)
            };
            let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((difference - g[i]).abs() < 1e-7 * (1.0 + g[i].abs()), "{params:?} {i}: {difference} {}", g[i]);
        }
    }
}

/// Chains of up to 256 roundings of 6e-8 each, of random sign, on sums whose terms partly cancel: measured up to 4e-7 for outputs and
/// 6.4e-7 for gradients; one bf16 rounding of p would give 1e-3.
const LIMIT: f64 = 1e-6;

fn against_reference(isa: Isa, threads: usize, segments: &[[u32; 4]], heads: Heads, params: Params) -> Result<()> {
    on_stream(&Stream::cpu(threads, isa), segments, heads, params)
}

fn on_stream(s: &Stream, segments: &[[u32; 4]], heads: Heads, params: Params) -> Result<()> {
    let n = rows_of(segments);
    let (qkv, dout) = (normal(n * heads.stride(), 3), normal(n * heads.h * heads.d, 4));
    let want = reference::forward(&wide(&qkv), segments, heads, params);
    let saved = run_forward(s, &qkv, segments, heads, params)?;
    let g = run_backward(s, &dout, &saved, &qkv, segments, heads, params)?;
    let wanted = reference::backward(&wide(&dout), &wide(&qkv), segments, heads, params);
    let errors = [relative(&saved.out, &want.out), relative(&saved.lse(), &want.lse), relative(&g, &wanted)];
    println!("{s:?} {heads:?} {params:?} {n}: {errors:?}");
    assert!(errors.iter().all(|e| *e < LIMIT), "{s:?} {heads:?} {params:?} {segments:?}: {errors:?}");
    Ok(())
}

#[test]
fn forward_and_backward_agree_with_f64() -> Result<()> {
    let isa = Isa::detect();
    let shapes = [(1, 8), (63, 16), (64, 48), (65, 64), (130, 128), (200, 48), (5, 1), (70, 3), (66, 80), (40, 256)];
    for (i, (len, d)) in shapes.into_iter().enumerate() {
        let heads = [Heads { h: 2, k: 2, d }, Heads { h: 4, k: 2, d }, Heads { h: 4, k: 1, d }][i % 3];
        let scale = 1.0 / (d as f32).sqrt();
        let tree = forest_of(&[(len, -1), (17, 0), (0, 0), (70, 0), (3, 2), (len, -1)]);
        let single = forest_of(&[(len, -1), (9, -1)]);
        for threads in [1, 2] {
            against_reference(isa, threads, &tree, heads, Params { scale, ..CAUSAL })?;
            against_reference(isa, threads, &tree, heads, Params { scale, softcap: 1.5, window: 40, causal: true })?;
            against_reference(isa, threads, &single, heads, Params { scale, softcap: 0.0, window: 67, causal: false })?;
        }
    }
    // A group larger than a chunk and a tile, and no rows at all.
    against_reference(isa, 2, &forest_of(&[(3, -1)]), Heads { h: 300, k: 1, d: 8 }, CAUSAL)?;
    let s = Stream::cpu(2, isa);
    let nothing = run_forward(&s, &[], &[], Heads { h: 1, k: 1, d: 8 }, CAUSAL)?;
    assert!(run_backward(&s, &[], &nothing, &[], &[], Heads { h: 1, k: 1, d: 8 }, CAUSAL)?.is_empty());
    Ok(())
}

#[test]
fn a_later_row_cannot_reach_an_earlier_one() -> Result<()> {
    let (s, heads, segments) =
        (Stream::cpu(2, Isa::detect()), Heads { h: 2, k: 1, d: 16 }, forest_of(&[(90, -1), (50, 0), (50, 0)]));
    let mut qkv = normal(190 * heads.stride(), 5);
    let clean = run_forward(&s, &qkv, &segments, heads, CAUSAL)?;
    // Row 139 ends the first child; the second child does not see it.
    qkv[139 * heads.stride()..140 * heads.stride()].fill(f32::NAN);
    let got = run_forward(&s, &qkv, &segments, heads, CAUSAL)?;
    for (i, (got, clean)) in got.out.iter().zip(&clean.out).enumerate() {
        let row = i / 32;
        assert!(if row == 139 { got.is_nan() } else { got.to_bits() == clean.to_bits() }, "row {row}: {got} {clean}");
    }
    Ok(())
}

#[test]
fn invalid_operands_are_errors() -> Result<()> {
    let (s, heads) = (Stream::cpu(1, Isa::detect()), Heads { h: 2, k: 1, d: 8 });
    let qkv = normal(10 * heads.stride(), 6);
    let fails = |segments: &[[u32; 4]], params: Params, text: &str| -> Result<()> {
        let (out, m) = (s.zeros::<f32>(160)?, s.zeros::<i32>(20)?);
        let (l, qkv, segments) = (s.zeros::<f32>(20)?, s.upload(&qkv)?, s.upload(&flat(segments))?);
        let got = forward(&s, out.view(), m.view(), l.view(), qkv.view(), segments.view(), heads, params);
        let error = got.expect_err(text).to_string();
        assert!(error.contains(text), "wanted {text:?}, got {error:?}");
        Ok(())
    };
    let big = u32::MAX - 1;
    fails(&[[0, 9, 0, ROOT]], CAUSAL, "cover 9 of 10")?;
    fails(&[[0, 11, 0, ROOT]], CAUSAL, "rows 0+11")?;
    fails(&[[0, big, 0, ROOT]], CAUSAL, "rows 0+")?;
    fails(&[[1, 9, 0, ROOT]], CAUSAL, "rows 1+9")?;
    fails(&[[0, 5, 0, ROOT], [5, 5, 4, 0]], CAUSAL, "wanted pos0 5, got 4")?;
    fails(&[[0, 5, 0, ROOT], [5, 5, big, 0]], CAUSAL, "wanted pos0 5")?;
    fails(&[[0, 5, 1, ROOT], [5, 5, 6, 0]], CAUSAL, "without a parent")?;
    fails(&[[0, 5, 0, ROOT], [5, 5, 5, 1]], CAUSAL, "does not come earlier")?;
    fails(&[[0, 5, 0, ROOT], [5, 5, 5, big]], CAUSAL, "does not come earlier")?;
    fails(&[[0, 5, 0, ROOT], [5, 2, 0, ROOT], [7, 3, 5, 0]], CAUSAL, "of the tree before")?;
    fails(&[[0, 5, 0, ROOT], [5, 5, 5, 0]], Params { causal: false, ..CAUSAL }, "wants causal order")?;
    fails(&[[0, 10, 0, ROOT]], Params { scale: f32::NAN, ..CAUSAL }, "scale")?;
    fails(&[[0, 10, 0, ROOT]], Params { softcap: -1.0, ..CAUSAL }, "softcap")?;

    let (x, m, g) = (s.zeros::<f32>(320)?, s.zeros::<i32>(20)?, s.upload(&[0, 10, 0, ROOT])?);
    let part = |len: usize| x.view().slice(0..len);
    let l = s.zeros::<f32>(20)?;
    let call = |out: View<'_>, qkv: View<'_>, heads: Heads, segments: View<'_>| {
        forward(&s, out, m.view(), l.view(), qkv, segments, heads, CAUSAL).expect_err("must fail").to_string()
    };
    assert!(call(part(160)?, part(320)?, heads, g.view()).contains("overlaps"));
    assert!(call(part(160)?, part(319)?, heads, g.view()).contains("qkv"));
    let y = s.zeros::<f32>(160)?;
    assert!(call(y.view().slice(0..159)?, part(320)?, heads, g.view()).contains("out: wanted 160 f32"));
    assert!(call(y.view(), part(320)?, heads, g.view().slice(0..3)?).contains("segments"));
    for heads in [(0, 0, 8), (3, 2, 8), (2, 0, 8), (0, 1, 8), (2, 1, 0), (2, 1, 257), (1 << 16, 1, 8)] {
        let heads = Heads { h: heads.0, k: heads.1, d: heads.2 };
        let error = call(y.view(), part(320)?, heads, g.view());
        assert!(error.contains("heads on") || error.contains("head_dim"), "{error}");
    }
    Ok(())
}
