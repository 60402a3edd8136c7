//! The CUDA form on the emulated device: the bits of the portable CPU, accuracy against f64, and company that does not matter.

use super::law::same;
use super::*;
use crate::check::on_cuda;

/// A tree of depth 3 with empty segments, two levels of sharing and blocks gathered from several segments; then another tree.
fn tree(len: u32) -> Vec<[u32; 4]> {
    forest_of(&[(len, -1), (17, 0), (0, 0), (30, 1), (3, 2), (5, -1)])
}

/// Every row's bits, and dqkv's, are those of the portable CPU.
fn as_on_the_cpu(s: &Stream, segments: &[[u32; 4]], heads: Heads, params: Params) -> Result<()> {
    let cpu = Stream::cpu(1, Isa::portable());
    let n = rows_of(segments);
    let (qkv, dout) = (normal(n * heads.stride(), 41), normal(n * heads.h * heads.d, 42));
    let law = run_forward(&cpu, &qkv, segments, heads, params)?;
    let gradient = run_backward(&cpu, &dout, &law, &qkv, segments, heads, params)?;
    let what = format!("{heads:?} {params:?}");
    for _ in 0..2 {
        let got = run_forward(s, &qkv, segments, heads, params)?;
        same(&format!("{what} out"), &got.out, &law.out);
        same(&format!("{what} l"), &got.l, &law.l);
        assert_eq!(got.m, law.m, "{what}");
        same(&format!("{what} dqkv"), &run_backward(s, &dout, &law, &qkv, segments, heads, params)?, &gradient);
    }
    Ok(())
}

#[test]
fn on_cuda_as_on_the_cpu() {
    on_cuda("attention", |s| {
        as_on_the_cpu(s, &tree(70), Heads { h: 2, k: 1, d: 16 }, CAUSAL)?;
        as_on_the_cpu(s, &tree(63), Heads { h: 4, k: 2, d: 20 }, Params { scale: 0.3, softcap: 2.0, window: 40, causal: true })?;
        as_on_the_cpu(
            s,
            &forest_of(&[(70, -1), (9, -1)]),
            Heads { h: 3, k: 1, d: 12 },
            Params { window: 67, causal: false, ..CAUSAL },
        )
    });
}

#[test]
fn on_cuda_any_head_dim_and_group() {
    on_cuda("attention", |s| {
        as_on_the_cpu(s, &forest_of(&[(9, -1), (3, 0)]), Heads { h: 1, k: 1, d: 256 }, CAUSAL)?;
        as_on_the_cpu(s, &forest_of(&[(5, -1), (2, -1)]), Heads { h: 2, k: 2, d: 65 }, CAUSAL)?;
        as_on_the_cpu(s, &forest_of(&[(3, -1)]), Heads { h: 70, k: 1, d: 1 }, CAUSAL)?;
        let none = Heads { h: 1, k: 1, d: 8 };
        as_on_the_cpu(s, &[], none, CAUSAL)
    });
}

#[test]
fn on_cuda_exponents_beyond_i32_saturate() {
    on_cuda("attention", |s| {
        [1e9, -1e12].into_iter().try_for_each(|scale| {
            as_on_the_cpu(s, &forest_of(&[(40, -1), (30, 0)]), Heads { h: 1, k: 1, d: 4 }, Params { scale, ..CAUSAL })
        })
    });
}

#[test]
fn on_cuda_against_f64() {
    on_cuda("attention", |s| {
        on_stream(s, &tree(64), Heads { h: 4, k: 2, d: 48 }, Params { scale: 1.0 / 48f32.sqrt(), ..CAUSAL })
    });
}

#[test]
fn on_cuda_rows_do_not_know_their_company() {
    let (heads, alone, pair) = (Heads { h: 2, k: 1, d: 16 }, forest_of(&[(40, -1), (30, 0)]), (15, 64));
    let packed = forest_of(&[(15, -1), (40, -1), (30, 1), (64, -1)]);
    let finer = forest_of(&[(1, -1), (39, 0), (24, 1), (6, 2)]);
    let around = |x: &[f32], width: usize, seed: u64| {
        [normal(pair.0 * width, seed), x.to_vec(), normal(pair.1 * width, seed + 1)].concat()
    };
    let (qkv, dout) = (normal(70 * heads.stride(), 51), normal(70 * 32, 52));
    let (qkv_packed, dout_packed) = (around(&qkv, heads.stride(), 53), around(&dout, 32, 55));
    on_cuda("attention", |s| {
        let one = run_forward(s, &qkv, &alone, heads, CAUSAL)?;
        let gradient = run_backward(s, &dout, &one, &qkv, &alone, heads, CAUSAL)?;
        let cut = run_forward(s, &qkv, &finer, heads, CAUSAL)?;
        same("cut", &cut.out, &one.out);
        same("cut dqkv", &run_backward(s, &dout, &cut, &qkv, &finer, heads, CAUSAL)?, &gradient);
        let many = run_forward(s, &qkv_packed, &packed, heads, CAUSAL)?;
        same("packed", &many.out[15 * 32..85 * 32], &one.out);
        let got = run_backward(s, &dout_packed, &many, &qkv_packed, &packed, heads, CAUSAL)?;
        same("packed dqkv", &got[15 * heads.stride()..85 * heads.stride()], &gradient);
        Result::Ok(())
    });
}

#[test]
fn on_cuda_a_later_row_cannot_reach_an_earlier_one() {
    let (heads, segments) = (Heads { h: 1, k: 1, d: 8 }, forest_of(&[(20, -1), (10, 0), (10, 0)]));
    on_cuda("attention", |s| {
        let mut qkv = normal(40 * heads.stride(), 5);
        let clean = run_forward(s, &qkv, &segments, heads, CAUSAL)?;
        qkv[29 * heads.stride()..30 * heads.stride()].fill(f32::NAN);
        let got = run_forward(s, &qkv, &segments, heads, CAUSAL)?;
        for (i, (got, clean)) in got.out.iter().zip(&clean.out).enumerate() {
            assert!(if i / 8 == 29 { got.is_nan() } else { got.to_bits() == clean.to_bits() }, "row {}", i / 8);
        }
        Result::Ok(())
    });
}

#[test]
fn on_cuda_segments_that_are_no_forest_stay_within_the_rows() {
    let (heads, big) = (Heads { h: 2, k: 1, d: 8 }, u32::MAX - 1);
    let forests = [
        vec![[0, big, 0, ROOT]],
        vec![[0, 5, big, ROOT], [5, 9, 5, 0]],
        vec![[0, 5, 0, 1], [5, 5, 5, 1]],
        vec![[big, 5, 0, ROOT], [5, 5, 90, big]],
    ];
    on_cuda("attention", |s| {
        let qkv = s.upload(&normal(10 * heads.stride(), 6))?;
        let (out, dqkv) = (s.zeros::<f32>(160)?, s.zeros::<f32>(qkv.len())?);
        let (m, l) = (s.zeros::<i32>(20)?, s.zeros::<f32>(20)?);
        for segments in &forests {
            let g = s.upload(&flat(segments))?;
            forward(s, out.view(), m.view(), l.view(), qkv.view(), g.view(), heads, CAUSAL)?;
            let dout = qkv.view().slice(0..160)?;
            backward(s, dqkv.view(), dout, out.view(), qkv.view(), m.view(), l.view(), g.view(), heads, CAUSAL)?;
        }
        s.synchronize()
    });
}
