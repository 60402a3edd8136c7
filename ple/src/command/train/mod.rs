//! `ple train`: the whole loop. Per iteration: sample both sides, score, label, measure the gap, step over the pairs.

use super::{required, start};
use crate::config::Config;
use crate::data::{self, Prompt, order};
use crate::log::{self, Log};
use crate::method::{Example, Method, Rollout, Side, ple::Ple};
use crate::open::Opened;
use crate::reward::{Rewards, Scores};
use crate::rollout::{self, Sample, Sampler};
use crate::trainer::{self, Step, Trainer, Workspace};
use crate::{Error, Result, checkpoint, interrupt, logprob};
use model::{Adapter, CacheLimits, KvCache, Limits, Settings};
use record::{At, Metrics, Times};
use runtime::{Arena, host};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

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
    /// Tokens trained.
    tokens: usize,
}

/// Runs the command.
pub fn run(c: &Config) -> Result<()> {
    let rewards = Rewards::load(&c.reward_funcs, &c.reward_weights)?;
    let mut method = Ple::new(c, rewards.unit());
    trainer::supported(&method.needs())?;
    let mut opened = Opened::for_training(c)?;
    let mut said = Vec::new();
    let (prompts, principle) = prepare::prompts(c, &opened, &mut |line| said.push(line))?;
    let supervised = prepare::supervised_rows(c, &opened, &mut |line| said.push(line))?;
    let reference = prepare::reference(c, &mut opened, &method)?;
    let (cache, limits) = prepare::plan(c, opened.model()?.positions(), supervised.as_ref())?;
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
    let mut log = start(c, &opened, &trainer)?;
    said.iter().for_each(|line| log.say(line));
    log.say(&format!("rule  {}", principle.text));
    let folder = required(&c.output_dir, "output_dir")?;
    checkpoint::create_folder(&folder.join("completions"))?;
    let mut overlay = Arena::new(&trainer.stream, bytes)?;
    if let Some(rows) = &supervised {
        overlay = prepare::supervise(c, &mut trainer, rows, limits, overlay, &mut log)?;
    }
    let run = Run { c, opened, rewards, prompts, cache, limits, reference, folder };
    let mut progress = Progress { log, left: super::most_steps(c), tokens: 0 };
    let mut iterations = 0;
    while iterations < c.ple_iters && progress.left > 0 {
        overlay = run.iterate(iterations, &mut trainer, &mut method, overlay, &mut progress)?;
        iterations += 1;
    }
    let state = json!({ "iterations": iterations, "steps": trainer.optimizer.steps(), "method": method.state(), "principle": principle.text });
    checkpoint::save(&trainer.stream, &trainer.model, run.opened.tune, &run.opened.folder, folder)?;
    Ok(host::write_file(&folder.join("ple.json"), |out| writeln!(out, "{state:#}"))?)
}

impl Run<'_> {
    fn iterate(
        &self,
        iteration: u32,
        trainer: &mut Trainer,
        method: &mut dyn Method,
        overlay: Arena,
        progress: &mut Progress,
    ) -> Result<Arena> {
        let (c, clock) = (self.c, Instant::now());
        let Rollout::Sides(sides) = method.rollout(iteration) else {
            return Err(Error::Usage("ple train wants a method that samples".into()));
        };
        self.keep_adapter(iteration, trainer)?;
        let (prompts, repeats) = self.queries(iteration);
        let mut kv = KvCache::new(&trainer.stream, &trainer.model, self.cache, c.repetition_penalty != 1.0, Some(overlay))?;
        let mut samples = self.sample(iteration, trainer, &prompts, repeats, &sides, &mut kv)?;
        let rollout = clock.elapsed().as_secs_f64();
        let scores = rollout::score(&self.rewards, &prompts, &samples)?;
        samples.iter_mut().zip(&scores.total).for_each(|(sample, reward)| sample.reward = *reward);
        let times = Times { rollout, reward: clock.elapsed().as_secs_f64() - rollout };
        let (examples, labelled) = method.label(iteration, rollout::groups(&prompts, &sides, &samples))?;
        let mut drawn = Drawn { prompts, sides, samples, scores, examples, metrics: Vec::new() };
        self.completions(iteration, &drawn, method)?;
        let mut w = Workspace::new(&trainer.stream, &trainer.model, self.limits, Some(kv.into_overlay()))?;
        let (s, model, Drawn { prompts, sides, samples, .. }) = (&trainer.stream, &trainer.model, &drawn);
        let gap = rollout::gap(s, model, &mut w.acts, trainer.policy, prompts, sides, samples)?;
        let mut metrics: Metrics = labelled.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        metrics.extend(self.rollout_metrics(&drawn, record::bounded(iteration, gap)?, &times));
        if record::value(&metrics, "ple/scale_floored") == Some(1.0) {
            progress.log.say("note  the plain answers' rewards hardly differ: the scale of reward_norm is at its floor");
        }
        if method.needs().reference {
            self.fill_reference(trainer, &mut w, &mut drawn.examples)?;
        }
        drawn.metrics = metrics;
        self.train(iteration, trainer, &mut w, method, &drawn, progress)?;
        Ok(w.into_overlay())
    }

    /// Steps over the examples of an iteration.
    fn train(
        &self,
        iteration: u32,
        trainer: &mut Trainer,
        w: &mut Workspace,
        method: &dyn Method,
        drawn: &Drawn,
        progress: &mut Progress,
    ) -> Result<()> {
        let (c, clock) = (self.c, Instant::now());
        let Drawn { examples, metrics, .. } = drawn;
        let at = |tokens: usize| At { iteration, tokens, seconds: clock.elapsed().as_secs_f64(), metrics };
        for epoch in 0..c.ple_epochs_per_iter {
            let pass = iteration * c.ple_epochs_per_iter + epoch;
            let order = data::shuffle(examples.len() as u32, c.seed, pass, order::PAIRS);
            for chunk in order.chunks(c.batch_size()) {
                if progress.left == 0 {
                    break;
                }
                let chunk: Vec<&Example> = chunk.iter().map(|&i| &examples[i as usize]).collect();
                let step = trainer.step(w, method, &chunk)?;
                progress.left -= 1;
                progress.tokens += step.tokens;
                self.tell(at(progress.tokens), trainer, &step, &mut progress.log)?;
            }
        }
        if examples.is_empty() {
            self.tell(at(progress.tokens), trainer, &Step::default(), &mut progress.log)?;
        }
        Ok(())
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
    ) -> Result<Vec<Sample>> {
        let settings = Settings {
            sampling: kernels::sample::Sampling::default(),
            stop: self.opened.stop(&trainer.model.config),
            stop_strings: self.c.stop_strings.clone(),
            tokenizer: Some(self.opened.tokenizer.clone()),
            max_new_tokens: self.c.max_completion_length as usize,
            seed: self.c.seed,
        };
        let sampler =
            Sampler { stream: &trainer.stream, model: &trainer.model, policy: trainer.policy, settings, iteration, repeats };
        sampler.sample(&self.opened.tokenizer, prompts, sides, kv, &mut |_| interrupt::watch())
    }

    fn fill_reference(&self, trainer: &Trainer, w: &mut Workspace, examples: &mut [Example]) -> Result<()> {
        let all: Vec<&Example> = examples.iter().collect();
        let logps = logprob::score(&trainer.stream, &trainer.model, &mut w.acts, self.reference, &all)?;
        examples.iter_mut().zip(logps).for_each(|(example, logps)| example.ref_logp = logps);
        Ok(())
    }
}
