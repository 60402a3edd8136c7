//! One file per command: settings to a finished run.

pub mod completions;
pub mod config;
pub mod demo;
pub mod generate;
pub mod logprob;
pub mod report;
pub mod score;
pub mod sft;
pub mod train;

use crate::checkpoint::create_folder;
use crate::config::{Config, LogFormat};
use crate::data::Dropped;
use crate::log::Log;
use crate::open::Opened;
use crate::optim::Optimizer;
use crate::trainer::Trainer;
use crate::{Error, Result};
use runtime::{comm::Single, host};
use serde_json::json;
use std::path::{Path, PathBuf};

/// A setting that [`Config::parse`] has checked to be there.
fn required<'a>(value: &'a Option<PathBuf>, key: &str) -> Result<&'a Path> {
    value.as_deref().ok_or_else(|| Error::Usage(format!("{key}: wanted a path, got nothing")))
}

/// `max_steps`, or no limit.
fn most_steps(c: &Config) -> u64 {
    if c.max_steps > 0 { c.max_steps as u64 } else { u64::MAX }
}

/// Makes the run's folder, its log and `run.json`, and says what was opened.
fn start(c: &Config, opened: &Opened, trainer: &Trainer) -> Result<Log> {
    let folder = required(&c.output_dir, "output_dir")?;
    create_folder(folder)?;
    let log = Log::create(folder, c.quiet, c.log_format == LogFormat::Json)?;
    let info = opened_info(trainer);
    let run = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "config": c.to_json(),
        "device": info,
        "parameters": { "base": trainer.model.base().parameters(), "trainable": trainer.parameters() },
    });
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
    Ok(log)
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
