//! A run's folder as it lies on disk: `run.json`, `log.jsonl`, `completions/`. An unfinished run is a run; a line that is
//! missing or damaged is an error that names file and line.

use super::held_out;
use crate::config::{Calib, Norm};
use crate::data::{Lines, jsonl};
use crate::reward::norm::Normalisation;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A line of the log that reports a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Counts from 1.
    pub step: u64,
    /// Of the optimizer batch.
    pub loss: f64,
}

/// An answer of `completions/`.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Plain 0, guided 1.
    pub side: u64,
    /// The query.
    pub prompt: String,
    /// The answer.
    pub completion: String,
    /// Raw; NaN where the source gave none.
    pub reward: f64,
    /// Its tokens.
    pub tokens: usize,
    /// Whether it ended by itself.
    pub finished: bool,
    /// What became of its group; None where it was left out.
    pub branch: Option<String>,
}

/// What the log and the answers say of an iteration.
#[derive(Clone, Debug, Default)]
pub struct Iteration {
    /// Its last line in the log.
    pub metrics: Map<String, Value>,
    /// Answers by query, in the order of sides and samples.
    pub groups: Vec<Vec<Answer>>,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Where it lies.
    pub folder: PathBuf,
    /// `run.json`.
    pub settings: Value,
    /// Every reported step; those of a supervised stage before the iterations are left out.
    pub steps: Vec<Step>,
    /// Steps and losses on held-out rows.
    pub held_out: Vec<Step>,
    /// Steps, mean rewards and their deviations of answers to held-out queries.
    pub answered: Vec<(u64, f64, f64)>,
    /// Answers to held-out queries at the first and at the last evaluation; empty where no file has them.
    pub before_after: Vec<[Answer; 2]>,
    /// In order; empty for a supervised run.
    pub iterations: Vec<Iteration>,
}

/// A field that must be a number; null stands for one that is not finite.
pub(super) fn number(lines: &Lines, line: &jsonl::Line, name: &str) -> Result<f64> {
    match line.fields.get(name) {
        Some(Value::Null) => Ok(f64::NAN),
        Some(value) if value.is_number() => Ok(value.as_f64().unwrap_or(f64::NAN)),
        Some(other) => Err(lines.error(line.line, format!("field {name}: wanted a number, got {}", jsonl::kind(other)))),
        None => Err(lines.error(line.line, format!("field {name}: wanted a number, got none"))),
    }
}

fn count(lines: &Lines, line: &jsonl::Line, name: &str) -> Result<u64> {
    let value = line.fields.get(name).and_then(Value::as_u64);
    value.ok_or_else(|| lines.error(line.line, format!("field {name}: wanted a whole number, got another or none")))
}

impl Run {
    /// Reads a folder.
    pub fn read(folder: &Path) -> Result<Run> {
        let path = folder.join("run.json");
        let bytes = std::fs::read(&path).map_err(|e| Error::file(&path, format!("cannot read: {e}")))?;
        let settings: Value = serde_json::from_slice(&bytes).map_err(|e| Error::file(&path, e.to_string()))?;
        let mut run = Run {
            folder: folder.into(),
            settings,
            steps: Vec::new(),
            held_out: Vec::new(),
            answered: Vec::new(),
            before_after: Vec::new(),
            iterations: Vec::new(),
        };
        run.log(&folder.join("log.jsonl"))?;
        for (i, iteration) in run.iterations.iter_mut().enumerate() {
            iteration.groups = answers(&folder.join("completions").join(format!("iter-{i:05}.jsonl")))?;
        }
        run.before_after = held_out::before_after(folder, &run.answered)?;
        Ok(run)
    }

    /// A setting of the run.
    pub fn setting(&self, name: &str) -> Option<&Value> {
        self.settings.get("config")?.get(name)
    }

    /// `ple train`, or the supervised command.
    pub fn command(&self) -> &str {
        self.setting("command").and_then(Value::as_str).unwrap_or("run")
    }

    fn log(&mut self, path: &Path) -> Result<()> {
        let every = self.setting("logging_steps").and_then(Value::as_u64).unwrap_or(1).max(1);
        let mut lines = Lines::open(path)?;
        let mut before = 0;
        while let Some(line) = lines.next().transpose()? {
            let step = count(&lines, &line, "step")?;
            let has = |name: &str| line.fields.contains_key(name);
            if has("eval_loss") {
                self.held_out.push(Step { step, loss: number(&lines, &line, "eval_loss")? });
            }
            if has("eval_reward") {
                let [reward, std] = ["eval_reward", "eval_reward_std"].map(|name| number(&lines, &line, name));
                self.answered.push((step, reward?, std?));
            }
            if has("eval_loss") || has("eval_reward") {
                continue;
            }
            let sampled = line.fields.contains_key("iteration");
            if sampled {
                // A supervised stage before the iterations has a log and an optimizer of its own.
                if self.iterations.is_empty() {
                    before = 0;
                    self.steps.clear();
                }
                self.iteration(&lines, &line)?;
            }
            let next = if sampled { before + 1 } else { (before / every + 1) * every };
            let repeated = sampled && step == before;
            if step > next || (step <= before && !repeated) {
                return Err(lines.error(line.line, format!("field step: wanted {next}, got {step}: lines are missing or twice")));
            }
            // An iteration that keeps nothing takes no step.
            if step > before {
                self.steps.push(Step { step, loss: number(&lines, &line, "loss")? });
            }
            before = step;
        }
        Ok(())
    }

