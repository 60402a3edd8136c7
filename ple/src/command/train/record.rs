//! What an iteration leaves behind: its answers, the adapter that drew them, its lines in the log.

use super::{Drawn, Run};
use crate::eval::moments;
use crate::log::number;
use crate::method::{Example, Method};
use crate::rollout::{self, Gap, Sample};
use crate::trainer::{Step, Trainer};
use crate::{Error, Result, checkpoint};
use model::Tune;
use runtime::host;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Names and values of an iteration's log lines.
pub(super) type Metrics = Vec<(String, f64)>;

/// Seconds of an iteration's phases.
pub(super) struct Times {
    /// Of sampling.
    pub rollout: f64,
    /// Of scoring.
    pub reward: f64,
}

/// A gap without bound is a stop: the stored log-probabilities are then not those of the policy.
pub(super) fn bounded(iteration: u32, gap: Gap) -> Result<Gap> {
    if gap.max.is_finite() {
        return Ok(gap);
    }
    Err(Error::Numeric(format!("logp_gap_max is {} in iteration {iteration}: wanted finite log-probabilities", gap.max)))
}

/// The reward that every answer has, if there is one.
pub(super) fn equal(values: &[f64]) -> Option<f64> {
    values.first().copied().filter(|first| values.len() > 1 && values.iter().all(|v| v == first))
}

/// The example that trains a sample, and which of its answers it is.
type Label<'a> = Option<(&'a Example, usize)>;

/// What became of each sample. Equal answers to a query are told apart by their order.
fn labels<'a>(samples: &[Sample], examples: &'a [Example]) -> Vec<Label<'a>> {
    let mut labels = vec![None; samples.len()];
    let first = |query: usize| samples.partition_point(|s| s.query < query);
    for example in examples {
        let of_query = first(example.group as usize)..first(example.group as usize + 1);
        for (i, answer) in example.answers.iter().enumerate() {
            // An example without a prompt is trained on both.
            let is = |ids: &[u32]| if example.prompt.is_empty() { answer.ends_with(ids) } else { answer == ids };
            let untold = of_query.clone().find(|&n| labels[n].is_none() && is(&samples[n].answer.ids));
            untold.into_iter().for_each(|n| labels[n] = Some((example, i)));
        }
    }
    labels
}

impl Run<'_> {
    /// Keeps the adapter that samples this iteration in `adapters/iter-NNNNN/`, so that the log-probabilities of
    /// `completions/iter-NNNNN.jsonl` can be computed again from outside. Full tuning keeps none: it would be a model each.
    pub(super) fn keep_adapter(&self, iteration: u32, trainer: &Trainer) -> Result<()> {
        let tune = self.opened.tune;
        if tune == Tune::Full {
            return Ok(());
        }
        checkpoint::save(&trainer.stream, &trainer.model, tune, &self.opened.folder, &self.adapter_folder(iteration))
    }

    /// Where that is.
    pub(super) fn adapter_folder(&self, iteration: u32) -> PathBuf {
        self.folder.join("adapters").join(format!("iter-{iteration:05}"))
    }

    /// `completions/iter-NNNNN.jsonl`: one line per answer: what was asked, what came, what it was worth, what became of it.
    /// `logps` are at temperature 1, of `ids` after `prompt_ids`, under the adapter in `adapters/iter-NNNNN/`. Branch and weight
    /// are null where the answer was left out. With several rewards `rewards` has each one's own value, by its name.
    pub(super) fn completions(&self, iteration: u32, drawn: &Drawn, method: &dyn Method) -> Result<()> {
        let path = self.folder.join("completions").join(format!("iter-{iteration:05}.jsonl"));
        let labels = labels(&drawn.samples, &drawn.examples);
        let names: Vec<&str> = self.rewards.names().collect();
        let line = |(i, (s, label)): (usize, (&Sample, &Label<'_>))| {
            let prompt = &drawn.prompts[s.query];
            let mut line = json!({
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
                "branch": label.map(|(e, _)| method.branch(e.tag)),
                "weight": label.and_then(|(e, answer)| e.weights.get(answer)),
            });
            if names.len() > 1 {
                let parts = names.iter().zip(&drawn.scores.parts).map(|(name, part)| ((*name).to_string(), number(part[i])));
                line["rewards"] = Value::Object(parts.collect());
            }
            line
        };
        let mut lines = drawn.samples.iter().zip(&labels).enumerate().map(line);
        Ok(host::write_file(&path, |out| lines.try_for_each(|line| writeln!(out, "{line}")))?)
    }

    /// What the log says of an iteration's answers.
    pub(super) fn rollout_metrics(&self, drawn: &Drawn, gap: Gap, times: &Times) -> Metrics {
        let (samples, scores) = (&drawn.samples, &drawn.scores);
        let n = samples.len().max(1) as f64;
        let tokens: usize = samples.iter().map(|s| s.answer.ids.len()).sum();
        let (mean, deviation) = moments(&scores.total);
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
            ("tok_s/rollout", tokens as f64 / times.rollout.max(1e-9)),
            ("tok_s/reward", tokens as f64 / times.reward.max(1e-9)),
        ];
        let parts = self.rewards.names().zip(&scores.parts);
        let parts = parts.map(|(name, part)| (format!("rewards/{name}/mean"), moments(part).0));
        own.into_iter().map(|(name, value)| (name.to_string(), value)).chain(parts).collect()
    }
}

