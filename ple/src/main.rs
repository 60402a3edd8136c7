//! The binary: a command, its settings, an exit code.
#![forbid(unsafe_code)]

use ple::config::{self, Command, Config};
use ple::log::print;
use ple::{Error, command, doctor, open};
use std::any::Any;
use std::io::Write;
use std::panic::catch_unwind;
use std::process::ExitCode;

const USAGE: &str = "ple: Progressively Label Enhancement

Usage: ple COMMAND [--key value ...] [--config FILE]

Commands:
  train     PLE: sample, score, label, train
  sft       supervised fine-tuning
  logprob   per-token log-probabilities of given completions
  doctor    what this machine has

`ple COMMAND --help` lists a command's settings.";

fn run() -> Result<(), Error> {
    let foreign = |word| Error::Usage(format!("wanted arguments of UTF-8, got {word:?}"));
    let argv = std::env::args_os().skip(1).map(|word| word.into_string().map_err(foreign)).collect::<Result<Vec<_>, _>>()?;
    let Some((name, rest)) = argv.split_first() else {
        return Err(Error::Usage(format!("wanted a command\n\n{USAGE}")));
    };
    if matches!(name.as_str(), "-h" | "--help" | "help") {
        print(USAGE);
        return Ok(());
    }
    if matches!(name.as_str(), "-V" | "--version") {
        print(format_args!("ple {}", env!("CARGO_PKG_VERSION")));
        return Ok(());
    }
    let which = Command::named(name)?;
    if rest.iter().any(|a| a == "--help" || a == "-h") {
        print(config::help(which).trim_end());
        return Ok(());
    }
    if which == Command::Doctor {
        let json = rest.iter().any(|a| a == "--json");
        let rest: Vec<String> = rest.iter().filter(|a| *a != "--json").cloned().collect();
        let report = doctor::report(&open::stream(&Config::parse(which, &rest)?)?);
        print(if json { format!("{:#}", report.json()) } else { report.text().trim_end().to_string() });
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

/// What a panic says; one that is caught on the way (the tokenizers library over a bad file) says nothing.
fn payload(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}

fn main() -> ExitCode {
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        std::panic::set_hook(Box::new(|_| {}));
    }
    match catch_unwind(run) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            let _ = writeln!(std::io::stderr(), "ple: {error}");
            ExitCode::from(error.exit_code() as u8)
        }
        Err(panic) => {
            let text = payload(&*panic);
            let _ = writeln!(std::io::stderr(), "ple: internal fault: {text}; RUST_BACKTRACE=1 shows where, please report it");
            ExitCode::from(101)
        }
    }
}
