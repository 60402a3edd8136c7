//! Checkpoints: the step after one is the step that followed it, damage of every kind is refused and the one before is used, and
//! what is removed is never what is needed.

use super::refused;
use anyhow::{Context, Result, ensure};
use model::Tune;
use ple::checkpoint::{self, Newest};
use ple::digest::sha256;
use ple_tests::tiny::Random;
use ple_tests::tuning::{MAX_GRAD_NORM, Tuning, WARMUP};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Files of a folder.
type Files = BTreeMap<String, Vec<u8>>;

fn files(folder: &Path) -> Result<Files> {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?))
    };
    std::fs::read_dir(folder).with_context(|| folder.display().to_string())?.map(read).collect()
}

fn put(folder: &Path, files: &Files) -> Result<()> {
    std::fs::create_dir(folder)?;
    files.iter().try_for_each(|(name, bytes)| Ok(std::fs::write(folder.join(name), bytes)?))
}

/// Runs to `steps`, writing a checkpoint there.
fn run(tuning: &mut Tuning, output: &Path, steps: u64) -> Result<()> {
    while tuning.steps() < steps {
        let step = tuning.step()?;
        ensure!(step.grad_norm > MAX_GRAD_NORM, "a gradient of {} is not clipped", step.grad_norm);
    }
    tuning.write(output, &tuning.state())?;
    Ok(())
}

#[test]
fn the_next_step_is_the_one_that_followed() -> Result<()> {
    for tune in [Tune::Lora(0), Tune::Full] {
        let (straight, parted) = (tempfile::tempdir()?, tempfile::tempdir()?);
        run(&mut Tuning::new(tune)?, straight.path(), 9)?;
        let wanted = files(&straight.path().join("checkpoint-9"))?;
        for name in ["optimizer.safetensors", "ple_state.json"] {
            ensure!(wanted.contains_key(name), "{name} is not there: {:?}", wanted.keys());
        }
        run(&mut Tuning::new(tune)?, parted.path(), 2)?;
        // One stop inside the warm-up, one after it.
        for (stop, next) in [(2, u64::from(WARMUP) + 1), (u64::from(WARMUP) + 1, 9)] {
            let Newest { found: Some((folder, state)), passed } = checkpoint::newest(parted.path())? else {
                anyhow::bail!("{tune:?}: no checkpoint at {stop}")
            };
            ensure!(state.step == stop && passed.is_empty(), "{tune:?}: {state:?}");
            run(&mut Tuning::from(tune, &folder, &state)?, parted.path(), next)?;
        }
        let got = files(&parted.path().join("checkpoint-9"))?;
        let different: Vec<_> = wanted.keys().chain(got.keys()).filter(|name| wanted.get(*name) != got.get(*name)).collect();
        ensure!(different.is_empty(), "{tune:?}: {different:?} differ after two stops");

        // The state is what makes it so: with the moments of a fresh optimizer the next parameters are others.
        let (folder, state) = checkpoint::newest(straight.path())?.found.context("a checkpoint")?;
        let mut whole = Tuning::from(tune, &folder, &state)?;
        let mut bare = Tuning::new(tune)?;
        checkpoint::restore_tuned(&bare.trainer.stream, &bare.trainer.model, tune, &folder)?;
        ensure!(whole.fingerprint()? == bare.fingerprint()?, "{tune:?}: parameters differ before the step");
        whole.step()?;
        bare.step()?;
        ensure!(whole.fingerprint()? != bare.fingerprint()?, "{tune:?}: the moments change nothing");
    }
    Ok(())
}

#[test]
fn a_checkpoint_of_another_run_is_not_taken_over() -> Result<()> {
    let out = tempfile::tempdir()?;
    run(&mut Tuning::new(Tune::Full)?, out.path(), 1)?;
    let folder = out.path().join("checkpoint-1");
    let mut other = Tuning::new(Tune::Lora(0))?;
    let before = other.fingerprint()?;
    refused("a model for an adapter", checkpoint::restore(&mut other.trainer, Tune::Lora(0), &folder), &["adapter_config.json"])?;
    let (s, model) = (&other.trainer.stream, &other.trainer.model);
    let tensors = model.trained(Tune::Lora(0))?.1.to_vec();
    let path = folder.join("optimizer.safetensors");
    refused(
        "moments of other tensors",
        other.trainer.optimizer.restore(s, &tensors, &path),
        &["optimizer.safetensors", "lora_A"],
    )?;
    ensure!(other.fingerprint()? == before && other.steps() == 0, "something was taken over");
    Ok(())
}

/// A folder with two checkpoints, and the files of the newer.
fn two() -> Result<(tempfile::TempDir, Files)> {
    let out = tempfile::tempdir()?;
    let mut tuning = Tuning::new(Tune::Lora(0))?;
    run(&mut tuning, out.path(), 2)?;
    run(&mut tuning, out.path(), 4)?;
    let files = files(&out.path().join("checkpoint-4"))?;
    Ok((out, files))
}

