//! The one training loop: examples in, steps out. It knows no method; a method gives the loss and its gradient on log-probabilities.

use crate::method::{Example, Heads, Loss, Method, Needs, Outputs, Totals};
use crate::optim::Optimizer;
use crate::{Error, Result, interrupt, pack};
use model::{Acts, Adapter, Batch, Grads, Head, Keep, Limits, Transformer, Tune};
use runtime::{Arena, Buffer, Stream, comm::Comm};
use std::time::Instant;

/// What a step reports.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The optimizer batch's loss.
    pub loss: f64,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The learning rate it was taken with.
    pub learning_rate: f64,
    /// Computed tokens.
    pub tokens: usize,
    /// Seconds.
    pub seconds: f64,
    /// The method's metrics, summed over micro-batches.
    pub metrics: Vec<(&'static str, f64)>,
}

/// The buffers of training: laid over an arena that a rollout can borrow in between.
#[derive(Debug)]
pub struct Workspace {
    /// Activations.
    pub acts: Acts,
    dout: Buffer<f32>,
    batch: Batch,
    out: Vec<f32>,
    host_dout: Vec<f32>,
}

impl Workspace {
    /// Plans for the limits, over `overlay` if given; everything that a backward reads is kept.
    pub fn new(s: &Stream, model: &Transformer, limits: Limits, overlay: Option<Arena>) -> Result<Workspace> {
        Workspace::keeping(s, model, limits, Keep::Backward, overlay)
    }

    /// The same, where a forward keeps what is said.
    pub fn keeping(s: &Stream, model: &Transformer, limits: Limits, keep: Keep, overlay: Option<Arena>) -> Result<Workspace> {
        Ok(Workspace {
            acts: model.acts(s, limits, keep, overlay)?,
            dout: s.zeros(limits.loss_rows)?,
            batch: Batch::default(),
            out: Vec::new(),
            host_dout: Vec::new(),
        })
    }
}

impl Workspace {
    /// The arena, for the next phase's plan.
    pub fn into_overlay(self) -> Arena {
        self.acts.into_overlay()
    }
}

/// What is trained and how far it is.
pub struct Trainer {
    /// The queue everything runs on.
    pub stream: Stream,
    /// The model with its slots.
    pub model: Transformer,
    /// Slot of the policy; Off under full tuning.
    pub policy: Adapter,
    tune: Tune,
    grads: Grads,
    ranges: Vec<std::ops::Range<usize>>,
    /// AdamW and its schedule.
    pub optimizer: Optimizer,
    comm: Box<dyn Comm>,
}

impl Trainer {
    /// Gradients and optimizer state for what is tuned.
    pub fn new(stream: Stream, model: Transformer, tune: Tune, optimizer: Optimizer, comm: Box<dyn Comm>) -> Result<Trainer> {
        let policy = match tune {
            Tune::Lora(slot) => Adapter::Slot(slot),
            Tune::Full => Adapter::Off,
        };
        let grads = model.grads(&stream, tune)?;
        let ranges = grads.ranges();
        Ok(Trainer { stream, model, policy, tune, grads, ranges, optimizer, comm })
    }

    /// Trainable parameters.
    pub fn parameters(&self) -> usize {
        self.grads.tensors().iter().map(|t| t.shape[0] * t.shape[1]).sum()
    }

    /// One optimizer step over `examples`; a signal breaks it off before anything is changed.
    pub fn step(&mut self, w: &mut Workspace, method: &dyn Method, examples: &[&Example]) -> Result<Step> {
        let start = Instant::now();
        supported(&method.needs())?;
        let (needs, mut step) = (method.needs(), Step::default());
        let totals = pack::totals(needs.heads, examples);
        self.grads.zero()?;
        let mut rest = examples;
        while !rest.is_empty() {
            // Nothing is stepped before the last micro-batch: what was begun is left out as a whole.
            interrupt::check()?;
            let (now, later) = rest.split_at(pack::next(rest, needs.heads, w.acts.limits())?);
            rest = later;
            let keep = w.acts.keep();
            let loss = self.loss(w, method, &totals, now, keep)?;
            step.tokens += w.batch.tokens();
            step.loss += loss.value;
            add(&mut step.metrics, &loss.metrics);
            w.dout.write(&w.host_dout)?;
            let head = head(&self.model, self.tune, &needs)?;
            self.model.backward(&self.stream, &mut w.acts, &w.batch, self.policy, head, &w.dout, &mut self.grads)?;
        }
        self.comm.all_reduce(&self.stream, self.grads.flat())?;
        let (parameters, _) = self.model.trained(self.tune)?;
        let (copies, g) = (self.model.copies(&self.stream, self.tune)?, self.grads.flat());
        let (norm, rate) = self.optimizer.step(&self.stream, parameters.flat(), g, &self.ranges, copies.as_ref())?;
        if !norm.is_finite() {
            return Err(Error::Numeric(format!("gradient norm is {norm} at step {}", self.optimizer.steps() + 1)));
        }
        (step.grad_norm, step.learning_rate, step.seconds) = (norm, rate, start.elapsed().as_secs_f64());
        Ok(step)
    }

