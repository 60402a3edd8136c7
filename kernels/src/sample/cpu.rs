//! The CPU form: a row per task. Masses stay in the row's scratch as f32, which holds each of them exactly.
// A body of plain loops meets its instruction set only as compiler features.
#![allow(clippy::extra_unused_type_parameters)]

use super::{IN_PROMPT, Sampling};
use crate::cpu::{Lanes, WIDTH};
use crate::math::lanes;
use runtime::{Isa, Pool, Shared};
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
        for z in group {
            nan |= z.is_nan();
        }
        // SAFETY: a group has 16 elements.
        largest = S::max(unsafe { S::load(group.as_ptr()) }, largest);
    }
    let mut each = [0.0; WIDTH];
    // SAFETY: an array of 16.
    unsafe { S::store(each.as_mut_ptr(), largest) };
    let largest = each.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    (!nan && largest.is_finite()).then_some(largest)
}

/// The largest `t` in `low..=high` that `holds`, which is true up to there and false beyond; `low` holds.
#[inline(always)]
fn last(mut low: u32, mut high: u32, holds: impl Fn(u32) -> bool) -> u32 {
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if holds(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// Everything below the k-th largest value becomes −inf.
#[inline(always)]
fn top_k(x: &mut [f32], k: u32, largest: f32) {
    // Keys that ascend with the values: there is no NaN, and that −0 has another key than 0 is no matter to `>=` and `<`.
    let key = |z: f32| if z.is_sign_negative() { !z.to_bits() } else { z.to_bits() | 1 << 31 };
    let value = |key: u32| f32::from_bits(if key >> 31 == 1 { key ^ 1 << 31 } else { !key });
    let count = |t: f32| x.iter().map(|z| u32::from(*z >= t)).sum::<u32>();
    let threshold = value(last(key(f32::NEG_INFINITY), key(largest), |t| count(value(t)) >= k));
    x.iter_mut().for_each(|z| *z = if *z < threshold { f32::NEG_INFINITY } else { *z });
}

/// Σ of the masses from `least` on. Sums of integers below 2^53 are exact in f64 in any order.
#[inline(always)]
fn total_body<S: Lanes>(mass: &[f32], least: f32) -> u64 {
    let mut all = 0;
    for block in mass.chunks(4096) {
        let (groups, rest) = block.as_chunks::<WIDTH>();
        let mut sums = [0f64; WIDTH];
        for group in groups {
            for i in 0..WIDTH {
                sums[i] += f64::from(if group[i] >= least { group[i] } else { 0.0 });
            }
        }
        let mut sum = 0.0;
        for part in sums {
            sum += part;
        }
        for m in rest {
            sum += f64::from(if *m >= least { *m } else { 0.0 });
        }
        all += sum as u64;
    }
    all
}
per_isa! { fn total(mass: &[f32], least: f32) -> u64 = total_body }

/// Everything after the mass that crosses `p` of the total becomes 0. The threshold's exponent is found over the whole row, the
/// rest of its bits over the masses of that exponent, which move to `spare` (as long as the row).
#[inline(always)]
fn top_p(isa: Isa, mass: &mut [f32], spare: &mut [f32], p: f32) {
    let total = |mass: &[f32], least: f32| total(isa, mass, least);
    let share = (f64::from(p) * 2f64.powi(32)).round_ties_even() as u128;
    let need = (((share * u128::from(total(mass, 0.0))) >> 32) as u64).max(1);
    let exponent = |e: u32| f32::from_bits(e << 23);
    let e = last(exponent_of(1.0), exponent_of(ONE), |e| total(mass, exponent(e)) >= need);
    let (low, high) = (exponent(e), exponent(e + 1));
    let (beyond, mut n) = (total(mass, high), 0);
    for &m in mass.iter() {
        spare[n] = m;
        n += usize::from(m >= low && m < high);
    }
    let from = |t: u32| beyond + total(&spare[..n], f32::from_bits(t));
    let least = last(low.to_bits(), high.to_bits() - 1, |t| from(t) >= need);
    let (least, above) = (f32::from_bits(least), from(least + 1));
    mass.iter_mut().for_each(|m| *m = if *m < least { 0.0 } else { *m });
    let equals = (need - above).div_ceil(least as u64) as usize;
    mass.iter_mut().filter(|m| **m == least).skip(equals).for_each(|m| *m = 0.0);
}

#[inline(always)]
fn exponent_of(x: f32) -> u32 {
    x.to_bits() >> 23
}

/// `x` (values of one row, [`values`]) becomes the kept masses of its first `v`; `largest` is their maximum after scaling.
#[inline(always)]
fn masses<S: Lanes>(isa: Isa, x: &mut [f32], spare: &mut [f32], v: usize, largest: f32, sampling: &Sampling) {
    if sampling.top_k > 0 && (sampling.top_k as usize) < v {
        top_k(&mut x[..v], sampling.top_k, largest);
    }
    let (largest, whole) = (S::splat(largest), S::splat((1 << 23) as f32));
    map::<S>(x, |z| {
        let mass = S::mul(lanes::exp::<S>(S::sub(z, largest)), S::splat(ONE));
        // From 2^23 on an f32 is an integer; below, this sum rounds to one, half to even.
        S::select(S::lt(mass, whole), S::sub(S::add(mass, whole), whole), mass)
    });
    if sampling.top_p < 1.0 {
        top_p(isa, &mut x[..v], spare, sampling.top_p);
    }
    if sampling.min_p > 0.0 {
        let threshold = (sampling.min_p * ONE).round_ties_even();
        x[..v].iter_mut().for_each(|m| *m = if *m < threshold { 0.0 } else { *m });
    }
}

/// Fills `x` with the kept masses (greedy: the values) and returns the largest value; None if the row has no maximum.
#[inline(always)]
fn filter<S: Lanes>(
    own: Isa,
    x: &mut [f32],
    spare: &mut [f32],
    logits: &[f32],
    seen: &[u32],
    sampling: &Sampling,
) -> Option<f32> {
    values::<S>(x, logits, seen, sampling);
    if sampling.temperature == 0.0 {
        return maximum::<S>(x);
    }
    let inverse = S::splat(sampling.inv_temperature());
    map::<S>(x, |z| S::mul(z, inverse));
    let largest = maximum::<S>(x)?;
    masses::<S>(own, x, spare, logits.len(), largest, sampling);
    Some(largest)
}
per_isa! {
    fn filter_lanes(own: Isa, x: &mut [f32], spare: &mut [f32], logits: &[f32], seen: &[u32], sampling: &Sampling) -> Option<f32> = filter
}

/// [`filter`] on an instruction set.
pub fn filter_on(isa: Isa, x: &mut [f32], spare: &mut [f32], logits: &[f32], seen: &[u32], sampling: &Sampling) -> Option<f32> {
    filter_lanes(isa, isa, x, spare, logits, seen, sampling)
}

/// The first id whose cumulative mass exceeds the draw's share, and its log-probability.
pub fn pick(isa: Isa, mass: &[f32], draw: u64) -> (u32, f32) {
    let kept = total(isa, mass, 0.0);
    let r = ((u128::from(draw) * u128::from(kept)) >> 64) as u64;
    let (mut sum, mut first) = (0, 0);
    for block in mass.chunks(256) {
        let next = sum + total(isa, block, 0.0);
        if next > r {
            break;
        }
        (sum, first) = (next, first + block.len());
    }
    let passes = |m: &f32| {
        sum += *m as u64;
        sum > r
    };
    let id = mass[first..].iter().position(passes).map_or(0, |i| first + i);
    (id as u32, (f64::from(mass[id]).ln() - (kept as f64).ln()) as f32)
}

/// Elements that a row of `v` takes in whole lanes; `x` and `spare` of [`filter_on`] have as many.
pub fn padded(v: usize) -> usize {
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
    pool.run(b, 2 * padded(v), &|row, scratch| {
        let (x, spare) = scratch.split_at_mut(padded(v));
        let part = row * v..(row + 1) * v;
        let seen = if seen.is_empty() { seen } else { &seen[part.clone()] };
        let draw = u64::from(draws[2 * row]) | u64::from(draws[2 * row + 1]) << 32;
        let (id, logp) = match filter_on(pool.isa(), x, spare, &logits[part], seen, sampling) {
            None => {
                bad.fetch_min(row, Ordering::Relaxed);
                (0, f32::NAN)
            }
            Some(largest) if sampling.temperature == 0.0 => (x.iter().position(|z| *z == largest).unwrap_or(0) as u32, 0.0),
            Some(_) => pick(pool.isa(), &x[..v], draw),
        };
        // SAFETY: tasks have disjoint rows.
        unsafe { (ids.slice(row..row + 1).fill(id), logps.slice(row..row + 1).fill(logp)) };
    });
    Some(bad.into_inner()).filter(|row| *row < b)
}
