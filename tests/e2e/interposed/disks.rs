//! A run whose disk takes no more, or that is killed, at the n-th change of its folder, and that then goes on to the same bytes.

use super::{compare, library, train};
use crate::e2e::program::Ple;
use crate::e2e::refused::Stage;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::Path;

/// Numbers of the changes of a kind: of the same call and the same name but for digits.
type Places = BTreeMap<String, Vec<u64>>;

/// Every change that a run makes in its folder.
fn places(trace: &Path) -> Result<Places> {
    let mut places = Places::new();
    for line in std::fs::read_to_string(trace)?.lines() {
        let (number, change) = line.split_once(' ').context(line.to_string())?;
        let mut kind: String = change.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
        while kind.contains("##") {
            kind = kind.replace("##", "#");
        }
        places.entry(kind).or_default().push(number.parse()?);
    }
    Ok(places)
}

/// The first or the last, in turn, of every `step`-th kind from `offset` on; with `PLE_LONG` every one of each.
fn chosen(places: &Places, (offset, step): (usize, usize)) -> Vec<(&str, u64)> {
    let long = std::env::var_os("PLE_LONG").is_some();
    let ends = |(i, numbers): (usize, &Vec<u64>)| match i % step == offset {
        _ if long => numbers.clone(),
        true => vec![numbers[if (i / step).is_multiple_of(2) { 0 } else { numbers.len() - 1 }]],
        false => Vec::new(),
    };
    let all = places
        .iter()
        .enumerate()
        .flat_map(|(i, (kind, numbers))| ends((i, numbers)).into_iter().map(move |n| (kind.as_str(), n)));
    all.collect()
}

/// What a run in whose way something stands leaves behind: whole checkpoints, and a folder to go on in.
fn goes_on(stage: &Stage, straight: &Path, out: &Path) -> Result<()> {
    let names = std::fs::read_dir(out).into_iter().flatten().flatten().map(|entry| entry.path());
    for folder in names.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("checkpoint-"))) {
        ple::checkpoint::load(&folder)?;
    }
    train(stage, out).succeed()?;
    compare(straight, out)
}

/// A straight run, and its changes; `meet` is a run that meets a fault at one of them. How many runs did not end by it.
fn sweep(fault: &str, kinds: (usize, usize), meet: impl Fn(Ple, &Path) -> Result<bool>) -> Result<()> {
    let Some((_library, library)) = library()? else { return Ok(()) };
    let (stage, dir) = (Stage::new()?, tempfile::tempdir()?);
    let (straight, trace) = (dir.path().join("straight"), dir.path().join("trace"));
    let watched = |out: &Path| train(&stage, out).variable("LD_PRELOAD", &library).variable("DISK_FOLDER", out);
    watched(&straight).variable("DISK_TRACE", &trace).succeed()?;
    let places = places(&trace)?;
    for kind in [
        "write rollouts/iter-#.jsonl",
        "rename rollouts/iter-#.jsonl",
        "write log.jsonl",
        "write metrics.csv",
        "write .checkpoint-#.tmp/.adapter_model.safetensors.#.tmp",
        "write .checkpoint-#.tmp/.optimizer.safetensors.#.tmp",
        "write .checkpoint-#.tmp/.ple_state.json.#.tmp",
        "rename checkpoint-#",
        "rename .checkpoint-#.tmp",
        "write completions/.iter-#.jsonl.#.tmp",
        "rename best/adapter_model.safetensors",
        "rename trainer_state.json",
        "rename adapter_model.safetensors",
        "rename ple.json",
    ] {
        ensure!(places.contains_key(kind), "no {kind} among {:?}", places.keys());
    }
    let (mut met, chosen) = (0, chosen(&places, kinds));
    for (kind, n) in &chosen {
        let out = dir.path().join(format!("{fault}-{n}"));
        let call = watched(&out).variable("DISK_FROM", n.to_string()).variable("DISK_FAULT", fault);
        let what = || format!("{fault} from change {n} on, {kind}");
        met += usize::from(meet(call, &out).with_context(what)?);
        goes_on(&stage, &straight, &out).with_context(what)?;
        std::fs::remove_dir_all(&out)?;
    }
    println!("  {fault}: {met} of {} runs ended by it, {} kinds of changes", chosen.len(), places.len());
    ensure!(met * 10 >= chosen.len() * 8, "{met} of {} runs met it", chosen.len());
    Ok(())
}

/// A run that ends by itself: with an error that names the file and what is wrong, or, if nothing more was needed, well.
fn told(call: Ple, out: &Path, words: &str) -> Result<bool> {
    let said = call.end()?;
    if said.code == 0 {
        return Ok(false);
    }
    let named = said.err.contains(&out.display().to_string()) && said.err.contains(words);
    ensure!(said.code == 3 && said.err.starts_with("ple: ") && named, "exit code {}: {}", said.code, said.err);
    Ok(true)
}

// The two errors that a disk tells of go the same ways: they share the kinds.
#[test]
fn a_disk_that_is_full_from_the_nth_change_on() -> Result<()> {
    sweep("full", (0, 2), |call, out| told(call, out, "No space left on device"))
}

#[test]
fn a_disk_that_is_read_only_from_the_nth_change_on() -> Result<()> {
    sweep("read-only", (1, 2), |call, out| told(call, out, "Read-only file system"))
}

/// Half of a write, and then the end: nothing half is left once the run has gone on.
#[test]
fn killed_at_the_nth_change() -> Result<()> {
    sweep("kill", (0, 1), |call, _| call.killed().map(|()| true))
}
