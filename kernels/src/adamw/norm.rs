//! The gradient norm, kept on the device until somebody asks.

use super::{KERNELS, clip_scale, cpu};
use crate::cuda::{blocks, operand, size};
use runtime::{Arg, Buffer, DType::F32, Launch, Result, Stream, View, ensure};
use std::ops::Range;

/// The norm of a gradient whose tensors are ranges of an arena, and the factor that clips it. Memory for it is taken once.
#[derive(Debug)]
pub struct Norm {
    tensors: Vec<Range<usize>>,
    /// On the CPU: the norm and the factor.
    host: (f64, f32),
    device: Option<Device>,
}

/// What a device keeps.
#[derive(Debug)]
struct Device {
    /// [tensors, 2] u64
    spans: Buffer<u32>,
    /// [tensors] f64
    sums: Buffer<u32>,
    /// f64
    norm: Buffer<u32>,
    clip: Buffer<f32>,
}

impl Norm {
    /// For tensors of an arena, in its order.
    pub fn new(s: &Stream, tensors: &[Range<usize>]) -> Result<Norm> {
        let device = match s.host() {
            Some(_) => None,
            None => {
                let halves = |v: u64| [v as u32, (v >> 32) as u32];
                let spans: Vec<u32> = tensors.iter().flat_map(|t| [t.start, t.end]).flat_map(|v| halves(v as u64)).collect();
                let (spans, sums) = (s.upload(&spans)?, s.zeros(2 * tensors.len())?);
                Some(Device { spans, sums, norm: s.zeros(2)?, clip: s.zeros(1)? })
            }
        };
        Ok(Norm { tensors: tensors.to_vec(), host: (0.0, 1.0), device })
    }

    /// Bytes on the stream's device for so many tensors; a buffer has at least 64.
    pub fn bytes(s: &Stream, tensors: usize) -> usize {
        if s.host().is_some() { 0 } else { (16 * tensors).max(64) + (8 * tensors).max(64) + 2 * 64 }
    }

    /// Measures `g`; the factor is that of [`clip_scale`] for `max_norm`. Nothing is waited for.
    pub fn measure(&mut self, s: &Stream, g: View<'_>, max_norm: f64) -> Result<()> {
        for (i, t) in self.tensors.iter().enumerate() {
            ensure!(t.start <= t.end && t.end <= g.len(), "adamw: gradient norm: tensor {i} is {t:?} of {}", g.len());
        }
        let Some(d) = &self.device else {
            // SAFETY: the device is the CPU and nothing writes during this call.
            let norm = cpu::sum_of_squares(s.pool("adamw::Norm")?, unsafe { g.host()? }, &self.tensors).sqrt();
            self.host = (norm, clip_scale(norm, max_norm));
            return Ok(());
        };
        let [spans, sums, norm, clip] = [d.spans.view(), d.sums.view(), d.norm.view(), d.clip.view()].map(|v| Arg::Ptr(v.ptr()));
        let one = Launch { grid: [1; 3], block: 1, ..Launch::default() };
        let last = [norm, clip, sums, size("adamw", self.tensors.len())?, Arg::U64(max_norm.to_bits())];
        // SAFETY: the kernels' arguments: 8 bytes and two u64 for each tensor, whose ranges were checked; an f64 and an f32.
        unsafe {
            s.launch(&KERNELS[1], &blocks(self.tensors.len())?, &[sums, operand("adamw::Norm", g, F32)?, spans])?;
            s.launch(&KERNELS[2], &one, &last)
        }
    }

    /// The 2-norm; waits for a device. NaN and infinity come through.
    pub fn value(&self) -> Result<f64> {
        let Some(d) = &self.device else { return Ok(self.host.0) };
        let bits = d.norm.to_vec()?;
        Ok(f64::from_bits(u64::from(bits[0]) | u64::from(bits[1]) << 32))
    }

    /// The factor: on a device where it lies, on the CPU itself.
    pub(super) fn clip(&self) -> (Option<View<'_>>, f32) {
        (self.device.as_ref().map(|d| d.clip.view()), self.host.1)
    }
}
