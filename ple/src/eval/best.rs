//! What an evaluation decides: whether it is the best so far, whose parameters are kept in `best/`, and whether the training ends
//! early. The meanings are those of the Hugging Face trainer; its state (`best_*`, the count of early stopping) lies in
//! `trainer_state.json`, so a run that goes on from a checkpoint goes on judging.

use crate::config::Config;
use crate::log::Log;
use crate::telemetry::TrainerState;
use crate::trainer::Trainer;
use crate::{Error, Result, checkpoint};
use model::Tune;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Under which the state counts, as the trainer's callback does.
const CALLBACK: &str = "EarlyStoppingCallback";
const COUNTER: &str = "early_stopping_patience_counter";

/// How evaluations of a run are judged.
#[derive(Clone, Debug)]
pub struct Best {
    /// A name of the log.
    metric: String,
    greater: bool,
    load: bool,
    /// 0 is off.
    patience: u64,
    threshold: f64,
    tune: Tune,
    /// Of the model, see [`checkpoint::save`].
    base: PathBuf,
    /// Where the best is kept.
    folder: PathBuf,
}

impl Best {
    /// None where nothing asks for it: neither the best at the end, nor early stopping, nor a metric by its name.
    pub fn new(c: &Config, tune: Tune, base: &Path) -> Option<Best> {
        let asked = c.load_best_model_at_end || c.early_stopping_patience > 0 || c.metric_for_best_model.is_some();
        let output = c.output_dir.as_ref().filter(|_| asked && c.eval_dataset_name.is_some())?;
        let default = if c.command.samples() { "reward" } else { "loss" };
        let metric = c.metric_for_best_model.as_deref().unwrap_or(default);
        let metric = format!("eval_{}", metric.strip_prefix("eval_").unwrap_or(metric));
        Some(Best {
            greater: c.greater_is_better.unwrap_or(metric.starts_with("eval_reward")),
            metric,
            load: c.load_best_model_at_end,
            patience: c.early_stopping_patience.into(),
            threshold: c.early_stopping_threshold,
            tune,
            base: base.into(),
            folder: output.join("best"),
        })
    }

    /// Judges a row of an evaluation; true if the training ends with it. The best so far replaces what is in `best/`.
    pub fn judge(&self, row: &Map<String, Value>, trainer: &Trainer, log: &mut Log) -> Result<bool> {
        let value = row.get(&self.metric).and_then(Value::as_f64).ok_or_else(|| {
            let wanted = "metric_for_best_model: wanted a number that an evaluation gives";
            Error::Usage(format!("{wanted}, got {}, which the held-out rows do not", self.metric))
        })?;
        let (best, stop) = self.verdict(value, log.state());
        if best {
            checkpoint::save(&trainer.stream, &trainer.model, self.tune, &self.base, &self.folder)?;
            log.state().best(value, &self.folder);
        }
        if stop {
            log.say(&format!("note  {} has not become better {} times in a row: the training ends", self.metric, self.patience));
        }
        Ok(stop)
    }

    /// Whether a value is the best, and whether it is the last; counts in the state.
    fn verdict(&self, value: f64, state: &mut TrainerState) -> (bool, bool) {
        let better = |best: f64| if self.greater { value > best } else { value < best };
        let best = state.best_metric.is_none_or(better);
        if self.patience == 0 {
            return (best, false);
        }
        let enough = state.best_metric.is_none_or(|old| better(old) && (value - old).abs() > self.threshold);
        let count = if enough { 0 } else { state.counted(CALLBACK, COUNTER) + 1 };
        state.attribute(CALLBACK, COUNTER, count);
        (best, count >= self.patience)
    }

    /// At the end, where the settings want it: the trainer's parameters become those of the best evaluation.
    pub fn load(&self, trainer: &Trainer, log: &mut Log) -> Result<()> {
        let state = log.state();
        let (Some(step), Some(value), true) = (state.best_global_step, state.best_metric, self.load) else { return Ok(()) };
        checkpoint::restore_tuned(&trainer.stream, &trainer.model, self.tune, &self.folder)?;
        log.say(&format!("note  the run ends with what it had at step {step}: {} {value:.4} is the best", self.metric));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Command;

    fn verdicts(words: &str, values: &[f64]) -> Vec<(bool, bool)> {
        let mut c = Config::defaults(Command::Train);
        (c.output_dir, c.eval_dataset_name) = (Some("o".into()), Some("e".into()));
        for word in words.split_whitespace() {
            match word.split_once('=') {
                Some(("patience", n)) => c.early_stopping_patience = n.parse().unwrap_or(0),
                Some(("threshold", x)) => c.early_stopping_threshold = x.parse().unwrap_or(0.0),
                Some((_, name)) => c.metric_for_best_model = Some(name.into()),
                None => c.greater_is_better = Some(true),
            }
        }
        let mut state = TrainerState::default();
        let Some(best) = Best::new(&c, Tune::Full, Path::new("m")) else { return Vec::new() };
        let judge = |value: &f64| {
            let verdict = best.verdict(*value, &mut state);
            if verdict.0 {
                state.best(*value, Path::new("o/best"));
            }
            verdict
        };
        values.iter().map(judge).collect()
    }

    /// The trainer compares with the best before the evaluation, and a better one below the threshold counts against it.
    #[test]
    fn verdicts_are_those_of_the_trainer() {
        let (yes, no, last) = ((true, false), (false, false), (false, true));
        assert_eq!(verdicts("metric=reward", &[0.5, 0.4, 0.6]), [yes, no, yes]);
        assert_eq!(verdicts("metric=eval_loss", &[2.0, 3.0, 1.0]), [yes, no, yes]);
        assert_eq!(verdicts("metric=eval_loss greater", &[2.0, 3.0]), [yes, yes]);
        assert_eq!(verdicts("patience=2", &[0.5, 0.5, 0.6, 0.5, 0.4]), [yes, no, yes, no, last]);
        assert_eq!(verdicts("patience=1 threshold=0.2", &[0.5, 0.6]), [yes, (true, true)]);
        assert!(verdicts("", &[1.0]).is_empty());
    }
}
