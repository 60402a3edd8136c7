//! Evaluation while a run goes, and the files of a run that other tools read.

use super::program::{Ple, ple};
use super::runs::train;
use super::{Data, files, number, objects, same};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;

fn json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&std::fs::read(path).with_context(|| path.display().to_string())?).context("JSON")
}

/// Rows of evaluations, by step.
fn evaluations(run: &Path) -> Result<Vec<(u64, Value)>> {
    let rows = objects(&run.join("log.jsonl"))?.into_iter().filter(|row| row.get("time/eval").or(row.get("eval_loss")).is_some());
    rows.map(|row| Ok((row["step"].as_u64().context("step")?, row))).collect()
}

#[test]
fn held_out_answers_leave_training_as_it_is() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let (rows, held) = (data.first(200, dir.path())?, data.first(12, dir.path())?);
    let run =
        |name: &str| train(&data, &rows, &at(name), 2).and("--per_device_train_batch_size 1 --gradient_accumulation_steps 6");
    run("without").and("--report_to none").succeed()?;
    run("with").key("eval_dataset_name", &held).and("--eval_steps 2").key("trace", at("trace.json")).succeed()?;
    let names = ["adapter_model.safetensors", "completions/iter-00000.jsonl", "completions/iter-00001.jsonl"];
    same(&at("without"), &at("with"), &names)?;
    let found = evaluations(&at("with"))?;
    let steps: Vec<u64> = found.iter().map(|(step, _)| *step).collect();
    ensure!(steps == [0, 2, 3, 4, 6], "evaluated at {steps:?}");
    for (step, row) in &found {
        let answers = objects(&at("with").join(format!("completions/eval-{step:05}.jsonl")))?;
        let rewards = answers.iter().map(|answer| number(answer, "reward")).collect::<Result<Vec<_>>>()?;
        let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
        ensure!((number(row, "eval_reward")? - mean).abs() < 1e-12 && rewards.len() > 5, "{row}");
        ensure!((number(row, "eval_perplexity")?.ln() - number(row, "eval_loss")?).abs() < 1e-9, "{row}");
    }
    let trained = |name: &str| -> Result<Vec<(Value, Value)>> {
        let rows = objects(&at(name).join("log.jsonl"))?.into_iter().filter(|row| row.get("iteration").is_some());
        Ok(rows.map(|row| (row["loss"].clone(), row["grad_norm"].clone())).collect())
    };
    ensure!(trained("without")? == trained("with")?, "an evaluation changes the steps");
    steps_alone_are_training(&at("with"))?;
    reads_back(&at("with"), &at("trace.json"))?;
    let left = files(&at("without"))?;
    ensure!(!left.iter().any(|name| name == "metrics.csv" || name.starts_with("runs/")), "{left:?}");
    ensure!(json(&at("without/trainer_state.json"))?["global_step"] == 6, "no state without report_to");
    Ok(())
}

/// What an iteration has trained for is the time of its steps, whatever was evaluated between them.
fn steps_alone_are_training(run: &Path) -> Result<()> {
    let (mut iteration, mut seconds) = (Value::Null, 0.0);
    for row in objects(&run.join("log.jsonl"))?.iter().filter(|row| row.get("iteration").is_some()) {
        if row["iteration"] != iteration {
            (iteration, seconds) = (row["iteration"].clone(), 0.0);
        }
        seconds += number(row, "step_time")?;
        ensure!((number(row, "time/train")? - seconds).abs() < 1e-9, "{row} after {seconds} s of steps");
    }
    Ok(())
}

/// Table, state, events, trace and provenance say what the log says.
fn reads_back(run: &Path, trace: &Path) -> Result<()> {
    let log = objects(&run.join("log.jsonl"))?;
    let table = std::fs::read_to_string(run.join("metrics.csv"))?;
    ensure!(table.lines().count() == log.len() + 1, "{} rows of {}", table.lines().count(), log.len());
    let column = table.lines().next().and_then(|head| head.split(',').position(|name| name == "loss")).context("loss")?;
    let losses = table.lines().skip(1).map(|line| line.split(',').nth(column).unwrap_or_default().parse::<f64>().ok());
    ensure!(losses.eq(log.iter().map(|row| row.get("loss").and_then(Value::as_f64))), "{table}");
    let state = json(&run.join("trainer_state.json"))?;
    let history = state["log_history"].as_array().context("log_history")?;
    ensure!(history == &log && state["global_step"] == 6 && state["eval_steps"] == 2, "{state}");
    let events: Vec<String> = files(run)?.into_iter().filter(|name| name.contains("events.out.tfevents.")).collect();
    ensure!(events.len() == 1, "{events:?}");
    let bytes = String::from_utf8_lossy(&std::fs::read(run.join(&events[0]))?).into_owned();
    ensure!(bytes.contains("eval/reward") && bytes.contains("train/loss") && bytes.contains("train/ple/tau"), "tags are missing");
    let spans = json(trace)?;
    let count = |name: &str| spans.as_array().map_or(0, |all| all.iter().filter(|span| span["name"] == name).count());
    ensure!(["rollout", "reward", "label", "step", "eval"].map(count) == [2, 2, 2, 6, 5], "{spans}");
    let settings = json(&run.join("run.json"))?;
    let hash = |key: &str| settings["files"][key]["sha256"].as_str().map(str::len);
    ensure!(hash("dataset_name") == Some(64) && hash("eval_dataset_name") == Some(64), "{}", settings["files"]);
    ensure!(settings["files"]["model_name_or_path"]["files"]["tokenizer.json"]["bytes"].is_u64(), "{}", settings["files"]);
    Ok(())
}

fn sft(data: &Data, out: &Path) -> Result<Ple> {
    let (rows, held) = (data.first(40, out.parent().context("parent")?)?, data.first(10, out.parent().context("parent")?)?);
    Ok(ple("sft --max_length 128 --eval_steps 1 --lr_scheduler_type constant")
        .key("model_name_or_path", &data.model)
        .key("dataset_name", rows)
        .key("eval_dataset_name", held)
        .key("output_dir", out))
}

#[test]
fn the_best_evaluation_is_what_is_left() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    // Far too high a rate: it soon gets worse.
    let words = "--max_steps 12 --learning_rate 0.05 --load_best_model_at_end --early_stopping_patience 3";
    let said = sft(&data, &at("run"))?.and(words).succeed()?;
    let found = evaluations(&at("run"))?;
    let losses = found.iter().skip(1).map(|(step, row)| Ok((*step, number(row, "eval_loss")?))).collect::<Result<Vec<_>>>()?;
    let (best, loss) = losses.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).context("evaluations")?;
    ensure!(losses.last().map(|l| l.0) == Some(best + 3) && best + 3 < 12, "best {best} of {losses:?}: {}", said.out);
    let state = json(&at("run/trainer_state.json"))?;
    ensure!(state["best_global_step"] == best && state["best_metric"] == loss && state["global_step"] == best + 3, "{state}");
    same(&at("run"), &at("run/best"), &["adapter_model.safetensors"])?;
    sft(&data, &at("short"))?.and("--learning_rate 0.05").and(&format!("--max_steps {best}")).succeed()?;
    same(&at("run"), &at("short"), &["adapter_model.safetensors"])?;
    sft(&data, &at("none"))?.and("--metric_for_best_model reward").refuse(2, &["metric_for_best_model", "got reward"])?;
    sft(&data, &at("none"))?.and("--report_to none csv").refuse(2, &["report_to", "none"])
}
