//! Rotary positions, in place, in Hugging Face's half-split pairing.
//!
//! ```text
//! a' = a·cos − b·sin,  b' = b·cos + a·sin        a = x[n, h·D + i], b = x[n, h·D + i + D/2], 0 ≤ i < D/2
//! backward: the transpose,  da = da'·cos + db'·sin,  db = db'·cos − da'·sin
//! cos, sin of pos[n]·f_i,  f_i = theta^(−2i/D), for llama3 scaled by wavelength
//! ```
//! Products, then the sum, each round. x: [N, stride] f32, its first heads·D columns turn, the rest stays. pos: `[N]` u32.
//! table: [positions, D/2, 2] f32 (cos, sin), computed in f64 on the host and rounded once (LAW A5). On CUDA x may be bf16, rounded
//! once, and its rows may lie apart ([`View::apart`]).
//! Bytes: 8·N·heads·D and the table's rows. FLOPs: 3·N·heads·D. order: law
//! A position beyond the table is an error on the CPU, which looks, and NaN on CUDA, where looking would wait.

use crate::cuda::{elements, kernel, operand, pitch, rows_of, size, stored, variant};
use runtime::{Arg, DType::F32, DType::U32, Kernel, Launch, Result, Stream, View, disjoint, ensure};

mod cases;
mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

/// Llama 3's scaling: wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched by `factor`, those
/// below `original_max_position_embeddings / high_freq_factor` stay, between them it is interpolated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// Stretch of the long wavelengths.
    pub factor: f64,
    /// See the type.
    pub low_freq_factor: f64,
    /// See the type.
    pub high_freq_factor: f64,
    /// Context of the pretraining.
    pub original_max_position_embeddings: f64,
}

impl Scaling {
    /// Every wavelength stretched by `factor`.
    pub const fn linear(factor: f64) -> Scaling {
        let (low_freq_factor, high_freq_factor) = (f64::INFINITY, f64::INFINITY);
        Scaling { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings: 1.0 }
    }

    fn apply(&self, frequency: f64) -> f64 {
        let wavelength = std::f64::consts::TAU / frequency;
        let turns = self.original_max_position_embeddings / wavelength;
        if turns < self.low_freq_factor {
            frequency / self.factor
        } else if turns > self.high_freq_factor {
            frequency
        } else {
            let smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

/// f_i of `d`/2 pairs, in f64.
fn frequencies(d: usize, theta: f64, scaling: Option<&Scaling>) -> impl Iterator<Item = f64> {
    let plain = (0..d / 2).map(move |i| theta.powf(-2.0 * i as f64 / d as f64));
    plain.map(move |f| scaling.map_or(f, |s| s.apply(f)))
}

/// cos and sin for positions 0..`positions`: [positions, d/2, 2].
pub fn table(positions: usize, d: usize, theta: f64, scaling: Option<&Scaling>) -> Vec<f32> {
    let frequencies: Vec<f64> = frequencies(d, theta, scaling).collect();
    let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
    angles.flat_map(|a| [a.cos() as f32, a.sin() as f32]).collect()
}

pub(crate) use cases::cases;

pub(crate) const KERNELS: [Kernel; 1] = [kernel!("rope_rotate", "rope.cu")];

fn rotate(
    room: &'static str,
    s: &Stream,
    x: View<'_>,
    pos: View<'_>,
    table: View<'_>,
    heads: usize,
    d: usize,
    stride: usize,
    back: bool,
) -> Result<()> {
    ensure!(d > 0 && d.is_multiple_of(2), "{room}: head dim {d} is not even");
    ensure!(heads.saturating_mul(d) <= stride, "{room}: {heads} heads of {d} in rows of {stride}");
    ensure!(x.len() == pos.len().saturating_mul(stride), "{room}: x has {} elements, wanted [{}, {stride}]", x.len(), pos.len());
    ensure!(table.len().is_multiple_of(d), "{room}: table has {} elements, wanted [positions, {}, 2]", table.len(), d / 2);
    disjoint(room, &[x], &[pos, table])?;
    let Some(pool) = s.host() else {
        let stored = stored(room, x)?;
        let views = [rows_of(room, x, stored)?, operand(room, pos, U32)?, operand(room, table, F32)?];
        let pairs = pos.len() * heads * (d / 2);
        let shape = [Arg::U64(pairs as u64), size(room, heads)?, size(room, d / 2)?, pitch(room, x, stride)?];
        let args = [&views[..], &shape, &[size(room, table.len() / d)?, Arg::U32(back.into())]].concat();
        let launch = Launch { defines: variant(stored), ..elements(pairs)? };
        // SAFETY: the kernel's arguments; the shapes were checked, positions it checks itself.
        return unsafe { s.launch(&KERNELS[0], &launch, &args) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps x apart from everything else.
    let (x, pos, table) = unsafe { (x.host_mut::<f32>()?, pos.host::<u32>()?, table.host::<f32>()?) };
    let known = table.len() / d;
    if let Some((n, p)) = pos.iter().enumerate().find(|(_, p)| **p as usize >= known) {
        return Err(runtime::Error::Shape(format!("{room}: row {n} has position {p}, the table has {known}")));
    }
    cpu::rotate(pool, x, pos, table, heads, d, stride, back);
    Ok(())
}

/// Turns the first `heads` heads of every row by its position.
pub fn forward(s: &Stream, x: View<'_>, pos: View<'_>, table: View<'_>, heads: usize, d: usize, stride: usize) -> Result<()> {
    rotate("rope::forward", s, x, pos, table, heads, d, stride, false)
}

/// Turns gradients back: the transpose of [`forward`].
pub fn backward(s: &Stream, dx: View<'_>, pos: View<'_>, table: View<'_>, heads: usize, d: usize, stride: usize) -> Result<()> {
    rotate("rope::backward", s, dx, pos, table, heads, d, stride, true)
}
