//! The CPU form: a row per task. Masses stay in the row's scratch as f32, which holds each of them exactly.

use super::{IN_PROMPT, Sampling};
use crate::cpu::{Lanes, WIDTH};
use crate::math::lanes;
use runtime::{Pool, Shared};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The mass of the largest logit.
pub const ONE: f32 = (1u64 << 40) as f32;

/// `x` becomes the logits after softcap and penalties; what lies beyond them is −inf.
#[inline(always)]
fn values<S: Lanes>(x: &mut [f32], logits: &[f32], seen: &[u32], sampling: &Sampling) {
    x[..logits.len()].copy_from_slice(logits);
    x[logits.len()..].fill(f32::NEG_INFINITY);
    if sampling.softcap > 0.0 {
        let cap = S::splat(sampling.softcap);
        map::<S>(x, |z| S::mul(cap, lanes::tanh::<S>(S::div(z, cap))));
        x[logits.len()..].fill(f32::NEG_INFINITY);
    }
    for (z, seen) in x.iter_mut().zip(seen).filter(|(_, seen)| **seen != 0) {
        *z = if *z > 0.0 { *z / sampling.repetition_penalty } else { *z * sampling.repetition_penalty };
        let count = seen & !IN_PROMPT;
        if count > 0 {
            *z -= sampling.frequency_penalty * count as f32;
            *z -= sampling.presence_penalty;
        }
    }
}

/// `f` on every group of lanes of `x`, whose length is a multiple of them.
#[inline(always)]
fn map<S: Lanes>(x: &mut [f32], f: impl Fn(S::V) -> S::V) {
    for group in x.chunks_exact_mut(WIDTH) {
        // SAFETY: a group has 16 elements.
        unsafe { S::store(group.as_mut_ptr(), f(S::load(group.as_ptr()))) };
    }
}

/// The largest element; None if one is NaN or the largest is not finite.
#[inline(always)]
fn maximum<S: Lanes>(x: &[f32]) -> Option<f32> {
    let mut largest = S::splat(f32::NEG_INFINITY);
    let mut nan = false;
    for group in x.chunks_exact(WIDTH) {
        nan |= group.iter().fold(false, |nan, z| nan | z.is_nan());
        // SAFETY: a group has 16 elements.
        largest = S::max(unsafe { S::load(group.as_ptr()) }, largest);
    }
    let mut each = [0.0; WIDTH];
    // SAFETY: an array of 16.
    unsafe { S::store(each.as_mut_ptr(), largest) };
    let largest = each.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    (!nan && largest.is_finite()).then_some(largest)
}

/// The largest key whose own and larger keys weigh at least `need`, and what the larger ones weigh. The whole weight is at
/// least `need`, and `need` at least 1.
#[inline(always)]
fn crossing(x: &[f32], need: u64, key: impl Fn(f32) -> u32, weight: impl Fn(f32) -> u64) -> (u32, u64) {
    let (mut found, mut above) = (0u32, 0);
    for (shift, bits) in [(21, 11), (10, 11), (0, 10)] {
        let mut buckets = [0u64; 2048];
        for &value in x {
            let key = key(value);
            if (u64::from(key) >> (shift + bits)) as u32 == found {
                buckets[(key >> shift) as usize & ((1 << bits) - 1)] += weight(value);
            }
        }
        let mut digit = (1usize << bits) - 1;
        while digit > 0 && above + buckets[digit] < need {
            above += buckets[digit];
            digit -= 1;
        }
        found = found << bits | digit as u32;
    }
    (found, above)
}

/// Everything below the k-th largest value becomes −inf.
#[inline(always)]
fn top_k(x: &mut [f32], k: u32) {
    // Ascending as integers; no NaN is left, and −0 and 0 part only here, not in the comparison below.
    let ordered = |z: f32| if z.is_sign_negative() { !z.to_bits() } else { z.to_bits() | 1 << 31 };
    let (key, _) = crossing(x, u64::from(k), ordered, |_| 1);
    let threshold = f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key });
    x.iter_mut().filter(|z| **z < threshold).for_each(|z| *z = f32::NEG_INFINITY);
}

#[inline(always)]
fn total(mass: &[f32]) -> u64 {
    mass.iter().map(|m| *m as u64).sum()
}