/// `ple_state.json` with something else in it and the digest that belongs to it.
fn signed(bytes: &[u8], change: impl FnOnce(&mut Value)) -> Result<Vec<u8>> {
    let mut document: Value = serde_json::from_slice(bytes)?;
    document.as_object_mut().context("an object")?.shift_remove("sha256");
    change(&mut document);
    document["sha256"] = sha256(format!("{document:#}").as_bytes()).into();
    Ok(format!("{document:#}\n").into_bytes())
}

/// One thing that can happen to a checkpoint.
fn damage(files: &mut Files, older: &Files, random: &mut Random) -> Result<&'static str> {
    let name = files.keys().nth(random.below(files.len() as u32) as usize).context("a file")?.clone();
    let bytes = files.get_mut(&name).context("a file")?;
    let (len, bit) = (bytes.len() as u32, random.below(8));
    let at = random.below(len) as usize;
    let state = "ple_state.json";
    Ok(match random.below(10) {
        0..3 => {
            bytes[at] ^= 1 << bit;
            "a bit"
        }
        3 => {
            bytes.truncate(at);
            "a file cut short"
        }
        4 => {
            bytes.extend_from_slice(b"\n");
            "a file grown"
        }
        5 => {
            files.remove(&name);
            "a file lost"
        }
        6 => {
            files.insert(format!("foreign-{bit}.bin"), vec![1; at]);
            "a foreign file"
        }
        7 => {
            let changed = older.iter().filter(|(name, bytes)| files.get(*name) != Some(bytes)).nth(bit as usize % 3);
            let (name, bytes) = changed.context("a file that differs")?;
            files.insert(name.clone(), bytes.clone());
            "a file of another checkpoint"
        }
        8 => {
            let other = signed(&files[state], |document| document["version"] = json!(2 + bit))?;
            files.insert(state.into(), other);
            "another version"
        }
        _ => {
            let other = signed(&files[state], |document| match bit {
                0 => document["state"]["more"] = json!(1),
                1 => document["files"]["../../x"] = json!(sha256(b"x")),
                2 => document["state"]["tokens"] = json!(-1),
                3 => document["state"]["stage"] = json!("dpo"),
                4 => document["files"] = json!({}),
                5 => drop(document["state"].as_object_mut().map(|state| state.shift_remove("lengths"))),
                _ => document["state"]["step"] = json!(3),
            })?;
            files.insert(state.into(), other);
            "another state"
        }
    })
}

#[test]
fn damaged_checkpoints_are_passed_over() -> Result<()> {
    let (out, whole) = two()?;
    let (older, newer) = (out.path().join("checkpoint-2"), out.path().join("checkpoint-4"));
    let before = files(&older)?;
    let mut random = Random(31);
    let mut tuning = Tuning::new(Tune::Lora(0))?;
    let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
    for round in 0..if std::env::var_os("PLE_LONG").is_some() { 2000 } else { 250 } {
        let mut damaged = whole.clone();
        let kind = damage(&mut damaged, &before, &mut random)?;
        *kinds.entry(kind).or_default() += 1;
        std::fs::remove_dir_all(&newer)?;
        put(&newer, &damaged)?;
        let Newest { found, passed } = checkpoint::newest(out.path())?;
        let found = found.with_context(|| format!("round {round}, {kind}: nothing found"))?;
        ensure!(found.0 == older && found.1.step == 2, "round {round}: {kind} was accepted: {found:?}");
        let said = passed.first().filter(|(folder, why)| passed.len() == 1 && *folder == newer && why.contains("checkpoint-4/"));
        ensure!(said.is_some(), "round {round}, {kind}: said {passed:?}");
        // Taken over all the same, it may be refused or not, but nothing breaks.
        drop(checkpoint::restore(&mut tuning.trainer, Tune::Lora(0), &newer));
    }
    ensure!(kinds.len() == 8 && kinds.values().all(|n| *n >= 10), "{kinds:?}");
    std::fs::remove_dir_all(&newer)?;
    put(&newer, &whole)?;
    ensure!(checkpoint::newest(out.path())?.found.is_some_and(|(folder, _)| folder == newer), "what is whole is not found");
    Ok(())
}

