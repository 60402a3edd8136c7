//! `ple merge`: the folder is a model that does what base and adapter did, its audit says how exactly, and what cannot be merged is refused.

use super::program::{Ple, ple};
use super::scores::score;
use super::{Data, files, number, objects, same};
use anyhow::{Context, Result, ensure};
use model::adapter::Adapter;
use model::merge::whole;
use model::{Config, TensorSpec};
use ple_tests::data::shared;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn merge(base: &Path, adapter: &Path, out: &Path) -> Ple {
    ple("merge").key("model_name_or_path", base).key("adapter", adapter).key("output_dir", out)
}

fn report(folder: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(folder.join("merge.json"))?)?)
}

/// The shared adapter, changed.
fn changed(data: &Data, folder: &Path, change: impl FnOnce(&mut Adapter)) -> Result<PathBuf> {
    let own = shared("data/adapters/stories260k-imdb-pos-r8").context("the adapter")?;
    let mut adapter = Adapter::load(&own, &Config::from_folder(&data.model)?.modules())?;
    change(&mut adapter);
    adapter.save(folder)?;
    Ok(folder.to_path_buf())
}

/// Log-probabilities of 12 answers, each with its row's text.
fn logps(model: &Path, adapter: Option<&Path>, rows: &Path, out: &Path) -> Result<Vec<f64>> {
    score(model, rows, out, adapter).succeed()?;
    let rows = objects(out)?;
    let all = rows.iter().flat_map(|row| row["logps"].as_array().into_iter().flatten());
    all.map(|x| x.as_f64().context("a number")).collect()
}

fn rows(data: &Data, path: &Path) -> Result<PathBuf> {
    let text: String = objects(&data.dialogues)?.iter().take(12).fold(String::new(), |all, row| {
        let text: String = row["chosen"].as_str().unwrap_or_default().chars().take(200).collect();
        all + &json!({ "text": text }).to_string() + "\n"
    });
    std::fs::write(path, text)?;
    Ok(path.to_path_buf())
}

fn farthest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(if a.len() == b.len() { 0.0 } else { f64::INFINITY }, |m, (a, b)| f64::max(m, (a - b).abs()))
}

#[test]
fn a_merged_model_does_what_base_and_adapter_did() -> Result<()> {
    let (Some(data), Some(adapter)) = (Data::find(), shared("data/adapters/stories260k-imdb-pos-r8")) else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = rows(&data, &at("rows.jsonl"))?;
    let beside = logps(&data.model, Some(&adapter), &rows, &at("beside.jsonl"))?;
    let said = merge(&data.model, &adapter, &at("f32")).succeed()?;
    ensure!(said.out.contains("merge  q_proj: 5 modules") && said.out.contains("audit  12 prompts"), "{}", said.out);
    ensure!(farthest(&logps(&at("f32"), None, &rows, &at("out.jsonl"))?, &beside) < 2e-5, "the merged model is another");
    let audit = &report(&at("f32"))?["audit"];
    ensure!(number(audit, "max_abs_logit_difference")? < 1e-4 && audit["greedy_differences"] == 0, "{audit}");
    // Everything beside the weights is the base's, to the byte.
    let copied = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
    same(&data.model, &at("f32"), &copied)?;
    let mut expected: Vec<&str> = copied.to_vec();
    expected.extend(["golden.json", "merge.json", "model.safetensors"]);
    expected.sort_unstable();
    ensure!(files(&at("f32"))? == expected, "{:?}", files(&at("f32"))?);
    // In bf16 weights are lost, and the audit says how many; in float32 over the same base they are not.
    merge(&data.bf16, &adapter, &at("bf16")).key("dataset_name", &data.first(20, dir.path())?).succeed()?;
    let narrow = report(&at("bf16"))?;
    merge(&data.bf16, &adapter, &at("wide")).and("--dtype float32 --quiet").succeed()?;
    let wide = report(&at("wide"))?;
    let [lost, kept] = [&narrow, &wide].map(|r| number(&r["weights"], "share"));
    let [far, near] = [&narrow, &wide].map(|r| number(&r["audit"], "max_abs_logit_difference"));
    let (lost, kept, far, near) = (lost?, kept?, far?, near?);
    ensure!(lost > kept && far > 10.0 * near && near < 1e-4, "{lost} {kept} {far} {near}");
    ensure!(narrow["modules"].as_array().is_some_and(|m| m.len() == 35 && m[0]["path"] == "model.layers.0.self_attn.q_proj"));
    let config: Value = serde_json::from_slice(&std::fs::read(at("wide/config.json"))?)?;
    let named = config.get("dtype").or(config.get("torch_dtype"));
    ensure!(named == Some(&json!("float32")), "{config}");
    Ok(())
}

