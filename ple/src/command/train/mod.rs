//! `ple train`: the whole loop, of any method that samples. Per iteration: sample every side, score, label, measure the gap,
//! step over the examples.

use super::resume::{self, Resumed, Site};
use super::{required, sft, start};
use crate::checkpoint::{Drawn as Policy, Stage};
use crate::config::{Command, Config, Order, Recipe, Resume};
use crate::data::{self, Prompt, order};
use crate::journal::Head;
use crate::log::{self, Log, number};
use crate::memory::{Needs, Planned};
use crate::method::{Example, Method, Sampling, Side, grpo::Grpo, ple::Ple, raft::Raft, release::Release, rloo::Rloo};
use crate::open::Opened;
use crate::progress::{self, Table};
use crate::reward::{Rewards, Scores};
use crate::rollout::{self, Gap, Sample};
use crate::trainer::{self, Step, Trainer, Workspace};
use crate::{Error, Result, checkpoint, interrupt, side};
use answers::Asked;
use held_out::HeldOut;
use kept::Kept;
use model::{Adapter, CacheLimits, KvCache, Limits};
use record::{At, Metrics, Times};
use runtime::{Arena, host};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

mod answers;
mod held_out;
mod kept;
mod prepare;
mod record;

pub use prepare::reference;

/// What an iteration starts from, fixed for the run.
struct Run<'a> {
    c: &'a Config,
    opened: Opened,
    rewards: Rewards,
    prompts: Vec<Prompt>,
    cache: CacheLimits,
    limits: Limits,
    /// Its device memory.
    plan: Planned,
    /// Adapter of the reference policy.
    reference: Adapter,
    folder: &'a Path,
    held_out: Option<HeldOut>,
    /// Of the plain side, for held-out answers.
    sampling: Sampling,
    /// What answers and rewards depend on, see [`kept::digests`].
    digests: [String; 2],
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
    /// Where it stands.
    at: resume::At,
    /// Optimizer steps of this stage that were there when this process began.
    began: u64,
    /// A row per iteration.
    table: Table,
}

impl Progress {
    /// Steps of the iteration that are done, of `batches` an epoch.
    fn done(&self, batches: usize) -> usize {
        self.at.epoch as usize * batches + self.at.position as usize
    }

    /// Counts a step, the `done`th of the iteration.
    fn step(&mut self, step: &Step, done: usize, batches: usize) {
        self.left -= 1;
        (self.at.epoch, self.at.position) = ((done / batches) as u32, (done % batches) as u64);
        (self.at.tokens, self.at.evaluated) = (self.at.tokens + step.tokens as u64, false);
    }
}

