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
use crate::config::Report;
use csv::Metrics;
use serde_json::{Map, Value};
use std::path::Path;
use tensorboard::Events;

/// The name of the table in a run's folder.
pub const METRICS: &str = "metrics.csv";

/// One call per row of the log keeps all of them in step.
#[derive(Debug)]
pub struct Telemetry {
    events: Option<Events>,
    metrics: Option<Metrics>,
    /// Written where a checkpoint and where the run ends, see [`TrainerState::write`].
    pub state: TrainerState,
    /// Of the last row that named one, counted over all stages.
    step: u64,
    /// Steps of the stages before this one.
    before: u64,
}

/// Under which the state keeps the bytes of the table's rows.
const KEPT: &str = "metrics";

fn wanted(to: &[Report], one: Report) -> bool {
    to.iter().any(|to| *to == one || *to == Report::All)
}

impl Telemetry {
    /// Starts the files of a run in `folder`, which exists. `state` has no rows yet.
    pub fn create(folder: &Path, state: TrainerState, to: &[Report]) -> Result<Telemetry> {
        let events = wanted(to, Report::Tensorboard).then(|| Events::create(folder)).transpose()?;
        let metrics = wanted(to, Report::Csv).then(|| Metrics::create(&folder.join(METRICS))).transpose()?;
        Ok(Telemetry { events, metrics, state, step: 0, before: 0 })
    }

    /// Goes on from a checkpoint that [`Telemetry::keep`] has written to. What the files say of later steps is cut off or, in
    /// TensorBoard's, declared void. `before` are the steps of the stages before the one that goes on.
    pub fn resume(folder: &Path, checkpoint: &Path, before: u64, to: &[Report]) -> Result<Telemetry> {
        let state = TrainerState::read(checkpoint)?;
        let (step, rows) = (state.global_step, state.counted(KEPT, "bytes"));
        let events = wanted(to, Report::Tensorboard).then(|| Events::resume(folder, step + 1)).transpose()?;
        let table = || Metrics::resume(&folder.join(METRICS), rows);
        let metrics = wanted(to, Report::Csv).then(table).transpose()?;
        Ok(Telemetry { events, metrics, state, step, before })
    }

    /// Adds a row of the log. Its `step` is the stage's optimizer's; a row without one belongs to the step before it. Events and
    /// state count steps on over the stages.
    pub fn row(&mut self, row: &Map<String, Value>) -> Result<()> {
        if let Some(metrics) = &mut self.metrics {
            metrics.row(row)?;
        }
        let own = row.get("step").and_then(Value::as_u64);
        self.step = own.map_or(self.step, |step| step + self.before);
        if let Some(events) = &mut self.events {
            events.row(self.step, row)?;
        }
        self.state.row(row, own.map(|_| self.step));
        Ok(())
    }

    /// The next stage counts its steps from 1 again.
    pub fn stage(&mut self) {
        self.before = self.step;
    }

    /// Writes `trainer_state.json` into a folder: the run's at its end, a checkpoint's for [`Telemetry::resume`].
    pub fn keep(&mut self, folder: &Path) -> Result<()> {
        if let Some(metrics) = &self.metrics {
            self.state.attribute(KEPT, "bytes", metrics.bytes());
        }
        self.state.write(folder)
    }
}

#[cfg(test)]
mod tests;
