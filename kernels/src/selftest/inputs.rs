//! Inputs of cases, functions of a seed: well-behaved, heavy-tailed, with outlying columns, and with rows that are all equal.

use crate::sample::{Tag, key, philox};

/// How the values of a batch are distributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Standard normal.
    Normal,
    /// Student's t with three degrees of freedom.
    HeavyTailed,
    /// Normal, and in every 37th column a hundred times as large.
    Outliers,
    /// Normal, the same in every row.
    EqualRows,
}

impl Kind {
    /// One after the other.
    pub fn nth(i: usize) -> Kind {
        [Kind::Normal, Kind::HeavyTailed, Kind::Outliers, Kind::EqualRows][i % 4]
    }
}

/// Standard normal values.
pub fn normal(seed: u64, n: usize) -> Vec<f32> {
    (0..n).map(|i| gaussians(seed, i)[0] as f32).collect()
}

/// Two independent standard normal values of an index.
fn gaussians(seed: u64, i: usize) -> [f64; 2] {
    let uniform = |x: u32| (x as f64 + 0.5) / 2f64.powi(32);
    let pair = |x: u32, y: u32| (-2.0 * uniform(x).ln()).sqrt() * (std::f64::consts::TAU * uniform(y)).cos();
    let x = philox(key(seed, Tag::Init), [i as u32, 0, 0, 0]);
    [pair(x[0], x[1]), pair(x[2], x[3])]
}

/// Rounded to bf16.
pub fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect()
}

/// Integers below `limit`.
pub fn below(seed: u64, n: usize, limit: u32) -> Vec<u32> {
    (0..n).map(|i| philox(key(seed, Tag::Shuffle), [i as u32, 0, 0, 0])[0] % limit).collect()
}

/// Rows [n, width] of a kind.
pub fn rows(kind: Kind, seed: u64, n: usize, width: usize) -> Vec<f32> {
    let one = |i: usize| match kind {
        Kind::Normal => gaussians(seed, i)[0],
        Kind::HeavyTailed => {
            let [z, a] = gaussians(seed, 2 * i);
            let [b, c] = gaussians(seed, 2 * i + 1);
            z / ((a * a + b * b + c * c) / 3.0).sqrt()
        }
        Kind::Outliers => gaussians(seed, i)[0] * if i % width % 37 == 5 { 100.0 } else { 1.0 },
        Kind::EqualRows => gaussians(seed, i % width)[0],
    };
    (0..n * width).map(|i| one(i) as f32).collect()
}
