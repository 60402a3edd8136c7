//! What an iteration leaves behind: its answers, the adapter that drew them, its lines in the log.

use super::{Drawn, Run};
use crate::log::{Log, number};
use crate::method::Method;
use crate::rollout::{self, Gap};
use crate::trainer::{Step, Trainer};
use crate::{Error, Result, checkpoint};
use model::Tune;
use runtime::host;
use serde_json::{Map, Value, json};

/// Names and values of an iteration's log lines.
pub(super) type Metrics = Vec<(String, f64)>;

/// Seconds of an iteration's phases.
pub(super) struct Times {
    /// Of sampling.
    pub rollout: f64,
    /// Of scoring.
    pub reward: f64,
}

/// The value of a metric, if it is there.
pub(super) fn value(metrics: &Metrics, name: &str) -> Option<f64> {
    metrics.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
}

/// A gap without bound is a stop: the stored log-probabilities are then not those of the policy.
pub(super) fn bounded(iteration: u32, gap: Gap) -> Result<Gap> {
    if gap.max.is_finite() {
        return Ok(gap);
    }
    Err(Error::Numeric(format!("logp_gap_max is {} in iteration {iteration}: wanted finite log-probabilities", gap.max)))
}

impl Run<'_> {
    /// Keeps the adapter that samples this iteration in `adapters/iter-NNNNN/`, so that the log-probabilities of
    /// `completions/iter-NNNNN.jsonl` can be computed again from outside. Full tuning keeps none: it would be a model each.
    pub(super) fn keep_adapter(&self, iteration: u32, trainer: &Trainer) -> Result<()> {
        let tune = self.opened.tune;
        if tune == Tune::Full {
            return Ok(());
        }
        let folder = self.folder.join("adapters").join(format!("iter-{iteration:05}"));
        checkpoint::save(&trainer.stream, &trainer.model, tune, &self.opened.folder, &folder)
    }

    /// `completions/iter-NNNNN.jsonl`: one line per answer: what was asked, what came, what it was worth, what became of it.
    /// `logps` are at temperature 1, of `ids` after `prompt_ids`, under the adapter in `adapters/iter-NNNNN/`. Branch and weight
    /// are null where the pair was left out.
    pub(super) fn completions(&self, iteration: u32, drawn: &Drawn, method: &dyn Method) -> Result<()> {
        let path = self.folder.join("completions").join(format!("iter-{iteration:05}.jsonl"));
        let mut labels = vec![None; drawn.prompts.len()];
        for example in &drawn.examples {
            if let Some(label) = labels.get_mut(example.group as usize) {
                *label = Some(example);
            }
        }
        let line = |s: &rollout::Sample| {
            let (prompt, example) = (&drawn.prompts[s.query], labels[s.query]);
            json!({
                "iteration": iteration,
                "row": prompt.row,
                "side": s.side,
                "sample": s.sample,
                "prompt": prompt.text,
                "completion": s.text,
                "prompt_ids": rollout::prompt_of(&drawn.prompts, &drawn.sides, s),
                "ids": s.answer.ids,
                "logps": crate::command::logprob::exact(&s.answer.logps),
                "finished": s.answer.stopped,
                "reward": number(s.reward),
                "branch": example.map(|e| method.branch(e.tag)),
                "weight": example.and_then(|e| e.weights.get(s.side as usize)),
            })
        };
        Ok(host::write_file(&path, |out| drawn.samples.iter().try_for_each(|s| writeln!(out, "{}", line(s))))?)
    }

    /// What the log says of an iteration's answers.
    pub(super) fn rollout_metrics(&self, drawn: &Drawn, gap: Gap, times: &Times) -> Metrics {
        let (samples, scores) = (&drawn.samples, &drawn.scores);
        let n = samples.len().max(1) as f64;
        let tokens: usize = samples.iter().map(|s| s.answer.ids.len()).sum();
        let mean = scores.total.iter().sum::<f64>() / n;
        let deviation = (scores.total.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / n).sqrt();
        let clipped = samples.iter().filter(|s| !s.answer.stopped).count() as f64;
        let own = [
            ("reward", mean),
            ("reward_std", deviation),
            ("completions/mean_length", tokens as f64 / n),
            ("completions/clipped_ratio", clipped / n),
            ("logp_gap_max", gap.max),
            ("logp_gap_mean", gap.mean),
            ("logp_gap_share", gap.off),
            ("time/rollout", times.rollout),
            ("time/reward", times.reward),
            ("tok_s/rollout", tokens as f64 / times.rollout),
        ];
        let parts = self.rewards.names().zip(&scores.parts);
        let parts = parts.map(|(name, part)| (format!("rewards/{name}/mean"), part.iter().sum::<f64>() / n));
        own.into_iter().map(|(name, value)| (name.to_string(), value)).chain(parts).collect()
    }

    /// A line of the log.
    pub(super) fn tell(&self, at: At<'_>, trainer: &Trainer, step: &Step, log: &mut Log) -> Result<()> {
        let iteration = at.iteration;
        let mut row: Map<String, Value> = Map::new();
        row.insert("iteration".into(), json!(iteration));
        row.insert("step".into(), json!(trainer.optimizer.steps()));
        row.insert("num_tokens".into(), json!(at.tokens));
        let own = [
            ("loss", step.loss),
            ("grad_norm", step.grad_norm),
            ("learning_rate", step.learning_rate),
            ("step_time", step.seconds),
            ("tok_s/train", step.tokens as f64 / step.seconds.max(1e-9)),
            ("time/train", at.seconds),
        ];
        let named = own.iter().chain(&step.metrics).map(|(name, value)| (*name, *value));
        for (name, value) in named.chain(at.metrics.iter().map(|(name, value)| (name.as_str(), *value))) {
            row.insert(name.to_string(), number(value));
        }
        let of = |name: &str| row.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
        let text = format!(
            "iter  {iteration} step {} tau {:.4} reward {:.4} -> {:.4} ranked {:.0} % worse {:.0} % loss {:.4} gap {:.1e} length {:.0} {:.0} tok/s sampled",
            trainer.optimizer.steps(),
            of("ple/tau"),
            of("ple/reward_orig"),
            of("ple/reward_guided"),
            100.0 * of("ple/rank_frac"),
            100.0 * of("ple/worse_frac"),
            step.loss,
            of("logp_gap_max"),
            of("completions/mean_length"),
            of("tok_s/rollout"),
        );
        log.row(row, &text)
    }
}

/// Where a line of the log stands.
pub(super) struct At<'a> {
    /// Of the run.
    pub iteration: u32,
    /// Trained since the first iteration.
    pub tokens: usize,
    /// Since this iteration began to train.
    pub seconds: f64,
    /// Of the iteration.
    pub metrics: &'a Metrics,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_without_bound_stops() {
        assert!(bounded(0, Gap { max: 1e-4, ..Gap::default() }).is_ok());
        let error = bounded(2, Gap { max: f64::INFINITY, ..Gap::default() }).map_err(|e| (e.exit_code(), e.to_string()));
        assert!(error.is_err_and(|(code, text)| code == 5 && text.contains("logp_gap_max is inf in iteration 2")));
    }
}
