//! The binary: a command, its settings, an exit code.
#![forbid(unsafe_code)]

use ple::config::{self, Command, Config};
use ple::{Error, command, doctor, open};
use std::process::ExitCode;

const USAGE: &str = "ple: Progressively Label Enhancement

Usage: ple COMMAND [--key value ...] [--config FILE]

Commands:
  train     PLE: sample, score, label, train
  sft       supervised fine-tuning
  logprob   per-token log-probabilities of given completions
  doctor    what this machine has

`ple COMMAND --help` lists a command's settings.";

fn run(argv: &[String]) -> Result<(), Error> {
    let Some((name, rest)) = argv.split_first() else {
        return Err(Error::Usage(USAGE.into()));
    };
    if matches!(name.as_str(), "-h" | "--help" | "help") {
        println!("{USAGE}");
        return Ok(());
    }
    if matches!(name.as_str(), "-V" | "--version") {
        println!("ple {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    let which = Command::named(name)?;
    if rest.iter().any(|a| a == "--help" || a == "-h") {
        println!("{}", config::help(which));
        return Ok(());
    }
    if which == Command::Doctor {
        let json = rest.iter().any(|a| a == "--json");
        let rest: Vec<String> = rest.iter().filter(|a| *a != "--json").cloned().collect();
        let report = doctor::report(&open::stream(&Config::parse(which, &rest)?)?);
        print!("{}", if json { format!("{:#}\n", report.json()) } else { report.text() });
        return Ok(());
    }
    let c = Config::parse(which, rest)?;
    match which {
        Command::Sft => command::sft::run(&c),
        Command::Train => command::train::run(&c),
        Command::Logprob => command::logprob::run(&c),
        Command::Doctor => Ok(()),
    }
}

fn main() -> ExitCode {
    let argv: Vec<String> = std::env::args().skip(1).collect();
    match run(&argv) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ple: {error}");
            ExitCode::from(error.exit_code() as u8)
        }
    }
}
