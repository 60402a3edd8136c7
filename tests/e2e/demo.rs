//! `ple demo`: every number of its summary computed a second time from the files beside it.

use super::program::ple;
use super::{bits, number, objects};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::Path;

const NAMES: [&str; 3] = ["sft", "raft", "ple"];

/// score = ½·(1 + s/√(s² + 15)), s = Σ weights of the words.
fn reward(words: &HashMap<String, f64>, text: &str) -> f64 {
    let text = text.to_lowercase();
    let s: f64 = text.split(|c: char| !c.is_alphabetic()).filter_map(|word| words.get(word)).sum();
    0.5 + 0.5 * s / (s * s + 15.0).sqrt()
}

fn lexicon(path: &Path) -> Result<HashMap<String, f64>> {
    let text = std::fs::read_to_string(path)?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').context("word weight").and_then(|(w, x)| Ok((w.to_string(), x.parse()?)))).collect()
}

fn distinct2(rows: &[Value]) -> f64 {
    let (mut unique, mut all) = (HashSet::new(), 0);
    for row in rows {
        let words: Vec<String> =
            row["completion"].as_str().unwrap_or_default().split_whitespace().map(str::to_lowercase).collect();
        for pair in words.windows(2) {
            unique.insert(pair.join(" "));
            all += 1;
        }
    }
    unique.len() as f64 / f64::from(all)
}

/// Scores the ids of a file again, in a process of its own.
fn again(demo: &Path, adapter: &str, rows: &str, out: &Path) -> Result<Vec<Value>> {
    ple("logprob --quiet")
        .key("model_name_or_path", demo.join("model"))
        .key("adapter", demo.join(adapter))
        .key("dataset_name", demo.join(rows))
        .key("output_file", out)
        .succeed()?;
    objects(out)
}

fn close(summary: &Value, name: &str, wanted: f64) -> Result<()> {
    let got = number(summary, name)?;
    ensure!((got - wanted).abs() < 1e-9, "{name} is {got}, computed again it is {wanted}");
    Ok(())
}

#[test]
fn a_demo_stands_up_to_its_files() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let demo = dir.path().join("ple demo");
    let said = ple("demo --quick").key("output_dir", &demo).succeed()?;
    let summary: Value = serde_json::from_str(&std::fs::read_to_string(demo.join("summary.json"))?)?;
    let keys: Vec<&str> = summary.as_object().context("an object")?.keys().map(String::as_str).collect();
    let columns = ["reward", "ppl", "distinct2", "length"];
    let wanted: Vec<String> = columns.iter().flat_map(|c| NAMES.map(|name| format!("{c}_{name}"))).collect();
    ensure!(keys.iter().copied().eq(wanted.iter().map(String::as_str).chain(["logp_gap_max"])), "{keys:?}");

    let words = lexicon(&demo.join("lexicon.txt"))?;
    let mut prompts: Vec<Value> = Vec::new();
    for name in NAMES {
        let rows = objects(&demo.join(format!("eval/{name}.jsonl")))?;
        let fields = ["prompt", "completion", "prompt_ids", "ids", "logps", "reward"];
        ensure!(rows.iter().all(|row| row.as_object().is_some_and(|row| row.keys().eq(fields))), "{}", rows[0]);
        for row in &rows {
            let wanted = reward(&words, row["completion"].as_str().context("completion")?);
            ensure!((number(row, "reward")? - wanted).abs() < 1e-12, "{row}: wanted {wanted}");
        }
        let n = rows.len() as f64;
        close(&summary, &format!("reward_{name}"), rows.iter().filter_map(|r| r["reward"].as_f64()).sum::<f64>() / n)?;
        close(&summary, &format!("distinct2_{name}"), distinct2(&rows))?;
        let tokens: usize = rows.iter().filter_map(|r| r["ids"].as_array()).map(Vec::len).sum();
        close(&summary, &format!("length_{name}"), tokens as f64 / n)?;
        let scored = again(&demo, name, &format!("eval/{name}.jsonl"), &dir.path().join("again.jsonl"))?;
        for (row, scored) in rows.iter().zip(&scored) {
            ensure!(bits(row, "logps")? == bits(scored, "logps")?, "{name}: {row} is {scored} in another process");
        }
        let references = again(&demo, name, "eval/references.jsonl", &dir.path().join("again.jsonl"))?;
        let logps: Vec<f64> =
            references.iter().filter_map(|r| r["logps"].as_array()).flatten().filter_map(Value::as_f64).collect();
        close(&summary, &format!("ppl_{name}"), (-logps.iter().sum::<f64>() / logps.len() as f64).exp())?;
        let asked: Vec<Value> = rows.iter().map(|row| row["prompt"].clone()).collect();
        ensure!(prompts.is_empty() || prompts == asked, "{name} was asked other prompts");
        prompts = asked;
    }
    gap(&demo, &summary)?;
    held_out(&demo, &prompts)?;
    better(&summary)?;
    told(&said.out, &demo)?;
    example(dir.path(), &demo)
}