    /// A line of the iteration that is open, or the first of the next one.
    fn iteration(&mut self, lines: &Lines, line: &jsonl::Line) -> Result<()> {
        let (got, next) = (count(lines, line, "iteration")?, self.iterations.len() as u64);
        match self.iterations.last_mut() {
            Some(open) if got + 1 == next => open.metrics.clone_from(&line.fields),
            _ if got == next => self.iterations.push(Iteration { metrics: line.fields.clone(), groups: Vec::new() }),
            _ => return Err(lines.error(line.line, format!("field iteration: wanted {next}, got {got}: lines are missing"))),
        }
        Ok(())
    }

    /// Delta of every pair of an iteration, as the run compared it with tau; empty without a guided side.
    pub fn deltas(&self, iteration: &Iteration) -> Vec<f64> {
        let text = |name: &str| self.setting(name).and_then(Value::as_str).unwrap_or_default();
        let given = |name: &str| iteration.metrics.get(name).and_then(Value::as_f64);
        let norm = match (text("reward_norm"), given("ple/calib_mean"), given("ple/calib_scale")) {
            ("bt", ..) => Normalisation::new(Norm::Bt, Calib::FirstIter, false),
            (_, Some(mean), Some(std)) => Normalisation::new(Norm::Sigmoid, Calib::Fixed { mean, std }, false),
            _ => Normalisation::new(Norm::None, Calib::FirstIter, true),
        };
        let penalty = match text("ple_truncated") {
            "penalize" => self.setting("missing_eos_penalty").and_then(Value::as_f64).unwrap_or(0.0),
            _ => 0.0,
        };
        let raw = |a: &Answer| a.reward - if a.finished { 0.0 } else { penalty };
        let delta = |group: &Vec<Answer>| match group.as_slice() {
            [plain, guided] if plain.side == 0 && guided.side == 1 => Some(norm.delta(raw(plain), raw(guided))),
            _ => None,
        };
        iteration.groups.iter().filter_map(delta).collect()
    }
}

impl Iteration {
    /// A metric of its log line; NaN if there is none.
    pub fn metric(&self, name: &str) -> f64 {
        self.metrics.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN)
    }

    /// Mean of a number of the answers of a side; NaN if the side has none.
    pub fn mean(&self, side: u64, of: impl Fn(&Answer) -> f64) -> f64 {
        crate::eval::mean(self.groups.iter().flatten().filter(|a| a.side == side).map(of))
    }

    /// Standard deviation of a number of the answers of a side; NaN if the side has none.
    pub fn deviation(&self, side: u64, of: impl Fn(&Answer) -> f64) -> f64 {
        crate::eval::moments(&self.groups.iter().flatten().filter(|a| a.side == side).map(of).collect::<Vec<_>>()).1
    }

    /// Share of the groups that went into a branch; None counts those left out.
    pub fn share(&self, branch: Option<&str>) -> f64 {
        let of = |group: &&Vec<Answer>| label(group) == branch;
        self.groups.iter().filter(of).count() as f64 / self.groups.len().max(1) as f64
    }
}

/// Row, side and sample of an answer.
type Key = (u64, u64, u64);

/// What became of a group: the branch of the answers that were trained.
pub fn label(group: &[Answer]) -> Option<&str> {
    group.iter().find_map(|a| a.branch.as_deref())
}

/// The answers of an iteration; every group has the sides and samples of the first.
fn answers(path: &Path) -> Result<Vec<Vec<Answer>>> {
    let mut lines = Lines::open(path)?;
    let (mut groups, mut keys): (Vec<Vec<Answer>>, Vec<Vec<Key>>) = (Vec::new(), Vec::new());
    let mut last = 0;
    while let Some(line) = lines.next().transpose()? {
        last = line.line;
        let text = |name: &str| match line.fields.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            _ => Err(lines.error(line.line, format!("field {name}: wanted a string, got another or none"))),
        };
        let tokens = line.fields.get("ids").and_then(Value::as_array).map(Vec::len);
        let tokens = tokens.ok_or_else(|| lines.error(line.line, "field ids: wanted a list of ids, got another or none"))?;
        let [row, side, sample] = ["row", "side", "sample"].map(|name| count(&lines, &line, name));
        let (row, side, sample) = (row?, side?, sample?);
        let answer = Answer {
            side,
            prompt: text("prompt")?,
            completion: text("completion")?,
            reward: number(&lines, &line, "reward")?,
            tokens,
            finished: line.fields.get("finished").and_then(Value::as_bool).unwrap_or(true),
            branch: line.fields.get("branch").and_then(Value::as_str).map(String::from),
        };
        if (side, sample) == (0, 0) {
            complete(&lines, line.line, &keys)?;
            groups.push(Vec::new());
            keys.push(Vec::new());
        }
        let (Some(group), Some(key)) = (groups.last_mut(), keys.last_mut()) else {
            return Err(lines
                .error(line.line, format!("wanted side 0, sample 0 of a query first, got {side}, {sample}: lines are missing")));
        };
        if key.first().is_some_and(|(first, ..)| *first != row) {
            return Err(lines.error(line.line, format!("field row: wanted {}, got {row}: lines are missing", key[0].0)));
        }
        group.push(answer);
        key.push((row, side, sample));
    }
    complete(&lines, last, &keys)?;
    Ok(groups)
}

/// That the last group has the shape of the first.
fn complete(lines: &Lines, line: u64, keys: &[Vec<Key>]) -> Result<()> {
    let shape = |keys: &Vec<Key>| keys.iter().map(|(_, side, sample)| (*side, *sample)).collect::<Vec<_>>();
    match (keys.first().map(shape), keys.last().map(shape)) {
        (Some(first), Some(last)) if first != last => {
            Err(lines.error(line, format!("wanted {} answers to each query, got {}: lines are missing", first.len(), last.len())))
        }
        _ => Ok(()),
    }
}
