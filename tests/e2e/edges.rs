//! Runs at the edge: rewards that say nothing or are no numbers, iterations with nothing to train on, answers that never end,
//! queries and principles that do not fit.

use super::refused::Stage;
use super::{bits, number, objects};
use anyhow::{Context, Result, ensure};
use ple::command::train::run_method;
use ple::config::{Command, Config};
use ple::method::{Example, Group, Loss, Method, Metrics, Needs, Outputs, Rollout, Totals, ple::Ple};
use ple::open::Opened;
use ple::reward::Rewards;
use serde_json::{Value, json};

/// Trained numbers of a folder.
fn adapter(stage: &Stage, folder: &str) -> Result<Vec<u8>> {
    let path = stage.path(folder).join("adapter_model.safetensors");
    std::fs::read(&path).with_context(|| path.display().to_string())
}

#[test]
fn all_rewards_equal() -> Result<()> {
    let stage = Stage::new()?;
    stage.write("words.txt", "nowhere\n")?;
    let words = format!("lexicon:{}", stage.path("words.txt").display());
    for norm in ["none", "sigmoid", "bt"] {
        let call = stage.train().key("reward_funcs", &words).key("reward_norm", norm).and("--reward_weights 1 0");
        let said = call.and("--ple_iters 2 --learning_rate 0.01 --ple_empty keep").succeed()?;
        ensure!(said.out.matches("note  every reward is").count() == 2, "{norm}: {}", said.out);
        for iteration in 0..2 {
            let rows = objects(&stage.path(&format!("out/completions/iter-0000{iteration}.jsonl")))?;
            let even = |r: &Value| r["branch"] == "weighted" && r["weight"] == 0.5;
            ensure!(rows.len() == 4 && rows.iter().all(even), "{norm}: {rows:?}");
            // Each reward's own value.
            ensure!(rows.iter().all(|r| r["rewards"]["length:3"].is_f64() && r["rewards"][&words] == 0.5), "{rows:?}");
        }
        ensure!(adapter(&stage, "out/adapters/iter-00001")? != adapter(&stage, "out")?, "{norm}: nothing was trained");
    }
    Ok(())
}

