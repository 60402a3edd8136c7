//! `ple train`: the files of a run, its log held against its completions, and that no setting of speed shows in any of them.

use super::program::{Ple, ple};
use super::scores::score;
use super::{Data, bits, files, number, objects, same, vectors};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

const QUERIES: usize = 16;

/// A run of `iterations` over the dialogues of `rows`; all pairs of an iteration make one step.
pub fn train(data: &Data, rows: &Path, out: &Path, iterations: u32) -> Ple {
    ple("train --ple_queries_per_iter 16 --max_completion_length 24 --max_prompt_length 128 --learning_rate 0.001")
        .key("model_name_or_path", &data.model)
        .key("dataset_name", rows)
        .key("reward_funcs", data.lexicon())
        .key("ple_principle", "Be kind.")
        .key("ple_iters", iterations.to_string())
        .key("output_dir", out)
}

/// Where the answers of an iteration lie.
fn answers(iteration: u32) -> String {
    format!("completions/iter-{iteration:05}.jsonl")
}

#[test]
fn a_run_stands_up_to_its_own_log() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = data.first(200, dir.path())?;
    train(&data, &rows, &at("run"), 2).succeed()?;
    let adapter = ["README.md", "adapter_config.json", "adapter_model.safetensors", "base.json"];
    let kept = |iteration: u32| adapter.map(|name| format!("adapters/iter-{iteration:05}/{name}"));
    let mut left: Vec<String> = adapter.map(String::from).into_iter().chain(kept(0)).chain(kept(1)).collect();
    left.extend(
        ["completions/iter-00000.jsonl", "completions/iter-00001.jsonl", "log.jsonl", "ple.json", "run.json"].map(String::from),
    );
    left.extend(
        ["metrics.csv", "trainer_state.json", "rollouts/iter-00000.jsonl", "rollouts/iter-00001.jsonl"].map(String::from),
    );
    let beside = adapter.into_iter().chain(["optimizer.safetensors", "ple_state.json", "trainer_state.json"]);
    left.extend(beside.flat_map(|name| [1, 2].map(|step| format!("checkpoint-{step}/{name}"))));
    left.sort();
    let (events, found): (Vec<_>, Vec<_>) = files(&at("run"))?.into_iter().partition(|name| name.contains("/events.out."));
    ensure!(found == left && events.len() == 1, "{found:?} {events:?}");
    let [settings, state] = ["run.json", "ple.json"]
        .map(|name| -> Result<Value> { Ok(serde_json::from_str(&std::fs::read_to_string(at("run").join(name))?)?) });
    let (settings, state) = (settings?, state?);
    ensure!(settings["config"]["ple_queries_per_iter"] == QUERIES && settings["config"]["seed"] == 42, "{settings}");
    ensure!(state["iterations"] == 2 && state["steps"] == 2 && state["principle"] == "Be kind.", "{state}");

    // The policy of iteration 1 is what a run of one iteration leaves, and what the run kept of it.
    train(&data, &rows, &at("half"), 1).and("--threads 1").succeed()?;
    same(&at("run"), &at("half"), &[&answers(0)])?;
    same(&at("run").join("adapters/iter-00001"), &at("half"), &["adapter_model.safetensors"])?;
    let log = objects(&at("run").join("log.jsonl"))?;
    ensure!(log.len() == 2, "{} lines of log for 2 steps", log.len());
    let words = Words::read(&data)?;
    for (iteration, adapter) in [(0, None), (1, Some(at("half")))] {
        let row = &log[iteration as usize];
        ensure!(row["iteration"] == iteration && row["step"] == iteration + 1, "{row}");
        let tau = if iteration == 0 { 0.2 } else { 0.18 };
        ensure!((number(row, "ple/tau")? - tau).abs() < 1e-15, "tau is {}, wanted {tau}", row["ple/tau"]);
        for gap in ["logp_gap_max", "logp_gap_mean", "logp_gap_share"] {
            ensure!(number(row, gap)? == 0.0, "{gap} is {}", row[gap]);
        }
        let pairs = pairs(&at("run").join(answers(iteration)), &words)?;
        labels(row, &pairs, tau)?;
        loss(row, &pairs, dir.path(), &data, adapter.as_deref(), tau)?;
    }
    Ok(())
}

