//! `ple score`: every row comes back with its own reward, whatever stands beside it.

use super::program::{Ple, ple};
use super::{Data, number, objects};
use anyhow::{Context, Result, ensure};
use ple_tests::data::shared;
use serde_json::{Value, json};
use std::path::Path;

/// 64 prompts with their answers, some of them of ids.
fn rows(data: &Data, path: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for row in objects(&data.dialogues)? {
        let text = row["chosen"].as_str().context("chosen")?;
        let Some((prompt, answer)) = text.rsplit_once("\n\nAssistant:") else { continue };
        if lines.len() < 64 && prompt.len() < 150 {
            let completion: String = answer.chars().take(60).collect();
            let row = json!({"note": [lines.len(), {"a": 0.1}], "prompt": format!("{prompt}\n\nAssistant:"), "completion": completion, "reward": null});
            lines.push(row.to_string());
        }
    }
    std::fs::write(path, lines.join("\n") + "\n")?;
    Ok(lines)
}

fn score(rows: &Path, out: &Path) -> Ple {
    ple("score").key("dataset_name", rows).key("output_file", out)
}

fn rewards(path: &Path) -> Result<Vec<f64>> {
    objects(path)?.iter().map(|row| number(row, "reward")).collect()
}

#[test]
fn a_model_scores_a_row_alone_as_among_others() -> Result<()> {
    let (Some(data), Some(rm)) = (Data::find(), shared("fixtures/reward/rm_llama/model")) else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let lines = rows(&data, &at("rows.jsonl"))?;
    ensure!(lines.len() == 64, "{} rows", lines.len());
    let score = |rows: &str, more: &str| -> Result<String> {
        score(&at(rows), &at("out.jsonl")).key("reward_model_name_or_path", &rm).and(more).succeed()?;
        Ok(std::fs::read_to_string(at("out.jsonl"))?)
    };
    let all = score("rows.jsonl", "")?;
    ensure!(all.lines().count() == 64, "{} lines out for 64 in", all.lines().count());
    for more in ["--threads 1", "--max_tokens_per_micro_batch 1", "--max_tokens_per_micro_batch 300"] {
        ensure!(score("rows.jsonl", more)? == all, "{more}: other rewards");
    }
    std::fs::write(at("backwards.jsonl"), lines.iter().rev().flat_map(|row| [row, "\n"]).collect::<String>())?;
    ensure!(score("backwards.jsonl", "")?.lines().rev().eq(all.lines()), "backwards the rows are others");
    for (i, line) in all.lines().enumerate().step_by(21) {
        std::fs::write(at("one.jsonl"), &lines[i])?;
        ensure!(score("one.jsonl", "")?.trim_end() == line, "row {i} alone is another");
    }
    // One prompt for all: what is shared changes nothing.
    let same = |line: &String| -> Result<String> {
        let mut row: Value = serde_json::from_str(line)?;
        row["prompt"] = json!("\n\nHuman: Tell me something about the sea and the sky, please.\n\nAssistant:");
        Ok(row.to_string())
    };
    let shared_prompt: Vec<String> = lines.iter().map(same).collect::<Result<_>>()?;
    std::fs::write(at("same.jsonl"), shared_prompt.join("\n"))?;
    let together = score("same.jsonl", "")?;
    ensure!(score("same.jsonl", "--max_tokens_per_micro_batch 1")? == together, "together the rows are others");
    Ok(())
}

