//! Attention in plain loops and f64: the truth that the tests compare with.

use super::{Heads, Params, ROOT};

/// What forward gives: `out [N, h·d]`, `lse [N, h]` in natural logarithms.
pub struct Forward {
    pub out: Vec<f64>,
    pub lse: Vec<f64>,
}

/// Rows of the path of `segment`, in order of position.
fn path(segments: &[[u32; 4]], segment: usize) -> Vec<usize> {
    let [start, len, _, parent] = segments[segment];
    let mut rows = if parent == ROOT { Vec::new() } else { path(segments, parent as usize) };
    rows.extend(start as usize..(start + len) as usize);
    rows
}

/// Calls `pair(row, rows it sees)` for every row.
fn visible(segments: &[[u32; 4]], params: Params, mut each: impl FnMut(usize, &[usize])) {
    for (i, &[start, len, pos0, _]) in segments.iter().enumerate() {
        let path = path(segments, i);
        for row in 0..len as usize {
            let pos = pos0 as usize + row;
            let first = if params.window > 0 { (pos + 1).saturating_sub(params.window as usize) } else { 0 };
            let past = if params.causal { pos + 1 } else { path.len() };
            each(start as usize + row, &path[first..past]);
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The capped score and its slope.
fn score(q: &[f64], k: &[f64], params: Params) -> (f64, f64) {
    let (t, cap) = (dot(q, k) * params.scale as f64, params.softcap as f64);
    if cap == 0.0 {
        return (t, 1.0);
    }
    let th = (t / cap).tanh();
    (cap * th, 1.0 - th * th)
}

/// Where a query head's q, k, v lie in a row.
fn places(heads: Heads, head: usize) -> [usize; 3] {
    let kv = head / heads.group();
    [head * heads.d, (heads.h + kv) * heads.d, (heads.h + heads.k + kv) * heads.d]
}

/// out and lse of every row.
pub fn forward(qkv: &[f64], segments: &[[u32; 4]], heads: Heads, params: Params) -> Forward {
    let (stride, d, h) = (heads.stride(), heads.d, heads.h);
    let n = qkv.len() / stride;
    let mut f = Forward { out: vec![0.0; n * h * d], lse: vec![0.0; n * h] };
    visible(segments, params, |row, keys| {
        for head in 0..h {
            let [q, k, v] = places(heads, head);
            let at = |row: usize, part: usize| &qkv[row * stride + part..][..d];
            let s: Vec<f64> = keys.iter().map(|&j| score(at(row, q), at(j, k), params).0).collect();
            let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = s.iter().map(|s| (s - max).exp()).sum();
            f.lse[row * h + head] = max + sum.ln();
            let out = &mut f.out[(row * h + head) * d..][..d];
            for (&j, s) in keys.iter().zip(&s) {
                let p = (s - max).exp() / sum;
                out.iter_mut().zip(at(j, v)).for_each(|(o, v)| *o += p * v);
            }
        }
    });
    f
}

/// The gradient of qkv.
pub fn backward(dout: &[f64], qkv: &[f64], segments: &[[u32; 4]], heads: Heads, params: Params) -> Vec<f64> {
    backward_from(dout, &forward(qkv, segments, heads, params).out, qkv, segments, heads, params)
}

/// The same of an `out` that forward has stored, which is rounded.
pub fn backward_from(dout: &[f64], out: &[f64], qkv: &[f64], segments: &[[u32; 4]], heads: Heads, params: Params) -> Vec<f64> {
    let (stride, d, h) = (heads.stride(), heads.d, heads.h);
    let f = forward(qkv, segments, heads, params);
    let mut g = vec![0.0; qkv.len()];
    visible(segments, params, |row, keys| {
        for head in 0..h {
            let [q, k, v] = places(heads, head);
            let at = |row: usize, part: usize| &qkv[row * stride + part..][..d];
            let own = (row * h + head) * d..(row * h + head + 1) * d;
            let (dout, delta) = (&dout[own.clone()], dot(&dout[own.clone()], &out[own]));
            for &j in keys {
                let (s, slope) = score(at(row, q), at(j, k), params);
                let p = (s - f.lse[row * h + head]).exp();
                let dt = p * (dot(dout, at(j, v)) - delta) * slope * params.scale as f64;
                for i in 0..d {
                    g[row * stride + q + i] += dt * at(j, k)[i];
                    g[j * stride + k + i] += dt * at(row, q)[i];
                    g[j * stride + v + i] += p * dout[i];
                }
            }
        }
    });
    g
}