/// Runs `ple train`, `raft`, `rloo` or `grpo`: the loop with the method that the command names.
pub fn run(c: &Config) -> Result<()> {
    let mut opened = Opened::for_training(c)?;
    let rewards = Rewards::load(c, Some(&mut opened))?;
    let mut method: Box<dyn Method> = match (c.command, c.recipe) {
        (Command::Raft, _) => Box::new(Raft::new(c, c.num_generations)),
        (Command::Rloo, _) => Box::new(Rloo::new(c)),
        (Command::Grpo, _) => Box::new(Grpo::new(c)),
        (_, Recipe::Release) => Box::new(Release::new(c)),
        (_, Recipe::Ple) => Box::new(Ple::new(c, rewards.unit())),
    };
    run_method(c, opened, rewards, method.as_mut())
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
    let needs = Needs {
        limits,
        pages: opened.model()?.cache_plan(cache, c.repetition_penalty != 1.0),
        path: cache.positions.max(supervised.as_ref().map_or(0, sft::Rows::path)),
        // That of the supervised stage, beside that of the iterations.
        optimizers: 1 + usize::from(supervised.is_some()),
    };
    let plan = Planned::choose(c, &opened, needs)?;
    if c.dry_run {
        return log::print(&format!("{} queries; at most {steps} steps; {plan}\n", prompts.len()));
    }
    let optimizer = super::optimizer(c, &opened, steps)?;
    let mut trainer = super::trainer(&mut opened, optimizer)?;
    let resumed = resume::find(c, &mut said)?;
    let first = if supervised.is_some() { Stage::Sft } else { Stage::Ple };
    let mut at = resume::At::start(first, 0);
    if let Some(resumed) = &resumed {
        at = resumed.at();
        if resumed.stage() == Stage::Ple {
            resumed.restore(&mut trainer, opened.tune)?;
            method.restore(&at.method)?;
        } else if supervised.is_none() {
            return Err(Error::Usage(
                "resume_from_checkpoint: wanted sft_dataset_name, which the checkpoint is of, got none".into(),
            ));
        }
    }
    let (log, files) = start(c, &opened, &trainer, &plan, resumed.as_ref())?;
    said.iter().for_each(|line| log.say(line));
    principle.iter().for_each(|p| log.say(&format!("rule  {}", p.text)));
    let folder = required(&c.output_dir, "output_dir")?;
    checkpoint::create_folder(&folder.join("completions"))?;
    let overlay = Arena::new(&trainer.stream, plan.activations.max(plan.pages))?;
    let run = Run {
        c,
        opened,
        rewards,
        prompts,
        cache,
        limits,
        plan,
        reference,
        folder,
        held_out,
        sampling,
        digests: kept::digests(c, &files),
    };
    let began = trainer.optimizer.steps();
    let left = super::most_steps(c).saturating_sub(began);
    let mut progress = Progress { log, left, stopped: false, at, began, table: Table::default() };
    let outcome = run.whole(&mut trainer, method, supervised.as_ref(), overlay, resumed.as_ref(), &mut progress);
    let Progress { log, at, .. } = &mut progress;
    run.site()?.unless_interrupted(outcome, &trainer, at, log)?;
    let iterations = at.iteration + u32::from(at.drawn.is_some());
    let principle = principle.map(|p| p.text);
    let state =
        json!({ "iterations": iterations, "steps": trainer.optimizer.steps(), "method": method.state(), "principle": principle });
    if let Some(held) = &run.held_out {
        held.end(&trainer, &mut progress.log)?;
    }
    run.plan.end(&trainer.stream, folder, &progress.log)?;
    if !progress.table.is_empty() {
        progress.log.say(&progress.table.to_string());
    }
    checkpoint::save(&trainer.stream, &trainer.model, run.opened.tune, &run.opened.folder, folder)?;
    progress.log.finish()?;
    Ok(host::write_file(&folder.join("ple.json"), |out| writeln!(out, "{state:#}"))?)
}

