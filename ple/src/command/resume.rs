//! Where a run goes on from, and the checkpoints it leaves: after every `save_steps`, after an iteration, and on a signal.

use super::required;
use crate::checkpoint::{self, Drawn, Stage, State};
use crate::config::{Config, Resume};
use crate::log::{self, Log};
use crate::open::Opened;
use crate::telemetry::trainer_state;
use crate::trainer::Trainer;
use crate::{Error, Result};
use model::Tune;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// How far a run is; what [`State`] keeps beside the optimizer's steps.
#[derive(Clone, Debug)]
pub struct At {
    /// What is trained.
    pub stage: Stage,
    /// Optimizer steps of the stages before this one.
    pub before: u64,
    /// Of the loop; 0 in the supervised stage.
    pub iteration: u32,
    /// Pass over the rows, or over the iteration's examples.
    pub epoch: u32,
    /// Optimizer batches done in this epoch.
    pub position: u64,
    /// Tokens trained in this stage.
    pub tokens: u64,
    /// The method from before the labels of `iteration`.
    pub method: Value,
    /// Whether the evaluation that is due after the last step is in the log.
    pub evaluated: bool,
    /// Of the iteration whose examples are being trained.
    pub drawn: Option<Drawn>,
}

impl At {
    /// The beginning of a stage after `before` steps.
    pub fn start(stage: Stage, before: u64) -> At {
        let method = Value::Null;
        At { stage, before, iteration: 0, epoch: 0, position: 0, tokens: 0, method, evaluated: false, drawn: None }
    }
}

/// A checkpoint to go on from.
#[derive(Debug)]
pub struct Resumed {
    folder: PathBuf,
    state: State,
}

/// What `resume_from_checkpoint` finds. Without it the run begins: checkpoints of an earlier run that has ended are removed, as its
/// other files are replaced; those of one that has not are a reason to refuse.
pub fn find(c: &Config, said: &mut Vec<String>) -> Result<Option<Resumed>> {
    let output = required(&c.output_dir, "output_dir")?;
    let (folder, state) = match &c.resume_from_checkpoint {
        Resume::From(folder) => (folder.clone(), checkpoint::load(folder)?),
        Resume::Newest => {
            let newest = checkpoint::newest(output)?;
            said.extend(newest.passed.iter().map(|(folder, why)| format!("note  {} is passed over: {why}", folder.display())));
            let Some(found) = newest.found else {
                said.push(format!("note  no whole checkpoint in {}: the run starts at step 0", output.display()));
                return Ok(None);
            };
            // A run that was killed after its last checkpoint had not removed the one that this made too many.
            checkpoint::prune(output, c.save_total_limit as usize, None)?;
            found
        }
        Resume::No => {
            if output.join(trainer_state::NAME).exists() {
                return checkpoint::clear(output).map(|()| None);
            }
            let Some((folder, _)) = (if output.is_dir() { checkpoint::newest(output)?.found } else { None }) else {
                return Ok(None);
            };
            return Err(Error::Usage(format!(
                "output_dir: {} is there from a run that has not ended; --resume_from_checkpoint true goes on from it, another folder \
                 begins anew",
                folder.display()
            )));
        }
    };
    said.push(format!("note  goes on after step {} from {}", state.step, folder.display()));
    Ok(Some(Resumed { folder, state }))
}

impl Resumed {
    /// What is trained there.
    pub fn stage(&self) -> Stage {
        self.state.stage
    }

    /// Where the run goes on.
    pub fn at(&self) -> At {
        let State { stage, iteration, epoch, position, tokens, method, evaluated, drawn, .. } = self.state.clone();
        At { stage, before: self.before(), iteration, epoch, position, tokens, method, evaluated, drawn }
    }

    fn before(&self) -> u64 {
        self.state.step.saturating_sub(self.state.schedule_step)
    }

    /// The trainer, whose optimizer is that of the stage, as it was. Another length of the schedule is another run.
    pub fn restore(&self, trainer: &mut Trainer, tune: Tune) -> Result<()> {
        let (wanted, got) = (self.state.schedule_total, trainer.optimizer.total());
        if wanted != got {
            let text = format!("schedule_total: wanted the {got} steps of these settings, got {wanted}");
            return Err(Error::file(&self.folder, text));
        }
        checkpoint::restore(trainer, tune, &self.folder)
    }

    /// Cuts the run's files to what they were then, and opens its log.
    pub fn log(&self, c: &Config) -> Result<Log> {
        let output = required(&c.output_dir, "output_dir")?;
        checkpoint::cut(output, &self.state.lengths)?;
        Log::resume(output, c, &self.folder, self.before())
    }
}

/// Where a run's checkpoints go.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    c: &'a Config,
    folder: &'a Path,
    tune: Tune,
    base: &'a Path,
}

impl<'a> Site<'a> {
    /// Of a run's settings and of what it trains.
    pub fn new(c: &'a Config, opened: &'a Opened) -> Result<Site<'a>> {
        Ok(Site { c, folder: required(&c.output_dir, "output_dir")?, tune: opened.tune, base: &opened.folder })
    }

    /// Writes `checkpoint-STEP/` and removes those beyond `save_total_limit`.
    pub fn keep(&self, trainer: &Trainer, at: &At, log: &mut Log) -> Result<PathBuf> {
        let trace = log.trace.clone();
        let _span = trace.span("checkpoint").with("step", at.before + trainer.optimizer.steps());
        let At { stage, before, iteration, epoch, position, tokens, method, evaluated, drawn } = at.clone();
        let (done, total) = (trainer.optimizer.steps(), trainer.optimizer.total());
        let state = State {
            step: before + done,
            stage,
            iteration,
            epoch,
            position,
            schedule_step: done,
            schedule_total: total,
            tokens,
            method,
            evaluated,
            drawn,
            lengths: checkpoint::lengths(self.folder, [log::NAME])?,
        };
        let folder = checkpoint::write(self.folder, trainer, self.tune, self.base, &state, |folder| log.keep(folder))?;
        checkpoint::prune(self.folder, self.c.save_total_limit as usize, None)?;
        Ok(folder)
    }

    /// What is trained.
    pub fn tune(&self) -> Tune {
        self.tune
    }

    /// Whether `save_steps` asks for a checkpoint after this step.
    pub fn due(&self, step: u64) -> bool {
        self.c.save_steps > 0 && step > 0 && step.is_multiple_of(u64::from(self.c.save_steps))
    }

    /// What a signal leaves of a run: a checkpoint of the last finished step, and a line that says so. Anything else that came of
    /// it goes on as it is.
    pub fn unless_interrupted<T>(&self, outcome: Result<T>, trainer: &Trainer, at: &At, log: &mut Log) -> Result<T> {
        if matches!(outcome, Err(Error::Interrupted)) {
            let folder = self.keep(trainer, at, log)?;
            let step = at.before + trainer.optimizer.steps();
            log.say(&format!("interrupted after step {step}; --resume_from_checkpoint true goes on from {}", folder.display()));
        }
        outcome
    }
}
