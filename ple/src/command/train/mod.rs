//! `ple train`: the whole loop, of any method that samples. Per iteration: sample every side, score, label, measure the gap,
//! step over the examples.

use super::{required, sft, start};
use crate::config::Config;
use crate::data::{self, Prompt, order};
use crate::log::{self, Log, number};
use crate::method::{Example, Method, Sampling, Side, ple::Ple};
use crate::open::Opened;
use crate::progress::{self, Bars, Table};
use crate::reward::{Rewards, Scores};
use crate::rollout::{self, Sample, Sampler};
use crate::trainer::{self, Trainer, Workspace};
use crate::{Result, checkpoint, interrupt, logprob};
use held_out::HeldOut;
use model::{Adapter, CacheLimits, KvCache, Limits};
use record::{At, Metrics, Times};
use runtime::{Arena, host};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

mod held_out;
mod prepare;
mod record;

/// What an iteration starts from, fixed for the run.
struct Run<'a> {
    c: &'a Config,
    opened: Opened,
    rewards: Rewards,
    prompts: Vec<Prompt>,
    cache: CacheLimits,
    limits: Limits,
    /// Adapter of the reference policy.
    reference: Adapter,
    folder: &'a Path,
    held_out: Option<HeldOut>,
    /// Of the plain side, for held-out answers.
    sampling: Sampling,
}

/// What an iteration has sampled, scored and labelled.
struct Drawn {
    prompts: Vec<Prompt>,
    sides: Vec<Side>,
    samples: Vec<Sample>,
    scores: Scores,
    examples: Vec<Example>,
    metrics: Metrics,
}

/// How far the iterations are, and where they say so.
struct Progress {
    log: Log,
    /// Optimizer steps that `max_steps` still allows.
    left: u64,
    /// Whether early stopping ends the run.
    stopped: bool,
    /// Tokens trained.
    tokens: usize,
    /// A row per iteration.
    table: Table,
}

/// Runs the command.
pub fn run(c: &Config) -> Result<()> {
    let mut opened = Opened::for_training(c)?;
    let rewards = Rewards::load(c, Some(&mut opened))?;
    let mut method = Ple::new(c, rewards.unit());
    run_method(c, opened, rewards, &mut method)
}

/// Runs the loop with a method that samples on every iteration, on what has been opened for training. The settings of the loop are
/// those of `ple train`.
pub fn run_method(c: &Config, mut opened: Opened, rewards: Rewards, method: &mut dyn Method) -> Result<()> {
    trainer::supported(&method.needs())?;
    let most = prepare::samples(c, method)?;
    let mut said = Vec::new();
    let (prompts, principle) = prepare::prompts(c, &opened, most, &mut |line| said.push(line))?;
    let supervised = prepare::supervised_rows(c, &opened, &mut |line| said.push(line))?;
    let budget = super::prompt_budget(c, &opened, None)?;
    let held_out = HeldOut::read(c, &opened, budget, &mut |line| said.push(line))?;
    let reference = prepare::reference(c, &mut opened, method)?;
    let rows = supervised.as_ref().map_or(0, |rows| rows.budget(c)).max(held_out.as_ref().map_or(0, HeldOut::longest));
    let (cache, limits) = prepare::plan(c, opened.model()?.positions(), most, rows)?;
    let sampling = prepare::sides(method, 0)?[0].sampling;
    let per_iteration = (c.ple_queries_per_iter as usize).div_ceil(c.batch_size()) as u64 * u64::from(c.ple_epochs_per_iter);
    let steps = (u64::from(c.ple_iters) * per_iteration).min(super::most_steps(c));
    let optimizer = super::optimizer(c, &opened, steps)?;
    let mut trainer = super::trainer(&mut opened, optimizer)?;
    let model = &trainer.model;
    let bytes = model.cache_plan(cache, c.repetition_penalty != 1.0).max(model.plan(limits, model::Keep::Backward));
    if c.dry_run {
        let n = prompts.len();
        return log::print(&format!("{n} queries; at most {steps} steps; overlay of {bytes} bytes for rollout and training\n"));
    }
    let log = start(c, &opened, &trainer)?;
    said.iter().for_each(|line| log.say(line));
    principle.iter().for_each(|p| log.say(&format!("rule  {}", p.text)));
    let folder = required(&c.output_dir, "output_dir")?;
    checkpoint::create_folder(&folder.join("completions"))?;
    let overlay = Arena::new(&trainer.stream, bytes)?;
    let run = Run { c, opened, rewards, prompts, cache, limits, reference, folder, held_out, sampling };
    let mut progress = Progress { log, left: super::most_steps(c), stopped: false, tokens: 0, table: Table::default() };
    let outcome = run.whole(&mut trainer, method, supervised.as_ref(), overlay, &mut progress);
    let iterations = super::unless_interrupted(outcome, c, &run.opened, &trainer, &progress.log)?;
    let principle = principle.map(|p| p.text);
    let state =
        json!({ "iterations": iterations, "steps": trainer.optimizer.steps(), "method": method.state(), "principle": principle });
    if let Some(held) = &run.held_out {
        held.end(&trainer, &mut progress.log)?;
    }
    checkpoint::save(&trainer.stream, &trainer.model, run.opened.tune, &run.opened.folder, folder)?;
    progress.log.finish()?;
    Ok(host::write_file(&folder.join("ple.json"), |out| writeln!(out, "{state:#}"))?)
}