/// Everything after the mass that crosses `p` of the total becomes 0.
#[inline(always)]
fn top_p(mass: &mut [f32], p: f32) {
    let share = (f64::from(p) * 2f64.powi(32)).round_ties_even() as u128;
    let need = (((share * u128::from(total(mass))) >> 32) as u64).max(1);
    let (key, above) = crossing(mass, need, f32::to_bits, |m| m as u64);
    let threshold = f32::from_bits(key);
    let mut equals = (need - above).div_ceil((threshold as u64).max(1));
    for m in mass {
        if *m == threshold && equals > 0 {
            equals -= 1;
        } else if *m <= threshold {
            *m = 0.0;
        }
    }
}

/// `x` (values of one row, [`values`]) becomes the kept masses of its first `v`; `largest` is their maximum after scaling.
#[inline(always)]
fn masses<S: Lanes>(x: &mut [f32], v: usize, largest: f32, sampling: &Sampling) {
    if sampling.top_k > 0 && (sampling.top_k as usize) < v {
        top_k(&mut x[..v], sampling.top_k);
    }
    let (largest, whole) = (S::splat(largest), S::splat((1 << 23) as f32));
    map::<S>(x, |z| {
        let mass = S::mul(lanes::exp::<S>(S::sub(z, largest)), S::splat(ONE));
        // From 2^23 on an f32 is an integer; below, this sum rounds to one, half to even.
        S::select(S::lt(mass, whole), S::sub(S::add(mass, whole), whole), mass)
    });
    if sampling.top_p < 1.0 {
        top_p(&mut x[..v], sampling.top_p);
    }
    if sampling.min_p > 0.0 {
        let threshold = (sampling.min_p * ONE).round_ties_even();
        x[..v].iter_mut().filter(|m| **m < threshold).for_each(|m| *m = 0.0);
    }
}

/// Fills `x` with the kept masses (greedy: the values) and returns the largest value; None if the row has no maximum.
#[inline(always)]
fn filter<S: Lanes>(x: &mut [f32], logits: &[f32], seen: &[u32], sampling: &Sampling) -> Option<f32> {
    values::<S>(x, logits, seen, sampling);
    if sampling.temperature == 0.0 {
        return maximum::<S>(x);
    }
    let inverse = S::splat(1.0 / sampling.temperature);
    map::<S>(x, |z| S::mul(z, inverse));
    let largest = maximum::<S>(x)?;
    masses::<S>(x, logits.len(), largest, sampling);
    Some(largest)
}
per_isa! { pub fn filter_on(x: &mut [f32], logits: &[f32], seen: &[u32], sampling: &Sampling) -> Option<f32> = filter }

/// The first id whose cumulative mass exceeds the draw's share, and its log-probability.
fn pick(mass: &[f32], draw: u64) -> (u32, f32) {
    let kept = total(mass);
    let r = ((u128::from(draw) * u128::from(kept)) >> 64) as u64;
    let mut sum = 0;
    let id = mass.iter().position(|m| {
        sum += *m as u64;
        sum > r
    });
    let id = id.unwrap_or(0);
    (id as u32, (f64::from(mass[id]).ln() - (kept as f64).ln()) as f32)
}

/// Elements of scratch for rows of `v`.
pub fn scratch(v: usize) -> usize {
    v.next_multiple_of(WIDTH)
}

/// The lowest row without a maximum, if any.
pub fn forward(
    pool: &Pool,
    out: (&mut [u32], &mut [f32]),
    logits: &[f32],
    draws: &[u32],
    seen: &[u32],
    v: usize,
    sampling: &Sampling,
) -> Option<usize> {
    let (b, bad) = (out.0.len(), AtomicUsize::new(usize::MAX));
    let (ids, logps) = (Shared::new(out.0), Shared::new(out.1));
    pool.run(b, scratch(v), &|row, x| {
        let part = row * v..(row + 1) * v;
        let seen = if seen.is_empty() { seen } else { &seen[part.clone()] };
        let draw = u64::from(draws[2 * row]) | u64::from(draws[2 * row + 1]) << 32;
        let (id, logp) = match filter_on(pool.isa(), x, &logits[part], seen, sampling) {
            None => {
                bad.fetch_min(row, Ordering::Relaxed);
                (0, f32::NAN)
            }
            Some(largest) if sampling.temperature == 0.0 => (x.iter().position(|z| *z == largest).unwrap_or(0) as u32, 0.0),
            Some(_) => pick(&x[..v], draw),
        };
        // SAFETY: tasks have disjoint rows.
        unsafe { (ids.slice(row..row + 1).fill(id), logps.slice(row..row + 1).fill(logp)) };
    });
    Some(bad.into_inner()).filter(|row| *row < b)
}
