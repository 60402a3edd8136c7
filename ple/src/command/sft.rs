//! `ple sft`: supervised fine-tuning of an adapter or of every weight. The loop over rows is that of every method that trains on given
//! answers.

use super::resume::{self, At, Site};
use super::{data_line, required, start};
use crate::checkpoint::Stage;
use crate::config::Config;
use crate::data::{self, Dropped, check, order, sft::LossOn};
use crate::eval::best::Best;
use crate::log::{self, Log, number};
use crate::memory::{Needs, Planned};
use crate::method::{Example, Group, Heads, Loss, Method, sft::Sft};
use crate::open::Opened;
use crate::trainer::{self, Step, Trainer, Workspace};
use crate::{Error, Result, checkpoint, pack, side};
use model::Adapter;
use runtime::Arena;
use serde_json::{Map, json};
use std::path::Path;
use std::time::Instant;

/// Rows to train on and rows held out, as examples.
pub struct Rows {
    /// Trained.
    pub train: Vec<Example>,
    /// Held out; empty if none were given.
    pub eval: Vec<Example>,
    /// What the loss reads of them.
    heads: Heads,
    /// How evaluations are judged, if they are.
    pub best: Option<Best>,
}

impl Rows {
    /// Reads `path`, and the held-out file where there is one: `groups` gives a file's rows, `method` its examples.
    pub fn read(
        c: &Config,
        opened: &Opened,
        method: &mut dyn Method,
        path: &Path,
        eval: Option<&Path>,
        groups: impl Fn(&Path) -> Result<(Vec<Group>, Dropped)>,
        tell: &mut dyn FnMut(String),
    ) -> Result<Rows> {
        let heads = method.needs().heads;
        let (ends, longest) = (opened.ends()?, (c.max_length as usize).min(opened.model()?.positions()));
        let mut of = |path: &Path, looks: bool| -> Result<Vec<Example>> {
            let (groups, dropped) = groups(path)?;
            let looked = looks.then(|| check::groups_line(&groups, &opened.tokenizer, &ends, longest)).transpose()?;
            let (examples, _) = method.label(0, groups)?;
            tell(data_line(&path.display().to_string(), examples.len(), &dropped));
            looked.into_iter().for_each(&mut *tell);
            Ok(examples)
        };
        let best = eval.and_then(|_| Best::new(c, opened.tune, &opened.folder));
        let (train, eval) = (of(path, true)?, eval.map(|path| of(path, false)).transpose()?.unwrap_or_default());
        Ok(Rows { train, eval, heads, best })
    }

    /// Rows of the supervised stage.
    pub fn supervised(
        c: &Config,
        opened: &Opened,
        path: &Path,
        eval: Option<&Path>,
        tell: &mut dyn FnMut(String),
    ) -> Result<Rows> {
        let longest = (c.max_length as usize).min(opened.model()?.positions());
        let groups = |path: &Path| data::groups(path, &opened.tokenizer, longest, LossOn::of(c));
        Rows::read(c, opened, &mut Sft, path, eval, groups, tell)
    }

    /// Tokens that a micro-batch must hold.
    pub fn budget(&self, c: &Config) -> usize {
        pack::longest_for(self.heads, self.train.iter().chain(&self.eval)).max(c.max_tokens_per_micro_batch as usize)
    }

    /// Positions of the longest prompt and answer.
    pub fn path(&self) -> usize {
        let path = |e: &Example| e.prompt.len() + e.answers.iter().map(Vec::len).max().unwrap_or(0);
        self.train.iter().chain(&self.eval).map(path).max().unwrap_or(0)
    }

    /// Optimizer steps of `num_train_epochs` over these rows.
    pub fn steps(&self, c: &Config) -> u64 {
        let per_epoch = self.train.len().div_ceil(c.batch_size()) as u64;
        (c.num_train_epochs * per_epoch as f64).ceil() as u64
    }
}