/// The program's rule for words, written a second time: lower case, parted at what is no letter.
struct Words(HashMap<String, f64>);

impl Words {
    fn read(data: &Data) -> Result<Words> {
        let mut words = HashMap::new();
        for (path, sign) in [(&data.positive, 1.0), (&data.negative, -1.0)] {
            let text = std::fs::read_to_string(path)?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(';'));
            lines.for_each(|word| *words.entry(word.to_lowercase()).or_insert(0.0) += sign);
        }
        Ok(Words(words))
    }

    fn reward(&self, text: &str) -> f64 {
        let text = text.to_lowercase();
        let s: f64 = text.split(|c: char| !c.is_alphabetic()).filter_map(|word| self.0.get(word)).sum();
        0.5 + 0.5 * s / (s * s + 15.0).sqrt()
    }
}

/// Plain and guided answer of each query, with rewards that are those of their texts.
fn pairs(path: &Path, words: &Words) -> Result<Vec<[Value; 2]>> {
    let rows = objects(path)?;
    ensure!(rows.len() == 2 * QUERIES, "{} answers to {QUERIES} queries", rows.len());
    for row in &rows {
        let (ids, logps) = (row["ids"].as_array().context("ids")?, row["logps"].as_array().context("logps")?);
        ensure!((1..=24).contains(&ids.len()) && ids.len() == logps.len(), "{row}");
        ensure!(logps.iter().all(|l| l.as_f64().is_some_and(|l| l <= 0.0)), "{row}");
        ensure!(row["prompt_ids"].as_array().is_some_and(|ids| ids.len() <= 128), "{row}");
        let reward = words.reward(row["completion"].as_str().context("completion")?);
        ensure!((number(row, "reward")? - reward).abs() < 1e-12, "reward is {}, wanted {reward}", row["reward"]);
    }
    let (pairs, _) = rows.as_chunks::<2>();
    let sides = |[o, p]: &[Value; 2]| o["side"] == 0 && p["side"] == 1 && o["row"] == p["row"] && o["prompt"] == p["prompt"];
    ensure!(pairs.iter().all(sides), "answers are not in order of query and side");
    Ok(pairs.to_vec())
}

/// Branches, weights and shares as the completions have them.
fn labels(row: &Value, pairs: &[[Value; 2]], tau: f64) -> Result<()> {
    let (mut ranked, mut sums) = (0.0, [0.0; 2]);
    for [o, p] in pairs {
        let [r, r_guided] = [number(o, "reward")?, number(p, "reward")?];
        let wanted = if r_guided - r > tau { "ranked" } else { "weighted" };
        ensure!(o["branch"] == wanted && p["branch"] == wanted, "wanted {wanted} for {r} -> {r_guided}, got {}", o["branch"]);
        ranked += f64::from(wanted == "ranked");
        let share = 1.0 / (1.0 + (-(r_guided - r) / 0.2).exp());
        ensure!((number(p, "weight")? - share).abs() < 1e-6, "{p}");
        ensure!((number(o, "weight")? - (1.0 - share)).abs() < 1e-6, "{o}");
        sums = [sums[0] + r, sums[1] + r_guided];
    }
    let n = pairs.len() as f64;
    let [plain, guided] = sums.map(|s| s / n);
    let wanted = [
        ("ple/rank_frac", ranked / n),
        ("ple/reward_orig", plain),
        ("ple/reward_guided", guided),
        ("reward", (plain + guided) / 2.0),
        ("ple/kept", n),
    ];
    for (name, wanted) in wanted {
        ensure!((number(row, name)? - wanted).abs() < 1e-9, "{name} is {}, wanted {wanted}", row[name]);
    }
    Ok(())
}

