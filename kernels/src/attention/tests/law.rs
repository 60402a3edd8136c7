//! Bits: every instruction set, thread count, cut, sharing and packing against one scalar form of the law.

use super::scalar::{Path, law_backward, law_forward};
use super::*;

pub(crate) fn same(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g.to_bits() == w.to_bits(), "{what}: element {i}: got {g:e}, want {w:e}");
    }
}

const CASES: [(Heads, Params); 4] = [
    (Heads { h: 2, k: 1, d: 16 }, CAUSAL),
    (Heads { h: 2, k: 2, d: 8 }, Params { scale: 3.0, softcap: 0.0, window: 70, causal: true }),
    (Heads { h: 4, k: 1, d: 20 }, Params { scale: 0.3, softcap: 2.0, window: 0, causal: true }),
    (Heads { h: 1, k: 1, d: 48 }, Params { scale: 90.0, softcap: 0.0, window: 0, causal: true }),
];

/// A chain of segments that cuts `n` rows at the given rows.
fn cut(n: u32, at: &[u32]) -> Vec<[u32; 4]> {
    let mut ends: Vec<u32> = at.iter().copied().filter(|c| *c < n).collect();
    ends.push(n);
    let parts: Vec<(u32, i32)> =
        ends.iter().enumerate().map(|(i, end)| (end - if i == 0 { 0 } else { ends[i - 1] }, i as i32 - 1)).collect();
    forest_of(&parts)
}

const CUTS: [&[u32]; 7] = [&[], &[1], &[63], &[64], &[65], &[130], &[1, 63, 64, 65, 130]];

fn streams() -> Vec<Stream> {
    Isa::all().into_iter().flat_map(|isa| [1, 2, 4].map(|threads| Stream::cpu(threads, isa))).collect()
}