/// Runs the command.
pub fn run(c: &Config) -> Result<()> {
    let opened = Opened::for_training(c)?;
    let mut said = Vec::new();
    let path = required(&c.dataset_name, "dataset_name")?;
    let rows = Rows::supervised(c, &opened, path, c.eval_dataset_name.as_deref(), &mut |line| said.push(line))?;
    train(c, opened, rows, &Sft, Adapter::Off, said)
}

/// Trains what was opened on rows: all epochs of a method that samples nothing. `reference` is the frozen policy's slot.
pub fn train(
    c: &Config,
    mut opened: Opened,
    mut rows: Rows,
    method: &dyn Method,
    reference: Adapter,
    mut said: Vec<String>,
) -> Result<()> {
    trainer::supported(&method.needs())?;
    // As in TRL, `max_steps` overrides the epochs.
    let steps = if c.max_steps > 0 { c.max_steps as u64 } else { rows.steps(c) };
    let limits = pack::limits(rows.budget(c));
    let plan = Planned::choose(c, &opened, Needs { limits, pages: 0, path: rows.path(), optimizers: 1 })?;
    if c.dry_run {
        return log::print(&format!("{steps} steps; {plan}\n"));
    }
    let optimizer = super::optimizer(c, &opened, steps)?;
    let mut trainer = super::trainer(&mut opened, optimizer)?;
    let resumed = resume::find(c, &mut said)?;
    let mut at = At::start(Stage::Sft, 0);
    if let Some(resumed) = &resumed {
        if resumed.stage() != Stage::Sft {
            return Err(Error::Usage(format!(
                "resume_from_checkpoint: wanted a checkpoint of `ple {}`, got one of iterations",
                c.command.name()
            )));
        }
        resumed.restore(&mut trainer, opened.tune)?;
        at = resumed.at();
    }
    let (mut log, _) = start(c, &opened, &trainer, &plan, resumed.as_ref())?;
    said.iter().for_each(|line| log.say(line));
    let mut w = Workspace::keeping(&trainer.stream, &trainer.model, limits, plan.keep, None::<Arena>)?;
    side::fill(&trainer, &mut w, reference, method, &mut rows.train)?;
    side::fill(&trainer, &mut w, reference, method, &mut rows.eval)?;
    let site = Site::new(c, &opened)?;
    let outcome = stage(c, &mut trainer, &mut w, method, &rows, steps, &mut log, &mut at, &site);
    site.unless_interrupted(outcome, &trainer, &at, &mut log)?;
    if let Some(best) = &rows.best {
        best.load(&trainer, &mut log)?;
    }
    let folder = required(&c.output_dir, "output_dir")?;
    plan.end(&trainer.stream, folder, &log)?;
    if steps > 0 {
        checkpoint::save(&trainer.stream, &trainer.model, opened.tune, &opened.folder, folder)?;
    }
    log.finish()
}

/// Trains over shuffled rows until the trainer has done `steps` steps, evaluating and keeping checkpoints as the settings say. `at`
/// is where it begins, and is kept in step.
pub fn stage(
    c: &Config,
    trainer: &mut Trainer,
    w: &mut Workspace,
    method: &dyn Method,
    rows: &Rows,
    steps: u64,
    log: &mut Log,
    at: &mut At,
    site: &Site<'_>,
) -> Result<()> {
    let (start, n, trace, began) = (Instant::now(), rows.train.len(), log.trace.clone(), (trainer.optimizer.steps(), at.tokens));
    let bar = log.bars.phase("steps", steps as usize);
    let mut order = data::shuffle(n as u32, c.seed, at.epoch, order::ROWS);
    loop {
        let done = trainer.optimizer.steps();
        let due = done == 0 || done == steps || (c.eval_steps > 0 && done.is_multiple_of(u64::from(c.eval_steps)));
        if due && !at.evaluated {
            let stopped = evaluate(trainer, w, method, rows, done, log)?;
            at.evaluated = true;
            if stopped {
                return Ok(());
            }
        }
        if site.due(done) && done > began.0 && done < steps {
            site.keep(trainer, at, log)?;
        }
        if done >= steps {
            return Ok(());
        }
        if at.position as usize >= n.div_ceil(c.batch_size()) {
            (at.epoch, at.position) = (at.epoch + 1, 0);
            order = data::shuffle(n as u32, c.seed, at.epoch, order::ROWS);
        }
        let first = at.position as usize * c.batch_size();
        let chunk = &order[first..(first + c.batch_size()).min(n)];
        let examples: Vec<&Example> = chunk.iter().map(|&i| &rows.train[i as usize]).collect();
        let span = trace.span("step").with("step", done + 1);
        let step = trainer.step(w, method, &examples)?;
        drop(span);
        (at.position, at.tokens, at.evaluated) = (at.position + 1, at.tokens + step.tokens as u64, false);
        let done = done + 1;
        bar.at(done as usize, at.tokens as usize);
        if done.is_multiple_of(u64::from(c.logging_steps)) || done == 1 || done == steps {
            let epoch = f64::from(at.epoch) + (first + chunk.len()) as f64 / n as f64;
            tell(log, &step, (done, steps), epoch, at.tokens as usize, Pace { start, began })?;
        }
    }
}