impl Run<'_> {
    /// The supervised stage and the iterations; how many of these there were.
    fn whole(
        &self,
        trainer: &mut Trainer,
        method: &mut dyn Method,
        supervised: Option<&sft::Rows>,
        mut overlay: Arena,
        progress: &mut Progress,
    ) -> Result<u32> {
        if let Some(rows) = supervised {
            overlay = prepare::supervise(self.c, trainer, rows, self.limits, overlay, &mut progress.log)?;
            progress.log.stage();
        }
        overlay = self.evaluate_over(trainer, overlay, &mut progress.log)?;
        let mut iterations = 0;
        while iterations < self.c.ple_iters && progress.left > 0 && !progress.stopped {
            overlay = self.iterate(iterations, trainer, method, overlay, progress)?;
            iterations += 1;
        }
        if self.c.eval_steps == 0 {
            self.evaluate_over(trainer, overlay, &mut progress.log)?;
        }
        if trainer.optimizer.steps() == 0 {
            progress.log.say("note  no iteration kept anything to train on: no step was taken");
        }
        if !progress.table.is_empty() {
            progress.log.say(&progress.table.to_string());
        }
        Ok(iterations)
    }

    fn iterate(
        &self,
        iteration: u32,
        trainer: &mut Trainer,
        method: &mut dyn Method,
        overlay: Arena,
        progress: &mut Progress,
    ) -> Result<Arena> {
        let (c, clock, trace) = (self.c, Instant::now(), progress.log.trace.clone());
        let sides = prepare::sides(method, iteration)?;
        self.keep_adapter(iteration, trainer)?;
        let (prompts, repeats) = self.queries(iteration);
        let span = trace.span("rollout").with("iteration", iteration);
        let mut kv = KvCache::new(&trainer.stream, &trainer.model, self.cache, c.repetition_penalty != 1.0, Some(overlay))?;
        let bars = progress.log.bars.clone();
        let mut samples = self.sample(iteration, trainer, &prompts, repeats, &sides, &mut kv, &bars)?;
        drop(span);
        let rollout = clock.elapsed().as_secs_f64();
        let span = trace.span("reward").with("iteration", iteration);
        let bar = bars.phase(&format!("iter {iteration} rewards"), samples.len());
        let scores = rollout::score(&self.rewards, &trainer.model, &prompts, &samples)?;
        drop(bar);
        drop(span);
        interrupt::check()?;
        let span = trace.span("label").with("iteration", iteration);
        samples.iter_mut().zip(&scores.total).for_each(|(sample, reward)| sample.reward = *reward);
        let times = Times { rollout, reward: clock.elapsed().as_secs_f64() - rollout };
        let labelled = method.label(iteration, rollout::groups(&prompts, &sides, &samples));
        let mut drawn = Drawn { prompts, sides, samples, scores, examples: Vec::new(), metrics: Vec::new() };
        // What cannot be labelled is there to look at.
        let labelled = match labelled {
            Ok((examples, metrics)) => {
                drawn.examples = examples;
                metrics
            }
            Err(error) => return self.completions(iteration, &drawn, method).and(Err(error)),
        };
        self.completions(iteration, &drawn, method)?;
        let mut w = Workspace::new(&trainer.stream, &trainer.model, self.limits, Some(kv.into_overlay()))?;
        let (s, model, Drawn { prompts, sides, samples, .. }) = (&trainer.stream, &trainer.model, &drawn);
        let gap = rollout::gap(s, model, &mut w.acts, trainer.policy, prompts, sides, samples)?;
        if let Some(one) = record::equal(&drawn.scores.total) {
            progress.log.say(&format!("note  every reward is {one}: no answer is better than another"));
        }
        method.remarks(&labelled).iter().for_each(|text| progress.log.say(&format!("note  {text}")));
        let mut metrics: Metrics = labelled.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        metrics.extend(self.rollout_metrics(&drawn, record::bounded(iteration, gap)?, &times));
        if method.needs().reference {
            self.fill_reference(trainer, &mut w, &mut drawn.examples)?;
        }
        drawn.metrics = metrics;
        drop(span);
        Ok(self.train(iteration, trainer, w, method, &drawn, progress)?.into_overlay())
    }

    /// An evaluation between two iterations.
    fn evaluate_over(&self, trainer: &Trainer, overlay: Arena, log: &mut Log) -> Result<Arena> {
        if self.held_out.is_none() {
            return Ok(overlay);
        }
        let w = Workspace::new(&trainer.stream, &trainer.model, self.limits, Some(overlay))?;
        Ok(self.evaluate(trainer, w, log)?.0.into_overlay())
    }

    /// Steps over the examples of an iteration.
    fn train(
        &self,
        iteration: u32,
        trainer: &mut Trainer,
        mut w: Workspace,
        method: &dyn Method,
        drawn: &Drawn,
        progress: &mut Progress,
    ) -> Result<Workspace> {
        let (c, clock, trace) = (self.c, Instant::now(), progress.log.trace.clone());
        let Drawn { examples, metrics, .. } = drawn;
        let (mut done, mut losses, began) = (0, 0.0, progress.tokens);
        let whole = examples.len().div_ceil(c.batch_size()) * c.ple_epochs_per_iter as usize;
        let bar = progress.log.bars.phase(&format!("iter {iteration} steps"), whole);
        let at = |tokens: usize| At { iteration, tokens, seconds: clock.elapsed().as_secs_f64(), metrics };
        for epoch in 0..c.ple_epochs_per_iter {
            let pass = iteration * c.ple_epochs_per_iter + epoch;
            let order = data::shuffle(examples.len() as u32, c.seed, pass, order::PAIRS);
            for chunk in order.chunks(c.batch_size()) {
                if progress.left == 0 || progress.stopped {
                    break;
                }
                let chunk: Vec<&Example> = chunk.iter().map(|&i| &examples[i as usize]).collect();
                let span = trace.span("step").with("iteration", iteration);
                let step = trainer.step(&mut w, method, &chunk)?;
                drop(span);
                progress.left -= 1;
                progress.tokens += step.tokens;
                (done, losses) = (done + 1, losses + step.loss);
                bar.at(done, progress.tokens - began);
                progress.log.record(record::row(&at(progress.tokens), trainer, Some(&step)))?;
                if c.eval_steps > 0 && trainer.optimizer.steps().is_multiple_of(u64::from(c.eval_steps)) && done < whole {
                    (w, progress.stopped) = self.evaluate(trainer, w, &mut progress.log)?;
                }
            }
        }
        drop(bar);
        let mut row = record::row(&at(progress.tokens), trainer, None);
        if done == 0 {
            progress.log.record(row.clone())?;
            progress.log.say("note  nothing is left to train on: no step is taken, and the schedule stands where it was");
        } else {
            row.insert("loss".into(), number(losses / done as f64));
        }
        progress.log.say(&progress::line(&progress::ITERATION, &row));
        progress.table.add(row);
        if c.eval_steps > 0 && !progress.stopped {
            (w, progress.stopped) = self.evaluate(trainer, w, &mut progress.log)?;
        }
        Ok(w)
    }

    /// The iteration's queries, and how often each row came before among them.
    fn queries(&self, iteration: u32) -> (Vec<Prompt>, Vec<u32>) {
        let drawn = data::draw(iteration, self.c.ple_queries_per_iter, self.prompts.len() as u32, self.c.seed);
        let prompts: Vec<Prompt> = drawn.iter().map(|&i| self.prompts[i as usize].clone()).collect();
        let mut seen = std::collections::HashMap::new();
        let repeats = prompts.iter().map(|p| *seen.entry(p.row).and_modify(|n| *n += 1).or_insert(0u32)).collect();
        (prompts, repeats)
    }

    fn sample(
        &self,
        iteration: u32,
        trainer: &Trainer,
        prompts: &[Prompt],
        repeats: Vec<u32>,
        sides: &[Side],
        kv: &mut KvCache,
        bars: &Bars,
    ) -> Result<Vec<Sample>> {
        let settings = rollout::settings(self.c, &self.opened, &trainer.model);
        let answers = sides.iter().map(|side| side.samples as usize).sum::<usize>() * prompts.len();
        let bar = bars.phase(&format!("iter {iteration} answers"), answers);
        let sampler =
            Sampler { stream: &trainer.stream, model: &trainer.model, policy: trainer.policy, settings, iteration, repeats };
        sampler.sample(&self.opened.tokenizer, prompts, sides, kv, &mut |p| {
            bar.at(p.finished, p.tokens);
            interrupt::watch()
        })
    }

    fn fill_reference(&self, trainer: &Trainer, w: &mut Workspace, examples: &mut [Example]) -> Result<()> {
        let all: Vec<&Example> = examples.iter().collect();
        let logps = logprob::score(&trainer.stream, &trainer.model, &mut w.acts, self.reference, &all)?;
        examples.iter_mut().zip(logps).for_each(|(example, logps)| example.ref_logp = logps);
        Ok(())
    }
}
