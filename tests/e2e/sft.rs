//! `ple sft`: the same bytes however the batch is cut; adapters go on, full models load, folders without weights begin.

use super::program::{Ple, ple};
use super::runs::train;
use super::scores::score;
use super::{Data, bits, files, number, objects, same, vectors, zipped};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::path::Path;

const ADAPTER: [&str; 2] = ["adapter_model.safetensors", "adapter_config.json"];

/// A few steps; `--model_name_or_path` is the caller's.
fn sft(rows: &Path, out: &Path) -> Ple {
    ple("sft --max_steps 4 --max_length 128 --learning_rate 0.001").key("dataset_name", rows).key("output_dir", out)
}

#[test]
fn cuts_of_the_batch_do_not_show() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = data.first(60, dir.path())?;
    let cuts = [
        "--per_device_train_batch_size 1 --gradient_accumulation_steps 8 --threads 1 --max_tokens_per_micro_batch 1",
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 --threads 4 --max_tokens_per_micro_batch 300",
    ];
    for model in [&data.model, &data.bf16] {
        let run = |name: &str| sft(&rows, &at(name)).key("model_name_or_path", model);
        run("whole").and("--threads 2").succeed()?;
        for (cut, isa) in cuts.into_iter().zip(vectors().into_iter().cycle()) {
            run("cut").and(cut).simd(isa).succeed()?;
            same(&at("whole"), &at("cut"), &ADAPTER)?;
        }
    }
    let log = objects(&at("whole").join("log.jsonl"))?;
    ensure!(log.len() == 4, "{} lines of log for 4 steps", log.len());
    for (i, row) in log.iter().enumerate() {
        ensure!(row["step"] == i + 1 && number(row, "loss")? > 0.0 && number(row, "grad_norm")? > 0.0, "{row}");
        let rate = 0.001 * (1.0 - i as f64 / 4.0);
        ensure!((number(row, "learning_rate")? - rate).abs() < 1e-12, "learning rate {}, wanted {rate}", row["learning_rate"]);
    }
    Ok(())
}

#[test]
fn every_weight_with_any_threads() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = data.first(40, dir.path())?;
    let run = |name: &str| sft(&rows, &at(name)).key("model_name_or_path", &data.model).and("--tune full");
    run("full").and("--threads 2").succeed()?;
    run("again").and("--threads 1 --per_device_train_batch_size 1 --gradient_accumulation_steps 8").succeed()?;
    same(&at("full"), &at("again"), &["model.safetensors"])?;
    same(&at("full"), &data.model, &["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])?;
    // The folder is a model: it scores, and better than what it was made of.
    let loss = |model: &Path| -> Result<f64> {
        sft(&rows, &at("none"))
            .key("model_name_or_path", model)
            .key("eval_dataset_name", &rows)
            .and("--max_steps 0")
            .succeed()?;
        number(&objects(&at("none").join("log.jsonl"))?[0], "eval_loss")
    };
    let (before, after) = (loss(&data.model)?, loss(&at("full"))?);
    ensure!(after < before, "held-out loss {before} before, {after} after");
    std::fs::write(at("text.jsonl"), "{\"text\": \"Once upon a time\"}\n")?;
    score(&at("full"), &at("text.jsonl"), &at("out.jsonl"), None).succeed()?;
    score(&data.model, &at("text.jsonl"), &at("base.jsonl"), None).succeed()?;
    ensure!(std::fs::read(at("out.jsonl"))? != std::fs::read(at("base.jsonl"))?, "training changed nothing");
    Ok(())
}

#[test]
fn from_a_configuration_alone() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = data.first(20, dir.path())?;
    std::fs::create_dir(at("begin"))?;
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(data.model.join(name), at("begin").join(name))?;
    }
    let run = |name: &str| sft(&rows, &at(name)).key("init_from_config", at("begin")).and("--tune full --max_steps 2");
    run("a").and("--threads 1").succeed()?;
    run("b").and("--threads 2").succeed()?;
    same(&at("a"), &at("b"), &["model.safetensors", "config.json"])?;
    run("c").and("--seed 1").succeed()?;
    ensure!(same(&at("a"), &at("c"), &["model.safetensors"]).is_err(), "the seed does nothing");
    // 512 tokens and nothing learnt: about ln 512 per token.
    let first = number(&objects(&at("a").join("log.jsonl"))?[0], "loss")?;
    ensure!((first - 512f64.ln()).abs() < 0.3, "first loss {first}");
    Ok(())
}

