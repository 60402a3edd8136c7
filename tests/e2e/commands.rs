//! `ple train`, `ple sft` and `ple logprob`: what they leave behind, and that no setting of speed shows in it.

use super::data;
use super::process::{Setup, ple};
use anyhow::{Context, Result, ensure};
use runtime::Isa;
use serde_json::Value;
use std::path::Path;

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

fn lines(path: &Path) -> Result<Vec<Value>> {
    let all = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    all.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn bits(row: &Value) -> Result<Vec<u32>> {
    let logps = row["logps"].as_array().context("a row without logps")?;
    logps.iter().map(|l| Ok((l.as_f64().context("a log-probability that is no number")? as f32).to_bits())).collect()
}

/// Instruction sets that are not the best, to force.
fn others() -> Vec<String> {
    Isa::all().into_iter().filter(|isa| *isa != Isa::detect()).map(|isa| isa.to_string()).collect()
}

/// A short run of PLE; `more` are the settings that must not show.
fn train(out: &Path, iterations: &str, setup: Setup<'_>, more: &[&str]) -> Result<()> {
    let Some(data) = data() else { anyhow::bail!("the data went away") };
    let reward = format!("lexicon:{}", data.lexicon.display());
    let mut argv = vec!["train", "--model_name_or_path", text(&data.model)?, "--dataset_name", text(&data.rows)?];
    argv.extend([
        "--reward_funcs",
        &reward,
        "--output_dir",
        text(out)?,
        "--ple_iters",
        iterations,
        "--ple_queries_per_iter",
        "6",
    ]);
    argv.extend(["--max_completion_length", "20", "--max_prompt_length", "160", "--per_device_train_batch_size", "3"]);
    argv.extend(["--gradient_accumulation_steps", "1", "--learning_rate", "0.001", "--quiet", "true"]);
    argv.extend(more);
    ple(setup, &argv)
}

const KEPT: [&str; 4] =
    ["adapter_model.safetensors", "adapter_config.json", "completions/iter-00000.jsonl", "completions/iter-00001.jsonl"];

fn same_files(a: &Path, b: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let (x, y) = (std::fs::read(a.join(name))?, std::fs::read(b.join(name))?);
        ensure!(x == y, "{name} of {} and {} differ", a.display(), b.display());
    }
    Ok(())
}

/// The log of a run of two iterations.
fn check_log(run: &Path) -> Result<()> {
    let log = lines(&run.join("log.jsonl"))?;
    let steps: Vec<&Value> = log.iter().filter(|row| row.get("ple/tau").is_some()).collect();
    ensure!(!steps.is_empty(), "the log has no step");
    for row in &steps {
        let of = |name: &str| row[name].as_f64().with_context(|| format!("{name} is {} in {row}", row[name]));
        let tau = if row["iteration"] == 0 { 0.2 } else { 0.2 * 0.9 };
        ensure!((of("ple/tau")? - tau).abs() < 1e-12, "tau is {} in iteration {}", row["ple/tau"], row["iteration"]);
        ensure!(of("logp_gap_max")? == 0.0, "the gap between sampling and training is {}", row["logp_gap_max"]);
        for name in ["loss", "grad_norm", "learning_rate", "reward", "ple/rank_frac", "ple/reward_orig", "ple/reward_guided"] {
            of(name)?;
        }
    }
    ensure!(steps.iter().any(|row| row["iteration"] == 1), "the second iteration took no step");
    Ok(())
}

#[test]
fn a_run_of_ple() -> Result<()> {
    if data().is_none() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    train(&at("run"), "2", Setup::default(), &["--threads", "2"])?;
    check_log(&at("run"))?;
    let completions = lines(&at("run").join(KEPT[2]))?;
    ensure!(completions.len() == 12, "{} completions of 6 queries on 2 sides", completions.len());

    // Threads, instruction set and micro-batches do not show.
    let simd = others().into_iter().next_back();
    let setup = Setup { simd: simd.as_deref() };
    train(&at("again"), "2", setup, &["--threads", "1", "--max_tokens_per_micro_batch", "1"])?;
    same_files(&at("run"), &at("again"), &KEPT)?;

    // Another process finds the stored log-probabilities: iteration 0 is the base's, iteration 1 that of the adapter after it.
    train(&at("half"), "1", Setup::default(), &[])?;
    for (iteration, adapter) in [(0, None), (1, Some(at("half")))] {
        let (stored, out) = (at("run").join(KEPT[2 + iteration]), at("scored.jsonl"));
        score(&stored, &out, adapter.as_deref(), Setup { simd: simd.as_deref() }, &["--threads", "4"])?;
        for (i, (a, b)) in lines(&stored)?.iter().zip(lines(&out)?).enumerate() {
            ensure!(
                bits(a)? == bits(&b)?,
                "iteration {iteration}: the log-probabilities of completion {i} are others in another process"
            );
        }
    }
    Ok(())
}

