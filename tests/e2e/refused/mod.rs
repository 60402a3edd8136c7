//! Input that cannot be used, one row of a table each: the exit code, an error that names file, field and what was wanted, no
//! panic, and nothing half-written left behind. A tiny model of random weights; no shared data.

mod adapters;
mod devices;
mod disks;
mod memory;
mod methods;
mod models;
mod numbers;
mod rewards;
mod rows;
mod settings;
mod tensors;

use super::files;
use super::program::{Ple, ple};
use anyhow::{Context, Result, ensure};
use ple_tests::tiny;
use runtime::DType;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Exit code: the settings.
const USAGE: i32 = 2;
/// Exit code: a file of a model, of data or of a run.
const FILE: i32 = 3;
/// Exit code: a device, or memory.
const DEVICE: i32 = 4;
/// Exit code: numbers that are not finite.
const NUMERIC: i32 = 5;

const MODEL: &str = "model/model.safetensors";
const ADAPTER: &str = "adapter/adapter_model.safetensors";

/// A folder with everything a command wants: `model`, `adapter`, `rows.jsonl`. Results go to `out` or `out.jsonl`.
pub(super) struct Stage(TempDir);

/// What a row of a table does to a stage.
type Spoil = Box<dyn Fn(&Stage) -> Result<()>>;

/// What is spoilt, how, and what the error must say.
type Case = (&'static str, Spoil, &'static [&'static str]);

impl Stage {
    /// All of it in order.
    pub(super) fn new() -> Result<Stage> {
        let dir = tempfile::tempdir()?;
        std::fs::rename(tiny::folder(false, DType::F32)?.keep(), dir.path().join("model"))?;
        let stage = Stage(dir);
        tiny::words(&stage.path("model"))?;
        stage.write(
            "rows.jsonl",
            "{\"prompt\": \"w7 w8\", \"completion\": \" w9 w10 w11\"}\n{\"prompt\": \"w3\", \"completion\": \" w4\"}\n",
        )?;
        stage.sft().and("--max_steps 1").succeed()?;
        std::fs::rename(stage.path("out"), stage.path("adapter"))?;
        Ok(stage)
    }

    /// A copy to spoil.
    fn copy(&self) -> Result<Stage> {
        let dir = tempfile::tempdir()?;
        for name in files(self.0.path())? {
            let target = dir.path().join(&name);
            std::fs::create_dir_all(target.parent().context("a file without a folder")?)?;
            std::fs::copy(self.path(&name), target)?;
        }
        Ok(Stage(dir))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        std::fs::read(self.path(name)).with_context(|| name.to_string())
    }

    pub(super) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        std::fs::write(self.path(name), bytes).with_context(|| name.to_string())
    }

    /// Changes a JSON file.
    pub(super) fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut value = serde_json::from_slice(&self.read(name)?)?;
        change(&mut value);
        self.write(name, value.to_string())
    }

    /// `ple logprob` over everything there is.
    fn score(&self) -> Ple {
        let call = ple("logprob").key("model_name_or_path", self.path("model")).key("dataset_name", self.path("rows.jsonl"));
        call.key("output_file", self.path("out.jsonl"))
    }

    /// `ple score` of the rows; the rewards follow.
    fn rewarded(&self) -> Ple {
        ple("score --threads 1").key("dataset_name", self.path("rows.jsonl")).key("output_file", self.path("out.jsonl"))
    }

    fn sft(&self) -> Ple {
        let call = ple("sft --threads 1").key("model_name_or_path", self.path("model"));
        call.key("dataset_name", self.path("rows.jsonl")).key("output_dir", self.path("out"))
    }

    pub(super) fn train(&self) -> Ple {
        let call =
            ple("train --threads 1 --ple_iters 1 --ple_queries_per_iter 2 --max_completion_length 4 --reward_funcs length:3");
        let call = call.key("model_name_or_path", self.path("model")).key("dataset_name", self.path("rows.jsonl"));
        call.key("ple_principle", "w5").key("output_dir", self.path("out"))
    }

    /// A refused command leaves no result, and never a file that is not finished.
    pub(super) fn left_clean(&self) -> Result<()> {
        let found = files(self.0.path())?;
        let result = |name: &&String| name.ends_with(".tmp") || *name == "out.jsonl" || name.starts_with("out/adapter_model");
        ensure!(!found.iter().any(|name| result(&name)), "left behind: {found:?}");
        Ok(())
    }
}