    /// The loss over `examples` as one optimizer batch and the method's metrics; nothing is stepped.
    pub fn evaluate(&self, w: &mut Workspace, method: &dyn Method, examples: &[&Example]) -> Result<Loss> {
        let heads = method.needs().heads;
        let (totals, mut rest, mut sum) = (pack::totals(heads, examples), examples, Loss::default());
        while !rest.is_empty() {
            interrupt::check()?;
            let (now, later) = rest.split_at(pack::next(rest, heads, w.acts.limits())?);
            rest = later;
            let loss = self.loss(w, method, &totals, now, Keep::Nothing)?;
            sum.value += loss.value;
            add(&mut sum.metrics, &loss.metrics);
        }
        Ok(sum)
    }

    /// Forward and loss of a micro-batch; leaves it, its outputs and their gradients in `w`.
    fn loss(&self, w: &mut Workspace, method: &dyn Method, totals: &Totals, now: &[&Example], keep: Keep) -> Result<Loss> {
        let needs = method.needs();
        pack::fill(&mut w.batch, needs.heads, now)?;
        let head = head(&self.model, self.tune, &needs)?;
        self.model.forward(&self.stream, &mut w.acts, &w.batch, self.policy, head, keep)?;
        w.acts.out(&self.stream, &mut w.out)?;
        let scalar = needs.heads == Heads::Scalar;
        let bad = w.out.iter().filter(|v| !v.is_finite()).count();
        if bad > 0 {
            let what = if scalar { "values" } else { "log-probabilities" };
            return Err(self.stop(&format!("{bad} of {} {what} are not finite", w.out.len()), now));
        }
        w.host_dout.clear();
        w.host_dout.resize(w.out.len(), f32::NAN);
        let (out, dout) = (&w.out[..], &mut w.host_dout[..]);
        let (out, dout) = match scalar {
            true => (Outputs { logp: &[][..], value: out }, Outputs { logp: &mut [][..], value: dout }),
            false => (Outputs { logp: out, value: &[][..] }, Outputs { logp: dout, value: &mut [][..] }),
        };
        let loss = method.loss(totals, &w.batch, out, dout)?;
        if loss.value.is_finite() { Ok(loss) } else { Err(self.stop(&format!("loss is {}", loss.value), now)) }
    }

    /// The error of a micro-batch that must not be stepped over.
    fn stop(&self, what: &str, examples: &[&Example]) -> Error {
        let rows: Vec<u32> = examples.iter().map(|e| e.row).collect();
        Error::Numeric(format!("{what} at step {} in a micro-batch of rows {rows:?}", self.optimizer.steps() + 1))
    }
}

/// What the training forward of a method ends in.
fn head<'a>(model: &'a Transformer, tune: Tune, needs: &Needs) -> Result<Head<'a>> {
    Ok(match needs.heads {
        Heads::Scalar => Head::Scalar(model.trained_head(tune)?),
        Heads::LogProb | Heads::Both => Head::LogProb { inv_temperature: needs.inv_temperature },
    })
}

/// Refuses by name what this loop does not compute for a method.
pub fn supported(needs: &Needs) -> Result<()> {
    let missing = match needs {
        Needs { heads: Heads::Both, .. } => "both heads at once",
        Needs { value: true, .. } => "value targets (value)",
        Needs { old_logp: true, .. } => "log-probabilities of an older policy (old_logp)",
        _ => return Ok(()),
    };
    Err(Error::Usage(format!("the method needs {missing}, which the trainer does not compute")))
}

/// Adds metrics by name, keeping the order in which they first came.
pub fn add(sums: &mut Vec<(&'static str, f64)>, more: &[(&'static str, f64)]) {
    for (name, value) in more {
        match sums.iter_mut().find(|(n, _)| n == name) {
            Some((_, sum)) => *sum += value,
            None => sums.push((name, *value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_that_are_not_met_are_refused_by_name() {
        assert!(supported(&Needs { reference: true, ..Needs::logp() }).is_ok() && supported(&Needs::scalar()).is_ok());
        let cases = [
            (Needs { heads: Heads::Both, ..Needs::logp() }, "both heads"),
            (Needs { value: true, ..Needs::logp() }, "(value)"),
            (Needs { old_logp: true, ..Needs::logp() }, "(old_logp)"),
        ];
        for (needs, name) in cases {
            assert!(supported(&needs).is_err_and(|e| e.to_string().contains(name)), "{name}");
        }
    }
}
