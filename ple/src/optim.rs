//! Learning-rate schedules, equal to transformers' (`optimization.py`): a pure function of the step, counted from 0. The first
//! step under a warm-up has rate 0. AdamW over one arena, and its state on disk.

use crate::config::{Config, Scheduler};
use crate::{Error, Result};
use kernels::adamw;
use model::lora::Tensor;
use model::weights::{Checkpoint, write_with_metadata};
use runtime::{Buffer, DType, Stream, View};
use std::f64::consts::PI;
use std::ops::Range;
use std::path::Path;

/// A schedule over a run of known length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Its shape.
    pub shape: Scheduler,
    /// Highest rate.
    pub base: f64,
    /// Where cosine_with_min_lr ends, as a share of `base`.
    pub min_rate: f64,
}

impl Schedule {
    /// From `lr_scheduler_type`, `learning_rate`, `min_lr_rate`.
    pub fn new(config: &Config) -> Schedule {
        Schedule { shape: config.lr_scheduler_type, base: config.learning_rate, min_rate: config.min_lr_rate }
    }

    /// Rate of a step of `total`, the first `warmup` of which rise from 0.
    pub fn lr(&self, step: u64, total: u64, warmup: u64) -> f64 {
        self.base * self.factor(step, total, warmup)
    }

    /// Share of `base`.
    fn factor(&self, step: u64, total: u64, warmup: u64) -> f64 {
        if self.shape == Scheduler::Constant {
            return 1.0;
        }
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let after = total.saturating_sub(warmup).max(1) as f64;
        let cosine = || 0.5 * (1.0 + (PI * (step - warmup) as f64 / after).cos());
        match self.shape {
            Scheduler::Constant | Scheduler::ConstantWithWarmup => 1.0,
            Scheduler::Linear => total.saturating_sub(step) as f64 / after,
            Scheduler::Cosine => cosine().max(0.0),
            Scheduler::CosineWithMinLr => (cosine() * (1.0 - self.min_rate) + self.min_rate).max(0.0),
        }
    }
}

/// Steps of warm-up: `warmup_steps` if above 0, else the ratio of `total`, rounded up.
pub fn warmup(config: &Config, total: u64) -> u64 {
    rising(config.warmup_steps, config.warmup_ratio, total)
}

fn rising(steps: u32, ratio: f64, total: u64) -> u64 {
    if steps == 0 { (total as f64 * ratio).ceil() as u64 } else { u64::from(steps) }
}

/// AdamW over one flat arena of parameters, with clipping and the schedule of the settings.
#[derive(Debug)]
pub struct Optimizer {
    m: Buffer<f32>,
    v: Buffer<f32>,
    params: adamw::Params,
    max_grad_norm: f64,
    schedule: Schedule,
    total: u64,
    /// `warmup_steps`, `warmup_ratio`.
    warmup: (u32, f64),
    steps: u64,
    /// Where the schedule and the moments began: after so many steps, for so many.
    cycle: (u64, u64),
    /// The gradient norm, whose memory is taken in the first step.
    norm: Option<adamw::Norm>,
}

impl Optimizer {
    /// Zeroed moments for `len` parameters and a run of `total` steps.
    pub fn new(s: &Stream, len: usize, c: &Config, total: u64) -> Result<Optimizer> {
        let params = adamw::Params {
            lr: c.learning_rate,
            beta1: c.adam_beta1,
            beta2: c.adam_beta2,
            eps: c.adam_epsilon,
            weight_decay: c.weight_decay,
            step: 0,
            grad_scale: 1.0,
        };
        Ok(Optimizer {
            m: s.zeros(len)?,
            v: s.zeros(len)?,
            params,
            max_grad_norm: c.max_grad_norm,
            schedule: Schedule::new(c),
            total,
            warmup: (c.warmup_steps, c.warmup_ratio),
            steps: 0,
            cycle: (0, total),
            norm: None,
        })
    }

