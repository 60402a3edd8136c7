//! Attention as LAW A1, A2, A3 and A6 spell it, one value at a time.

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

/// A path from the root to the end of a segment.
pub struct Path {
    /// Rows of the batch by position.
    pub rows: Vec<usize>,
}

impl Path {
    pub fn of(segments: &[[u32; 4]], i: usize) -> Path {
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
pub fn law_forward(qkv: &[f32], segments: &[[u32; 4]], heads: Heads, params: Params) -> Saved {
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
pub fn law_backward(dout: &[f32], saved: &Saved, qkv: &[f32], segments: &[[u32; 4]], heads: Heads, params: Params) -> Vec<f32> {
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
