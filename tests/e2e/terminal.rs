//! What a terminal shows: bars while a phase runs, one line per iteration, a table at the end; nothing of it in a pipe.

use super::Data;
use super::program::ple;
use anyhow::{Result, ensure};
use ple_tests::data::say;
use std::path::Path;
use std::process::Command;

/// A run of two iterations, four steps each; what it printed on a terminal if `terminal`, else into a pipe.
fn run(data: &Data, rows: &Path, out: &Path, terminal: bool, more: &str) -> Result<String> {
    let words = "train --reward_funcs length:8 --ple_principle Hi --ple_iters 2 --ple_queries_per_iter 8 --max_completion_length 12 \
        --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --max_prompt_length 96";
    let paths = [("model_name_or_path", data.model.as_path()), ("dataset_name", rows), ("output_dir", out)];
    if !terminal {
        let call = paths.iter().fold(ple(words), |call, (name, path)| call.key(name, path));
        return Ok(call.and(more).succeed()?.out);
    }
    let paths = paths.map(|(name, path)| format!("--{name} {}", path.display())).join(" ");
    let line = format!("{} {words} {paths} {more}", env!("CARGO_BIN_EXE_ple-tested"));
    let shown = Command::new("script").args(["-qec", &line, "/dev/null"]).env("NO_COLOR", "1").output()?;
    ensure!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stdout));
    Ok(String::from_utf8_lossy(&shown.stdout).into_owned())
}

#[test]
fn bars_on_a_terminal_and_lines_in_a_pipe() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let rows = data.first(40, dir.path())?;
    let out = dir.path().join("out");
    let text = run(&data, &rows, &out, false, "")?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.iter().filter(|line| line.starts_with("iter ") && line.contains(" loss ")).count() >= 2, "{text}");
    let table = &lines[lines.len() - 3..];
    ensure!(
        ["tau", "plain", "guided", "delta", "ranked", "worse", "gap", "length", "loss", "tok/s"]
            .iter()
            .all(|c| table[0].contains(c)),
        "{text}"
    );
    ensure!(table[1].trim().starts_with("0  0.2000") && table[2].trim().starts_with("1  0.1800"), "{text}");
    ensure!(lines.len() < 14 && !text.contains('\u{1b}'), "more than a line per iteration: {text}");
    if !Command::new("script").arg("--version").output().is_ok_and(|said| said.status.success()) {
        say("skip: no `script` to make a terminal with");
        return Ok(());
    }
    let shown = run(&data, &rows, &out, true, "")?;
    // It is drawn so many times a second, so that a short phase may not be seen.
    let bars = ["iter 0 answers", "/16", "tok/s", "left", "█"];
    ensure!(bars.iter().all(|bar| shown.contains(bar)), "{shown}");
    // Gone when done: the last line of the terminal is the table's.
    ensure!(shown.trim_end().lines().last().is_some_and(|line| line.trim().starts_with("1  0.1800")), "{shown}");
    ensure!(!shown.contains("\u{1b}[36m"), "colour in spite of NO_COLOR: {shown}");
    for more in ["--quiet", "--log_format json"] {
        let shown = run(&data, &rows, &out, true, more)?;
        ensure!(!shown.contains('█') && !shown.contains("left"), "{more}: {shown}");
        ensure!(more != "--quiet" || shown.trim().is_empty(), "{shown}");
    }
    Ok(())
}
