//! One command line for every family: an adapter is trained, scores, answers, is looked at and merged, queries are answered and learnt from,
//! and every weight is trained, with the same flags whatever config.json says.

use super::program::{Ple, ple};
use super::scores::score;
use super::{TEMPLATE, number, objects};
use anyhow::{Context, Result, ensure};
use model::Config;
use model::weights::{Checkpoint, write_safetensors};
use ple_tests::tiny::{self, Random, VOCABULARY};
use runtime::DType;
use serde_json::{Value, json};
use std::path::Path;

/// The flags of every run here.
const FLAGS: &str =
    "--max_length 128 --learning_rate 0.01 --lora_r 4 --lora_alpha 8 --lora_target_modules all-linear --report_to none";
/// Files that go along with the weights, to the byte.
const COMPANIONS: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
/// How far log-probabilities of a merged model may lie from those of base and adapter: its weights were rounded once more.
const MERGED: f64 = 2e-4;

/// Words, as many as that.
fn some(random: &mut Random, n: usize) -> String {
    (0..n).map(|_| format!("w{}", 3 + random.below(VOCABULARY - 3))).collect::<Vec<_>>().join(" ")
}

fn inspect(words: &str, model: &Path) -> Result<Value> {
    let said = ple("inspect").and(words).and("--json").key("model_name_or_path", model).succeed()?;
    serde_json::from_str(&said.out).context(said.out)
}

/// All log-probabilities of the rows.
fn logps(model: &Path, adapter: Option<&Path>, rows: &Path) -> Result<Vec<f64>> {
    let out = tempfile::tempdir()?;
    let out = out.path().join("out.jsonl");
    score(model, rows, &out, adapter).succeed()?;
    let rows = objects(&out)?;
    rows.iter().flat_map(|r| r["logps"].as_array().into_iter().flatten()).map(|x| x.as_f64().context("a number")).collect()
}

fn farthest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(if a.len() == b.len() { 0.0 } else { f64::INFINITY }, |m, (a, b)| f64::max(m, (a - b).abs()))
}

/// Names and shapes of a folder's tensors.
fn tensors(folder: &Path) -> Result<Vec<(String, Vec<usize>)>> {
    let checkpoint = Checkpoint::open(folder)?;
    checkpoint.names().map(|name| Ok((name.to_string(), checkpoint.tensor(name)?.shape.to_vec()))).collect()
}

/// Everything that is done with a model, in `dir`.
fn works(model: &Path, dir: &Path) -> Result<()> {
    let at = |name: &str| dir.join(name);
    let modules = Config::from_folder(model)?.modules().len();
    let mut random = Random(9);
    // Longer than any window.
    let rows: Vec<Value> =
        (0..8).map(|_| json!({ "prompt": some(&mut random, 80), "completion": format!(" {}", some(&mut random, 9)) })).collect();
    let put = |name: &str, rows: &[Value]| std::fs::write(at(name), rows.iter().map(|r| format!("{r}\n")).collect::<String>());
    put("rows.jsonl", &rows)?;
    put("queries.jsonl", &rows.iter().map(|r| json!({ "prompt": r["prompt"] })).collect::<Vec<_>>())?;
    let run = |command: &str, data: &str, out: &str| -> Ple {
        let call = ple(command).and(FLAGS).key("model_name_or_path", model);
        call.key("dataset_name", at(data)).key("output_dir", at(out))
    };

    run("sft --max_steps 2", "rows.jsonl", "adapter").succeed()?;
    let log = objects(&at("adapter/log.jsonl"))?;
    ensure!(log.len() == 2, "{} steps", log.len());
    let losses = [number(&log[0], "loss")?, number(&log[1], "loss")?];
    ensure!(losses[1] < losses[0], "the loss does not fall: {losses:?}");
    let looked = inspect(&format!("adapter --adapter {}", at("adapter").display()), model)?;
    ensure!(looked["modules"].as_array().is_some_and(|m| m.len() == modules) && looked["refused"] == json!([]), "{looked:#}");
    ensure!(
        looked["modules"].as_array().into_iter().flatten().all(|m| number(m, "norm_change").is_ok_and(|n| n > 0.0)),
        "{looked:#}"
    );

    let adapter = at("adapter");
    let alone = logps(model, None, &at("rows.jsonl"))?;
    let beside = logps(model, Some(&adapter), &at("rows.jsonl"))?;
    ensure!(farthest(&alone, &beside) > 100.0 * MERGED, "the adapter does nothing: {}", farthest(&alone, &beside));
    let call = ple("generate --max_completion_length 12").key("model_name_or_path", model).key("adapter", &adapter);
    call.key("dataset_name", at("queries.jsonl")).key("output_file", at("answers.jsonl")).succeed()?;
    score(model, &at("answers.jsonl"), &at("again.jsonl"), Some(&adapter)).succeed()?;
    ensure!(std::fs::read(at("answers.jsonl"))? == std::fs::read(at("again.jsonl"))?, "scored otherwise than sampled");

    let call = ple("merge").key("model_name_or_path", model).key("adapter", &adapter);
    call.key("output_dir", at("merged")).succeed()?;
    let far = farthest(&logps(&at("merged"), None, &at("rows.jsonl"))?, &beside);
    ensure!(far < MERGED, "merged {far}");
    ensure!(tensors(&at("merged"))? == tensors(model)?, "other names or shapes once merged");
    super::same(model, &at("merged"), &COMPANIONS)?;
    let report: Value = serde_json::from_slice(&std::fs::read(at("merged/merge.json"))?)?;
    ensure!(number(&report["audit"], "max_abs_logit_difference")? < 1e-3, "{report:#}");
    for folder in [model, &at("merged")] {
        let looked = inspect("model", folder)?;
        ensure!(looked["refused"] == json!([]) && looked["adaptable_modules"] == modules, "{looked:#}");
    }

    let loop_ =
        "train --ple_iters 1 --ple_queries_per_iter 4 --max_completion_length 8 --max_prompt_length 400 --reward_funcs length:5";
    run(loop_, "queries.jsonl", "ple").succeed()?;
    let gaps: Vec<f64> = objects(&at("ple/log.jsonl"))?.iter().filter_map(|row| row["logp_gap_max"].as_f64()).collect();
    ensure!(!gaps.is_empty() && gaps.iter().all(|gap| *gap == 0.0), "{gaps:?}");

    run("sft --max_steps 2 --tune full", "rows.jsonl", "full").succeed()?;
    ensure!(tensors(&at("full"))? == tensors(model)?, "other names or shapes once tuned");
    super::same(model, &at("full"), &COMPANIONS)?;
    ensure!(inspect("model", &at("full"))?["refused"] == json!([]));
    let tuned = logps(&at("full"), None, &at("rows.jsonl"))?;
    ensure!(tuned.iter().sum::<f64>() > alone.iter().sum::<f64>(), "every weight was trained to nothing");
    Ok(())
}

