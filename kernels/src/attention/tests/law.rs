//! Bits: every instruction set, thread count, cut, sharing and packing against one scalar form of the law.

use super::*;
use crate::math;

/// LAW A1 from +0.
fn chain(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |acc, (a, b)| a.mul_add(*b, acc))
}

/// LAW A2; absent elements are `None`.
fn sixteen(terms: impl Iterator<Item = Option<(f32, f32)>>) -> f32 {
    let mut l = [0.0f32; 16];
    for (i, term) in terms.enumerate() {
        if let Some((a, b)) = term {
            l[i % 16] = a.mul_add(b, l[i % 16]);
        }
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            l[i] += l[i + half];
        }
    }
    l[0]
}

fn power(i: i64) -> f32 {
    if i < -126 { 0.0 } else { math::power(i as i32) }
}

/// (t, capped score).
fn exponent(q: &[f32], k: &[f32], params: Params) -> (f32, f32) {
    let mut t = chain(q, k) * params.scale;
    if params.softcap > 0.0 {
        t = params.softcap * math::tanh(t / params.softcap);
    }
    (t * math::LOG2_E, t)
}

/// The rows of a path and what row `row` at index `pos` of it sees.
struct Path {
    rows: Vec<usize>,
}

impl Path {
    fn of(segments: &[[u32; 4]], i: usize) -> Path {
        let [start, len, _, parent] = segments[i];
        let mut rows = if parent == ROOT { Vec::new() } else { Path::of(segments, parent as usize).rows };
        rows.extend(start as usize..(start + len) as usize);
        Path { rows }
    }
    fn seen(&self, pos: usize, params: Params) -> std::ops::Range<usize> {
        let first = if params.window == 0 { 0 } else { (pos + 1).saturating_sub(params.window as usize) };
        first..if params.causal { pos + 1 } else { self.rows.len() }
    }
}

/// LAW A3 of one row and head, literally.
fn one(
    q: &[f32],
    key: impl Fn(usize) -> (Vec<f32>, Vec<f32>),
    seen: std::ops::Range<usize>,
    params: Params,
) -> (Vec<f32>, i32, f32) {
    let d = q.len();
    let mut state: Option<(i64, f32, Vec<f32>)> = None;
    for block in seen.start / 64..seen.end.div_ceil(64) {
        let slots: Vec<Option<f32>> =
            (0..64).map(|j| seen.contains(&(block * 64 + j)).then(|| exponent(q, &key(block * 64 + j).0, params).0)).collect();
        let top = slots.iter().flatten().map(|t| t.floor() as i32 as i64).max().expect("a visible key");
        let w: Vec<Option<f32>> =
            slots.iter().map(|t| t.map(|t| math::exp2(t - t.floor()) * power(t.floor() as i32 as i64 - top))).collect();
        let l = sixteen(w.iter().map(|w| w.map(|w| (w, 1.0))));
        let mut o = vec![0.0f32; d];
        for (j, w) in w.iter().enumerate() {
            if let Some(w) = w {
                o.iter_mut().zip(&key(block * 64 + j).1).for_each(|(o, v)| *o = w.mul_add(*v, *o));
            }
        }
        state = Some(match state {
            None => (top, l, o),
            Some((m, l0, o0)) if m < top => {
                let by = power(m - top);
                (top, l0.mul_add(by, l), o0.iter().zip(&o).map(|(small, other)| small.mul_add(by, *other)).collect())
            }
            Some((m, l0, o0)) => {
                let by = power(top - m);
                (m, l.mul_add(by, l0), o.iter().zip(&o0).map(|(small, other)| small.mul_add(by, *other)).collect())
            }
        });
    }
    let (m, l, o) = state.expect("a visible key");
    (o.iter().map(|o| o / l).collect(), m as i32, l)
}

/// The scalar law of a whole batch.
pub(crate) fn law_forward(qkv: &[f32], segments: &[[u32; 4]], heads: Heads, params: Params) -> Saved {
    let Heads { h, k, d } = heads;
    let at = |row: usize, part: usize| qkv[row * heads.stride() + part * d..][..d].to_vec();
    let n = rows_of(segments);
    let mut saved = Saved { out: vec![0.0; n * h * d], m: vec![0; n * h], l: vec![0.0; n * h] };
    for (i, &[start, len, pos0, _]) in segments.iter().enumerate() {
        let path = Path::of(segments, i);
        for (row, pos) in (start as usize..(start + len) as usize).zip(pos0 as usize..) {
            for head in 0..h {
                let kv = head / (h / k);
                let key = |pos: usize| (at(path.rows[pos], h + kv), at(path.rows[pos], h + k + kv));
                let (out, m, l) = one(&at(row, head), key, path.seen(pos, params), params);
                saved.out[(row * h + head) * d..][..d].copy_from_slice(&out);
                (saved.m[row * h + head], saved.l[row * h + head]) = (m, l);
            }
        }
    }
    saved
}

/// LAW A6: dq by position, dk and dv by row in tree order, then by head.
fn law_backward(dout: &[f32], saved: &Saved, qkv: &[f32], segments: &[[u32; 4]], heads: Heads, params: Params) -> Vec<f32> {
    let (Heads { h, k, d }, stride) = (heads, heads.stride());
    let at = |row: usize, part: usize| &qkv[row * stride + part * d..][..d];
    let mut g = vec![0.0f32; qkv.len()];
    for (i, &[start, len, pos0, _]) in segments.iter().enumerate() {
        let path = Path::of(segments, i);
        for (row, pos) in (start as usize..(start + len) as usize).zip(pos0 as usize..) {
            for head in 0..h {
                let (kv, own) = (head / (h / k), row * h + head);
                let (m, l, dout) = (saved.m[own], saved.l[own], &dout[own * d..][..d]);
                let delta = sixteen(dout.iter().zip(&saved.out[own * d..]).map(|(a, b)| Some((*a, *b))));
                for &j in &path.rows[path.seen(pos, params)] {
                    let (t, capped) = exponent(at(row, head), at(j, h + kv), params);
                    let e = t.floor() as i32 as i64;
                    let p = math::exp2(t - t.floor()) * power(e - m as i64) / l;
                    let mut dt = p * (chain(dout, at(j, h + k + kv)) - delta);
                    if params.softcap > 0.0 {
                        let ratio = capped / params.softcap;
                        dt *= 1.0 - ratio * ratio;
                    }
                    dt *= params.scale;
                    for (c, dout) in dout.iter().enumerate() {
                        let (q_at, k_at, v_at) =
                            (row * stride + head * d + c, j * stride + (h + kv) * d + c, j * stride + (h + k + kv) * d + c);
                        g[q_at] = dt.mul_add(at(j, h + kv)[c], g[q_at]);
                        g[k_at] = dt.mul_add(at(row, head)[c], g[k_at]);
                        g[v_at] = p.mul_add(*dout, g[v_at]);
                    }
                }
            }
        }
    }
    g
}

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
