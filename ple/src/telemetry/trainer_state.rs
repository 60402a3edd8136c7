//! `trainer_state.json` as the Hugging Face trainer writes it: two spaces, sorted keys, a line end. Its reader refuses a key that
//! it does not know, so the fields are exactly its own.

use crate::config::Config;
use crate::{Error, Result};
use runtime::host;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The file's name, in a run's folder and in each checkpoint's.
pub const NAME: &str = "trainer_state.json";

/// How far a run is, and every row of its log. Fields stand in the order of the alphabet, as the file has them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainerState {
    /// The step of `best_metric`.
    pub best_global_step: Option<u64>,
    /// The best value so far of the metric that chooses a checkpoint.
    pub best_metric: Option<f64>,
    /// The folder of that checkpoint.
    pub best_model_checkpoint: Option<String>,
    /// Passes over the data, with a fraction.
    pub epoch: f64,
    /// Steps between evaluations.
    pub eval_steps: u64,
    /// Optimizer steps done.
    pub global_step: u64,
    /// False.
    pub is_hyper_param_search: bool,
    /// Whether this process writes, of those on its machine.
    pub is_local_process_zero: bool,
    /// Whether this process writes, of all.
    pub is_world_process_zero: bool,
    /// Rows of `log.jsonl` as they are, keys sorted.
    pub log_history: Vec<BTreeMap<String, Value>>,
    /// Steps between rows.
    pub logging_steps: u64,
    /// Optimizer steps of the whole run.
    pub max_steps: u64,
    /// Tokens trained on.
    pub num_input_tokens_seen: u64,
    /// Whole passes over the data, rounded up.
    pub num_train_epochs: u64,
    /// Steps between checkpoints.
    pub save_steps: u64,
    /// What goes on after a stop beside the trainer: bytes of the table, the count of early stopping.
    pub stateful_callbacks: BTreeMap<String, Value>,
    /// Not counted: 0.
    pub total_flos: f64,
    /// Examples of a micro-batch.
    pub train_batch_size: u64,
    /// None here.
    pub trial_name: Option<String>,
    /// None here.
    pub trial_params: Option<Value>,
}

impl TrainerState {
    /// Of a run that begins and takes `max_steps` optimizer steps over `epochs` passes.
    pub fn new(c: &Config, max_steps: u64, epochs: f64) -> TrainerState {
        TrainerState {
            eval_steps: c.eval_steps.into(),
            is_local_process_zero: true,
            is_world_process_zero: true,
            logging_steps: c.logging_steps.into(),
            max_steps,
            num_train_epochs: epochs.ceil() as u64,
            save_steps: c.save_steps.into(),
            train_batch_size: c.per_device_train_batch_size.into(),
            ..TrainerState::default()
        }
    }

    /// Of a checkpoint.
    pub fn read(folder: &Path) -> Result<TrainerState> {
        let path = folder.join(NAME);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::file(&path, format!("cannot read: {e}")))?;
        serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("wanted the state of a trainer: {e}")))
    }

    /// Adds a row of the log; `epoch` and `num_tokens` in it and `step`, which it is kept with, say how far the run is.
    pub fn row(&mut self, row: &Map<String, Value>, step: Option<u64>) {
        let count = |name: &str| row.get(name).and_then(Value::as_u64);
        self.global_step = step.unwrap_or(self.global_step);
        self.num_input_tokens_seen = count("num_tokens").unwrap_or(self.num_input_tokens_seen);
        self.epoch = row.get("epoch").and_then(Value::as_f64).unwrap_or(self.epoch);
        let mut row: BTreeMap<String, Value> = row.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        row.extend(step.map(|step| ("step".to_string(), step.into())));
        self.log_history.push(row);
    }

    /// Keeps a number of what goes on beside the trainer.
    pub fn attribute(&mut self, owner: &str, name: &str, value: u64) {
        let kept = self.stateful_callbacks.entry(owner.to_string()).or_insert_with(|| json!({ "args": {}, "attributes": {} }));
        kept["attributes"][name] = value.into();
    }

    /// A number that [`TrainerState::attribute`] has kept; 0 if it has not.
    pub fn counted(&self, owner: &str, name: &str) -> u64 {
        self.stateful_callbacks.get(owner).and_then(|kept| kept["attributes"][name].as_u64()).unwrap_or(0)
    }

    /// Notes that this step's checkpoint is the best so far, by a metric of that value.
    pub fn best(&mut self, metric: f64, checkpoint: &Path) {
        self.best_global_step = Some(self.global_step);
        self.best_metric = Some(metric);
        self.best_model_checkpoint = Some(checkpoint.to_string_lossy().into_owned());
    }

    /// Writes the file into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        Ok(host::write_file(&folder.join(NAME), |out| {
            serde_json::to_writer_pretty(&mut *out, self)?;
            out.write_all(b"\n")
        })?)
    }
}
