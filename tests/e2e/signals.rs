//! Ctrl-C and SIGTERM in every phase: exit code 130, what was trained is kept, and no file is half.

use super::program::{Begun, Ple, ple};
use super::{Data, files, objects, same};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;

const ADAPTER: [&str; 2] = ["adapter_model.safetensors", "adapter_config.json"];

/// Ends it and checks what it leaves; the step that its last folder is named after.
fn interrupt(begun: Begun, name: &str, out: &Path) -> Result<u64> {
    let said = begun.signal(name)?;
    ensure!(said.code == 130 && said.err == "ple: interrupted\n", "{name}: exit code {}: {}", said.code, said.err);
    let found = files(out)?;
    ensure!(!found.iter().any(|name| name.ends_with(".tmp")), "left behind: {found:?}");
    let kept: Vec<&str> =
        found.iter().filter_map(|f| f.strip_prefix("checkpoint-")?.strip_suffix("/adapter_config.json")).collect();
    let [step] = kept[..] else { anyhow::bail!("wanted one checkpoint, got {found:?}") };
    ensure!(said.out.contains(&format!("checkpoint-{step}")), "it does not say where: {}", said.out);
    ensure!(!found.iter().any(|f| ADAPTER.contains(&f.as_str()) || f == "ple.json"), "it looks like a finished run: {found:?}");
    found.iter().filter(|f| f.starts_with("completions/")).try_for_each(|f| objects(&out.join(f)).map(drop))?;
    Ok(step.parse()?)
}

/// Complete lines of the log so far.
fn logged(out: &Path) -> usize {
    std::fs::read_to_string(out.join("log.jsonl")).map_or(0, |text| text.matches('\n').count())
}

fn sft(data: &Data, rows: &Path, out: &Path) -> Ple {
    let call = ple("sft --max_length 96 --learning_rate 0.001 --lr_scheduler_type constant").key("dataset_name", rows);
    call.key("model_name_or_path", &data.model).key("output_dir", out)
}

fn train(data: &Data, rows: &Path, out: &Path) -> Ple {
    let call = ple("train --max_prompt_length 96 --learning_rate 0.001 --reward_funcs length:8 --ple_principle Hi --ple_iters 2");
    call.key("model_name_or_path", &data.model).key("dataset_name", rows).key("output_dir", out)
}

#[test]
fn in_supervised_training() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (rows, out) = (data.first(40, dir.path())?, dir.path().join("out"));
    let begun = sft(&data, &rows, &out).and("--max_steps 100000").begin()?.wait_until(|| logged(&out) >= 3)?;
    let step = interrupt(begun, "INT", &out)?;
    let log = objects(&out.join("log.jsonl"))?;
    ensure!(step >= 3 && log.last().context("a line")?["step"] == step, "step {step} is not the last of {} lines", log.len());
    // It is what a run of so many steps leaves.
    sft(&data, &rows, &dir.path().join("whole")).key("max_steps", step.to_string()).succeed()?;
    same(&dir.path().join("whole"), &out.join(format!("checkpoint-{step}")), &ADAPTER)
}

#[test]
fn in_the_supervised_stage_and_in_training() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let rows = data.first(40, dir.path())?;
    let out = dir.path().join("stage");
    let call = train(&data, &rows, &out).key("sft_dataset_name", &rows).and("--num_train_epochs 10000 --ple_queries_per_iter 8");
    let step = interrupt(call.begin()?.wait_until(|| logged(&out) >= 2)?, "TERM", &out)?;
    ensure!(step >= 2 && !out.join("completions/iter-00000.jsonl").exists(), "step {step}");

    let out = dir.path().join("steps");
    let steps = "--ple_queries_per_iter 8 --max_completion_length 12 --ple_epochs_per_iter 50000 --per_device_train_batch_size 1";
    let call = |out: &Path| train(&data, &rows, out).and(steps);
    let step = interrupt(call(&out).begin()?.wait_until(|| logged(&out) >= 3)?, "INT", &out)?;
    ensure!(objects(&out.join("log.jsonl"))?.last().context("a line")?["step"] == step, "step {step} is not the last of the log");
    ensure!(objects(&out.join("completions/iter-00000.jsonl"))?.len() == 16, "answers are missing");
    let whole = dir.path().join("whole");
    call(&whole).key("max_steps", step.to_string()).succeed()?;
    same(&whole, &out.join(format!("checkpoint-{step}")), &ADAPTER)
}

#[test]
fn in_a_rollout() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (rows, out) = (data.first(60, dir.path())?, dir.path().join("out"));
    let call = |out: &Path| {
        train(&data, &rows, out).and("--ple_queries_per_iter 48 --max_completion_length 200 --ple_epochs_per_iter 2")
    };
    for (name, signal) in [("adapters/iter-00000", "TERM"), ("adapters/iter-00001", "INT")] {
        let begun = call(&out).begin()?.wait_until(|| out.join(name).join(ADAPTER[0]).exists())?;
        let step = interrupt(begun, signal, &out)?;
        same(&out.join(name), &out.join(format!("checkpoint-{step}")), &ADAPTER[..1])?;
        std::fs::remove_dir_all(&out)?;
    }
    Ok(())
}

#[test]
fn in_commands_that_write_one_file() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (rows, out) = (data.first(300, dir.path())?, dir.path().join("out.jsonl"));
    let text: Vec<String> = objects(&rows)?
        .iter()
        .map(|r: &Value| {
            serde_json::json!({"text": r["chosen"].as_str().map(|t| t.chars().take(400).collect::<String>())}).to_string()
        })
        .collect();
    std::fs::write(dir.path().join("texts.jsonl"), vec![text.join("\n"); 20].join("\n"))?;
    let calls = [
        ("INT", ple("generate --max_completion_length 200").key("dataset_name", &rows)),
        ("TERM", ple("logprob").key("dataset_name", dir.path().join("texts.jsonl"))),
    ];
    for (signal, call) in calls {
        let begun = call.key("model_name_or_path", &data.model).key("output_file", &out).begin()?;
        let said = begun.signal(signal)?;
        ensure!(said.code == 130 && said.err == "ple: interrupted\n", "exit code {}: {}", said.code, said.err);
        ensure!(files(dir.path())? == ["first-300.jsonl", "texts.jsonl"], "left behind: {:?}", files(dir.path())?);
    }
    Ok(())
}
