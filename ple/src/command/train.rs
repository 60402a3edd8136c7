//! `ple train`: the whole loop. Per iteration: sample both sides, score, label, measure the gap, step over the pairs.

use super::{data_line, required, sft, start};
use crate::config::Config;
use crate::data::{self, Prompt, order};
use crate::log::{Lines, Log, number, print};
use crate::method::{Example, Method, Rollout, Side, ple::Ple};
use crate::open::Opened;
use crate::principle::Principle;
use crate::reward::{Rewards, Scores};
use crate::rollout::{self, Gap, Sample, Sampler};
use crate::trainer::{self, Trainer, Workspace};
use crate::{Error, Result, checkpoint, logprob, pack};
use kernels::sample::philox;
use model::{Adapter, CacheLimits, KvCache, Limits, Settings};
use runtime::{Arena, host};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Instant;

/// Sequences that are decoded at once.
const SEQUENCES: usize = 32;

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

/// Names and values of an iteration's log line.
type Metrics = Vec<(&'static str, f64)>;

/// Runs the command.
pub fn run(c: &Config) -> Result<()> {
    let rewards = Rewards::load(&c.reward_funcs, &c.reward_weights)?;
    let mut method = Ple::new(c, rewards.unit());
    let mut opened = Opened::for_training(c)?;
    let mut said = Vec::new();
    let (prompts, principle) = prompts(c, &opened, &mut |line| said.push(line))?;
    let supervised = supervised_rows(c, &opened, &mut |line| said.push(line))?;
    let reference = reference(c, &mut opened, &method)?;
    let (cache, limits) = plan(c, opened.model()?.positions(), supervised.as_ref());
    let per_iteration = (c.ple_queries_per_iter as usize).div_ceil(c.batch_size()) as u64 * u64::from(c.ple_epochs_per_iter);
    let steps = u64::from(c.ple_iters) * per_iteration;
    let optimizer = super::optimizer(c, &opened, steps)?;
    let mut trainer = super::trainer(&mut opened, optimizer)?;
    let model = &trainer.model;
    let bytes = model.cache_plan(cache, c.repetition_penalty != 1.0).max(model.plan(limits, model::Keep::Backward));
    if c.dry_run {
        let queries = prompts.len();
        print(format_args!("{queries} queries; at most {steps} steps; overlay of {bytes} bytes for rollout and training"));
        return Ok(());
    }
    let mut log = start(c, &opened, &trainer)?;
    said.iter().for_each(|line| log.say(line));
    log.say(&format!("rule  {}", principle.text));
    let folder = required(&c.output_dir, "output_dir")?;
    checkpoint::create_folder(&folder.join("completions"))?;
    let mut overlay = Arena::new(&trainer.stream, bytes)?;
    if let Some(rows) = &supervised {
        overlay = supervise(c, &mut trainer, rows, limits, overlay, &mut log)?;
    }
    let run = Run { c, opened, rewards, prompts, cache, limits, reference, folder };
    let mut left = if c.max_steps > 0 { c.max_steps as u64 } else { u64::MAX };
    for iteration in 0..c.ple_iters {
        if left == 0 {
            break;
        }
        overlay = run.iterate(iteration, &mut trainer, &mut method, overlay, &mut log, &mut left)?;
    }
    let state = json!({ "iterations": c.ple_iters, "steps": trainer.optimizer.steps(), "method": method.state(), "principle": principle.text });
    host::write_file(&folder.join("ple.json"), |out| writeln!(out, "{state:#}"))?;
    checkpoint::save(&trainer.stream, &trainer.model, run.opened.tune, &run.opened.folder, folder)
}

/// Every query on both sides, within the budget that leaves room for an answer.
fn prompts(c: &Config, opened: &Opened, tell: &mut dyn FnMut(String)) -> Result<(Vec<Prompt>, Principle)> {
    let path = required(&c.dataset_name, "dataset_name")?;
    let (queries, kind, mut dropped) = data::queries(path, &opened.tokenizer, c.seed, philox)?;
    let principle = Principle::choose(c, kind, queries.first().map_or("", |q| &q.text))?;
    let (most, answer) = (opened.model()?.positions(), c.max_completion_length as usize);
    let Some(room) = most.checked_sub(answer).filter(|room| *room > 0) else {
        return Err(Error::Usage(format!("max_completion_length: wanted below the model's {most} positions, got {answer}")));
    };
    let (prompts, later) = data::prompts(&queries, &opened.tokenizer, &principle, room.min(c.max_prompt_length as usize))?;
    dropped.add(later);
    tell(data_line(&path.display().to_string(), prompts.len(), &dropped));
    if prompts.is_empty() {
        return Err(Error::file(path, format!("no query is left: {dropped}")));
    }
    Ok((prompts, principle))
}

fn supervised_rows(c: &Config, opened: &Opened, tell: &mut dyn FnMut(String)) -> Result<Option<sft::Rows>> {
    let Some(path) = &c.sft_dataset_name else { return Ok(None) };
    sft::Rows::read(c, opened, path, None, tell).map(Some)
}

/// The supervised stage, on the adapter that the iterations go on training; its optimizer is its own.
fn supervise(
    c: &Config,
    trainer: &mut Trainer,
    rows: &sft::Rows,
    limits: Limits,
    overlay: Arena,
    log: &mut Log,
) -> Result<Arena> {
    let mut w = Workspace::new(&trainer.stream, &trainer.model, limits, Some(overlay))?;
    let steps = rows.steps(c);
    let own = trainer.optimizer.restarted(&trainer.stream, c, steps)?;
    let later = std::mem::replace(&mut trainer.optimizer, own);
    sft::stage(c, trainer, &mut w, rows, steps, log, &mut |_, _| Ok(()))?;
    trainer.optimizer = later;
    Ok(w.into_overlay())
}

/// The slot of the frozen reference: a copy of the given adapter, or Off if the run starts without one.
fn reference(c: &Config, opened: &mut Opened, method: &Ple) -> Result<Adapter> {
    match &c.adapter {
        _ if !method.needs().reference => Ok(Adapter::Off),
        None if c.tune == crate::config::Tune::Full => {
            Err(Error::Usage("tune full has no reference: ple_rank dpo and ple_kl_coef want tune lora".into()))
        }
        None if c.sft_dataset_name.is_some() => {
            Err(Error::Usage("a reference after a supervised stage: run `ple sft` first and give its folder as adapter".into()))
        }
        None => Ok(Adapter::Off),
        Some(folder) => opened.add_slot(folder),
    }
}

/// Sizes of both phases: the longest prompt and answer there can be.
fn plan(c: &Config, positions: usize, supervised: Option<&sft::Rows>) -> (CacheLimits, Limits) {
    let answer = c.max_completion_length as usize;
    let prompt = (c.max_prompt_length as usize).min(positions.saturating_sub(answer)).max(1);
    let (positions, batch) = (prompt + answer, SEQUENCES.min(c.ple_queries_per_iter as usize).max(1));
    let cache = CacheLimits { pages: batch * positions.div_ceil(64), prefill_tokens: prompt.max(1024), batch, positions };
    let tree = (prompt + 2 * answer).max(supervised.map_or(0, |rows| rows.budget(c)));
    (cache, pack::limits(tree.max(c.max_tokens_per_micro_batch as usize)))
}

impl Run<'_> {
    fn iterate(
        &self,
        iteration: u32,
        trainer: &mut Trainer,
        method: &mut Ple,
        overlay: Arena,
        log: &mut Log,
        left: &mut u64,
    ) -> Result<Arena> {
        let (c, clock) = (self.c, Instant::now());
        let Rollout::Sides(sides) = method.rollout(iteration) else {
            return Err(Error::Usage("ple train wants a method that samples".into()));
        };
        let (prompts, repeats) = self.queries(iteration);
        let mut kv = KvCache::new(&trainer.stream, &trainer.model, self.cache, c.repetition_penalty != 1.0, Some(overlay))?;
        let mut samples = self.sample(iteration, trainer, &prompts, repeats, &sides, &mut kv)?;
        let sampled = clock.elapsed().as_secs_f64();
        let scores = rollout::score(&self.rewards, &prompts, &samples)?;
        samples.iter_mut().zip(&scores.total).for_each(|(sample, reward)| sample.reward = *reward);
        let scored = clock.elapsed().as_secs_f64();
        let (mut examples, mut metrics) = method.label(iteration, rollout::groups(&prompts, &sides, &samples))?;
        self.completions(iteration, &prompts, &sides, &samples, &examples)?;
        let mut w = Workspace::new(&trainer.stream, &trainer.model, self.limits, Some(kv.into_overlay()))?;
        let gap = rollout::gap(&trainer.stream, &trainer.model, &mut w.acts, trainer.policy, &prompts, &sides, &samples)?;
        metrics.extend(self.rollout_metrics(&samples, &scores, gap, sampled, scored));
        if method.needs().reference {
            self.fill_reference(trainer, &mut w, &mut examples)?;
        }
        for epoch in 0..c.ple_epochs_per_iter {
            let pass = iteration * c.ple_epochs_per_iter + epoch;
            let order = data::shuffle(examples.len() as u32, c.seed, pass, order::PAIRS, philox);
            for chunk in order.chunks(c.batch_size()) {
                if *left == 0 {
                    break;
                }
                let chunk: Vec<&Example> = chunk.iter().map(|&i| &examples[i as usize]).collect();
                let step = trainer.step(&mut w, method, &chunk)?;
                *left -= 1;
                self.tell(iteration, trainer, &step, &metrics, log)?;
            }
        }
        if examples.is_empty() {
            self.tell(iteration, trainer, &trainer::Step::default(), &metrics, log)?;
        }
        Ok(w.into_overlay())
    }

    /// The iteration's queries, and how often each row came before among them.
    fn queries(&self, iteration: u32) -> (Vec<Prompt>, Vec<u32>) {
        let drawn = data::draw(iteration, self.c.ple_queries_per_iter, self.prompts.len() as u32, self.c.seed, philox);
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
            max_new_tokens: self.c.max_completion_length as usize,
            seed: self.c.seed,
        };
        let sampler =
            Sampler { stream: &trainer.stream, model: &trainer.model, policy: trainer.policy, settings, iteration, repeats };
        sampler.sample(&self.opened.tokenizer, prompts, sides, kv, &mut |_| {})
    }

    fn fill_reference(&self, trainer: &Trainer, w: &mut Workspace, examples: &mut [Example]) -> Result<()> {
        let all: Vec<&Example> = examples.iter().collect();
        let logps = logprob::score(&trainer.stream, &trainer.model, &mut w.acts, self.reference, &all)?;
        examples.iter_mut().zip(logps).for_each(|(example, logps)| example.ref_logp = logps);
        Ok(())
    }

    fn rollout_metrics(&self, samples: &[Sample], scores: &Scores, gap: Gap, sampled: f64, scored: f64) -> Metrics {
        let n = samples.len().max(1) as f64;
        let tokens: usize = samples.iter().map(|s| s.answer.ids.len()).sum();
        let mean = scores.total.iter().sum::<f64>() / n;
        let deviation = (scores.total.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / n).sqrt();
        let clipped = samples.iter().filter(|s| !s.answer.stopped).count() as f64;
        vec![
            ("reward", mean),
            ("reward_std", deviation),
            ("completions/mean_length", tokens as f64 / n),
            ("completions/clipped_ratio", clipped / n),
            ("logp_gap_max", gap.max),
            ("logp_gap_mean", gap.mean),
            ("logp_gap_share", gap.off),
            ("time/rollout", sampled),
            ("time/reward", scored - sampled),
            ("tok_s/rollout", tokens as f64 / sampled),
        ]
    }

    /// One line per answer: what was asked, what came, what it was worth, what became of it.
    fn completions(
        &self,
        iteration: u32,
        prompts: &[Prompt],
        sides: &[Side],
        samples: &[Sample],
        examples: &[Example],
    ) -> Result<()> {
        let mut labels: Vec<Option<&Example>> = Vec::with_capacity(prompts.len());
        let mut rest = examples.iter().peekable();
        labels.extend(prompts.iter().map(|p| rest.next_if(|e| e.row == p.row)));
        let path = self.folder.join("completions").join(format!("iter-{iteration:05}.jsonl"));
        let mut lines = Lines::create(&path)?;
        for s in samples {
            let example = labels[s.query];
            lines.write(&json!({
                "iteration": iteration,
                "row": prompts[s.query].row,
                "side": s.side,
                "sample": s.sample,
                "prompt": prompts[s.query].text,
                "completion": s.text,
                "prompt_ids": rollout::prompt_of(prompts, sides, s),
                "ids": s.answer.ids,
                "logps": super::logprob::exact(&s.answer.logps),
                "finished": s.answer.stopped,
                "reward": number(s.reward),
                "branch": example.map(|e| crate::method::ple::branch_name(e.tag)),
                "weight": example.and_then(|e| e.weights.get(s.side as usize)),
            }))?;
        }
        Ok(())
    }

    fn tell(&self, iteration: u32, trainer: &Trainer, step: &trainer::Step, metrics: &Metrics, log: &mut Log) -> Result<()> {
        let mut row: Map<String, Value> = Map::new();
        row.insert("iteration".into(), json!(iteration));
        row.insert("step".into(), json!(trainer.optimizer.steps()));
        let own = [
            ("loss", step.loss),
            ("grad_norm", step.grad_norm),
            ("learning_rate", step.learning_rate),
            ("step_time", step.seconds),
            ("tok_s/train", step.tokens as f64 / step.seconds.max(1e-9)),
        ];
        for (name, value) in own.iter().chain(&step.metrics).chain(metrics) {
            row.insert((*name).to_string(), number(*value));
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
