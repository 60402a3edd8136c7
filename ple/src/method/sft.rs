//! Supervised fine-tuning: L = −Σ logp / N over all loss rows, N = loss rows of the whole optimizer batch; d L / d logp = −1/N.
//! Source: ALGORITHMS §3.2 (TRL's SFTTrainer with `num_items_in_batch`).

use super::{Example, Group, Loss, Method, Metrics, Needs, Outputs, Rollout, Totals, check_outputs, finite, sum};
use crate::Result;
use model::Batch;

/// The method has no state: it trains the rows' own answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sft;

impl Method for Sft {
    fn rollout(&self, _: u32) -> Rollout {
        Rollout::None
    }

    fn needs(&self) -> Needs {
        Needs::logp()
    }

    fn label(&mut self, _: u32, groups: Vec<Group>) -> Result<(Vec<Example>, Metrics)> {
        let example = |(i, group): (usize, Group)| {
            let (answers, mut loss): (_, Vec<_>) = group.sides.into_iter().flatten().map(|a| (a.ids, a.loss)).unzip();
            if loss.iter().all(Vec::is_empty) {
                loss.clear();
            }
            Example { row: group.row, prompt: group.prompt, answers, loss, group: i as u32, ..Example::default() }
        };
        Ok((groups.into_iter().enumerate().map(example).collect(), Vec::new()))
    }

    fn loss(&self, totals: &Totals, batch: &Batch, out: Outputs<&[f32]>, dout: Outputs<&mut [f32]>) -> Result<Loss> {
        check_outputs(batch, &out, &dout)?;
        dout.value.fill(0.0);
        dout.logp.fill((-1.0 / totals.tokens) as f32);
        let value = finite("sft", -sum(out.logp) / totals.tokens)?;
        Ok(Loss { value, metrics: Vec::new() })
    }

    fn branch(&self, _: u32) -> &'static str {
        "supervised"
    }
}