fn examples() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// `examples/demo-small.yaml` on what the demo leaves, under every method that samples: one word is the only change.
fn example(folder: &Path, demo: &Path) -> Result<()> {
    std::fs::rename(demo, folder.join("ple-demo"))?;
    let file = examples().join("demo-small.yaml");
    for (command, name) in [
        ("train", "demo-ple"),
        ("raft", "demo-raft"),
        ("rloo", "demo-rloo"),
        ("grpo", "demo-grpo"),
        ("train --recipe release", "demo-release"),
    ] {
        let run = format!("runs/{name}");
        ple(command).key("config", &file).and("--output_dir").and(&run).within(folder).succeed()?;
        let log = objects(&folder.join(&run).join("log.jsonl"))?;
        let rewards: Vec<f64> = log.iter().filter_map(|row| row["eval_reward"].as_f64()).collect();
        ensure!(rewards.len() == 2 && rewards.iter().all(|r| r.is_finite()), "{command}: {rewards:?}");
        ensure!(log.iter().filter(|row| row["iteration"] == 3).count() > 0, "{command}: not four iterations");
        ensure!(folder.join(&run).join("adapter_model.safetensors").exists(), "{command}: no adapter");
    }
    Ok(())
}

/// Every example is in order for every command that its head names.
#[test]
fn examples_are_settings() -> Result<()> {
    for (name, commands) in [
        ("hh.yaml", &["train", "raft", "dpo"][..]),
        ("imdb.yaml", &["train", "raft"]),
        ("tldr.yaml", &["train", "raft"]),
        ("demo-small.yaml", &["train", "raft", "rloo", "grpo"]),
    ] {
        for command in commands {
            let said = ple("config check").and(&examples().join(name).to_string_lossy()).key("command", command).succeed()?;
            ensure!(said.out.contains(&format!("settings of `ple {command}`")), "{name}: {}", said.out);
        }
    }
    Ok(())
}

fn gap(demo: &Path, summary: &Value) -> Result<()> {
    for name in ["ple", "raft"] {
        for row in objects(&demo.join(name).join("log.jsonl"))? {
            ensure!(number(&row, "logp_gap_max")? == 0.0, "{row}");
        }
    }
    ensure!(number(summary, "logp_gap_max")? == 0.0, "{summary}");
    let answers = |name: &str| -> Result<usize> {
        let files = std::fs::read_dir(demo.join(name).join("completions"))?;
        files.map(|file| Ok(objects(&file?.path())?.len())).sum()
    };
    ensure!(answers("ple")? == answers("raft")?, "the two runs sampled another number of answers");
    Ok(())
}

/// No prompt of the evaluation is in what anything was trained on.
fn held_out(demo: &Path, prompts: &[Value]) -> Result<()> {
    for name in ["base", "sft", "queries"] {
        let text = std::fs::read_to_string(demo.join(format!("data/{name}.jsonl")))?;
        let seen = |prompt: &&Value| {
            prompt.as_str().is_some_and(|p| text.contains(&format!("{p} ")) || text.contains(&format!("\"{p}\"")))
        };
        ensure!(!prompts.iter().any(|prompt| seen(&prompt)), "{name}.jsonl has a held-out prompt");
    }
    Ok(())
}

/// What the demo is there to show. It is deterministic, so this holds or does not.
fn better(summary: &Value) -> Result<()> {
    let [sft, raft, ple] = NAMES.map(|name| number(summary, &format!("reward_{name}")));
    let (sft, raft, ple) = (sft?, raft?, ple?);
    ensure!(ple > sft + 0.1 && ple > raft, "rewards: sft {sft}, raft {raft}, ple {ple}");
    ensure!(number(summary, "ppl_ple")? <= 1.15 * number(summary, "ppl_sft")?, "{summary}");
    Ok(())
}

/// What was printed: the gap, the page, and lines whose paths are quoted for a shell.
fn told(out: &str, demo: &Path) -> Result<()> {
    ensure!(out.contains("logp gap rollout/train 0") && out.contains("report.html"), "{out}");
    let line = out.lines().find(|line| line.trim_start().starts_with("ple logprob")).context("a line of ple logprob")?;
    ensure!(line.contains(&format!("'{}'", demo.join("model").display())), "{line}");
    let page = std::fs::read_to_string(demo.join("report.html"))?;
    ensure!(page.len() < 300_000 && page.contains("PLE and RAFT") && !page.contains("<script"), "{} bytes", page.len());
    let picture = std::fs::read_to_string(demo.join("reward.svg"))?;
    ensure!(picture.starts_with("<svg") && picture.matches("<circle").count() == 10, "{picture}");
    Ok(())
}

#[test]
fn a_folder_of_others_is_left_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::create_dir(dir.path().join("model"))?;
    std::fs::write(dir.path().join("model/precious"), "x")?;
    ple("demo --quick").key("output_dir", dir.path()).refuse(3, &["new or empty folder"])?;
    ensure!(std::fs::read_to_string(dir.path().join("model/precious"))? == "x");
    Ok(())
}
