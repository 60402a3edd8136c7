//! A process that writes checkpoints, ended at moments it does not choose: at random ones, at every file operation in turn, and by a
//! file system that takes no more.
#![cfg(target_os = "linux")]

use anyhow::{Context, Result, ensure};
use ple::checkpoint::{self, Newest};
use ple_tests::data::say;
use ple_tests::tiny::Random;
use ple_tests::tuning;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// More steps than are ever waited for.
const FOREVER: u64 = 1 << 40;

fn checkpoints(output: &Path, steps: u64) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tests"));
    command.arg("checkpoints").arg(output).arg(steps.to_string());
    command
}

fn names(output: &Path) -> Result<Vec<String>> {
    std::fs::read_dir(output)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// What must hold whenever a process has ended: under its name every checkpoint is whole, and the newest is not older than `least`.
/// Returns the newest's step and whether the end came while one was being written.
fn whole(output: &Path, least: u64) -> Result<(u64, bool)> {
    let (mut hidden, found) = (false, if output.exists() { names(output)? } else { Vec::new() });
    for name in found {
        match name.starts_with("checkpoint-") {
            true => drop(checkpoint::load(&output.join(&name))?),
            false => hidden = true,
        }
    }
    let Newest { found, passed } = checkpoint::newest(output)?;
    let step = found.map_or(0, |(_, state)| state.step);
    ensure!(passed.is_empty() && step >= least, "step {step} after {least} was said to be written; passed over: {passed:?}");
    let left = if output.exists() { names(output)? } else { Vec::new() };
    ensure!(left.iter().all(|name| name.starts_with("checkpoint-")), "left behind: {left:?}");
    Ok((step, hidden))
}

/// The last number that was said.
fn said(text: &str) -> u64 {
    text.lines().filter_map(|line| line.parse().ok()).next_back().unwrap_or(0)
}

/// Killed after the time, in milliseconds; what it said until then.
fn killed(output: &Path, after: u32) -> Result<String> {
    let mut child = checkpoints(output, FOREVER).stdout(Stdio::piped()).spawn()?;
    let mut reader = BufReader::new(child.stdout.take().context("its output")?);
    let mut text = String::new();
    reader.read_line(&mut text)?;
    ensure!(text == "ready\n", "it said {text:?}");
    std::thread::sleep(Duration::from_millis(u64::from(after)));
    child.kill()?;
    child.wait()?;
    reader.read_to_string(&mut text)?;
    Ok(text)
}

/// The same bytes as a run without a stop.
fn as_straight(output: &Path, steps: u64) -> Result<()> {
    let straight = tempfile::tempdir()?;
    tuning::go_on(output, steps, |_| ())?;
    tuning::go_on(straight.path(), steps, |_| ())?;
    for name in names(straight.path())? {
        for file in names(&straight.path().join(&name))? {
            let read = |folder: &Path| std::fs::read(folder.join(&name).join(&file)).with_context(|| format!("{name}/{file}"));
            ensure!(read(output)? == read(straight.path())?, "{name}/{file} differs from the straight run's");
        }
    }
    Ok(())
}

#[test]
fn killed_at_any_moment() -> Result<()> {
    let out = tempfile::tempdir()?;
    let mut random = Random(17);
    let (mut step, mut inside, mut kills) = (0, 0, 0);
    while kills < 20 || inside < 5 {
        let text = killed(out.path(), random.below(60))?;
        let (now, hidden) = whole(out.path(), step.max(said(&text)))?;
        (step, kills, inside) = (now, kills + 1, inside + u32::from(hidden));
        ensure!(kills < 200, "{kills} kills, of which {inside} while a checkpoint was written");
    }
    as_straight(out.path(), step + 2)
}

/// A folder whose next checkpoints are new ones and one that replaces another.
fn begun() -> Result<tempfile::TempDir> {
    let out = tempfile::tempdir()?;
    tuning::go_on(out.path(), 1, |_| ())?;
    Ok(out)
}

/// A run of two steps in which the `n`-th call of `call` meets `fault`; None without strace.
fn meets(output: &Path, call: &str, fault: &str, n: u32) -> Result<Option<Output>> {
    let run = checkpoints(output, 3);
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e"]).arg(format!("inject={call}:{fault}:when={n}"));
    match traced.arg(run.get_program()).args(run.get_args()).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        outcome => Ok(Some(outcome?)),
    }
}

/// Every call of each kind in turn, until the run no longer gets so far.
fn at_every(fault: &str, calls: &[&str], check: impl Fn(&str, &Output, &Path) -> Result<()>) -> Result<()> {
    let mut met = 0;
    for call in calls {
        for n in 1.. {
            let out = begun()?;
            let Some(output) = meets(out.path(), call, fault, n)? else {
                say("skip: strace is not there");
                return Ok(());
            };
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            if text.contains("strace: ") {
                say(&format!("skip: strace cannot trace here: {}", text.trim()));
                return Ok(());
            }
            let what = format!("{call} {n}, {fault}: {text}");
            let (step, _) = whole(out.path(), said(&String::from_utf8_lossy(&output.stdout)).max(1)).context(what.clone())?;
            if output.status.success() {
                ensure!(step == 3 && n > 1, "{what}: ended at step {step}");
                break;
            }
            met += 1;
            check(&what, &output, out.path())?;
            as_straight(out.path(), 3).context(what)?;
        }
    }
    ensure!(met >= 20, "{met} faults met");
    Ok(())
}

#[test]
fn killed_at_every_file_operation() -> Result<()> {
    at_every("signal=KILL", &["mkdir", "rename", "fsync", "unlinkat"], |what, output, _| {
        ensure!(output.status.code() != Some(1), "{what}: it was not killed");
        Ok(())
    })
}

/// The next one would go through; whole runs on disks that stay full are in `e2e::interposed`.
#[test]
fn one_file_operation_for_which_there_is_no_room() -> Result<()> {
    at_every("error=ENOSPC", &["mkdir", "rename", "fsync"], |what, output, _| {
        ensure!(output.status.code() == Some(1) && what.contains("No space left"), "{what}: ended with {:?}", output.status);
        Ok(())
    })
}

/// No file may grow beyond so many KiB: the adapter, the moments, or nothing fits.
#[test]
fn files_that_may_not_grow() -> Result<()> {
    let mut failures = 0;
    for kib in [0, 1, 8, 16, 24, 32, 40, 48, 64, 96, 1024] {
        let (out, run) = (begun()?, checkpoints(Path::new(""), 3));
        let mut limited = Command::new("sh");
        limited.args(["-c", "trap '' XFSZ; ulimit -f $0; exec \"$@\""]).arg((2 * kib).to_string());
        let output = limited.arg(run.get_program()).arg("checkpoints").arg(out.path()).arg("3").output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let (step, _) = whole(out.path(), said(&String::from_utf8_lossy(&output.stdout)).max(1))?;
        match output.status.success() {
            true => ensure!(step == 3, "{kib} KiB: ended at step {step}"),
            false => {
                ensure!(text.contains("File too large"), "{kib} KiB: {text}");
                failures += 1;
            }
        }
        as_straight(out.path(), 3)?;
    }
    ensure!((2..11).contains(&failures), "{failures} of 11 failed");
    Ok(())
}