#[test]
fn one_command_line_for_every_family() -> Result<()> {
    let mut all = tiny::families();
    all.push(tiny::config(false));
    for config in all {
        let (model, dir) = (tiny::of(&config, DType::F32)?, tempfile::tempdir()?);
        tiny::words(model.path())?;
        std::fs::write(model.path().join("chat_template.jinja"), TEMPLATE)?;
        std::fs::write(model.path().join("generation_config.json"), "{\"eos_token_id\":  2}\n")?;
        works(model.path(), dir.path()).with_context(|| config.to_string())?;
    }
    Ok(())
}

/// gpt2's tensors have a prefix or not, as they were saved; an adapter does not mind, and neither does a merge.
#[test]
fn gpt2_with_and_without_its_prefix_is_one_model() -> Result<()> {
    let config = tiny::families().into_iter().find(|c| c["model_type"] == "gpt2").context("gpt2")?;
    let (long, short, dir) = (tiny::of(&config, DType::F32)?, tempfile::tempdir()?, tempfile::tempdir()?);
    tiny::words(long.path())?;
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(long.path().join(name), short.path().join(name))?;
    }
    let checkpoint = Checkpoint::open(long.path())?;
    let bare = |name: &str| name.strip_prefix("transformer.").unwrap_or(name).to_string();
    let list = checkpoint.names().map(|name| checkpoint.tensor(name)).collect::<model::Result<Vec<_>>>()?;
    ensure!(list.iter().any(|t| bare(t.name) != t.name), "no prefix to take away");
    let rows: Vec<_> = list.iter().map(|t| (bare(t.name), t.dtype, t.shape.to_vec(), t.bytes)).collect();
    write_safetensors(&short.path().join("model.safetensors"), &rows)?;
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("rows.jsonl"), json!({ "prompt": "w5 w6", "completion": " w7 w8 w9" }).to_string())?;
    for (trained, model) in [("of-long", long.path()), ("of-short", short.path())] {
        let call = ple("sft --max_steps 2").and(FLAGS).key("model_name_or_path", model);
        call.key("dataset_name", at("rows.jsonl")).key("output_dir", at(trained)).succeed()?;
    }
    super::same(&at("of-long"), &at("of-short"), &["adapter_model.safetensors", "base.json"])?;
    for (name, model) in [("long", long.path()), ("short", short.path())] {
        let call = ple("merge").key("model_name_or_path", model).key("adapter", at("of-long"));
        call.key("output_dir", at(name)).succeed()?;
    }
    let (long, short) = (Checkpoint::open(&at("long"))?, Checkpoint::open(&at("short"))?);
    ensure!(long.names().count() == short.names().count());
    ensure!(short.names().all(|name| !name.starts_with("transformer.")) && long.names().any(|n| n.starts_with("transformer.")));
    for name in long.names() {
        ensure!(long.tensor(name)?.bytes == short.tensor(&bare(name))?.bytes, "{name}");
    }
    score(&at("long"), &at("rows.jsonl"), &at("a.jsonl"), None).succeed()?;
    score(&at("short"), &at("rows.jsonl"), &at("b.jsonl"), None).succeed()?;
    ensure!(std::fs::read(at("a.jsonl"))? == std::fs::read(at("b.jsonl"))?, "other log-probabilities");
    Ok(())
}