fn score(rows: &Path, out: &Path, adapter: Option<&Path>, setup: Setup<'_>, more: &[&str]) -> Result<()> {
    let Some(data) = data() else { anyhow::bail!("the data went away") };
    let mut argv = vec!["logprob", "--model_name_or_path", text(&data.model)?, "--dataset_name", text(rows)?];
    argv.extend(["--output_file", text(out)?, "--quiet", "true"]);
    if let Some(adapter) = adapter {
        argv.extend(["--adapter", text(adapter)?]);
    }
    argv.extend(more);
    ple(setup, &argv)
}

/// 64 rows of prompts and replies.
fn pairs(path: &Path) -> Result<Vec<String>> {
    let Some(data) = data() else { anyhow::bail!("the data went away") };
    let rows = lines(&data.rows)?;
    let mut out = Vec::new();
    for row in rows.iter().filter_map(|row| row["chosen"].as_str()) {
        let Some(cut) = row.rfind("\n\nAssistant:").map(|i| i + "\n\nAssistant:".len()) else { continue };
        let (prompt, completion) = (&row[..cut], row[cut..].chars().take(80).collect::<String>());
        if prompt.len() < 300 && !completion.trim().is_empty() && out.len() < 64 {
            out.push(serde_json::json!({ "prompt": prompt, "completion": completion }).to_string());
        }
    }
    std::fs::write(path, out.join("\n") + "\n")?;
    Ok(out)
}

#[test]
fn log_probabilities_of_rows() -> Result<()> {
    let Some(data) = data() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = pairs(&at("rows.jsonl"))?;
    ensure!(rows.len() == 64, "{} rows", rows.len());
    score(&at("rows.jsonl"), &at("out.jsonl"), None, Setup::default(), &[])?;
    let wanted = std::fs::read_to_string(at("out.jsonl"))?;
    let runs =
        ["--threads 1", "--threads 2", "--threads 4", "--max_tokens_per_micro_batch 1", "--max_tokens_per_micro_batch 500"];
    for more in runs {
        score(&at("rows.jsonl"), &at("again.jsonl"), None, Setup::default(), &more.split(' ').collect::<Vec<_>>())?;
        ensure!(std::fs::read_to_string(at("again.jsonl"))? == wanted, "log-probabilities differ with {more}");
    }
    // Few rows for the portable path.
    std::fs::write(at("few.jsonl"), rows[..4].join("\n"))?;
    for simd in others() {
        score(&at("few.jsonl"), &at("again.jsonl"), None, Setup { simd: Some(&simd) }, &[])?;
        let again = std::fs::read_to_string(at("again.jsonl"))?;
        ensure!(again.lines().eq(wanted.lines().take(4)), "log-probabilities differ with {simd}");
    }
    // A row alone, and with the ids that came back.
    for (i, row) in wanted.lines().enumerate().step_by(21) {
        std::fs::write(at("one.jsonl"), rows[i].clone())?;
        score(&at("one.jsonl"), &at("again.jsonl"), None, Setup::default(), &[])?;
        ensure!(std::fs::read_to_string(at("again.jsonl"))?.trim() == row, "row {i} alone differs");
    }
    score(&at("out.jsonl"), &at("again.jsonl"), None, Setup::default(), &[])?;
    ensure!(std::fs::read_to_string(at("again.jsonl"))? == wanted, "the rows with their ids score differently");
    ensure!(data.bf16.exists(), "the bf16 checkpoint went away");
    Ok(())
}

#[test]
fn adapters_of_sft() -> Result<()> {
    let Some(data) = data() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    pairs(&at("rows.jsonl"))?;
    let run = |name: &str, model: &Path, setup: Setup<'_>, more: &[&str]| -> Result<()> {
        let out = at(name);
        let rows = at("rows.jsonl");
        let mut argv =
            vec!["sft", "--model_name_or_path", text(model)?, "--dataset_name", text(&rows)?, "--output_dir", text(&out)?];
        argv.extend(["--max_steps", "3", "--learning_rate", "0.001", "--quiet", "true"]);
        argv.extend(more);
        ple(setup, &argv)
    };
    let eight = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"];
    let ones = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "8", "--max_tokens_per_micro_batch", "1"];
    for model in [&data.model, &data.bf16] {
        let name = |n: usize| format!("{}-{n}", model.file_name().unwrap_or_default().to_string_lossy());
        run(&name(0), model, Setup::default(), &eight)?;
        run(&name(1), model, Setup::default(), &ones)?;
        run(&name(2), model, Setup { simd: others().last().map(String::as_str) }, &[&eight[..], &["--threads", "1"]].concat())?;
        for n in [1, 2] {
            same_files(&at(&name(0)), &at(&name(n)), &["adapter_model.safetensors", "adapter_config.json"])?;
        }
    }
    // Every weight: the folder is a model again, and it scores.
    run("full", &data.model, Setup::default(), &["--tune", "full", "--max_tokens_per_micro_batch", "300"])?;
    run("full-again", &data.model, Setup::default(), &["--tune", "full", "--threads", "1"])?;
    same_files(&at("full"), &at("full-again"), &["model.safetensors", "config.json", "tokenizer.json"])?;
    run("on", &at("full"), Setup::default(), &["--max_steps", "1"])
}