/// Since when a process trains, and the steps and tokens that were done before.
struct Pace {
    start: Instant,
    began: (u64, u64),
}

fn tell(log: &mut Log, step: &Step, (done, steps): (u64, u64), epoch: f64, tokens: usize, pace: Pace) -> Result<()> {
    let mut row = Map::new();
    let seconds = pace.start.elapsed().as_secs_f64();
    let speed = (tokens as f64 - pace.began.1 as f64) / seconds;
    for (key, value) in [
        ("loss", step.loss),
        ("grad_norm", step.grad_norm),
        ("learning_rate", step.learning_rate),
        ("epoch", epoch),
        ("step_time", step.seconds),
        ("tok_s/train", step.tokens as f64 / step.seconds),
    ] {
        row.insert(key.into(), number(value));
    }
    row.insert("step".into(), json!(done));
    row.insert("num_tokens".into(), json!(tokens));
    step.metrics.iter().for_each(|(name, value)| drop(row.insert((*name).into(), number(*value))));
    let left = (steps - done) as f64 * seconds / (done - pace.began.0).max(1) as f64;
    let text = format!(
        "step  {done}/{steps} epoch {epoch:.2} loss {:.4} grad {:.3} lr {:.2e} {speed:.0} tok/s, {left:.0} s left",
        step.loss, step.grad_norm, step.learning_rate
    );
    log.record(row)?;
    // On a terminal the bar tells of the steps.
    if !log.bars.shown() || done == steps {
        log.say(&text);
    }
    Ok(())
}

/// Held-out loss and the method's metrics, where there are held-out rows; true if the training ends with it. A loss that is the mean
/// over tokens of −logp has a perplexity.
fn evaluate(trainer: &Trainer, w: &mut Workspace, method: &dyn Method, rows: &Rows, step: u64, log: &mut Log) -> Result<bool> {
    if rows.eval.is_empty() {
        return Ok(false);
    }
    let trace = log.trace.clone();
    let _span = trace.span("eval").with("step", step);
    let examples: Vec<&Example> = rows.eval.iter().collect();
    let Loss { value: loss, metrics } = trainer.evaluate(w, method, &examples)?;
    let mut row = Map::new();
    row.insert("step".into(), json!(step));
    row.insert("eval_loss".into(), number(loss));
    let mut text = format!("eval  step {step} loss {loss:.4}");
    if metrics.is_empty() {
        row.insert("eval_perplexity".into(), number(loss.exp()));
        row.insert("eval_tokens".into(), json!(pack::totals(rows.heads, &examples).tokens));
        text += &format!(" perplexity {:.3}", loss.exp());
    }
    for (name, value) in metrics {
        row.insert(format!("eval_{name}"), number(value));
        if let "rewards/accuracies" | "rewards/margins" = name {
            text += &format!(" {} {value:.4}", name.trim_start_matches("rewards/"));
        }
    }
    log.row(row.clone(), &text)?;
    let judged = rows.best.as_ref().filter(|_| step > 0).map(|best| best.judge(&row, trainer, log)).transpose()?;
    Ok(judged.unwrap_or(false))
}
