//! One file per command: settings to a finished run.

pub mod bench;
pub mod chat;
pub mod completions;
pub mod config;
pub mod demo;
pub mod diff;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod logprob;
pub mod merge;
pub mod pairs;
pub mod report;
pub mod rerun;
pub mod resume;
pub mod score;
pub mod selftest;
pub mod sft;
pub mod train;

use crate::checkpoint::{create_folder, remove_stale};
use crate::config::Config;
use crate::data::Dropped;
use crate::log::Log;
use crate::memory::Planned;
use crate::open::Opened;
use crate::optim::Optimizer;
use crate::principle::Principle;
use crate::telemetry::{self, TrainerState};
use crate::trainer::Trainer;
use crate::{Error, Result};
use resume::Resumed;
use runtime::{comm::Single, host};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// A setting that [`Config::parse`] has checked to be there.
fn required<'a>(value: &'a Option<PathBuf>, key: &str) -> Result<&'a Path> {
    value.as_deref().ok_or_else(|| Error::Usage(format!("{key}: wanted a path, got nothing")))
}

/// `max_steps`, or no limit.
fn most_steps(c: &Config) -> u64 {
    if c.max_steps > 0 { c.max_steps as u64 } else { u64::MAX }
}

/// Makes the run's folder, its log and `run.json`, and says what was opened and planned. With the log come the files of `run.json`.
fn start(
    c: &Config,
    opened: &Opened,
    trainer: &Trainer,
    plan: &Planned,
    resumed: Option<&Resumed>,
) -> Result<(Log, Map<String, Value>)> {
    let folder = required(&c.output_dir, "output_dir")?;
    create_folder(folder)?;
    let stale = remove_stale(folder)?;
    // It says that a run has ended; this one has not.
    let ended = folder.join(telemetry::trainer_state::NAME);
    match std::fs::remove_file(&ended) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(runtime::Error::File { path: ended, action: "remove", source }.into());
        }
        _ => {}
    }
    let log = match resumed {
        Some(resumed) => resumed.log(c)?,
        None => Log::create(folder, c, TrainerState::new(c, trainer.optimizer.total(), c.num_train_epochs))?,
    };
    stale
        .iter()
        .for_each(|path| log.say(&format!("note  {} is removed: it was left by a process that has ended", path.display())));
    let info = opened_info(trainer);
    let mut run = telemetry::provenance(c, &trainer.stream);
    run["parameters"] = json!({ "base": trainer.model.base().parameters(), "trainable": trainer.parameters() });
    run["memory"] = json!({ "planned": plan.to_json() });
    host::write_file(&folder.join("run.json"), |out| writeln!(out, "{run:#}"))?;
    c.notes.iter().chain(&trainer.model.config.warnings).chain(&opened.notes).for_each(|note| log.say(&format!("note  {note}")));
    log.say(&format!(
        "ple {} · {info} · seed {} · {} parameters, {} trainable · {}",
        env!("CARGO_PKG_VERSION"),
        c.seed,
        trainer.model.base().parameters(),
        trainer.parameters(),
        opened.folder.display(),
    ));
    log.say(&format!("memory {plan}"));
    Ok((log, run["files"].as_object().cloned().unwrap_or_default()))
}

fn opened_info(trainer: &Trainer) -> String {
    let info = trainer.stream.backend().info();
    format!("{} ({} threads, {})", trainer.stream.backend().name(), info.cores, info.arch)
}

/// A line on a file of rows and on those that were left out.
fn data_line(path: &str, kept: usize, dropped: &Dropped) -> String {
    match dropped.total() {
        0 => format!("data  {path}: {kept} rows"),
        n => format!("data  {path}: {kept} rows, {n} left out ({dropped})"),
    }
}

/// Tokens that a prompt may have: what an answer leaves of the model's positions, at most `max_prompt_length`. The principle,
/// which is never cut, must leave some of them to the query.
fn prompt_budget(c: &Config, opened: &Opened, principle: Option<&Principle>) -> Result<usize> {
    let (most, answer) = (opened.model()?.positions(), c.max_completion_length as usize);
    let Some(room) = most.checked_sub(answer).filter(|room| *room > 0) else {
        return Err(Error::Usage(format!("max_completion_length: wanted below the model's {most} positions, got {answer}")));
    };
    let budget = room.min(c.max_prompt_length as usize);
    let own = principle.map_or(Ok(0), |p| opened.tokenizer.encode(&p.text, true).map(|ids| ids.len()))?;
    if own >= budget {
        let text = format!("ple_principle: wanted fewer tokens than a prompt may have, {budget} (max_prompt_length), got {own}");
        return Err(Error::Usage(text));
    }
    Ok(budget)
}

/// The optimizer of the settings for a run of `steps` steps.
fn optimizer(c: &Config, opened: &Opened, steps: u64) -> Result<Optimizer> {
    let len = opened.model()?.trained(opened.tune)?.0.flat().len();
    Optimizer::new(&opened.stream, len, c, steps)
}

/// Moves the opened model into a trainer; what remains of `opened` is its tokenizer and where it came from.
fn trainer(opened: &mut Opened, optimizer: Optimizer) -> Result<Trainer> {
    let model = opened.take_model()?;
    Trainer::new(opened.stream.clone(), model, opened.tune, optimizer, Box::new(Single))
}