#[test]
fn nothing_to_train_on_in_any_iteration() -> Result<()> {
    let stage = Stage::new()?;
    // No answer ends within four tokens of a model that has no end.
    stage.edit("model/config.json", |c| c["eos_token_id"] = Value::Null)?;
    stage.write("model/tokenizer_config.json", r#"{"bos_token": "<s>"}"#)?;
    let said = stage.train().and("--ple_iters 3 --ple_truncated drop --learning_rate 0.01").succeed()?;
    ensure!(said.out.matches("note  nothing is left to train on").count() == 3, "{}", said.out);
    ensure!(said.out.contains("note  no iteration kept anything"), "{}", said.out);
    let log = objects(&stage.path("out/log.jsonl"))?;
    for (i, row) in log.iter().enumerate() {
        ensure!(row["iteration"] == i && row["step"] == 0 && row["ple/kept"] == 0.0 && row.get("loss").is_none(), "{row}");
        ensure!(number(row, "completions/clipped_ratio")? == 1.0 && number(row, "ple/truncated")? == 2.0, "{row}");
    }
    ensure!(log.len() == 3 && adapter(&stage, "out/adapters/iter-00000")? == adapter(&stage, "out")?, "something was trained");
    Ok(())
}

#[test]
fn an_end_that_never_comes() -> Result<()> {
    let stage = Stage::new()?;
    stage.edit("model/config.json", |c| c["eos_token_id"] = Value::Null)?;
    stage.write("model/tokenizer_config.json", r#"{"bos_token": "<s>"}"#)?;
    stage.train().and("--max_completion_length 70 --max_prompt_length 8").succeed()?;
    let rows = objects(&stage.path("out/completions/iter-00000.jsonl"))?;
    for row in &rows {
        ensure!(row["finished"] == false && row["ids"].as_array().is_some_and(|ids| ids.len() == 70), "{row}");
        ensure!(row["branch"].is_string() && bits(row, "logps")?.len() == 70, "{row}");
    }
    let log = objects(&stage.path("out/log.jsonl"))?;
    ensure!(rows.len() == 4 && log[0]["step"] == 1 && log[0]["completions/clipped_ratio"] == 1.0, "{log:?}");
    Ok(())
}

#[test]
fn queries_and_principles_that_do_not_fit() -> Result<()> {
    let stage = Stage::new()?;
    let long = json!({"prompt": "w3 ".repeat(600)});
    stage.write("rows.jsonl", format!("{long}\n{{\"prompt\": \"w3 w4\"}}\n"))?;
    let said = stage.train().succeed()?;
    ensure!(said.out.contains("1 rows, 1 left out") && said.out.contains("1 too long"), "{}", said.out);
    let rows = objects(&stage.path("out/completions/iter-00000.jsonl"))?;
    ensure!(rows.len() == 4 && rows.iter().all(|r| r["row"] == 1), "{rows:?}");
    std::fs::remove_dir_all(stage.path("out"))?;
    let principle = |words: usize| stage.train().key("ple_principle", "w5 ".repeat(words));
    principle(600).refuse(2, &["ple_principle: wanted fewer tokens than a prompt may have, 508", "got 601"])?;
    principle(20).and("--max_prompt_length 20").refuse(2, &["ple_principle", "20 (max_prompt_length), got 21"])?;
    // It leaves room, but not for a query: queries are never cut to fit it.
    principle(18).and("--max_prompt_length 20").refuse(3, &["rows.jsonl: no query is left", "2 too long"])?;
    stage.write("rows.jsonl", "\n\n")?;
    stage.train().refuse(3, &["rows.jsonl: wanted at least one row, got none"])?;
    stage.left_clean()
}

/// PLE over answers of which the first `broken` of each iteration have no reward.
struct Broken {
    ple: Ple,
    broken: fn(u32) -> usize,
}

impl Method for Broken {
    fn rollout(&self, iteration: u32) -> Rollout {
        self.ple.rollout(iteration)
    }
    fn needs(&self) -> Needs {
        self.ple.needs()
    }
    fn label(&mut self, iteration: u32, mut groups: Vec<Group>) -> ple::Result<(Vec<Example>, Metrics)> {
        groups.iter_mut().take((self.broken)(iteration)).for_each(|group| group.sides[1][0].reward = f64::NAN);
        self.ple.label(iteration, groups)
    }
    fn loss(&self, t: &Totals, b: &model::Batch, out: Outputs<&[f32]>, dout: Outputs<&mut [f32]>) -> ple::Result<Loss> {
        self.ple.loss(t, b, out, dout)
    }
    fn branch(&self, tag: u32) -> &'static str {
        self.ple.branch(tag)
    }
    fn state(&self) -> Value {
        self.ple.state()
    }
    fn restore(&mut self, state: &Value) -> ple::Result<()> {
        self.ple.restore(state)
    }
}

/// Runs the loop over 8 queries, two of them a step; answers of `broken(iteration)` of them have no reward.
fn run(stage: &Stage, most: &str, broken: fn(u32) -> usize) -> Result<ple::Result<()>> {
    stage.write("rows.jsonl", (3..11).map(|i| format!("{{\"prompt\": \"w{i}\"}}\n")).collect::<String>())?;
    let words = "--reward_funcs length:3 --ple_principle w5 --ple_iters 3 --ple_queries_per_iter 8 --max_completion_length 4 --quiet \
        --ple_empty keep --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --threads 1 --lr_scheduler_type linear";
    let mut argv: Vec<String> = words.split_whitespace().map(str::to_string).collect();
    argv.extend(["--ple_max_nonfinite".to_string(), most.to_string()]);
    for (key, name) in [("model_name_or_path", "model"), ("dataset_name", "rows.jsonl"), ("output_dir", "out")] {
        argv.extend([format!("--{key}"), stage.path(name).to_string_lossy().into_owned()]);
    }
    let c = Config::parse(Command::Train, &argv)?;
    let mut opened = Opened::for_training(&c)?;
    let rewards = Rewards::load(&c, Some(&mut opened))?;
    let mut method = Broken { ple: Ple::new(&c, true), broken };
    Ok(run_method(&c, opened, rewards, &mut method))
}

#[test]
fn rewards_that_are_not_finite() -> Result<()> {
    let stage = Stage::new()?;
    run(&stage, "0.25", |iteration| if iteration == 1 { 2 } else { 0 })??;
    let log = objects(&stage.path("out/log.jsonl"))?;
    let of = |iteration: u32| log.iter().filter(move |row| row["iteration"] == iteration);
    ensure!(of(1).all(|row| row["ple/drop_nonfinite"] == 2.0 && row["ple/kept"] == 6.0) && of(1).count() == 3, "{log:?}");
    ensure!(of(0).all(|row| row["ple/drop_nonfinite"] == 0.0) && of(0).count() == 4 && of(2).count() == 4, "{log:?}");
    let rows = objects(&stage.path("out/completions/iter-00001.jsonl"))?;
    ensure!(rows.iter().filter(|r| r["branch"].is_null() && r["weight"].is_null()).count() == 4, "{rows:?}");

    let outcome = run(&stage, "0.25", |iteration| if iteration == 1 { 3 } else { 0 })?;
    let error = outcome.err().context("3 of 8 went through")?;
    ensure!(error.exit_code() == 5 && error.to_string().contains("3 of 8 pairs"), "{error}");
    // The answers are there to look at.
    let rows = objects(&stage.path("out/completions/iter-00001.jsonl"))?;
    ensure!(rows.len() == 16 && rows.iter().all(|r| r["branch"].is_null()), "{rows:?}");
    Ok(())
}

#[test]
fn an_iteration_with_nothing_to_train_on_moves_no_schedule() -> Result<()> {
    let stage = Stage::new()?;
    run(&stage, "1", |iteration| if iteration == 1 { 8 } else { 0 })??;
    let log = objects(&stage.path("out/log.jsonl"))?;
    let steps: Vec<_> = log.iter().map(|row| (row["iteration"].as_u64(), row["step"].as_u64())).collect();
    let wanted = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 4), (2, 5), (2, 6), (2, 7), (2, 8)];
    ensure!(steps == wanted.map(|(i, step)| (Some(i), Some(step))), "{steps:?}");
    ensure!(log[4].get("loss").is_none() && log[4].get("learning_rate").is_none(), "{}", log[4]);
    // 12 steps were planned; the fifth is taken with the rate of the fifth.
    let rate = 2e-5 * (1.0 - 4.0 / 12.0);
    ensure!((number(&log[5], "learning_rate")? - rate).abs() < 1e-12, "{} after 4 steps, wanted {rate}", log[5]["learning_rate"]);
    Ok(())
}
