//! `ple config`: settings shown with where each is from, files checked without a run, files of TRL's translated.

use crate::config::translate::Translated;
use crate::config::{Command, KEYS, Resolved};
use crate::{Error, Result, log};
use std::path::Path;

/// What `--help` prints.
pub const USAGE: &str = "ple config show [--command train] [--config FILE]... [--key value]...
        The effective settings as YAML, each with where it is from: default, preset, file and line, or flag. `--config` reads
        them back.
ple config check FILE... [--command train] [--key value]...
        Whether these files, later ones over earlier ones, and these flags make a run; every fault a line. Nothing is loaded.
ple config from-trl FILE [--command train]
        A file of TRL's as one of ours; what has no effect or is refused stands in comments at its end.
";

/// Runs the command.
pub fn run(argv: &[String]) -> Result<()> {
    if argv.iter().any(|word| word == "--help" || word == "-h") {
        return log::print(USAGE);
    }
    let (command, words) = command(argv)?;
    match words.split_first().map(|(verb, rest)| (verb.as_str(), rest)) {
        Some(("show", rest)) => log::print(&show(command, rest)?),
        Some(("check", rest)) => log::print(&check(command, rest)?),
        Some(("from-trl" | "from_trl", rest)) => from_trl(command, rest),
        other => {
            let got = other.map_or("nothing".to_string(), |(verb, _)| format!("`{verb}`"));
            Err(Error::Usage(format!("config: wanted show, check or from-trl, got {got}\n\n{USAGE}")))
        }
    }
}

/// Takes `--command NAME` out of the words; without it the command is train.
fn command(argv: &[String]) -> Result<(Command, Vec<String>)> {
    let (mut command, mut rest) = (Command::Train, Vec::new());
    let mut words = argv.iter();
    while let Some(word) = words.next() {
        let name = match word.strip_prefix("--command") {
            Some("") => words.next().ok_or_else(|| Error::Usage("--command: needs a value".into()))?.as_str(),
            Some(inline) if inline.starts_with('=') => &inline[1..],
            _ => {
                rest.push(word.clone());
                continue;
            }
        };
        command = Command::named(name)?;
    }
    if !KEYS.iter().any(|key| key.belongs_to(command)) {
        return Err(Error::Usage(format!("--command: wanted a command that reads settings, got `{}`", command.name())));
    }
    Ok((command, rest))
}

/// YAML, whether or not it is enough for a run; if not, its last line says what is missing.
fn show(command: Command, argv: &[String]) -> Result<String> {
    let mut resolved = Resolved::read(command, argv)?;
    if !resolved.faults.is_empty() {
        return Err(resolved.faults.remove(0));
    }
    let comment = |text: &str| format!("# {}\n", text.replace(char::is_control, " "));
    let mut text = format!("# ple {}\n{}", command.name(), resolved.yaml());
    resolved.config.notes.iter().for_each(|note| text += &comment(note));
    if let Err(fault) = resolved.config.check() {
        text += &comment(&format!("not a run yet: {fault}"));
    }
    Ok(text)
}

/// The words before the first flag are files.
fn check(command: Command, argv: &[String]) -> Result<String> {
    let count = argv.iter().take_while(|word| !word.starts_with("--")).count();
    let (files, flags) = argv.split_at(count);
    if files.is_empty() {
        return Err(Error::Usage("config check: wanted a file or more, got none".into()));
    }
    let configs = files.iter().flat_map(|file| ["--config".to_string(), file.clone()]);
    let resolved = Resolved::read(command, &configs.chain(flags.iter().cloned()).collect::<Vec<_>>())?;
    let mut faults: Vec<String> = resolved.faults.iter().map(ToString::to_string).collect();
    faults.extend(resolved.config.check().err().map(|fault| fault.to_string()));
    if !faults.is_empty() {
        return Err(Error::Usage(faults.join("\n")));
    }
    let notes: String = resolved.config.notes.iter().map(|note| format!("note  {note}\n")).collect();
    let (given, name) = (resolved.config.given.len(), command.name());
    Ok(format!("{notes}ok    {}: {given} settings of `ple {name}`\n", files.join(", ")))
}

fn from_trl(command: Command, argv: &[String]) -> Result<()> {
    let [file] = argv else {
        return Err(Error::Usage(format!("config from-trl: wanted one file, got {}", argv.len())));
    };
    let translated = Translated::read(command, Path::new(file))?;
    log::print(&format!("# ple {}\n{}", command.name(), translated.text()))?;
    match translated.refused.len() {
        0 => Ok(()),
        n => Err(Error::Usage(format!("{file}: {n} of its keys are refused\n{}", translated.refused.join("\n")))),
    }
}

#[cfg(test)]
mod tests;