#[test]
fn every_path_through_forward_gives_the_bits_of_the_law() -> Result<()> {
    let three = forest_of(&[(70, -1), (25, 0), (40, 1), (1, 1), (66, 0)]);
    for (heads, params) in CASES {
        let n = rows_of(&three);
        let qkv = normal(n * heads.stride(), 11);
        let law = law_forward(&qkv, &three, heads, params);
        for s in &streams() {
            let got = run_forward(s, &qkv, &three, heads, params)?;
            let what = format!("{s:?} {:?} {heads:?}", s.host());
            same(&what, &got.out, &law.out);
            same(&what, &got.l, &law.l);
            assert_eq!(got.m, law.m, "{what}");
            for leaf in [2, 3, 4] {
                // The same path as one text, cut in every way.
                let path = Path::of(&three, leaf).rows;
                let row = |row: &usize| &qkv[row * heads.stride()..(row + 1) * heads.stride()];
                let alone: Vec<f32> = path.iter().flat_map(row).copied().collect();
                let wanted: Vec<f32> =
                    path.iter().flat_map(|r| &law.out[r * heads.h * heads.d..][..heads.h * heads.d]).copied().collect();
                for cuts in CUTS {
                    let segments = cut(path.len() as u32, cuts);
                    same(
                        &format!("{what} leaf {leaf} {cuts:?}"),
                        &run_forward(s, &alone, &segments, heads, params)?.out,
                        &wanted,
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_path_through_backward_gives_the_bits_of_the_law() -> Result<()> {
    let tree = forest_of(&[(66, -1), (20, 0), (30, 1), (1, 1), (40, 0)]);
    for (heads, params) in CASES {
        let n = rows_of(&tree);
        let (qkv, dout) = (normal(n * heads.stride(), 12), normal(n * heads.h * heads.d, 13));
        let saved = law_forward(&qkv, &tree, heads, params);
        let law = law_backward(&dout, &saved, &qkv, &tree, heads, params);
        // The same tree between two others, and cut into more segments.
        let packed = forest_of(&[(10, -1), (5, 0), (66, -1), (20, 2), (30, 3), (1, 3), (40, 2), (64, -1)]);
        let finer = forest_of(&[(1, -1), (63, 0), (2, 1), (20, 2), (29, 3), (1, 4), (1, 3), (40, 2)]);
        let around =
            |x: &[f32], width: usize, seed: u64| [normal(15 * width, seed), x.to_vec(), normal(64 * width, seed + 1)].concat();
        let (qkv_packed, dout_packed) = (around(&qkv, heads.stride(), 14), around(&dout, heads.h * heads.d, 16));
        for s in &streams() {
            let what = format!("{:?} {heads:?}", s.host());
            same(&what, &run_backward(s, &dout, &saved, &qkv, &tree, heads, params)?, &law);
            same(&format!("{what} cut"), &run_backward(s, &dout, &saved, &qkv, &finer, heads, params)?, &law);
            let saved = run_forward(s, &qkv_packed, &packed, heads, params)?;
            let got = run_backward(s, &dout_packed, &saved, &qkv_packed, &packed, heads, params)?;
            same(&format!("{what} packed"), &got[15 * heads.stride()..][..law.len()], &law);
        }
    }
    Ok(())
}

#[test]
fn without_causal_order_too() -> Result<()> {
    let (heads, segments) = (Heads { h: 2, k: 1, d: 12 }, forest_of(&[(70, -1), (9, -1)]));
    for window in [0, 5] {
        let params = Params { scale: 0.3, softcap: 3.0, window, causal: false };
        let n = rows_of(&segments);
        let (qkv, dout) = (normal(n * heads.stride(), 17), normal(n * heads.h * heads.d, 18));
        let law = law_forward(&qkv, &segments, heads, params);
        let gradient = law_backward(&dout, &law, &qkv, &segments, heads, params);
        for s in &streams() {
            same("out", &run_forward(s, &qkv, &segments, heads, params)?.out, &law.out);
            same("gradient", &run_backward(s, &dout, &law, &qkv, &segments, heads, params)?, &gradient);
        }
    }
    Ok(())
}

#[test]
fn exponents_beyond_i32_saturate() -> Result<()> {
    let (heads, segments) = (Heads { h: 2, k: 1, d: 16 }, forest_of(&[(70, -1), (80, 0)]));
    for scale in [2e7, 1e9, -1e12] {
        let params = Params { scale, ..CAUSAL };
        let qkv = normal(150 * heads.stride(), 23);
        let law = law_forward(&qkv, &segments, heads, params);
        assert!(law.m.contains(&i32::MAX) == (scale.abs() > 1e8), "{scale}");
        for s in &streams() {
            let got = run_forward(s, &qkv, &segments, heads, params)?;
            same("out", &got.out, &law.out);
            same("l", &got.l, &law.l);
            assert_eq!(got.m, law.m);
        }
    }
    Ok(())
}

#[test]
fn shared_and_whole_gradients_agree() -> Result<()> {
    let s = Stream::cpu(2, Isa::detect());
    let (heads, params) = (Heads { h: 4, k: 2, d: 16 }, CAUSAL);
    let width = heads.h * heads.d;
    let (prompt, a, b) = (65usize, 33usize, 80usize);
    let shared = forest_of(&[(prompt as u32, -1), (a as u32, 0), (b as u32, 0)]);
    let whole = forest_of(&[((prompt + a) as u32, -1), ((prompt + b) as u32, -1)]);
    let spread = |x: &[f32], w: usize| [&x[..(prompt + a) * w], &x[..prompt * w], &x[(prompt + a) * w..]].concat();
    let n = prompt + a + b;
    let (qkv, dout) = (normal(n * heads.stride(), 19), normal(n * width, 20));
    let saved = run_forward(&s, &qkv, &shared, heads, params)?;
    let one = run_backward(&s, &dout, &saved, &qkv, &shared, heads, params)?;
    let (qkv, mut dout) = (spread(&qkv, heads.stride()), spread(&dout, width));
    // The prompt's own rows count once.
    dout[(prompt + a) * width..(2 * prompt + a) * width].fill(0.0);
    let saved = run_forward(&s, &qkv, &whole, heads, params)?;
    let two = wide(&run_backward(&s, &dout, &saved, &qkv, &whole, heads, params)?);
    let (st, cut) = (heads.stride(), (prompt + a) * heads.stride());
    let mut sum = two[..cut].to_vec();
    sum[..prompt * st].iter_mut().zip(&two[cut..]).for_each(|(x, y)| *x += y);
    sum.extend_from_slice(&two[cut + prompt * st..]);
    let error = relative(&one, &sum);
    assert!(error < 1e-6, "{error:e}");
    Ok(())
}
