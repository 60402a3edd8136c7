//! `ple rerun RUN`: a run once more, with the settings that its run.json holds, on files that are still the same.

use super::{pairs, required, sft, train};
use crate::config::{Command, Config, KEYS, Resume};
use crate::{Error, Result, open, telemetry};
use serde_json::{Map, Value};
use std::path::Path;

/// Runs the command: `runs` names the folder of a run or its run.json, `output_dir` where the new one goes.
pub fn run(c: &Config) -> Result<()> {
    let path = c.runs.first().ok_or_else(|| Error::Usage("runs: wanted the folder of a run, got nothing".into()))?;
    let path = if path.is_dir() { path.join("run.json") } else { path.clone() };
    let failed = |source| runtime::Error::File { path: path.clone(), action: "read", source };
    let bytes = std::fs::read(&path).map_err(failed)?;
    let run: Value = serde_json::from_slice(&bytes).map_err(|e| Error::file(&path, format!("not valid JSON: {e}")))?;
    let mut again = settings(&path, &run)?;
    unchanged(&path, &run, &telemetry::provenance(&again, &open::stream(&again)?))?;
    again.output_dir = Some(required(&c.output_dir, "output_dir")?.to_path_buf());
    (again.resume_from_checkpoint, again.quiet) = (Resume::No, c.quiet);
    again.check()?;
    match again.command {
        Command::Sft => sft::run(&again),
        Command::Train | Command::Raft | Command::Rloo | Command::Grpo => train::run(&again),
        Command::Reward => pairs::reward(&again),
        Command::Dpo => pairs::dpo(&again),
        other => Err(Error::file(&path, format!("config.command: wanted one that trains, got {}", other.name()))),
    }
}

/// The settings of a run as it has written them.
fn settings(path: &Path, run: &Value) -> Result<Config> {
    let wrong = |text: String| Error::file(path, text);
    let config = run["config"].as_object().ok_or_else(|| wrong("config: wanted the settings of a run, got none".into()))?;
    let name = config.get("command").and_then(Value::as_str);
    let name = name.ok_or_else(|| wrong("config.command: wanted the name of a command, got none".into()))?;
    let command = Command::named(name).map_err(|e| wrong(format!("config.command: {e}")))?;
    let mut settings = Config::defaults(command);
    for (name, value) in config.iter().filter(|(name, value)| *name != "command" && !value.is_null()) {
        let key = KEYS.iter().find(|key| key.name == name && key.belongs_to(command));
        let key = key.ok_or_else(|| wrong(format!("config.{name}: not a setting of `ple {}`", command.name())))?;
        if !(key.set)(&mut settings, value) {
            return Err(wrong(format!("config.{name}: wanted {}, got {value}", (key.wanted)())));
        }
    }
    Ok(settings)
}

/// Every file that the run has read is what it was: another is named.
fn unchanged(path: &Path, run: &Value, now: &Value) -> Result<()> {
    let none = Map::new();
    let files = |value: &'_ Value| value["files"].as_object().cloned().unwrap_or_else(|| none.clone());
    let (before, now) = (files(run), files(now));
    match before.iter().find(|(key, then)| now.get(*key) != Some(then)) {
        None => Ok(()),
        Some((key, then)) => {
            let got = now.get(key).map_or("nothing".to_string(), Value::to_string);
            Err(Error::file(path, format!("files.{key}: wanted what the run has read, {then}, got {got}")))
        }
    }
}
