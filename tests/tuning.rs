//! A tiny run whose next step depends on everything a checkpoint keeps: warm-up, a schedule that falls, clipping, weight decay, both
//! moments, and the number of steps taken.

use crate::tiny::{self, Random};
use anyhow::Result;
use model::{Lora, Transformer, Tune};
use ple::checkpoint::{self, Stage, State};
use ple::config::{Command, Config, Scheduler};
use ple::method::{Example, sft::Sft};
use ple::optim::Optimizer;
use ple::pack;
use ple::trainer::{Step, Trainer, Workspace};
use runtime::{DType, Isa, Stream, comm::Single};
use std::path::{Path, PathBuf};

/// Steps of the schedule, the first of which rise.
const STEPS: u64 = 400;
/// Of the warm-up.
pub const WARMUP: u32 = 4;
/// The norm that gradients are cut to.
pub const MAX_GRAD_NORM: f64 = 0.05;

/// The run.
pub struct Tuning {
    /// What is trained.
    pub trainer: Trainer,
    /// Which parameters.
    pub tune: Tune,
    base: tempfile::TempDir,
    workspace: Workspace,
    tokens: u64,
}

impl Tuning {
    /// Before its first step.
    pub fn new(tune: Tune) -> Result<Tuning> {
        let (base, s) = (tiny::folder(true, DType::F32)?, Stream::cpu(1, Isa::detect()));
        let mut model = Transformer::load(&s, base.path(), None)?;
        if let Tune::Lora(_) = tune {
            model.add_slot(Lora::upload(&s, model.base(), tiny::adapter(&model, 2, 1))?)?;
        }
        let settings = Config {
            learning_rate: 1e-2,
            lr_scheduler_type: Scheduler::Cosine,
            warmup_steps: WARMUP,
            weight_decay: 0.1,
            max_grad_norm: MAX_GRAD_NORM,
            ..Config::defaults(Command::Sft)
        };
        let len = model.trained(tune)?.0.flat().len();
        let optimizer = Optimizer::new(&s, len, &settings, STEPS)?;
        let trainer = Trainer::new(s.clone(), model, tune, optimizer, Box::new(Single))?;
        let workspace = Workspace::new(&s, &trainer.model, pack::limits(64), None)?;
        Ok(Tuning { trainer, tune, base, workspace, tokens: 0 })
    }

    /// One that goes on from a checkpoint.
    pub fn from(tune: Tune, folder: &Path, state: &State) -> Result<Tuning> {
        let mut tuning = Tuning::new(tune)?;
        checkpoint::restore(&mut tuning.trainer, tune, folder)?;
        tuning.tokens = state.tokens;
        Ok(tuning)
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.trainer.optimizer.steps()
    }

    /// The next step, over examples that its number alone decides.
    pub fn step(&mut self) -> Result<Step> {
        let mut random = Random(self.steps());
        let mut example = |row| Example { row, prompt: random.ids(4), answers: vec![random.ids(5)], ..Default::default() };
        let examples: Vec<Example> = (0..3).map(&mut example).collect();
        let step = self.trainer.step(&mut self.workspace, &Sft, &examples.iter().collect::<Vec<_>>())?;
        self.tokens += step.tokens as u64;
        Ok(step)
    }

    /// How far it is.
    pub fn state(&self) -> State {
        State {
            step: self.steps(),
            stage: Stage::Sft,
            iteration: 0,
            epoch: 0,
            position: self.steps(),
            schedule_step: self.steps(),
            schedule_total: STEPS,
            tokens: self.tokens,
            evaluated: true,
            drawn: None,
            method: serde_json::json!({ "scale": 0.1 + 0.2, "seen": [1, null] }),
            lengths: [("log.jsonl".to_string(), 7 * self.steps())].into(),
        }
    }

    /// Writes its checkpoint.
    pub fn write(&self, output: &Path, state: &State) -> Result<PathBuf> {
        Ok(checkpoint::write(output, &self.trainer, self.tune, self.base.path(), state, |_| Ok(()))?)
    }

    /// The names and numbers of what is tuned.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(checkpoint::fingerprint(&self.trainer.stream, &self.trainer.model, self.tune)?)
    }
}

/// Goes on from the newest checkpoint of `output` until `steps` are done, with a checkpoint after each, every third of them written
/// twice, and two kept. Says `ready`, then each step whose checkpoint is written.
pub fn go_on(output: &Path, steps: u64, say: fn(&str)) -> Result<()> {
    let newest = checkpoint::newest(output)?;
    anyhow::ensure!(newest.passed.is_empty(), "{:?}", newest.passed);
    let tune = Tune::Lora(0);
    let mut tuning = match &newest.found {
        Some((folder, state)) => Tuning::from(tune, folder, state)?,
        None => Tuning::new(tune)?,
    };
    say("ready");
    // The first of two writes of a step: the second is still to come.
    if newest.found.is_some_and(|(_, state)| state.stage == Stage::Ple) {
        tuning.write(output, &tuning.state())?;
    }
    while tuning.steps() < steps {
        tuning.step()?;
        let state = tuning.state();
        if state.step.is_multiple_of(3) {
            tuning.write(output, &State { stage: Stage::Ple, ..state.clone() })?;
        }
        tuning.write(output, &state)?;
        say(&state.step.to_string());
        checkpoint::prune(output, 2, None)?;
    }
    Ok(())
}
