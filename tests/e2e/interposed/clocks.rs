//! A time of day that jumps by days and years, forward and backward, before 1970 too: nothing but times knows of it.

use super::{compare, library, train};
use crate::e2e::objects;
use crate::e2e::refused::Stage;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;

/// Every duration of a log and of a trace is one.
fn durations(log: &Path, trace: &Path) -> Result<()> {
    let timed = |name: &str| name.starts_with("time/") || name.starts_with("tok_s/") || name == "step_time";
    for row in objects(log)? {
        for (name, value) in row.as_object().context("an object")?.iter().filter(|(name, _)| timed(name)) {
            ensure!(value.as_f64().is_some_and(|x| x >= 0.0 && (name.starts_with("tok_s/") || x < 600.0)), "{name}: {value}");
        }
    }
    let spans: Vec<Value> = serde_json::from_slice(&std::fs::read(trace)?)?;
    for span in spans.iter().filter(|span| span["ph"] == "X") {
        let [start, lasted] = ["ts", "dur"].map(|name| span[name].as_f64().filter(|x| (0.0..6e8).contains(x)));
        ensure!(start.is_some() && lasted.is_some(), "{span}");
    }
    ensure!(spans.len() > 10, "{} spans", spans.len());
    Ok(())
}

#[test]
fn a_clock_that_jumps_shows_in_nothing_but_times() -> Result<()> {
    let Some((_library, library)) = library()? else { return Ok(()) };
    let (stage, dir) = (Stage::new()?, tempfile::tempdir()?);
    let at = |name: &str| dir.path().join(name);
    // A command that takes its time over an answer, within a deadline that a jump would end.
    stage.write("reward.sh", "while read -r line; do sleep 0.01; echo ${#line}; done\n")?;
    let call = |name: &str| {
        let reward = format!("exec:sh {}", stage.path("reward.sh").display());
        train(&stage, &at(name)).key("reward_funcs", reward).and("--reward_timeout 60")
    };
    let jumping = |name: &str| {
        let call = call(name).variable("LD_PRELOAD", &library).variable("CLOCK_JUMPS", at("looks"));
        call.key("trace", at("trace.json"))
    };
    call("straight").succeed()?;
    jumping("jumping").succeed()?;
    let looks = std::fs::metadata(at("looks"))?.len();
    ensure!(looks > 14, "the clock was looked at {looks} times");
    compare(&at("straight"), &at("jumping"))?;
    durations(&at("jumping/log.jsonl"), &at("trace.json"))?;

    // Stopped in the middle, and going on under another time.
    let stopped = jumping("stopped").variable("DISK_FOLDER", at("stopped")).variable("DISK_FAULT", "kill");
    stopped.variable("DISK_FROM", "300").killed()?;
    let said = jumping("stopped").succeed()?;
    ensure!(said.out.contains("goes on after step"), "{}", said.out);
    compare(&at("straight"), &at("stopped"))?;
    durations(&at("stopped/log.jsonl"), &at("trace.json"))
}