#[test]
fn every_field_stays_and_parts_are_named() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let lines = rows(&data, &at("rows.jsonl"))?;
    let lexicon = data.lexicon();
    let one = score(&at("rows.jsonl"), &at("one.jsonl")).key("reward_funcs", &lexicon).succeed()?;
    let alone = objects(&at("one.jsonl"))?;
    ensure!(alone.iter().all(|row| row.get("rewards").is_none()), "parts of one reward");
    let values = rewards(&at("one.jsonl"))?;
    let mean = values.iter().sum::<f64>() / 64.0;
    ensure!(one.out.starts_with(&format!("64 rows, mean reward {mean:.6}, std 0.")), "{}", one.out);
    let call = score(&at("rows.jsonl"), &at("out.jsonl")).key("model_name_or_path", &data.model);
    let call = call.and("--reward_weights 2 -1 0.5 --quiet --reward_funcs").and(&lexicon).and("length:40 contains:you");
    ensure!(call.succeed()?.out.is_empty(), "spoke");
    let out = objects(&at("out.jsonl"))?;
    ensure!(out.len() == 64, "{} rows", out.len());
    for (i, (row, line)) in out.iter().zip(&lines).enumerate() {
        let given: Value = serde_json::from_str(line)?;
        ensure!(["note", "prompt", "completion"].iter().all(|name| row[name] == given[name]), "row {i}: {row}");
        let part = |name: &str| number(&row["rewards"], name);
        let (words, length, has) = (part(&lexicon)?, part("length:40")?, part("contains:you")?);
        ensure!(words == values[i] && number(row, "reward")? == 2.0 * words - length + 0.5 * has, "row {i}: {row}");
        let text = row["completion"].as_str().context("completion")?;
        ensure!(has == f64::from(u8::from(text.contains("you"))) && length > 0.0, "row {i}: {row}");
    }
    // Ids count themselves; a text is an answer without a prompt.
    std::fs::write(at("ids.jsonl"), "{\"text\": \"a fine day\", \"ids\": [1, 2, 3]}\n")?;
    score(&at("ids.jsonl"), &at("out.jsonl")).and("--reward_funcs length:12").succeed()?;
    ensure!(rewards(&at("out.jsonl"))? == [0.25], "ids were not counted");
    let said = score(&at("rows.jsonl"), &at("none.jsonl")).and("--dry_run --reward_funcs exec:cat length:9");
    let said = said.key("model_name_or_path", &data.model).succeed()?;
    ensure!(said.out == "64 rows; exec:cat, length:9\n" && !at("none.jsonl").exists(), "{}", said.out);
    Ok(())
}

/// What `ple train` wrote is what `ple score` gives again: the same reward, of the same text.
#[test]
fn a_runs_rewards_are_those_of_its_completions() -> Result<()> {
    let (Some(data), Some(rm)) = (Data::find(), shared("fixtures/reward/rm_llama/model")) else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (rows, out) = (dir.path().join("rows.jsonl"), dir.path().join("out"));
    std::fs::write(
        &rows,
        ["a dog", "a big tree", "the sea"].map(|of| json!({"prompt": format!("A tale of {of}:")}).to_string()).join("\n"),
    )?;
    let funcs = [format!("model:{}", rm.display()), data.lexicon(), "length:9".to_string()];
    let train = ple("train --ple_iters 1 --ple_queries_per_iter 6 --max_completion_length 30 --ple_principle kind");
    let train = train.key("model_name_or_path", &data.model).key("dataset_name", rows).key("output_dir", &out);
    train.and("--reward_weights 1 2 3 --reward_funcs").and(&funcs.join(" ")).succeed()?;
    let written = out.join("completions/iter-00000.jsonl");
    let again = dir.path().join("again.jsonl");
    score(&written, &again).and("--reward_weights 1 2 3 --reward_funcs").and(&funcs.join(" ")).succeed()?;
    ensure!(rewards(&written)?.len() == 12 && rewards(&written)? == rewards(&again)?, "rewards differ");
    Ok(())
}

/// What a head is trained on is what it scores: `<s>` and `</s>` that were written by hand stand for those that would be there anyway.
#[test]
fn tokens_by_hand_are_read_alike_in_training_and_scoring() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let pairs: Vec<[&str; 3]> = vec![["Once upon a", " time.", " dog."], ["The cat", " ran and ran.", " sat."]];
    let trained = |name: &str, begin: &str, end: &str| -> Result<f64> {
        let row = |[p, w, l]: &[&str; 3]| json!({ "prompt": format!("{begin}{p}"), "chosen": format!("{w}{end}"), "rejected": format!("{l}{end}") });
        std::fs::write(at("pairs.jsonl"), pairs.iter().map(|pair| format!("{}\n", row(pair))).collect::<String>())?;
        let call = ple("reward --max_steps 2 --learning_rate 0.01 --report_to none").key("model_name_or_path", &data.model);
        call.key("dataset_name", at("pairs.jsonl")).key("output_dir", at(name)).succeed()?;
        let asked = json!({ "prompt": format!("{begin}Once upon a"), "completion": format!(" time.{end}") });
        std::fs::write(at("asked.jsonl"), asked.to_string())?;
        let call = score(&at("asked.jsonl"), &at("out.jsonl")).key("model_name_or_path", &data.model);
        call.key("reward_funcs", format!("adapter:{}", at("plain").display())).succeed()?;
        Ok(rewards(&at("out.jsonl"))?[0])
    };
    let plain = trained("plain", "", "")?;
    for (name, begin, end) in [("begun", "<s>", ""), ("ended", "", "</s>"), ("both", "<s>", "</s>\n")] {
        let reward = trained(name, begin, end)?;
        super::same(&at("plain"), &at(name), &["adapter_model.safetensors"])?;
        ensure!(reward == plain, "{name}: {reward}, not {plain}");
    }
    Ok(())
}
