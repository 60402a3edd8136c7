//! Reward models, DPO, RAFT, RLOO, GRPO and the released recipe, each as a user runs it: the same bytes however a batch is cut, runs
//! that go on from inside, what the log says against what other commands say, and `ple eval`.

use super::program::{Ple, ple};
use super::{Data, files, number, objects, same};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const ADAPTER: [&str; 1] = ["adapter_model.safetensors"];
/// Two ways to cut an optimizer batch of six.
const CUTS: [&str; 2] = [
    "--per_device_train_batch_size 6 --gradient_accumulation_steps 1 --threads 2",
    "--per_device_train_batch_size 1 --gradient_accumulation_steps 6 --threads 1 --max_tokens_per_micro_batch 1",
];

/// A method on pairs of real dialogues.
fn on_pairs(data: &Data, rows: &Path, out: &Path, command: &str) -> Ple {
    let call = ple(command).and("--max_length 512 --max_steps 5 --save_steps 2 --learning_rate 0.001");
    let call = call.key("model_name_or_path", &data.model).key("dataset_name", rows).key("eval_dataset_name", rows);
    call.key("output_dir", out)
}

/// The same adapter from both cuts, and the same run where one goes on from `checkpoint`; `call` names where it is written.
fn stands(folder: &Path, checkpoint: &str, call: impl Fn(&Path) -> Ple) -> Result<PathBuf> {
    let [whole, cut, again] = ["whole", "cut", "again"].map(|name| folder.join(name));
    call(&whole).and(CUTS[0]).succeed()?;
    call(&cut).and(CUTS[1]).succeed()?;
    same(&whole, &cut, &ADAPTER)?;
    for name in files(&cut)? {
        let to = again.join(&name);
        std::fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        std::fs::copy(cut.join(&name), to)?;
    }
    let said = call(&again).and(CUTS[1]).key("resume_from_checkpoint", again.join(checkpoint)).succeed()?;
    ensure!(said.out.contains("goes on after step"), "{}", said.out);
    same(&cut, &again, &ADAPTER)?;
    let run = ple(&format!("diff {} {}", cut.display(), again.display())).end()?;
    ensure!(run.code == 0, "{}{}", run.out, run.err);
    Ok(whole)
}

#[test]
fn dpo_is_the_same_however_it_is_cut() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    for more in ["", "--loss_type ipo", "--loss_type robust --label_smoothing 0.1"] {
        let dir = tempfile::tempdir()?;
        let rows = data.first(24, dir.path())?;
        let call = |out: &Path| on_pairs(&data, &rows, out, "dpo").and(more);
        // A loss is host arithmetic on numbers that do not know how they were cut.
        let run = match more.is_empty() || std::env::var_os("PLE_LONG").is_some() {
            true => stands(dir.path(), "checkpoint-2", call)?,
            false => {
                let out = dir.path().join("once");
                call(&out).and(CUTS[0]).succeed()?;
                out
            }
        };
        let log = objects(&run.join("log.jsonl"))?;
        // Against itself every ratio is 1.
        let first = log.iter().find(|row| row["step"] == 0).context("an evaluation before the first step")?;
        ensure!(number(first, "eval_rewards/margins")? == 0.0, "{first}");
        if more.is_empty() {
            ensure!((number(first, "eval_loss")? - std::f64::consts::LN_2).abs() < 1e-9, "{first}");
        }
        let last = log.last().context("a log")?;
        ensure!(number(last, "eval_loss")? < number(first, "eval_loss")?, "{more}: {last}");
    }
    Ok(())
}

#[test]
fn a_reward_model_scores_as_it_was_trained() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let rows = data.first(24, dir.path())?;
    let run = stands(dir.path(), "checkpoint-2", |out| on_pairs(&data, &rows, out, "reward"))?;
    let full = dir.path().join("full");
    on_pairs(&data, &rows, &full, "reward --tune full --center_rewards_coefficient 0.01 --threads 2").succeed()?;
    for (folder, kind) in [(run, "adapter"), (full, "model")] {
        let last = objects(&folder.join("log.jsonl"))?.pop().context("a log")?;
        let [mut chosen, mut rejected] = [Vec::new(), Vec::new()];
        for row in objects(&rows)?.iter() {
            chosen.push(json!({ "text": row["chosen"] }));
            rejected.push(json!({ "text": row["rejected"] }));
        }
        let score = |name: &str, rows: Vec<Value>| -> Result<Vec<f64>> {
            let (file, out) = (dir.path().join("texts.jsonl"), dir.path().join(name));
            let fits = |row: &&Value| row["text"].as_str().is_some_and(|t| t.len() < 700);
            std::fs::write(&file, rows.iter().filter(fits).map(|row| format!("{row}\n")).collect::<String>())?;
            let call = ple("score").key("model_name_or_path", &data.model).key("dataset_name", &file).key("output_file", &out);
            call.key("reward_funcs", format!("{kind}:{}", folder.display())).succeed()?;
            objects(&out)?.iter().map(|row| number(row, "reward")).collect()
        };
        // Rewards of both sides are around what the last evaluation saw of all pairs.
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (w, l) = (score("chosen.jsonl", chosen)?, score("rejected.jsonl", rejected)?);
        let seen = [number(&last, "eval_rewards/chosen")?, number(&last, "eval_rewards/rejected")?];
        ensure!(w.len() > 3 && l.len() > 3 && w.iter().chain(&l).all(|r| r.is_finite()), "{w:?} {l:?}");
        ensure!((mean(&w) - seen[0]).abs() < 1.0 && (mean(&l) - seen[1]).abs() < 1.0, "{w:?} {l:?}, the log says {seen:?}");
    }
    Ok(())
}

