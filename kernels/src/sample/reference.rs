//! The law in plain loops, with a full sort.

use super::{IN_PROMPT, Sampling};
use crate::math;

/// Logits after softcap and penalties.
fn values(logits: &[f32], seen: &[u32], s: &Sampling) -> Vec<f32> {
    let capped = logits.iter().map(|&z| if s.softcap > 0.0 { s.softcap * math::tanh(z / s.softcap) } else { z });
    let penalised = |(v, mut z): (usize, f32)| {
        let (prompt, count) = seen.get(v).map_or((false, 0), |s| (s & IN_PROMPT != 0, s & !IN_PROMPT));
        if prompt || count > 0 {
            z = if z > 0.0 { z / s.repetition_penalty } else { z * s.repetition_penalty };
        }
        if count > 0 {
            z -= s.frequency_penalty * count as f32;
            z -= s.presence_penalty;
        }
        z
    };
    capped.enumerate().map(penalised).collect()
}

/// The kept masses of a row.
pub fn masses(logits: &[f32], seen: &[u32], s: &Sampling) -> Vec<u64> {
    let inverse = (1.0 / s.temperature) as f32;
    let x: Vec<f32> = values(logits, seen, s).iter().map(|z| z * inverse).collect();
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[b].partial_cmp(&x[a]).unwrap());
    let largest = x[order[0]];
    let mut threshold = f32::NEG_INFINITY;
    if s.top_k > 0 && (s.top_k as usize) < x.len() {
        threshold = x[order[s.top_k as usize - 1]];
    }
    let mass = |z: f32| (f64::from(math::exp(z - largest)) * 2f64.powi(40)).round_ties_even() as u64;
    let mut masses: Vec<u64> = x.iter().map(|&z| if z >= threshold { mass(z) } else { 0 }).collect();
    if s.top_p < 1.0 {
        order.sort_by_key(|&v| (std::cmp::Reverse(masses[v]), v));
        let total: u128 = masses.iter().map(|&m| m as u128).sum();
        let target = ((f64::from(s.top_p) * 4294967296.0).round_ties_even() as u128 * total / (1 << 32)).max(1);
        let mut kept = 0;
        for v in order {
            if kept >= target {
                masses[v] = 0;
            }
            kept += masses[v] as u128;
        }
    }
    let least = (f64::from(s.min_p) * 2f64.powi(40)).round_ties_even() as u64;
    masses.iter().map(|&m| if m >= least { m } else { 0 }).collect()
}

/// Id and log-probability of a row.
pub fn pick(logits: &[f32], seen: &[u32], draw: u64, s: &Sampling) -> (u32, f32) {
    if s.temperature == 0.0 {
        let x = values(logits, seen, s);
        let best = (0..x.len()).fold(0, |best, v| if x[v] > x[best] { v } else { best });
        return (best as u32, 0.0);
    }
    let masses = masses(logits, seen, s);
    let kept: u128 = masses.iter().map(|&m| m as u128).sum();
    let (r, mut sum) = (draw as u128 * kept / (1 << 64), 0);
    for (v, &mass) in masses.iter().enumerate() {
        sum += mass as u128;
        if sum > r {
            return (v as u32, ((mass as f64).ln() - (kept as f64).ln()) as f32);
        }
    }
    unreachable!("the draw is below the kept mass")
}
