//! The binary: a command, its settings, an exit code.
#![forbid(unsafe_code)]

use ple::config::{self, Command, Config};
use ple::{Error, command, doctor, interrupt, log, open};
use std::any::Any;
use std::io::Write;
use std::panic::catch_unwind;
use std::process::ExitCode;

/// Every command with a line on it.
fn usage() -> String {
    let line = |c: Command| format!("  {:<12} {}\n", c.name(), c.about());
    format!(
        "ple: Progressively Label Enhancement\n\nUsage: ple COMMAND [--key value ...] [--config FILE]\n\nCommands:\n{}\n\
         `ple COMMAND --help` lists a command's settings.",
        Command::ALL.map(line).concat()
    )
}

/// The exit code of what went right.
fn run(argv: &[String]) -> Result<ExitCode, Error> {
    let done = |()| ExitCode::SUCCESS;
    let Some((name, rest)) = argv.split_first() else {
        return Err(Error::Usage(format!("wanted a command\n\n{}", usage())));
    };
    if matches!(name.as_str(), "-h" | "--help" | "help") {
        return log::print(&format!("{}\n", usage())).map(done);
    }
    if matches!(name.as_str(), "-V" | "--version") {
        return log::print(concat!("ple ", env!("CARGO_PKG_VERSION"), "\n")).map(done);
    }
    let which = Command::named(name)?;
    match which {
        Command::Config => return command::config::run(rest).map(done),
        Command::Completions => return command::completions::run(rest).map(done),
        Command::Inspect => return command::inspect::run(rest).map(|fine| if fine { done(()) } else { ExitCode::FAILURE }),
        _ => {}
    }
    if rest.iter().any(|a| a == "--help" || a == "-h") {
        return log::print(&format!("{}\n", config::help(which))).map(done);
    }
    if which == Command::Doctor {
        let json = rest.iter().any(|a| a == "--json");
        let rest: Vec<String> = rest.iter().filter(|a| *a != "--json").cloned().collect();
        let report = doctor::report(&open::stream(&Config::parse(which, &rest)?)?);
        return log::print(&if json { format!("{:#}\n", report.json()) } else { report.text() }).map(done);
    }
    let c = Config::parse(which, rest)?;
    interrupt::install();
    match which {
        Command::Sft => command::sft::run(&c),
        Command::Train | Command::Raft | Command::Rloo | Command::Grpo => command::train::run(&c),
        Command::Reward => command::pairs::reward(&c),
        Command::Dpo => command::pairs::dpo(&c),
        Command::Eval => command::eval::run(&c),
        Command::Chat => command::chat::run(&c),
        Command::Generate => command::generate::run(&c),
        Command::Score => command::score::run(&c),
        Command::Logprob => command::logprob::run(&c),
        Command::Report => command::report::run(&c),
        Command::Demo => command::demo::run(&c),
        Command::Rerun => command::rerun::run(&c),
        Command::Diff => return command::diff::run(&c).map(|same| if same { done(()) } else { ExitCode::FAILURE }),
        Command::Bench => command::bench::run(&c),
        Command::Selftest => return command::selftest::run(&c).map(|right| if right { done(()) } else { ExitCode::FAILURE }),
        Command::Doctor | Command::Inspect | Command::Config | Command::Completions => Ok(()),
    }
    .map(done)
}

/// The arguments after the program's name.
fn arguments() -> Result<Vec<String>, Error> {
    let text = |(i, word): (usize, std::ffi::OsString)| {
        word.into_string().map_err(|word| Error::Usage(format!("argument {}: wanted UTF-8, got {word:?}", i + 1)))
    };
    std::env::args_os().skip(1).enumerate().map(text).collect()
}

/// What a panic says; one that is caught on the way (the tokenizers library over a bad file) says nothing.
fn payload(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}

fn main() -> ExitCode {
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        std::panic::set_hook(Box::new(|_| {}));
    }
    match catch_unwind(|| arguments().and_then(|argv| run(&argv))) {
        Ok(Ok(code)) => code,
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
