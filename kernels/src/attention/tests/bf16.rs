//! Attention in bf16 on the emulated tensor cores: accuracy against f64, and bits that no row owes to its company, whichever way
//! the cores add.

use super::law::same;
use super::*;
use crate::check::{Acts, held, rounded, with_both_adders};
use runtime::DType::Bf16;

/// Forward and backward: what forward left, and dqkv.
fn run(s: &Stream, qkv: &[f32], dout: &[f32], segments: &[[u32; 4]], heads: Heads, params: Params) -> Result<(Saved, Vec<f32>)> {
    let n = rows_of(segments);
    let (qkv, dout) = (Acts::put(s, Bf16, qkv)?, Acts::put(s, Bf16, dout)?);
    let (out, dqkv) = (Acts::nan(s, Bf16, n * heads.h * heads.d)?, Acts::nan(s, Bf16, n * heads.stride())?);
    let (m, l) = (s.upload(&vec![i32::MIN; n * heads.h])?, s.upload(&vec![f32::NAN; n * heads.h])?);
    let g = s.upload(&flat(segments))?;
    forward(s, out.view(), m.view(), l.view(), qkv.view(), g.view(), heads, params)?;
    let v = (dqkv.view(), dout.view(), out.view(), qkv.view(), m.view(), l.view(), g.view());
    backward(s, v.0, v.1, v.2, v.3, v.4, v.5, v.6, heads, params)?;
    Ok((Saved { out: out.get()?, m: m.to_vec()?, l: l.to_vec()? }, dqkv.get()?))
}

/// Limits of the error of a tensor and of its worst row: one rounding is 1.7e-3, weights, p and dt are rounded for their products.
const OUT: f64 = 3e-3;
const GRADIENT: f64 = 5e-3;

/// The parts q, k and v of rows of qkv.
fn parts<T: Copy>(x: &[T], heads: Heads) -> [Vec<T>; 3] {
    let (q, k) = (heads.h * heads.d, heads.k * heads.d);
    [0..q, q..q + k, q + k..q + 2 * k].map(|part| x.chunks(heads.stride()).flat_map(|row| row[part.clone()].to_vec()).collect())
}

fn accurate(s: &Stream, segments: &[[u32; 4]], heads: Heads, params: Params) -> Result<()> {
    let n = rows_of(segments);
    let (qkv, dout) = (rounded(&normal(n * heads.stride(), 61)), rounded(&normal(n * heads.h * heads.d, 62)));
    let (saved, dqkv) = run(s, &qkv, &dout, segments, heads, params)?;
    let want = reference::forward(&wide(&qkv), segments, heads, params);
    let what = format!("{heads:?} {params:?}");
    held(&format!("{what}: out"), &saved.out, &want.out, heads.h * heads.d, OUT);
    for (lse, want) in saved.lse().iter().zip(&want.lse) {
        assert!((*lse as f64 - want).abs() <= 1e-5 * want.abs() + 1e-5, "{what}: lse {lse} want {want}");
    }
    // Of what backward was given, and of what forward would have stored without rounding it.
    let (dout, qkv) = (wide(&dout), wide(&qkv));
    let given = parts(&reference::backward_from(&dout, &wide(&saved.out), &qkv, segments, heads, params), heads);
    let exact = parts(&reference::backward(&dout, &qkv, segments, heads, params), heads);
    for (i, got) in parts(&dqkv, heads).iter().enumerate() {
        let (name, width) = (["dq", "dk", "dv"][i], [heads.h, heads.k, heads.k][i] * heads.d);
        held(&format!("{what}: {name}"), got, &given[i], width, GRADIENT);
        let all = relative(got, &exact[i]);
        println!("{what}: {name} of an exact out {all:.2e}");
        assert!(all <= GRADIENT, "{what}: {name} of an exact out: {all:e}");
    }
    Ok(())
}

#[test]
fn on_cuda_in_bf16_against_f64() {
    with_both_adders("attention bf16", |s| {
        let tree = forest_of(&[(70, -1), (17, 0), (0, 0), (30, 1), (3, 2), (5, -1)]);
        accurate(s, &tree, Heads { h: 4, k: 2, d: 16 }, CAUSAL)?;
        accurate(s, &tree, Heads { h: 2, k: 1, d: 64 }, Params { scale: 0.125, softcap: 2.0, window: 40, causal: true })?;
        accurate(
            s,
            &forest_of(&[(70, -1), (9, -1)]),
            Heads { h: 3, k: 1, d: 24 },
            Params { scale: 0.2, window: 67, causal: false, ..CAUSAL },
        )?;
        accurate(s, &forest_of(&[(9, -1), (3, 0)]), Heads { h: 1, k: 1, d: 256 }, Params { scale: 0.0625, ..CAUSAL })?;
        accurate(s, &forest_of(&[(66, -1)]), Heads { h: 2, k: 2, d: 128 }, Params { scale: 0.088, ..CAUSAL })
    });
}

#[test]
fn on_cuda_in_bf16_rows_do_not_know_their_company() {
    let (heads, alone) = (Heads { h: 2, k: 1, d: 16 }, forest_of(&[(40, -1), (30, 0)]));
    let packed = forest_of(&[(15, -1), (40, -1), (30, 1), (64, -1)]);
    let finer = forest_of(&[(1, -1), (39, 0), (24, 1), (6, 2)]);
    let around =
        |x: &[f32], width: usize, seed: u64| [normal(15 * width, seed), x.to_vec(), normal(64 * width, seed + 1)].concat();
    let (qkv, dout) = (normal(70 * heads.stride(), 51), normal(70 * 32, 52));
    let (qkv_packed, dout_packed) = (around(&qkv, heads.stride(), 53), around(&dout, 32, 55));
    with_both_adders("attention bf16", |s| {
        let (one, gradient) = run(s, &qkv, &dout, &alone, heads, CAUSAL)?;
        let (again, gradient_again) = run(s, &qkv, &dout, &alone, heads, CAUSAL)?;
        same("again", &again.out, &one.out);
        same("again dqkv", &gradient_again, &gradient);
        let (cut, gradient_cut) = run(s, &qkv, &dout, &finer, heads, CAUSAL)?;
        same("cut", &cut.out, &one.out);
        same("cut l", &cut.l, &one.l);
        let queries = |g: &[f32]| parts(g, heads)[0].clone();
        same("cut dq", &queries(&gradient_cut), &queries(&gradient));
        let (many, gradient_many) = run(s, &qkv_packed, &dout_packed, &packed, heads, CAUSAL)?;
        same("packed", &many.out[15 * 32..85 * 32], &one.out);
        same("packed dqkv", &gradient_many[15 * heads.stride()..85 * heads.stride()], &gradient);
        Ok(())
    });
}

#[test]
fn on_cuda_in_bf16_an_odd_head_dim_is_refused() {
    with_both_adders("attention bf16", |s| {
        let heads = Heads { h: 1, k: 1, d: 12 };
        let error = run(s, &[0.0; 36], &[0.0; 12], &forest_of(&[(1, -1)]), heads, CAUSAL).unwrap_err().to_string();
        assert!(error.contains("head_dim 12, wanted a multiple of 8"), "{error}");
        Ok(())
    });
}