#[test]
fn names_that_are_no_checkpoint_are_left_alone() -> Result<()> {
    let (out, whole) = two()?;
    let at = |name: &str| out.path().join(name);
    for name in [
        "checkpoint-",
        "checkpoint-04",
        "checkpoint-+4",
        "checkpoint-4.bak",
        "checkpoint--1",
        "xcheckpoint-7",
        "checkpoint-99999999999999999999",
    ] {
        put(&at(name), &whole)?;
    }
    std::fs::write(at("checkpoint-8"), "a file")?;
    put(&at("checkpoint-9"), &whole)?;
    put(&at(".checkpoint-11.tmp"), &whole)?;
    std::fs::create_dir(at(".checkpoint-12.tmp"))?;
    let newest = checkpoint::newest(out.path())?;
    ensure!(newest.found.is_some_and(|(folder, state)| folder == at("checkpoint-4") && state.step == 4), "another was found");
    let said: Vec<&str> = newest.passed.iter().map(|(_, why)| why.as_str()).collect();
    ensure!(said.len() == 2 && said[0].contains("step: wanted 9") && said[1].contains("checkpoint-8/ple_state.json"), "{said:?}");
    ensure!(!at(".checkpoint-11.tmp").exists() && !at(".checkpoint-12.tmp").exists(), "temporary folders are left");
    ensure!(at("checkpoint-04").exists() && at("checkpoint-4.bak").exists(), "folders of others are gone");
    ensure!(checkpoint::newest(&at("nowhere"))?.found.is_none(), "something in no folder");

    // Killed between the two renames: the old one has no name and comes back; with a new one beside it, it goes.
    std::fs::rename(at("checkpoint-4"), at(".checkpoint-4.old"))?;
    put(&at(".checkpoint-4.tmp"), &whole)?;
    ensure!(checkpoint::newest(out.path())?.found.is_some_and(|(folder, _)| folder == at("checkpoint-4")), "the old one is lost");
    put(&at(".checkpoint-4.old"), &whole)?;
    ensure!(checkpoint::newest(out.path())?.found.is_some_and(|(folder, _)| folder == at("checkpoint-4")), "the new one is lost");
    ensure!(!at(".checkpoint-4.old").exists() && !at(".checkpoint-4.tmp").exists(), "hidden folders are left");
    Ok(())
}

#[test]
fn what_is_needed_is_never_removed() -> Result<()> {
    let out = tempfile::tempdir()?;
    let mut tuning = Tuning::new(Tune::Lora(0))?;
    for steps in 1..=6 {
        run(&mut tuning, out.path(), steps)?;
    }
    let at = |step: u64| out.path().join(format!("checkpoint-{step}"));
    let left = || (1..=6).filter(|step| at(*step).exists()).collect::<Vec<u64>>();
    ensure!(checkpoint::prune(out.path(), 0, None)?.is_empty() && left().len() == 6, "0 is no limit");
    ensure!(checkpoint::prune(out.path(), 6, None)?.is_empty() && left().len() == 6, "six of six");
    ensure!(checkpoint::prune(out.path(), 5, Some(1))? == [at(2)] && left() == [1, 3, 4, 5, 6], "{:?}", left());
    std::fs::write(at(6).join("optimizer.safetensors"), "damaged")?;
    ensure!(checkpoint::prune(out.path(), 3, Some(3))? == [at(1), at(4)] && left() == [3, 5, 6], "{:?}", left());
    ensure!(checkpoint::prune(out.path(), 1, Some(3))? == [at(6)] && left() == [3, 5], "{:?}", left());
    ensure!(checkpoint::prune(out.path(), 1, None)? == [at(3)] && left() == [5], "{:?}", left());
    std::fs::remove_file(at(5).join("ple_state.json"))?;
    std::fs::create_dir(at(2))?;
    ensure!(checkpoint::prune(out.path(), 1, None)?.is_empty() && left() == [2, 5], "none is whole, and one was removed");
    Ok(())
}

#[test]
fn files_are_cut_to_the_lengths_of_the_state() -> Result<()> {
    let out = tempfile::tempdir()?;
    let at = |name: &str| out.path().join(name);
    std::fs::create_dir(at("completions"))?;
    std::fs::write(at("log.jsonl"), "12345")?;
    std::fs::write(at("completions/iter-00000.jsonl"), "123")?;
    let mut lengths =
        checkpoint::lengths(out.path(), ["log.jsonl", "completions/iter-00000.jsonl", "completions/iter-00001.jsonl"])?;
    ensure!(lengths.values().copied().collect::<Vec<_>>() == [3, 0, 5], "{lengths:?}");
    for name in ["log.jsonl", "completions/iter-00001.jsonl"] {
        std::fs::write(at(name), "12345 and more")?;
    }
    checkpoint::cut(out.path(), &lengths)?;
    ensure!(
        std::fs::read(at("log.jsonl"))? == b"12345" && std::fs::read(at("completions/iter-00001.jsonl"))?.is_empty(),
        "not cut"
    );
    std::fs::write(at("log.jsonl"), "123456")?;
    lengths.insert("trace.json".into(), 1);
    refused("a file that is gone", checkpoint::cut(out.path(), &lengths), &["trace.json", "open"])?;
    std::fs::write(at("trace.json"), "")?;
    refused("a file that is shorter", checkpoint::cut(out.path(), &lengths), &["trace.json", "at least the 1 bytes", "got 0"])?;
    ensure!(std::fs::read(at("log.jsonl"))? == b"123456", "a file was cut before all were looked at");
    for name in ["../x", "/etc/passwd", "", "a/../../x"] {
        refused(name, checkpoint::cut(out.path(), &[(name.to_string(), 0)].into()), &["inside the run's folder"])?;
    }
    Ok(())
}