/// Stored log-probabilities are those that another process finds; the loss is that of both answers under the plain query.
fn loss(row: &Value, pairs: &[[Value; 2]], folder: &Path, data: &Data, adapter: Option<&Path>, tau: f64) -> Result<()> {
    let (asked, scored) = (folder.join("asked.jsonl"), folder.join("scored.jsonl"));
    let plain = |[o, p]: &[Value; 2]| [o, p].map(|a| format!("{}\n", json!({"prompt_ids": o["prompt_ids"], "ids": a["ids"]})));
    std::fs::write(&asked, pairs.iter().flat_map(plain).collect::<String>())?;
    score(&data.model, &asked, &scored, adapter).succeed()?;
    let rows = objects(&scored)?;
    let mut sum = 0.0;
    for ([o, p], again) in pairs.iter().zip(rows.as_chunks::<2>().0) {
        ensure!(bits(o, "logps")? == bits(&again[0], "logps")?, "{o} scores differently in another process");
        let means = again.each_ref().map(|a| -> Result<f64> {
            let logps = bits(a, "logps")?;
            Ok(logps.iter().map(|b| f64::from(f32::from_bits(*b))).sum::<f64>() / logps.len() as f64)
        });
        let [m_o, m_p] = means;
        let (m_o, m_p) = (m_o?, m_p?);
        sum += match number(p, "reward")? - number(o, "reward")? > tau {
            true => (m_o - m_p).max(0.0),
            false => -(number(o, "weight")? * m_o + number(p, "weight")? * m_p),
        };
    }
    let wanted = sum / pairs.len() as f64;
    ensure!((number(row, "loss")? - wanted).abs() < 1e-6, "loss is {}, wanted {wanted}", row["loss"]);
    ensure!(number(row, "grad_norm")? > 0.0 && number(row, "learning_rate")? == 0.001, "{row}");
    Ok(())
}

#[test]
fn stored_log_probabilities_come_out_bit_for_bit() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = data.first(200, dir.path())?;
    train(&data, &rows, &at("run"), 2).succeed()?;
    train(&data, &rows, &at("half"), 1).succeed()?;
    for (iteration, adapter) in [(0, None), (1, Some(at("half")))] {
        let (stored, out) = (at("run").join(answers(iteration)), at("out.jsonl"));
        let wanted = std::fs::read_to_string(&stored)?;
        let runs =
            ["--threads 1", "--threads 2", "--threads 4", "--max_tokens_per_micro_batch 1", "--max_tokens_per_micro_batch 333"];
        let mut calls: Vec<_> = runs.map(|more| (more.to_string(), None)).to_vec();
        calls.extend(vectors().into_iter().map(|isa| (String::new(), Some(isa))));
        for (more, isa) in calls {
            let call = score(&data.model, &stored, &out, adapter.as_deref()).and(&more);
            isa.into_iter().fold(call, Ple::simd).succeed()?;
            for (stored, again) in objects(&stored)?.iter().zip(objects(&out)?) {
                ensure!(bits(stored, "logps")? == bits(&again, "logps")?, "{more} {isa:?}: other log-probabilities of {stored}");
            }
            // Every other field came back as it was, so the whole file is the same.
            ensure!(std::fs::read_to_string(&out)? == wanted, "{more} {isa:?}: another file");
        }
        // The portable path is the law, and slow.
        let two: String = wanted.lines().take(2).flat_map(|line| [line, "\n"]).collect();
        std::fs::write(at("two.jsonl"), &two)?;
        score(&data.model, &at("two.jsonl"), &out, adapter.as_deref()).simd("portable").succeed()?;
        ensure!(std::fs::read_to_string(&out)? == two, "portable: another file");
    }
    Ok(())
}

#[test]
fn a_run_twice_leaves_the_same_bytes() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = data.first(200, dir.path())?;
    let names = ["adapter_model.safetensors", "adapter_config.json", "ple.json", &answers(0), &answers(1)];
    train(&data, &rows, &at("first"), 2).and("--threads 2").succeed()?;
    let others = [
        "--threads 1 --max_tokens_per_micro_batch 1 --per_device_train_batch_size 1 --gradient_accumulation_steps 64",
        "--threads 4 --max_tokens_per_micro_batch 777 --per_device_train_batch_size 64 --gradient_accumulation_steps 1",
    ];
    for (more, isa) in others.into_iter().zip(vectors().into_iter().cycle()) {
        train(&data, &rows, &at("again"), 2).and(more).simd(isa).succeed()?;
        same(&at("first"), &at("again"), &names)?;
    }
    // Another seed is another run.
    train(&data, &rows, &at("other"), 1).and("--seed 7").succeed()?;
    ensure!(same(&at("first"), &at("other"), &[&answers(0)]).is_err(), "the seed does nothing");
    Ok(())
}
