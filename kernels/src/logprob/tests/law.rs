//! The law, one number at a time.

use super::Problem;
use crate::math;

/// A2 over the elements that are not left out.
fn sum(values: impl Iterator<Item = Option<f32>>) -> f32 {
    let mut l = [0f32; 16];
    for (i, value) in values.enumerate() {
        l[i % 16] = value.map_or(l[i % 16], |v| l[i % 16] + v);
    }
    for half in [8, 4, 2, 1] {
        (0..half).for_each(|i| l[i] += l[i + half]);
    }
    l[0]
}

fn tiles(t: &[f32], reference: f32, skip: Option<usize>) -> f32 {
    let term = |v: usize| (Some(v) != skip).then(|| math::exp(t[v] - reference));
    (0..t.len().div_ceil(256)).fold(0.0, |s, tile| s + sum((tile * 256..t.len().min(tile * 256 + 256)).map(term)))
}

/// logp, dz [V] and what the entry adds to its row of dx [C].
pub fn entry(p: &Problem, m: usize) -> (f32, Vec<f32>, Vec<f32>) {
    let (c, target, cap, inv) = (p.head.k, p.targets[m] as usize, p.scaling.softcap, p.scaling.inv_temperature);
    let x = &p.x[p.rows[m] as usize * c..][..c];
    let dot = |w: &[f32]| x.iter().zip(w).fold(0f32, |acc, (x, w)| x.mul_add(*w, acc));
    let capped: Vec<f32> = p.head.w.chunks(c).map(dot).map(|z| if cap > 0.0 { cap * math::tanh(z / cap) } else { z }).collect();
    let t: Vec<f32> = capped.iter().map(|z| z * inv).collect();
    let (zt, max) = (t[target], t.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a }));
    let second = max - zt > 60.0;
    let (reference, s) = if second { (max, tiles(&t, max, None)) } else { (zt, tiles(&t, zt, Some(target))) };
    let logp = if second { (zt - max) - math::log(s) } else { -math::log1p(s) };
    let under = if second { s } else { 1.0 + s };
    let slope = |v: usize| if cap > 0.0 { 1.0 - (capped[v] / cap) * (capped[v] / cap) } else { 1.0 };
    let weight = |v: usize| if v == target && !second { 0.0 } else { math::exp(t[v] - reference) * slope(v) };
    let push = |k: usize| {
        let u = (0..t.len()).fold(0f32, |acc, v| weight(v).mul_add(p.head.w[v * c + k], acc));
        (s * slope(target)).mul_add(p.head.w[target * c + k], 0.0 - u) * (p.dlogp[m] * inv / under)
    };
    let dz = t.iter().zip(&capped).enumerate().map(|(v, (t, capped))| {
        let own = if second { 1.0 - math::exp(t - reference) / under } else { s / under };
        let g = if v == target { own } else { 0.0 - math::exp(t - reference) / under };
        let q = capped / cap;
        let d = p.dlogp[m] * g * inv;
        if cap > 0.0 { d * (1.0 - q * q) } else { d }
    });
    (logp, dz.collect(), (0..c).map(push).collect())
}

/// logp, dx and dhead of all entries, the last from `start`.
pub fn all(p: &Problem, start: f32) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let c = p.head.k;
    let (mut logp, mut dx, mut dhead) = (Vec::new(), vec![0.0; p.x.len()], vec![start; p.head.w.len()]);
    for m in 0..p.rows.len() {
        let (value, dz, push) = entry(p, m);
        logp.push(value);
        let row = p.rows[m] as usize * c;
        for k in 0..c {
            dx[row + k] += push[k];
            for (v, d) in dz.iter().enumerate() {
                dhead[v * c + k] = d.mul_add(p.x[row + k], dhead[v * c + k]);
            }
        }
    }
    (logp, dx, dhead)
}