/// One pair alone: the log's rewards are those of `ple score` to the last bit of f32.
#[test]
fn one_pair_has_the_same_rewards_everywhere() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (rows, out) = (dir.path().join("pair.jsonl"), dir.path().join("rm"));
    std::fs::write(&rows, "{\"prompt\": \"Once upon a time\", \"chosen\": \" there was a fox.\", \"rejected\": \" a tree.\"}\n")?;
    on_pairs(&data, &rows, &out, "reward").succeed()?;
    let last = objects(&out.join("log.jsonl"))?.pop().context("a log")?;
    let answers = [(" there was a fox.", "eval_rewards/chosen"), (" a tree.", "eval_rewards/rejected")];
    let texts = answers.map(|(answer, _)| json!({ "prompt": "Once upon a time", "completion": answer }).to_string());
    std::fs::write(dir.path().join("texts.jsonl"), texts.join("\n"))?;
    let call = ple("score").key("model_name_or_path", &data.model).key("dataset_name", dir.path().join("texts.jsonl"));
    let call = call.key("reward_funcs", format!("adapter:{}", out.display()));
    call.key("output_file", dir.path().join("scores.jsonl")).succeed()?;
    for (row, (answer, name)) in objects(&dir.path().join("scores.jsonl"))?.iter().zip(answers) {
        ensure!(number(row, "reward")? == number(&last, name)?, "{answer}: {row}, the log says {last}");
    }
    Ok(())
}

#[test]
fn sampling_methods_are_the_same_however_they_are_cut() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    for (command, answers) in [
        ("raft", 4),
        ("raft --raft_loss_on all --num_generations 2", 2),
        ("rloo --num_generations 3 --ple_epochs_per_iter 2", 3),
        ("grpo --beta 0.05 --num_generations 3", 3),
        ("train --recipe release --num_generations 3", 3),
    ] {
        let dir = tempfile::tempdir()?;
        let rows = data.first(16, dir.path())?;
        let call = |out: &Path| {
            let call =
                ple(command).and("--ple_iters 2 --ple_queries_per_iter 8 --max_prompt_length 128 --max_completion_length 16");
            let call = call.and("--learning_rate 0.001 --save_steps 1").key("reward_funcs", data.lexicon());
            call.key("model_name_or_path", &data.model).key("dataset_name", &rows).key("output_dir", out)
        };
        let run = stands(dir.path(), "checkpoint-1", call).with_context(|| command.to_string())?;
        let log = objects(&run.join("log.jsonl"))?;
        ensure!(log.iter().all(|row| row["logp_gap_max"] == 0.0), "{command}: a gap");
        let lines = objects(&run.join("completions/iter-00001.jsonl"))?;
        ensure!(lines.len() == 8 * answers, "{command}: {} answers", lines.len());
        ensure!(lines.iter().any(|line| line["branch"].is_string()), "{command}: no answer is trained");
    }
    Ok(())
}

#[test]
fn numbers_on_answers() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let rows = data.first(12, dir.path())?;
    let adapter = dir.path().join("adapter");
    on_pairs(&data, &rows, &adapter, "dpo").and(CUTS[0]).succeed()?;
    let eval = |name: &str| {
        let call = ple("eval --max_prompt_length 128 --max_completion_length 24").key("output_dir", dir.path().join(name));
        call.key("model_name_or_path", &data.model).key("dataset_name", &rows).key("reward_funcs", data.lexicon())
    };
    eval("base").succeed()?;
    let [base, tuned] = ["base", "tuned"].map(|name| dir.path().join(name));
    let against = base.join("completions.jsonl");
    eval("tuned").key("adapter", &adapter).key("against", &against).succeed()?;
    let metrics = |folder: &Path| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(folder.join("metrics.json"))?)?) };
    let (plain, other) = (metrics(&base)?, metrics(&tuned)?);
    ensure!(plain["kl"].is_null() && number(&other, "kl")? > 0.0 && number(&other, "kl/answer")?.is_finite(), "{plain} {other}");
    for name in ["answers", "length/mean", "distinct_1", "distinct_2", "reward", "perplexity", "bleu_4", "rouge_1", "rouge_l"] {
        number(&plain, name)?;
    }
    // The reward is the mean of the lines; both orders of every pair are there, and the other side is the other model's.
    let lines = objects(&tuned.join("completions.jsonl"))?;
    let rewards = lines.iter().map(|line| number(line, "reward")).collect::<Result<Vec<f64>>>()?;
    ensure!((rewards.iter().sum::<f64>() / rewards.len() as f64 - number(&other, "reward")?).abs() < 1e-12, "{other}");
    let judged = objects(&tuned.join("pairs.jsonl"))?;
    ensure!(judged.len() == 2 * lines.len(), "{} lines for {} answers", judged.len(), lines.len());
    for (pair, (own, base)) in judged.chunks(2).zip(lines.iter().zip(objects(&against)?)) {
        let text = |row: &Value, name: &str| row[name].as_str().map(|t| t.trim().to_string());
        ensure!(pair[0]["first"] == pair[1]["second"] && pair[0]["second"] == pair[1]["first"], "{pair:?}");
        ensure!(text(&pair[0], "first") == text(own, "completion"), "{pair:?}");
        ensure!(text(&pair[0], "second") == text(&base, "completion") && pair[0]["model"] == "first", "{pair:?}");
    }
    std::fs::write(&against, "{\"prompt\": \"p\", \"completion\": \"c\"}\n")?;
    eval("none").key("against", &against).refuse(3, &["against: wanted an answer to each of the 12 queries", "got 0"])?;
    Ok(())
}
