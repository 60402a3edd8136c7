//! Reward commands: those that answer, and those that die, hang, answer too few, too much or no numbers.

use super::refused;
use anyhow::{Context, Result, ensure};
use ple::config::{Command, Config};
use ple::reward::{Rewards, Scored};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Seconds for a batch of a program that hangs.
const SHORT: f64 = 2.0;
/// And of one that answers, on however slow a machine.
const LONG: f64 = 60.0;

/// A shell program as a reward; the folder it lies in is its first argument.
fn command(folder: &TempDir, body: &str, timeout: f64) -> Result<Rewards> {
    let path = folder.path().join("reward.sh");
    std::fs::write(&path, body)?;
    load(&format!("exec:sh '{}' '{}'", path.display(), folder.path().display()), timeout)
}

fn load(func: &str, reward_timeout: f64) -> Result<Rewards> {
    let c = Config { reward_funcs: vec![func.into()], reward_timeout, ..Config::defaults(Command::Score) };
    Ok(Rewards::load(&c, None)?)
}

fn texts(completions: &[String]) -> Vec<Scored<'_>> {
    completions
        .iter()
        .enumerate()
        .map(|(i, c)| Scored { row: 10 + i as u32, prompt: "p \"q\"\n", completion: c, tokens: 0 })
        .collect()
}

fn score(rewards: &Rewards, completions: &[String]) -> ple::Result<Vec<f64>> {
    Ok(rewards.score(None, &texts(completions))?.total)
}

fn numbered(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("a{i}")).collect()
}

/// Lines that a program appended to a file beside it.
fn counted(folder: &Path, name: &str) -> Result<usize> {
    Ok(std::fs::read_to_string(folder.join(name)).with_context(|| name.to_string())?.lines().count())
}

#[test]
fn a_command_is_started_once_and_kept() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let rewards = command(
        &dir,
        "echo on >> $1/starts; n=0; while read -r l; do n=$((n+1)); printf '%s\\n' \"$l\" >> $1/asked; echo $n; done",
        LONG,
    )?;
    ensure!(score(&rewards, &numbered(3))? == [1.0, 2.0, 3.0], "first batch");
    ensure!(score(&rewards, &numbered(2))? == [4.0, 5.0] && score(&rewards, &[])?.is_empty(), "second batch");
    ensure!(counted(dir.path(), "starts")? == 1, "more than one start");
    let asked = std::fs::read_to_string(dir.path().join("asked"))?;
    ensure!(asked.starts_with("{\"prompt\":\"p \\\"q\\\"\\n\",\"completion\":\"a0\"}\n"), "{asked}");
    Ok(())
}

/// Far more than any pipe holds, both ways, and the program answers only at the end of the batch.
#[test]
fn full_pipes_stop_nobody() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let n = 5000;
    let rewards = command(
        &dir,
        &format!("i=0; while [ $i -lt {n} ]; do read -r l; i=$((i+1)); done; yes 0.125 | head -n {n}; cat >/dev/null"),
        LONG,
    )?;
    let long: Vec<String> = (0..n).map(|i| format!("{i}{}", "x".repeat(200))).collect();
    ensure!(score(&rewards, &long)? == vec![0.125; n], "answers");
    Ok(())
}

#[test]
fn one_failure_is_repaired() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let body = "echo on >> $1/starts\nif [ ! -e $1/died ]; then touch $1/died; read -r l; echo 7; exit 3; fi\nwhile read -r l; do echo 1; done";
    let rewards = command(&dir, body, LONG)?;
    ensure!(score(&rewards, &numbered(4))? == [1.0; 4], "the whole batch is sent again");
    ensure!(score(&rewards, &numbered(2))? == [1.0; 2] && counted(dir.path(), "starts")? == 2, "and what was started is kept");
    Ok(())
}

#[test]
fn numbers_that_are_not_finite_are_passed_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let rewards = command(&dir, "while read -r l; do echo '{\"reward\": NaN}'; read -r l; echo -inf; done", LONG)?;
    let got = score(&rewards, &numbered(2))?;
    ensure!(got[0].is_nan() && got[1] == f64::NEG_INFINITY, "{got:?}");
    Ok(())
}

#[test]
fn commands_that_fail_say_how() -> Result<()> {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "dies",
            "echo no such weights >&2; exit 4",
            &["wanted 3 answers, got 0 (none to row 10)", "exit status: 4", "no such weights"],
        ),
        (
            "dies later",
            "read -r l; echo 1; read -r l; echo out of it >&2; exit 1",
            &["got 1 (none to row 11)", "exit status: 1", "out of it"],
        ),
        ("ends", "read -r l; echo 1", &["got 1 (none to row 11)", "exit status: 0", "nothing on its standard error"]),
        ("is killed", "read -r l; kill -9 $$", &["got 0 (none to row 10)", "signal: 9"]),
        ("hangs", "sleep 600", &["got 0 (none to row 10) within reward_timeout 2 s", "flush", "killed"]),
        (
            "answers too few",
            "read -r l; echo 1; read -r l; echo 2; sleep 600",
            &["wanted 3 answers, got 2 (none to row 12) within"],
        ),
        ("answers too much", "while read -r l; do echo 1; echo 2; done", &["wanted 3 answers, got more: \"2\""]),
        ("speaks first", "echo ready; while read -r l; do echo 1; done", &["ready"]),
        ("gives no number", "read -r l; echo 1; read -r l; echo fine; cat >/dev/null", &["row 11: wanted a number", "\"fine\""]),
        ("gives no reward", "while read -r l; do echo '{\"score\": 1}'; done", &["row 10: wanted a number", "score"]),
        ("gives an endless line", "yes | tr -d '\\n'", &["row 10: wanted a number", "yyyy"]),
        ("closes its output", "exec >&-; sleep 600", &["got 0", "before it closed its output", "killed"]),
    ];
    for (what, body, words) in cases {
        let dir = tempfile::tempdir()?;
        let rewards = command(&dir, &format!("echo on >> $1/starts\n{body}"), SHORT)?;
        let outcome = score(&rewards, &numbered(3));
        ensure!(outcome.as_ref().is_err_and(|e| e.exit_code() == 3), "{what}: {outcome:?}");
        refused(what, outcome, &[*words, &["sh: reward exec:sh", "after a restart"]].concat())?;
        ensure!(counted(dir.path(), "starts")? == 2, "{what}: wanted one restart");
    }
    refused("an absent program", load("exec:./no-such-program", LONG), &["./no-such-program", "cannot start"])
}

/// A program that more than a batch kept busy is not left behind, nor what it started.
#[test]
#[cfg(target_os = "linux")]
fn nothing_is_left_behind() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let rewards =
        command(&dir, "echo $$ > $1/pids; sleep 600 & echo $! >> $1/pids; while read -r l; do echo 1; done; wait", LONG)?;
    ensure!(score(&rewards, &numbered(2))? == [1.0; 2], "answers");
    drop(rewards);
    let until = Instant::now() + Duration::from_secs(10);
    for pid in std::fs::read_to_string(dir.path().join("pids"))?.lines() {
        let alive = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        while alive() {
            ensure!(Instant::now() < until, "process {pid} lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}
