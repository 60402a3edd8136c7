//! AdamW, the gradient norm and the clipping factor.
//!
//! ```text
//! g' = g·grad_scale
//! m += (1−β1)·(g' − m)                     v += (1−β2)·(g'·g' − v)
//! p -= (lr·wd)·p + (lr/bc1)·(m / (sqrt(v)/sqrt(bc2) + eps))          bc_i = 1 − β_i^step
//! ```
//! This is `torch.optim.AdamW` (decay of the p before the step). Each operation rounds, in the order of the brackets; the
//! constants 1−β1, 1−β2, lr·wd, lr/bc1, sqrt(bc2) are formed in f64 and rounded once. Written as differences, the moments
//! and the decay do not drift by the rounding of β or of 1 − lr·wd.
//! p, m, v: `[n]` f32 in place; g: `[n]` f32. Bytes: 28 n. FLOPs: 16 n.
//!
//! Gradient norm: sqrt(Σ_tensors Σ g²), one f64 chain per tensor, tensors added in order (LAW A7); 4 n bytes, 2 n FLOPs.
//! On CUDA a tensor's sum has 256 f64 chains, element i in chain i mod 256, then the upper half adds to the lower: its own fixed order. There
//! the norm stays on the device ([`Norm`]), and a step also writes the bf16 copies of what it steps over ([`Copies`]).
//! order: law

use crate::cuda::{elements, kernel, operand, size};
use runtime::{Arg, DType::F32, Error, Kernel, Ptr, Result, Stream, View, disjoint, ensure};
use std::ops::Range;

mod cases;
mod copies;
mod cpu;
mod norm;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cases::{cases, cases_in_bf16};
pub use copies::{Copies, Side, Table, Target};
pub use norm::Norm;

pub(crate) const KERNELS: [Kernel; 4] = [
    kernel!("adamw_step", "adamw.cu"),
    kernel!("adamw_squares", "adamw.cu"),
    kernel!("adamw_clip", "adamw.cu"),
    kernel!("adamw_copies", "adamw.cu"),
];

/// The settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Counts from 1.
    pub step: u64,
    /// What the gradient is multiplied by first (see [`clip_scale`]).
    pub grad_scale: f32,
}

/// What the elements see of [`Params`].
#[derive(Clone, Copy, Debug)]
struct Constants {
    scale: f32,
    first: f32,
    second: f32,
    decay: f32,
    rate: f32,
    root: f32,
    eps: f32,
}

impl Params {
    fn constants(&self) -> Result<Constants> {
        for (name, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::Numeric(format!("adamw: {name} must be in [0, 1), got {beta}")));
            }
        }
        ensure!(self.step > 0, "adamw: step counts from 1, got 0");
        let correction = |beta: f64| 1.0 - beta.powf(self.step as f64);
        Ok(Constants {
            scale: self.grad_scale,
            first: (1.0 - self.beta1) as f32,
            second: (1.0 - self.beta2) as f32,
            decay: (self.lr * self.weight_decay) as f32,
            rate: (self.lr / correction(self.beta1)) as f32,
            root: correction(self.beta2).sqrt() as f32,
            eps: self.eps as f32,
        })
    }
}

/// One step on p, m, v `[n]`, in place.
pub fn step(s: &Stream, p: View<'_>, m: View<'_>, v: View<'_>, g: View<'_>, params: &Params) -> Result<()> {
    step_clipped(s, p, m, v, g, params, None, None)
}

/// One step with a further factor of the gradient, the norm's, and with the copies of p.
pub fn step_clipped(
    s: &Stream,
    p: View<'_>,
    m: View<'_>,
    v: View<'_>,
    g: View<'_>,
    params: &Params,
    norm: Option<&Norm>,
    copies: Option<&Copies<'_>>,
) -> Result<()> {
    let (room, mut k, n) = ("adamw::step", params.constants()?, p.len());
    let fits = m.len() == n && v.len() == n && g.len() == n;
    ensure!(fits, "{room}: m, v, g have {}, {}, {} elements, wanted {n}", m.len(), v.len(), g.len());
    disjoint(room, &[p, m, v], &[g])?;
    let (clip, factor) = norm.map_or((None, 1.0), Norm::clip);
    let Some(pool) = s.host() else {
        let views = [operand(room, p, F32)?, operand(room, m, F32)?, operand(room, v, F32)?, operand(room, g, F32)?];
        let (table, count) = copies.map_or(Ok((Ptr(0), 0)), |copies| copies.within(n))?;
        let kept = [Arg::Ptr(clip.map_or(Ptr(0), |c| c.ptr())), Arg::Ptr(table), size(room, count)?, Arg::U64(n as u64)];
        let scalars = [k.scale, k.first, k.second, k.decay, k.rate, k.root, k.eps].map(Arg::Bits);
        // SAFETY: the kernel's arguments; all four have n elements, and no others are copied.
        return unsafe { s.launch(&KERNELS[0], &elements(n)?, &[&views[..], &kept, &scalars].concat()) };
    };
    k.scale *= factor;
    // SAFETY: the device is the CPU and `disjoint` keeps the four apart.
    unsafe { cpu::step(pool, p.host_mut()?, m.host_mut()?, v.host_mut()?, g.host()?, k) };
    Ok(())
}

/// The 2-norm of the gradient over `tensors`, ranges of `g` in arena order. NaN and infinity come through.
pub fn grad_norm(s: &Stream, g: View<'_>, tensors: &[Range<usize>]) -> Result<f64> {
    let mut norm = Norm::new(s, tensors)?;
    norm.measure(s, g, 0.0)?;
    norm.value()
}

/// `torch.nn.utils.clip_grad_norm_`'s factor: min(1, max_norm / (norm + 1e-6)); 1 if `max_norm` ≤ 0. NaN comes through.
pub fn clip_scale(norm: f64, max_norm: f64) -> f32 {
    if max_norm <= 0.0 {
        return 1.0;
    }
    let scale = max_norm / (norm + 1e-6);
    if scale > 1.0 { 1.0 } else { scale as f32 }
}