#[test]
fn dora_runs_merges_and_is_not_trained() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let lengths = |adapter: &mut Adapter| {
        adapter.config.use_dora = true;
        for m in &mut adapter.modules {
            m.magnitude = Some((0..m.out_features).map(|o| 0.4 + 0.01 * (o % 17) as f32).collect());
        }
    };
    let adapter = changed(&data, &at("dora"), lengths)?;
    let rows = rows(&data, &at("rows.jsonl"))?;
    let plain = logps(&data.model, None, &rows, &at("plain.jsonl"))?;
    let beside = logps(&data.model, Some(&adapter), &rows, &at("beside.jsonl"))?;
    ensure!(farthest(&plain, &beside) > 0.1, "the adapter does nothing");
    merge(&data.model, &adapter, &at("merged")).succeed()?;
    let far = farthest(&logps(&at("merged"), None, &rows, &at("out.jsonl"))?, &beside);
    ensure!(far < 5e-5 && report(&at("merged"))?["dora"] == true, "{far}");
    // Answers are sampled with the probabilities that scoring gives them.
    let call = ple("generate --max_completion_length 12").key("model_name_or_path", &data.model).key("adapter", &adapter);
    call.key("dataset_name", data.first(4, dir.path())?).key("output_file", at("answers.jsonl")).succeed()?;
    score(&data.model, &at("answers.jsonl"), &at("again.jsonl"), Some(&adapter)).succeed()?;
    ensure!(std::fs::read(at("answers.jsonl"))? == std::fs::read(at("again.jsonl"))?, "other log-probabilities");
    let call = ple("sft --max_steps 1").key("model_name_or_path", &data.model).key("adapter", &adapter);
    let call = call.key("dataset_name", &rows).key("output_dir", at("run"));
    call.refuse(3, &["dora/adapter_config.json: use_dora: wanted false, got true", "not trained"])
}