/// A line of the log: of a step, or of an iteration that takes none.
pub(super) fn row(at: &At<'_>, trainer: &Trainer, step: Option<&Step>) -> Map<String, Value> {
    let mut row: Map<String, Value> = Map::new();
    row.insert("iteration".into(), json!(at.iteration));
    row.insert("step".into(), json!(trainer.optimizer.steps()));
    row.insert("num_tokens".into(), json!(at.tokens));
    if let Some(step) = step {
        let own = [
            ("loss", step.loss),
            ("grad_norm", step.grad_norm),
            ("learning_rate", step.learning_rate),
            ("step_time", step.seconds),
            ("tok_s/train", step.tokens as f64 / step.seconds.max(1e-9)),
        ];
        own.iter().chain(&step.metrics).for_each(|(name, value)| drop(row.insert((*name).to_string(), number(*value))));
    }
    row.insert("time/train".into(), number(at.seconds));
    at.metrics.iter().for_each(|(name, value)| drop(row.insert(name.clone(), number(*value))));
    row
}

/// Where a line of the log stands.
pub(super) struct At<'a> {
    /// Of the run.
    pub iteration: u32,
    /// Trained since the first iteration.
    pub tokens: usize,
    /// In the iteration's steps, as far as this process has done them; evaluations and checkpoints between them do not count.
    pub seconds: f64,
    /// Of the iteration.
    pub metrics: &'a Metrics,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_find_the_example_that_trains_them() {
        let sample = |query, side, sample, ids: &[u32]| Sample {
            query,
            side,
            sample,
            key: crate::journal::Key { row: 0, side, sample },
            answer: model::Finished { ids: ids.to_vec(), ..Default::default() },
            text: String::new(),
            reward: 0.0,
        };
        let samples =
            [sample(0, 0, 0, &[5]), sample(0, 1, 0, &[5]), sample(1, 0, 0, &[6]), sample(1, 0, 1, &[7]), sample(1, 1, 0, &[8])];
        let example = |group, answers: &[&[u32]]| Example {
            group,
            answers: answers.iter().map(|a| a.to_vec()).collect(),
            ..Example::default()
        };
        // A pair of equal answers; the best of two, trained twice over; nothing of the guided side.
        let examples = [example(0, &[&[5], &[5]]), example(1, &[&[7]]), example(1, &[&[6]]), example(9, &[&[1]])];
        let found: Vec<_> =
            labels(&samples, &examples).into_iter().map(|l| l.map(|(e, answer)| (e.group, &e.answers[0], answer))).collect();
        let wanted = [Some((0, &vec![5], 0)), Some((0, &vec![5], 1)), Some((1, &vec![6], 0)), Some((1, &vec![7], 0)), None];
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_gap_without_bound_stops() {
        assert!(bounded(0, Gap { max: 1e-4, ..Gap::default() }).is_ok());
        let error = bounded(2, Gap { max: f64::INFINITY, ..Gap::default() }).map_err(|e| (e.exit_code(), e.to_string()));
        assert!(error.is_err_and(|(code, text)| code == 5 && text.contains("logp_gap_max is inf in iteration 2")));
    }
}
