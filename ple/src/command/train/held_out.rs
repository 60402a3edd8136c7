//! Evaluation while a run samples and trains: plain answers to held-out queries with their rewards and, where the rows have
//! answers, how likely those are. The draws are of an iteration of their own, the same at every evaluation, and the memory is
//! borrowed between two steps: the bits of the training are the same with and without it.

use super::super::data_line;
use super::Run;
use crate::config::Config;
use crate::data::{self, Prompt, RowKind, sft::LossOn};
use crate::eval::{self, best::Best};
use crate::log::{Log, number};
use crate::method::{Example, Method, Side, sft::Sft};
use crate::open::Opened;
use crate::rollout::{self, Sampler};
use crate::trainer::{Trainer, Workspace};
use crate::{Error, Result, interrupt, logprob, pack};
use model::KvCache;
use runtime::host;
use serde_json::{Map, json};
use std::time::Instant;

/// Where in the random numbers the answers lie: beyond every iteration of a run.
const ITERATION: u32 = u32::MAX;

/// Rows that no step sees.
pub(super) struct HeldOut {
    prompts: Vec<Prompt>,
    /// Their own answers; empty where the file has none.
    references: Vec<Example>,
    best: Option<Best>,
}

impl HeldOut {
    /// Reads the file of the settings, if they name one; `budget` as for the queries that are trained on.
    pub fn read(c: &Config, opened: &Opened, budget: usize, tell: &mut dyn FnMut(String)) -> Result<Option<HeldOut>> {
        let Some(path) = &c.eval_dataset_name else { return Ok(None) };
        let (queries, kind, mut dropped) = data::queries(path, &opened.tokenizer, c.seed)?;
        let (prompts, later) = data::prompts(&queries, &opened.tokenizer, None, budget)?;
        dropped.add(later);
        tell(data_line(&path.display().to_string(), prompts.len(), &dropped));
        if prompts.is_empty() {
            return Err(Error::file(path, format!("no query is left: {dropped}")));
        }
        let longest = (c.max_length as usize).min(opened.model()?.positions());
        let references = match kind {
            RowKind::Prompt => Vec::new(),
            _ => Sft.label(0, data::groups(path, &opened.tokenizer, longest, LossOn::of(c))?.0)?.0,
        };
        Ok(Some(HeldOut { prompts, references, best: Best::new(c, opened.tune, &opened.folder) }))
    }

    /// Tokens that a micro-batch must hold.
    pub fn longest(&self) -> usize {
        pack::longest(&self.references)
    }

    /// Sees to it that the run ends with its best, where the settings want that.
    pub fn end(&self, trainer: &Trainer, log: &mut Log) -> Result<()> {
        self.best.as_ref().map_or(Ok(()), |best| best.load(trainer, log))
    }
}

impl Run<'_> {
    /// Evaluates after `trainer`'s last step; true if the training ends with it.
    pub(super) fn evaluate(&self, trainer: &Trainer, w: Workspace, log: &mut Log) -> Result<(Workspace, bool)> {
        let Some(held) = &self.held_out else { return Ok((w, false)) };
        let (clock, trace) = (Instant::now(), log.trace.clone());
        let (s, model, step) = (&trainer.stream, &trainer.model, trainer.optimizer.steps());
        let _span = trace.span("eval").with("step", step);
        let seen = self.c.repetition_penalty != 1.0;
        let mut kv = KvCache::new(s, model, self.cache, seen, Some(w.into_overlay()))?;
        let sides = [Side { principle: false, samples: 1, sampling: self.sampling }];
        let (settings, repeats) = (rollout::settings(self.c, &self.opened, model), vec![0; held.prompts.len()]);
        let sampler = Sampler { stream: s, model, policy: trainer.policy, settings, iteration: ITERATION, repeats };
        let bar = log.bars.phase("held-out answers", held.prompts.len());
        let mut samples = sampler.sample(&self.opened.tokenizer, &held.prompts, &sides, &mut kv, &mut (), &mut |p| {
            bar.at(p.finished, p.tokens);
            interrupt::watch()
        })?;
        drop(bar);
        let scores = rollout::score(&self.rewards, model, &held.prompts, &samples)?;
        samples.iter_mut().zip(&scores.total).for_each(|(sample, reward)| sample.reward = *reward);
        let path = self.folder.join("completions").join(format!("eval-{step:05}.jsonl"));
        let lines = samples.iter().map(|s| {
            let prompt = &held.prompts[s.query];
            json!({ "row": prompt.row, "prompt": prompt.text, "completion": s.text, "ids": s.answer.ids,
                "finished": s.answer.stopped, "reward": number(s.reward) })
        });
        host::write_file(&path, |out| lines.into_iter().try_for_each(|line| writeln!(out, "{line}")))?;
        let mut w = self.workspace(trainer, kv.into_overlay())?;
        let (reward, std) = eval::moments(&scores.total);
        let length = eval::mean(samples.iter().map(|s| s.answer.ids.len() as f64));
        let mut values = vec![("eval_reward", reward), ("eval_reward_std", std), ("eval_completions/mean_length", length)];
        let mut text = format!("eval  step {step} reward {reward:.4} length {length:.1}");
        if !held.references.is_empty() {
            let references: Vec<&Example> = held.references.iter().collect();
            let (loss, _) = logprob::mean_loss(s, model, &mut w.acts, trainer.policy, &references)?;
            values.extend([("eval_loss", loss), ("eval_perplexity", loss.exp())]);
            text += &format!(" perplexity {:.3}", loss.exp());
        }
        values.push(("time/eval", clock.elapsed().as_secs_f64()));
        let mut row: Map<_, _> = values.into_iter().map(|(name, value)| (name.to_string(), number(value))).collect();
        row.insert("step".into(), json!(step));
        log.row(row.clone(), &text)?;
        let judged = held.best.as_ref().filter(|_| step > 0).map(|best| best.judge(&row, trainer, log)).transpose()?;
        Ok((w, judged.unwrap_or(false)))
    }
}
