//! A command in a process of its own: this test binary again, told by its environment to be `ple`.

use anyhow::{Context, Result};
use ple::command;
use ple::config::{Command, Config};
use std::process::Output;

const ARGUMENTS: &str = "PLE_TESTS_ARGUMENTS";
/// What a child prints before its error, and its exit code after it.
const ERROR: &str = "ple-error: ";

fn run(argv: &[String]) -> ple::Result<()> {
    let (name, rest) = argv.split_first().ok_or_else(|| ple::Error::Usage("no command".into()))?;
    let which = Command::named(name)?;
    let c = Config::parse(which, rest)?;
    match which {
        Command::Sft => command::sft::run(&c),
        Command::Train => command::train::run(&c),
        Command::Logprob => command::logprob::run(&c),
        Command::Doctor => Ok(()),
    }
}

/// Does nothing unless this process was started as a command.
#[test]
fn as_a_command() {
    let Ok(argv) = std::env::var(ARGUMENTS) else { return };
    let argv: Vec<String> = argv.split('\u{1f}').map(str::to_string).collect();
    if let Err(error) = run(&argv) {
        eprintln!("{ERROR}{error}");
        std::process::exit(error.exit_code());
    }
}

/// How a command runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup<'a> {
    /// Instruction set, if one is forced.
    pub simd: Option<&'a str>,
}

fn output(setup: Setup<'_>, argv: &[&str]) -> Result<Output> {
    let mut child = std::process::Command::new(std::env::current_exe()?);
    child.args(["--exact", "e2e::process::as_a_command", "--nocapture"]).env(ARGUMENTS, argv.join("\u{1f}"));
    if let Some(simd) = setup.simd {
        child.env("PLE_SIMD", simd);
    }
    Ok(child.output()?)
}

/// Runs a command that must succeed.
pub fn ple(setup: Setup<'_>, argv: &[&str]) -> Result<()> {
    let out = output(setup, argv)?;
    anyhow::ensure!(
        out.status.success(),
        "{argv:?}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}

/// Runs a command that must fail; returns its exit code and what it said.
pub fn fails(argv: &[&str]) -> Result<(i32, String)> {
    let out = output(Setup::default(), argv)?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let error = said.lines().find_map(|line| line.strip_prefix(ERROR)).map(str::to_string);
    Ok((out.status.code().context("ended by a signal")?, error.with_context(|| format!("{argv:?} said {said:?}"))?))
}
