//! `ple generate`: what comes out is what was drawn, a row's answers are its own, and the other commands take the file as it is.

use super::program::{Ple, ple};
use super::scores::score;
use super::{Data, bits, objects};
use anyhow::{Context, Result, ensure};
use ple_tests::data::shared;
use serde_json::{Value, json};
use std::path::Path;

/// Answers to `rows`.
fn generate(model: &Path, rows: &Path, out: &Path) -> Ple {
    let call = ple("generate --max_completion_length 20").key("model_name_or_path", model);
    call.key("dataset_name", rows).key("output_file", out)
}

fn lines(path: &Path) -> Result<Vec<String>> {
    Ok(std::fs::read_to_string(path)?.lines().map(str::to_string).collect())
}

#[test]
fn log_probabilities_come_out_bit_for_bit() -> Result<()> {
    let (Some(data), Some(adapter)) = (Data::find(), shared("data/adapters/stories260k-imdb-pos-r8")) else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = data.first(12, dir.path())?;
    let calls = [("", None), ("--temperature 0 --top_p 0.9", None), ("--top_k 20 --repetition_penalty 1.1", Some(&adapter))];
    for (i, (more, adapter)) in calls.into_iter().enumerate() {
        let call = generate(&data.model, &rows, &at("out.jsonl")).and("--num_generations 2").and(more);
        let call = if i == 0 { call } else { call.key("ple_principle", "Be kind.") };
        let said = adapter.into_iter().fold(call, |call, folder| call.key("adapter", folder)).succeed()?;
        let answers = objects(&at("out.jsonl"))?;
        ensure!(answers.len() == 24 && said.out.contains("24 answers"), "{} answers: {}", answers.len(), said.out);
        for (n, answer) in answers.iter().enumerate() {
            ensure!(answer["row"] == n / 2 && answer["sample"] == n % 2, "line {n} is {answer}");
            let ids = answer["ids"].as_array().context("ids")?;
            ensure!((1..=20).contains(&ids.len()) && (answer["finished"] == true || ids.len() == 20), "{answer}");
            let prompt = answer["prompt"].as_str().context("prompt")?;
            let dialogue = answer["chosen"].as_str().context("a field of the row went away")?;
            ensure!(prompt.ends_with("\n\nAssistant:") && dialogue.contains(prompt) && !prompt.contains("Be kind."), "{answer}");
        }
        // Guided prompts are longer than what is shown of them.
        let longest = |rows: &[Value]| rows.iter().filter_map(|r| r["prompt_ids"].as_array().map(Vec::len)).max();
        ensure!(longest(&answers) <= Some(492), "{:?}", longest(&answers));
        score(&data.model, &at("out.jsonl"), &at("again.jsonl"), adapter.map(|p| p.as_path())).succeed()?;
        for (stored, again) in answers.iter().zip(objects(&at("again.jsonl"))?) {
            ensure!(bits(stored, "logps")? == bits(&again, "logps")?, "{more}: other log-probabilities of {stored}");
        }
        ensure!(lines(&at("out.jsonl"))? == lines(&at("again.jsonl"))?, "{more}: another file");
    }
    Ok(())
}

#[test]
fn a_row_s_answers_are_its_own() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = data.first(20, dir.path())?;
    generate(&data.model, &rows, &at("all.jsonl")).and("--num_generations 3").succeed()?;
    let all = lines(&at("all.jsonl"))?;
    // Other rows before and after, other settings of speed, fewer samples.
    let text = std::fs::read_to_string(&rows)?;
    let other = |(i, line): (usize, &str)| if i == 7 { format!("{line}\n") } else { format!("{}\n", json!({"prompt": "The"})) };
    std::fs::write(at("other.jsonl"), text.lines().take(11).enumerate().map(other).collect::<String>())?;
    let call = generate(&data.model, &at("other.jsonl"), &at("out.jsonl"));
    call.and("--num_generations 2 --max_num_seqs 3 --threads 1").succeed()?;
    ensure!(lines(&at("out.jsonl"))?[14..16] == all[21..23], "row 7 has other answers beside other rows");
    let other_seed = generate(&data.model, &rows, &at("seed.jsonl")).and("--num_generations 3 --seed 1");
    other_seed.succeed()?;
    ensure!(lines(&at("seed.jsonl"))? != all, "the seed does nothing");
    Ok(())
}

#[test]
fn rows_of_every_kind_and_prompts_as_ids() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = [
        json!({"prompt": "Once upon", "id": "a"}),
        json!({"prompt": "A dog", "completion": " ran."}),
        json!({"text": "short"}),
        json!({"text": "The little girl went to the park. ".repeat(9), "label": 1}),
        json!({"subreddit": "tifu", "title": "t", "post": "I fell."}),
        json!({"prompt_ids": [1, 403, 407], "note": [2]}),
        json!({"prompt": "long ".repeat(600)}),
    ];
    std::fs::write(at("rows.jsonl"), rows.map(|row| format!("{row}\n")).concat())?;
    let said = generate(&data.model, &at("rows.jsonl"), &at("out.jsonl")).succeed()?;
    ensure!(said.out.contains("1 too short, 1 too long"), "{}", said.out);
    let out = objects(&at("out.jsonl"))?;
    ensure!(out.iter().map(|r| r["row"].as_u64()).eq([0, 1, 3, 4, 5].map(Some)), "{out:?}");
    ensure!(out[0]["id"] == "a" && out[2]["label"] == 1 && out[4]["note"] == json!([2]), "{out:?}");
    ensure!(out[3]["prompt"] == "SUBREDDIT: r/tifu\n\nTITLE: t\n\nPOST: I fell.\n\nTL;DR:", "{}", out[3]);
    ensure!(out[4]["prompt_ids"] == json!([1, 403, 407]), "{}", out[4]);
    // What came out goes in again with the places of the rows that were left out; ids stand for the texts.
    let mut again: Vec<String> = out.iter().map(Value::to_string).collect();
    again.insert(2, json!({"text": "short"}).to_string());
    std::fs::write(at("again.jsonl"), again.join("\n"))?;
    generate(&data.model, &at("again.jsonl"), &at("second.jsonl")).succeed()?;
    ensure!(lines(&at("second.jsonl"))? == lines(&at("out.jsonl"))?, "another file from ids");
    for (row, words) in [
        (json!({"prompt_ids": []}), "field prompt_ids: wanted at least one id"),
        (json!({"prompt_ids": [9999]}), "wanted ids below the vocabulary's 512, got 9999"),
        (json!({"prompt_ids": vec![5; 600]}), "wanted at most 512 positions"),
        (json!({"prompt_ids": [1], "prompt": 3}), "field prompt: wanted a string"),
    ] {
        std::fs::write(at("bad.jsonl"), format!("{row}\n"))?;
        generate(&data.model, &at("bad.jsonl"), &at("none.jsonl")).refuse(3, &["bad.jsonl: line 1: ", words])?;
    }
    std::fs::write(at("bad.jsonl"), "\n")?;
    generate(&data.model, &at("bad.jsonl"), &at("none.jsonl")).refuse(3, &["bad.jsonl: wanted at least one row"])?;
    ensure!(!at("none.jsonl").exists(), "a refused command left a result");
    Ok(())
}