/// Each case on a copy of its own, with `ple logprob` and the adapter: exit code 3.
fn refuse(stage: &Stage, cases: Vec<Case>) -> Result<()> {
    refuse_by(stage, cases, FILE, |stage| stage.score().key("adapter", stage.path("adapter")))
}

fn refuse_by(stage: &Stage, cases: Vec<Case>, code: i32, call: impl Fn(&Stage) -> Ple) -> Result<()> {
    let mut wrong = Vec::new();
    for (what, spoil, words) in cases {
        let copy = stage.copy()?;
        let outcome = spoil(&copy).and_then(|()| call(&copy).refuse(code, words)).and_then(|()| copy.left_clean());
        wrong.extend(outcome.err().map(|e| format!("{what}: {e:#}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The same for words that are added to one command.
fn refuse_words(call: impl Fn() -> Ple, cases: &[(&str, &[&str])]) -> Result<()> {
    let wrong: Vec<String> =
        cases.iter().filter_map(|(more, words)| call().and(more).refuse(USAGE, words).err()).map(|e| e.to_string()).collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A field of a JSON file is another.
fn set(file: &'static str, field: &'static str, value: Value) -> Spoil {
    Box::new(move |stage| stage.edit(file, |object| object[field] = value.clone()))
}

/// A field of a JSON file is missing.
fn without(file: &'static str, field: &'static str) -> Spoil {
    Box::new(move |stage| stage.edit(file, |object| drop(object.as_object_mut().and_then(|map| map.shift_remove(field)))))
}

/// A file is another.
fn bytes(file: &'static str, bytes: impl AsRef<[u8]>) -> Spoil {
    let bytes = bytes.as_ref().to_vec();
    Box::new(move |stage| stage.write(file, &bytes))
}

/// A file ends early.
fn cut(file: &'static str, keep: usize) -> Spoil {
    Box::new(move |stage| stage.read(file).and_then(|bytes| stage.write(file, &bytes[..keep.min(bytes.len())])))
}

/// A file is missing.
fn absent(file: &'static str) -> Spoil {
    Box::new(move |stage| Ok(std::fs::remove_file(stage.path(file))?))
}

/// A file is a folder.
fn folder(file: &'static str) -> Spoil {
    Box::new(move |stage| {
        std::fs::remove_file(stage.path(file))?;
        Ok(std::fs::create_dir(stage.path(file))?)
    })
}

/// What `git clone` leaves of a large file.
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";

#[test]
fn a_stage_in_order_runs() -> Result<()> {
    let stage = Stage::new()?;
    stage.score().key("adapter", stage.path("adapter")).succeed()?;
    let lines = super::objects(&stage.path("out.jsonl"))?;
    ensure!(lines.len() == 2 && lines[0]["logps"].as_array().is_some_and(|l| l.len() == 3), "{lines:?}");
    stage.train().succeed()?;
    ensure!(stage.path("out/adapter_model.safetensors").exists(), "no adapter");
    Ok(())
}

/// The safetensors file `name` with another header or other data.
fn rewrite(stage: &Stage, name: &str, change: impl FnOnce(&mut serde_json::Map<String, Value>, &mut Vec<u8>)) -> Result<()> {
    let file = stage.read(name)?;
    let (length, rest) = file.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into()?) as usize);
    let (mut header, mut data) = (serde_json::from_slice(header)?, data.to_vec());
    change(&mut header, &mut data);
    stage.write(name, assemble(&Value::Object(header).to_string(), &data))
}

/// Length, header, data.
fn assemble(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// A file at `stage` relative path, for arguments.
fn inside(stage: &Stage, name: &str) -> String {
    Path::new(&stage.path(name)).to_string_lossy().into_owned()
}
