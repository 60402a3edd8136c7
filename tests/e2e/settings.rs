//! Settings: files say what flags say, presets lie under both, and a run that only checks leaves nothing.

use super::program::ple;
use super::runs::train;
use super::{Data, same};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;

/// The settings that a run was made with.
fn effective(run: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(run.join("run.json")).with_context(|| run.display().to_string())?;
    Ok(serde_json::from_str::<Value>(&text)?["config"].clone())
}

#[test]
fn a_file_says_what_flags_say() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = data.first(100, dir.path())?;
    let flags = "--ple-tau0 0.3 --ple_alpha=0.5 --no_ple_len_norm --lora_target_modules q_proj v_proj --quiet --temperature 1";
    train(&data, &rows, &at("flags"), 1).and(flags).succeed()?;
    let yaml = format!(
        "# as TRL has it, with a block of ours\nmodel_name_or_path: {}\ndataset_name: {}\nreward_funcs: ['{}']\n\
         max_completion_length: 24\nmax_prompt_length: 128\nlearning_rate: 1.0e-3\ntemperature: 1.0\nquiet: true\n\
         lora_target_modules: [q_proj, v_proj]\nvllm_mode: colocate\nbf16: true\n\
         ple: {{tau0: 0.3, alpha: 0.9, iters: 1, queries_per_iter: 16, len_norm: false, principle: 'Be kind.'}}\n",
        data.model.display(),
        rows.display(),
        data.lexicon(),
    );
    std::fs::write(at("run.yaml"), yaml)?;
    std::fs::write(at("more.json"), json!({"ple-alpha": "0.5"}).to_string())?;
    let call = ple("train").key("config", at("run.yaml")).key("config", at("more.json")).key("output_dir", at("file"));
    call.succeed()?;
    let (mut flags, mut file) = (effective(&at("flags"))?, effective(&at("file"))?);
    ensure!(file["ple_alpha"] == 0.5 && file["ple_len_norm"] == false, "{file}");
    for settings in [&mut flags, &mut file] {
        settings.as_object_mut().context("wanted an object")?.remove("output_dir");
    }
    ensure!(flags == file, "flags: {flags}\nfile: {file}");
    same(&at("flags"), &at("file"), &["adapter_model.safetensors", "completions/iter-00000.jsonl"])
}

#[test]
fn presets_lie_under_everything() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let rows = data.first(60, dir.path())?;
    let cases = [
        ("hh", "", json!({"max_completion_length": 128, "ple_weight_temp": 0.2})),
        ("imdb", "", json!({"max_completion_length": 48, "reward_norm": "none"})),
        ("tldr", "", json!({"max_completion_length": 53, "reward_norm": "auto"})),
        ("literal", "", json!({"reward_norm": "none", "ple_weight_temp": 1.0})),
        ("imdb literal", "--max_completion_length 5", json!({"max_completion_length": 5, "ple_weight_temp": 1.0})),
    ];
    for (preset, more, wanted) in cases {
        let out = dir.path().join(preset);
        let call = ple("train --ple_iters 1 --ple_queries_per_iter 1").key("model_name_or_path", &data.model);
        let call = call.key("dataset_name", &rows).key("reward_funcs", "length:20").key("ple_principle", "Be kind.");
        call.key("output_dir", &out).and("--preset").and(preset).and(more).succeed()?;
        let settings = effective(&out)?;
        for (key, value) in wanted.as_object().context("wanted an object")? {
            ensure!(settings[key] == *value, "{preset}: {key}: wanted {value}, got {}", settings[key]);
        }
    }
    Ok(())
}

#[test]
fn a_dry_run_checks_and_leaves_nothing() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (rows, out) = (data.first(60, dir.path())?, dir.path().join("out"));
    let said = train(&data, &rows, &out, 3).and("--dry_run").succeed()?;
    ensure!(said.out.contains("at most 3 steps") && !out.exists(), "{}", said.out);
    let call = ple("sft --dry_run --max_steps 5").key("model_name_or_path", &data.model).key("dataset_name", &rows);
    let said = call.key("output_dir", &out).succeed()?;
    ensure!(said.out.starts_with("5 steps; ") && !out.exists(), "{}", said.out);
    let said = ple("logprob --dry_run").key("model_name_or_path", &data.model).key("dataset_name", &rows);
    // Dialogues are no answers to score: that is found without an output to write.
    said.refuse(3, &["line 1", "prompt and completion"])
}