#[test]
fn heads_that_an_adapter_brings_along() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    // A scalar head: the folder is a reward model, whose scores are those of the adapter.
    let width = Config::from_folder(&data.model)?.hidden_size;
    let rewards = changed(&data, &at("scored"), |a| *a = a.clone().with_score(width, 7, kernels::sample::philox))?;
    merge(&data.model, &rewards, &at("rewards")).succeed()?;
    ensure!(number(&report(&at("rewards"))?["audit"], "max_abs_score_difference")? < 1e-5, "other scores");
    std::fs::write(at("rows.jsonl"), json!({"prompt": "Once", "completion": " upon a time"}).to_string())?;
    let scored = |reward: &str, folder: &Path, base: Option<&Path>| -> Result<f64> {
        let call = ple("score").key("dataset_name", at("rows.jsonl")).key("output_file", at("out.jsonl"));
        let call = call.key("reward_funcs", format!("{reward}:{}", folder.display()));
        base.into_iter().fold(call, |call, base| call.key("model_name_or_path", base)).succeed()?;
        number(&objects(&at("out.jsonl"))?[0], "reward")
    };
    let (own, beside) = (scored("model", &at("rewards"), None)?, scored("adapter", &rewards, Some(&data.model))?);
    ensure!((own - beside).abs() < 1e-5, "{own} {beside}");
    // A language head on a tied base: two tensors from now on, and it says so. Beside the base it is refused.
    let config = Config::from_folder(&data.model)?;
    let head: TensorSpec = whole(&config).into_iter().find(|s| s.name == "lm_head.weight").context("a head")?;
    let elements: usize = head.shape.iter().product();
    let own = changed(&data, &at("headed"), |a| {
        a.config.modules_to_save = vec!["lm_head".into()];
        let values = (0..elements).map(|i| (i % 7) as f32 / 70.0).collect();
        a.saved.push(model::adapter::SavedTensor { spec: head, values });
    })?;
    score(&data.model, &at("rows.jsonl"), &at("out.jsonl"), Some(&own))
        .refuse(3, &["modules_to_save", "lm_head", "ple merge"])?;
    let said = merge(&data.model, &own, &at("untied")).succeed()?;
    ensure!(
        said.out.contains("lm_head.weight is the adapter's own") && said.out.contains("tie_word_embeddings is false"),
        "{}",
        said.out
    );
    ensure!(said.out.contains("audit  not compared: embedding or head"), "{}", said.out);
    let untied = report(&at("untied"))?;
    ensure!(untied["untied"] == true && untied["audit"]["not_compared"].is_string(), "{untied}");
    ensure!(!Config::from_folder(&at("untied"))?.tie_word_embeddings);
    score(&at("untied"), &at("rows.jsonl"), &at("out.jsonl"), None).succeed().map(drop)
}

#[test]
fn what_is_not_merged() -> Result<()> {
    let (Some(data), Some(adapter)) = (Data::find(), shared("data/adapters/stories260k-imdb-pos-r8")) else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = rows(&data, &at("rows.jsonl"))?;
    // An adapter of ours knows its base: the same in bf16 is that base, one that went on is not.
    let run = ple("sft --max_steps 1").key("model_name_or_path", &data.model).key("dataset_name", &rows);
    run.key("output_dir", at("run")).succeed()?;
    merge(&data.bf16, &at("run"), &at("same")).succeed()?;
    merge(&data.model, &adapter, &at("other")).succeed()?;
    merge(&at("other"), &at("run"), &at("wrong")).refuse(3, &["run/base.json: weights_sha256: wanted the base", "other)"])?;
    // A folder that is not empty stays as it is.
    std::fs::create_dir(at("full"))?;
    std::fs::write(at("full/mine"), "x")?;
    merge(&data.model, &adapter, &at("full"))
        .refuse(2, &["output_dir: wanted a folder that is not there or is empty", "full"])?;
    ensure!(files(&at("full"))? == ["mine"]);
    let pointer = shared("data/adapters/real/lfs-pointer-qwen3-14b").context("the pointer")?;
    merge(&data.model, &pointer, &at("wrong")).refuse(3, &["adapter_model.safetensors: this is a git-LFS pointer"])?;
    let huge = changed(&data, &at("huge"), |a| {
        let m = &mut a.modules[3];
        (m.a.fill(8.0), m.b.fill(f32::MAX)).1
    })?;
    merge(&data.model, &huge, &at("wrong")).refuse(5, &["not written: tensor", "not finite"])?;
    merge(&data.model, &adapter, &at("wrong")).key("dataset_name", at("absent")).refuse(3, &["absent"])?;
    ple("merge").key("model_name_or_path", &data.model).key("output_dir", at("wrong")).refuse(2, &["adapter: wanted"])?;
    ple("merge").key("adapter", &adapter).key("output_dir", at("wrong")).refuse(2, &["model_name_or_path: wanted"])?;
    let said = merge(&data.model, &adapter, &at("wrong")).and("--dry_run").succeed()?;
    ensure!(said.out.contains("35 modules of") && !at("wrong").exists(), "{}", said.out);
    ensure!(files(dir.path())?.iter().all(|f| !f.starts_with("wrong") && !f.contains("merging")), "something is left");
    Ok(())
}