#[test]
fn an_adapter_goes_on() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = data.first(60, dir.path())?;
    let run = |name: &str| sft(&rows, &at(name)).key("model_name_or_path", &data.model).key("eval_dataset_name", &rows);
    run("first").and("--eval_steps 2 --save_steps 2 --log_format json").succeed().and_then(|said| {
        let log = std::fs::read_to_string(at("first").join("log.jsonl"))?;
        ensure!(said.out == log, "log_format json printed {:?}, the log has {log:?}", said.out);
        Ok(())
    })?;
    ensure!(files(&at("first"))?.iter().any(|name| name == "checkpoint-2/adapter_model.safetensors"), "no checkpoint of step 2");
    let evaluations = |name: &str| -> Result<Vec<(u64, f64)>> {
        let rows = objects(&at(name).join("log.jsonl"))?;
        let rows = rows.iter().filter(|row| row.get("eval_loss").is_some());
        rows.map(|row| Ok((row["step"].as_u64().unwrap_or(9), number(row, "eval_loss")?))).collect()
    };
    let [(0, start), (2, _), (4, end)] = evaluations("first")?[..] else { anyhow::bail!("{:?}", evaluations("first")?) };
    ensure!(end < start, "held-out loss {start} at first, {end} in the end");
    // Nothing but the given adapter comes out of steps at a rate of 0; with a rate it begins where the first one ended.
    run("still").key("adapter", at("first")).and("--learning_rate 0").succeed()?;
    same(&at("first"), &at("still"), &ADAPTER)?;
    run("on").key("adapter", at("first")).succeed()?;
    ensure!(evaluations("on")?.first() == Some(&(0, end)), "went on at {:?}, ended at {end}", evaluations("on")?);
    ensure!(same(&at("first"), &at("on"), &ADAPTER[..1]).is_err(), "the second run changed nothing");
    Ok(())
}

#[test]
fn the_supervised_stage_of_a_run_is_sft() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let (rows, queries) = (data.first(60, dir.path())?, data.first(200, dir.path())?);
    let both = "--max_length 128 --num_train_epochs 2 --per_device_train_batch_size 8 --gradient_accumulation_steps 2 --lr_scheduler_type constant";
    train(&data, &queries, &at("run"), 1).key("sft_dataset_name", &rows).and(both).succeed()?;
    let log = objects(&at("run").join("log.jsonl"))?;
    let (stage, steps): (Vec<&Value>, Vec<&Value>) = log.iter().partition(|row| row.get("ple/tau").is_none());
    ensure!(stage.len() == 4 && steps.len() == 1, "{} supervised steps and {} of PLE", stage.len(), steps.len());
    ensure!(steps[0]["step"] == 1 && number(steps[0], "logp_gap_max")? == 0.0, "{}", steps[0]);
    // The answers are those of the adapter that `ple sft` makes of the same rows.
    sft(&zipped(&rows)?, &at("sft")).key("model_name_or_path", &data.model).and(both).and("--max_steps -1").succeed()?;
    let answers = at("run").join("completions/iter-00000.jsonl");
    score(&data.model, &answers, &at("out.jsonl"), Some(&at("sft"))).succeed()?;
    for (stored, again) in objects(&answers)?.iter().zip(objects(&at("out.jsonl"))?) {
        ensure!(bits(stored, "logps")? == bits(&again, "logps")?, "{stored} is not of the supervised adapter");
    }
    Ok(())
}