    /// Bytes that one takes on the stream's device, for `len` parameters in so many tensors.
    pub fn bytes(s: &Stream, len: usize, tensors: usize) -> usize {
        2 * size_of::<f32>() * len + adamw::Norm::bytes(s, tensors)
    }

    /// Another one for as many parameters, at its beginning.
    pub fn restarted(&self, s: &Stream, c: &Config, total: u64) -> Result<Optimizer> {
        Optimizer::new(s, self.m.len(), c, total)
    }

    /// Zeroed moments and a schedule of `total` steps from here on; the steps count on.
    pub fn begin_again(&mut self, s: &Stream, total: u64) -> Result<()> {
        self.m.view().zero(s)?;
        self.v.view().zero(s)?;
        self.cycle = (self.steps, total);
        Ok(())
    }

    /// Steps of the whole run.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Clips and steps: returns the gradient norm before clipping and the learning rate used. `tensors` are the parts of `g` that
    /// are tensors, the same in every step; `copies` are those of `p`, which are kept up. A norm that is not finite changes nothing.
    pub fn step(
        &mut self,
        s: &Stream,
        p: View<'_>,
        g: View<'_>,
        tensors: &[Range<usize>],
        copies: Option<&adamw::Copies<'_>>,
    ) -> Result<(f64, f64)> {
        let measured = match &mut self.norm {
            Some(norm) => norm,
            none => none.insert(adamw::Norm::new(s, tensors)?),
        };
        measured.measure(s, g, self.max_grad_norm)?;
        let norm = measured.value()?;
        let (begun, total) = self.cycle;
        let lr = self.schedule.lr(self.steps - begun, total, rising(self.warmup.0, self.warmup.1, total));
        if norm.is_finite() {
            self.steps += 1;
            let grad_scale = adamw::clip_scale(norm, self.max_grad_norm);
            let params = adamw::Params { lr, step: self.steps - begun, grad_scale, ..self.params };
            adamw::step_clipped(s, p, self.m.view(), self.v.view(), g, &params, None, copies)?;
        }
        Ok((norm, lr))
    }

    /// Writes the state as safetensors: `m.NAME` and `v.NAME` for every tensor of the arena, its elements as they lie there, and
    /// `steps` and `cycle` (where the schedule began, and its steps) in the metadata. Rate and shape are the settings'.
    pub fn save(&self, s: &Stream, tensors: &[Tensor], path: &Path) -> Result<()> {
        let mut moments = Vec::with_capacity(2 * tensors.len());
        for (name, buffer, t) in self.moments(tensors) {
            let mut values = vec![0.0f32; t.region.len()];
            buffer.view().slice(t.region.words())?.read(s, &mut values)?;
            moments.push((name, values));
        }
        let rows = moments.iter().map(|(name, x)| (name.clone(), DType::F32, vec![x.len()], bytemuck::cast_slice(x)));
        let cycle = format!("{} {}", self.cycle.0, self.cycle.1);
        Ok(write_with_metadata(path, &[("steps", self.steps.to_string()), ("cycle", cycle)], &rows.collect::<Vec<_>>())?)
    }