impl Run<'_> {
    /// The buffers of training, over the arena that rollouts use in turn.
    fn workspace(&self, trainer: &Trainer, overlay: Arena) -> Result<Workspace> {
        Workspace::keeping(&trainer.stream, &trainer.model, self.limits, self.plan.keep, Some(overlay))
    }

    /// Where its checkpoints go.
    fn site(&self) -> Result<Site<'_>> {
        Site::new(self.c, &self.opened)
    }

    /// The supervised stage and the iterations, or what is left of them.
    fn whole(
        &self,
        trainer: &mut Trainer,
        method: &mut dyn Method,
        supervised: Option<&sft::Rows>,
        mut overlay: Arena,
        resumed: Option<&Resumed>,
        progress: &mut Progress,
    ) -> Result<()> {
        if let (Some(rows), Stage::Sft) = (supervised, progress.at.stage) {
            let Progress { log, at, .. } = progress;
            overlay =
                prepare::supervise(self.c, trainer, rows, self.workspace(trainer, overlay)?, log, at, &self.site()?, resumed)?;
            *at = resume::At::start(Stage::Ple, rows.steps(self.c));
            log.stage();
        }
        if progress.at.iteration == 0 && trainer.optimizer.steps() == 0 && !progress.at.evaluated {
            overlay = self.evaluate_over(trainer, overlay, &mut progress.log)?;
            progress.at.evaluated = true;
        }
        while progress.at.iteration < self.c.ple_iters && progress.left > 0 && !progress.stopped {
            overlay = self.iterate(trainer, method, overlay, progress)?;
        }
        if self.c.eval_steps == 0 {
            self.evaluate_over(trainer, overlay, &mut progress.log)?;
        }
        if trainer.optimizer.steps() == 0 {
            progress.log.say("note  no iteration kept anything to train on: no step was taken");
        }
        Ok(())
    }

    /// One iteration, or what is left of it: then its answers are in the journal, and its labels are made again.
    fn iterate(&self, trainer: &mut Trainer, method: &mut dyn Method, overlay: Arena, progress: &mut Progress) -> Result<Arena> {
        let (c, clock, trace, iteration) = (self.c, Instant::now(), progress.log.trace.clone(), progress.at.iteration);
        let sides = prepare::sides(method, iteration)?;
        let (prompts, repeats) = self.queries(iteration);
        let mut kept = self.kept(trainer, progress)?;
        if progress.at.drawn.is_none() {
            self.keep_adapter(iteration, trainer)?;
            progress.at.method = method.state();
        }
        let span = trace.span("rollout").with("iteration", iteration);
        let mut kv = KvCache::new(&trainer.stream, &trainer.model, self.cache, c.repetition_penalty != 1.0, Some(overlay))?;
        let asked = Asked { iteration, prompts: &prompts, repeats, sides: &sides };
        let drawn_by = progress.at.drawn.as_ref().map(|drawn| drawn.policy.as_str());
        let mut samples = self.answers(trainer, asked, &mut kv, &mut kept, &progress.log, drawn_by)?;
        drop(span);
        let rollout = clock.elapsed().as_secs_f64();
        let span = trace.span("reward").with("iteration", iteration);
        let bar = progress.log.bars.phase(&format!("iter {iteration} rewards"), samples.len());
        let scores = kept.score(self, &trainer.model, &samples, &prompts, &bar)?;
        kept.finish()?;
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
        let mut w = self.workspace(trainer, kv.into_overlay())?;
        let (s, model, Drawn { prompts, sides, samples, .. }) = (&trainer.stream, &trainer.model, &drawn);
        let gap = match progress.at.drawn.as_ref().map(|drawn| drawn.gap) {
            Some([max, mean, off]) => Gap { max, mean, off },
            None => rollout::gap(s, model, &mut w.acts, trainer.policy, prompts, sides, samples)?,
        };
        let gap = record::bounded(iteration, gap)?;
        if let Some(one) = record::equal(&drawn.scores.total) {
            progress.log.say(&format!("note  every reward is {one}: no answer is better than another"));
        }
        method.remarks(&labelled).iter().for_each(|text| progress.log.say(&format!("note  {text}")));
        let mut metrics: Metrics = labelled.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        metrics.extend(self.rollout_metrics(&drawn, gap, &times));
        side::fill(trainer, &mut w, self.reference, method, &mut drawn.examples)?;
        drawn.metrics = metrics;
        drop(span);
        if progress.at.drawn.is_none() {
            let policy = self.policy(trainer)?;
            progress.at.drawn = Some(Policy { policy, gap: [gap.max, gap.mean, gap.off] });
        }
        let w = self.train(trainer, w, method, &drawn, progress)?;
        if progress.left > 0 && !progress.stopped {
            let resume::At { before, tokens, evaluated, .. } = progress.at;
            let method = method.state();
            let next = resume::At::start(Stage::Ple, before);
            progress.at = resume::At { iteration: iteration + 1, tokens, evaluated, method, ..next };
            self.site()?.keep(trainer, &progress.at, &mut progress.log)?;
        }
        Ok(w.into_overlay())
    }

    /// Names the policy.
    fn policy(&self, trainer: &Trainer) -> Result<String> {
        checkpoint::fingerprint(&trainer.stream, &trainer.model, self.opened.tune)
    }

    /// The iteration's journal: of the policy that draws, or that has drawn.
    fn kept(&self, trainer: &Trainer, progress: &Progress) -> Result<Kept> {
        let adapter = match &progress.at.drawn {
            Some(drawn) => drawn.policy.clone(),
            None => self.policy(trainer)?,
        };
        let [answers, rewards] = self.digests.clone();
        let head = Head { iteration: progress.at.iteration, adapter, answers, rewards, seed: self.c.seed };
        let goes_on = self.c.resume_from_checkpoint != Resume::No;
        Kept::open(&self.folder.join("rollouts"), &head, goes_on, &progress.log)
    }

    /// An evaluation between two iterations.
    fn evaluate_over(&self, trainer: &Trainer, overlay: Arena, log: &mut Log) -> Result<Arena> {
        if self.held_out.is_none() {
            return Ok(overlay);
        }
        let w = self.workspace(trainer, overlay)?;
        Ok(self.evaluate(trainer, w, log)?.0.into_overlay())
    }

    /// Steps over the examples of an iteration, from where the run stands.
    fn train(
        &self,
        trainer: &mut Trainer,
        mut w: Workspace,
        method: &dyn Method,
        drawn: &Drawn,
        progress: &mut Progress,
    ) -> Result<Workspace> {
        let (c, trace, iteration) = (self.c, progress.log.trace.clone(), progress.at.iteration);
        let Drawn { examples, metrics, .. } = drawn;
        let batches = examples.len().div_ceil(c.batch_size());
        let (whole, mut done) = (batches * c.ple_epochs_per_iter as usize, progress.done(batches));
        let (skipped, mut losses, mut seconds, began) = (done, 0.0, 0.0, progress.at.tokens);
        if done == 0 && whole > 0 && !c.ple_persist_optimizer {
            trainer.optimizer.begin_again(&trainer.stream, whole as u64)?;
        }
        let bar = progress.log.bars.phase(&format!("iter {iteration} steps"), whole);
        let at = |tokens: u64, seconds: f64| At { iteration, tokens: tokens as usize, seconds, metrics };
        while done < whole {
            let step = trainer.optimizer.steps();
            let due = c.eval_steps > 0 && step.is_multiple_of(u64::from(c.eval_steps));
            if due && done > 0 && !progress.at.evaluated {
                (w, progress.stopped) = self.evaluate(trainer, w, &mut progress.log)?;
                progress.at.evaluated = true;
            }
            if self.site()?.due(step) && step > progress.began && done > 0 {
                self.site()?.keep(trainer, &progress.at, &mut progress.log)?;
            }
            if progress.left == 0 || progress.stopped {
                break;
            }
            let chunk = self.chunk(examples, &progress.at);
            let span = trace.span("step").with("iteration", iteration);
            let step = trainer.step(&mut w, method, &chunk)?;
            drop(span);
            done += 1;
            progress.step(&step, done, batches);
            (losses, seconds) = (losses + step.loss, seconds + step.seconds);
            bar.at(done, (progress.at.tokens - began) as usize);
            progress.log.record(record::row(&at(progress.at.tokens, seconds), trainer, Some(&step)))?;
        }
        drop(bar);
        let mut row = record::row(&at(progress.at.tokens, seconds), trainer, None);
        if done == 0 {
            progress.log.record(row.clone())?;
            progress.log.say("note  nothing is left to train on: no step is taken, and the schedule stands where it was");
        } else {
            row.insert("loss".into(), number(losses / (done - skipped).max(1) as f64));
        }
        progress.log.say(&progress::line(&progress::ITERATION, &row));
        progress.table.add(row);
        if c.eval_steps > 0 && !progress.stopped && !progress.at.evaluated {
            (w, progress.stopped) = self.evaluate(trainer, w, &mut progress.log)?;
            progress.at.evaluated = true;
        }
        Ok(w)
    }

    /// The examples of the next step.
    fn chunk<'e>(&self, examples: &'e [Example], at: &resume::At) -> Vec<&'e Example> {
        let pass = at.iteration * self.c.ple_epochs_per_iter + at.epoch;
        let order = data::shuffle(examples.len() as u32, self.c.seed, pass, order::PAIRS);
        let chunk = order.chunks(self.c.batch_size()).nth(at.position as usize).unwrap_or_default();
        chunk.iter().map(|&i| &examples[i as usize]).collect()
    }

    /// The iteration's queries, and how often each row came before among them.
    fn queries(&self, iteration: u32) -> (Vec<Prompt>, Vec<u32>) {
        let (wanted, all) = (self.c.ple_queries_per_iter, self.prompts.len() as u32);
        let drawn = match self.c.ple_order {
            Order::Shuffled => data::draw(iteration, wanted, all, self.c.seed),
            Order::File => data::order::in_file(iteration, wanted, all),
        };
        let prompts: Vec<Prompt> = drawn.iter().map(|&i| self.prompts[i as usize].clone()).collect();
        let mut seen = std::collections::HashMap::new();
        let repeats = prompts.iter().map(|p| *seen.entry(p.row).and_modify(|n| *n += 1).or_insert(0u32)).collect();
        (prompts, repeats)
    }
}
