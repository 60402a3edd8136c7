//! The files of a run that other tools read, beside `log.jsonl`: TensorBoard events, `metrics.csv`, `trainer_state.json`, a Chrome
//! trace, and what `run.json` says of where a run came from. Nothing in a run reads them back, except to go on after a stop.

pub mod csv;
mod provenance;
pub mod tensorboard;
pub mod trace;
pub mod trainer_state;

pub use provenance::{Hash, hashes, provenance};
pub use trace::{Span, Trace};
pub use trainer_state::TrainerState;

use crate::Result;
use csv::Metrics;
use serde_json::{Map, Value};
use std::path::Path;
use tensorboard::Events;

/// The name of the table in a run's folder.
pub const METRICS: &str = "metrics.csv";

/// One call per row of the log keeps all of them in step.
#[derive(Debug)]
pub struct Telemetry {
    events: Events,
    metrics: Metrics,
    /// Written where a checkpoint and where the run ends, see [`TrainerState::write`].
    pub state: TrainerState,
    /// Of the last row that named one.
    step: u64,
}

impl Telemetry {
    /// Starts the files of a run in `folder`, which exists. `state` has no rows yet.
    pub fn create(folder: &Path, state: TrainerState) -> Result<Telemetry> {
        Ok(Telemetry { events: Events::create(folder)?, metrics: Metrics::create(&folder.join(METRICS))?, state, step: 0 })
    }

    /// Goes on from a checkpoint: `state` as it was read from there, `metrics` as [`Telemetry::metrics`] was when it was
    /// written. What the files say of later steps is cut off or, in TensorBoard's, declared void.
    pub fn resume(folder: &Path, state: TrainerState, metrics: u64) -> Result<Telemetry> {
        let step = state.global_step;
        let table = Metrics::resume(&folder.join(METRICS), metrics)?;
        Ok(Telemetry { events: Events::resume(folder, step + 1)?, metrics: table, state, step })
    }

    /// Adds a row of the log. Its `step` is the optimizer's; a row without one belongs to the step before it.
    pub fn row(&mut self, row: &Map<String, Value>) -> Result<()> {
        self.step = row.get("step").and_then(Value::as_u64).unwrap_or(self.step);
        self.events.row(self.step, row)?;
        self.metrics.row(row)?;
        self.state.row(row);
        Ok(())
    }

    /// Bytes of the table's rows, which a checkpoint keeps.
    pub fn metrics(&self) -> u64 {
        self.metrics.bytes()
    }
}

#[cfg(test)]
mod tests;