    /// The reverse of [`Optimizer::save`], over the same tensors. A file that holds other tensors, lengths or dtypes is an error
    /// and nothing is changed.
    pub fn restore(&mut self, s: &Stream, tensors: &[Tensor], path: &Path) -> Result<()> {
        let file = Checkpoint::open_file(path)?;
        let steps = file.metadata("steps").and_then(|steps| steps.parse().ok());
        let Some(steps) = steps else {
            let got = file.metadata("steps").unwrap_or("nothing");
            return Err(Error::file(path, format!("__metadata__: steps: wanted a whole number, got {got}")));
        };
        let whole = |text: &str| text.split_once(' ').and_then(|(begun, total)| Some((begun.parse().ok()?, total.parse().ok()?)));
        let Some(cycle) = file.metadata("cycle").and_then(whole).filter(|(begun, _)| *begun <= steps) else {
            let got = file.metadata("cycle").unwrap_or("nothing");
            let wanted = format!("wanted two whole numbers, the first at most {steps}, got {got}");
            return Err(Error::file(path, format!("__metadata__: cycle: {wanted}")));
        };
        let mut moments = Vec::with_capacity(2 * tensors.len());
        for (name, buffer, t) in self.moments(tensors) {
            let data = file.tensor(&name)?;
            if data.dtype != DType::F32 || data.shape != [t.region.len()] {
                let (wanted, dtype, shape) = (t.region.len(), data.dtype, data.shape);
                return Err(Error::file(path, format!("tensor {name:?}: wanted f32 [{wanted}], got {dtype} {shape:?}")));
            }
            moments.push((buffer.view().slice(t.region.words())?, data.to_f32()));
        }
        let (wanted, got) = (moments.len(), file.names().count());
        if wanted != got {
            return Err(Error::file(path, format!("wanted {wanted} tensors, two for each that is trained, got {got}")));
        }
        moments.iter().try_for_each(|(view, values)| view.write(s, values))?;
        (self.steps, self.cycle) = (steps, cycle);
        Ok(())
    }

    /// Name on disk, buffer and tensor of every moment.
    fn moments<'a>(&'a self, tensors: &'a [Tensor]) -> impl Iterator<Item = (String, &'a Buffer<f32>, &'a Tensor)> {
        let both = |t: &'a Tensor| [("m", &self.m), ("v", &self.v)].map(|(which, b)| (format!("{which}.{}", t.name), b, t));
        tensors.iter().flat_map(both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Command;

    fn rates(shape: Scheduler, total: u64, warmup: u64) -> Vec<f64> {
        let schedule = Schedule { shape, base: 2.0, min_rate: 0.1 };
        (0..=total).map(|step| schedule.lr(step, total, warmup)).collect()
    }

    #[track_caller]
    fn close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).for_each(|(g, w)| assert!((g - w).abs() < 1e-12, "{got:?} {want:?}"));
    }

    #[test]
    fn shapes_by_hand() {
        close(&rates(Scheduler::Linear, 4, 0), &[2.0, 1.5, 1.0, 0.5, 0.0]);
        close(&rates(Scheduler::Linear, 6, 2), &[0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0]);
        let r = std::f64::consts::FRAC_1_SQRT_2;
        close(&rates(Scheduler::Cosine, 4, 0), &[2.0, 1.0 + r, 1.0, 1.0 - r, 0.0]);
        close(&rates(Scheduler::Cosine, 6, 2), &[0.0, 1.0, 2.0, 1.0 + r, 1.0, 1.0 - r, 0.0]);
        close(&rates(Scheduler::CosineWithMinLr, 2, 0), &[2.0, 1.1, 0.2]);
        close(&rates(Scheduler::Constant, 2, 2), &[2.0, 2.0, 2.0]);
        close(&rates(Scheduler::ConstantWithWarmup, 4, 2), &[0.0, 1.0, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn degenerate_lengths_are_finite() {
        for shape in [Scheduler::Linear, Scheduler::Cosine, Scheduler::CosineWithMinLr, Scheduler::ConstantWithWarmup] {
            let schedule = Schedule { shape, base: 1.0, min_rate: 0.0 };
            for (step, total, warmup) in [(0, 0, 0), (5, 0, 9), (9, 3, 1), (3, 3, 3)] {
                assert!((0.0..=1.0).contains(&schedule.lr(step, total, warmup)), "{shape:?} {step} {total} {warmup}");
            }
        }
    }

    #[test]
    fn warm_up_by_steps_or_ratio() {
        let mut config = Config::defaults(Command::Sft);
        assert_eq!(warmup(&config, 100), 0);
        config.warmup_ratio = 0.03;
        assert_eq!((warmup(&config, 80), warmup(&config, 100)), (3, 3));
        config.warmup_steps = 7;
        assert_eq!(warmup(&config, 100), 7);
    }
}
