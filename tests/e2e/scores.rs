//! `ple logprob`: a row's numbers are its own, whatever stands beside it and however it was given.

use super::program::{Ple, ple};
use super::{Data, bits, objects, zipped};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::path::Path;

/// Scores `rows` into `out`.
pub fn score(model: &Path, rows: &Path, out: &Path, adapter: Option<&Path>) -> Ple {
    let call = ple("logprob").key("model_name_or_path", model).key("dataset_name", rows).key("output_file", out);
    adapter.into_iter().fold(call, |call, folder| call.key("adapter", folder))
}

/// 64 prompts with the first words of their answers.
fn answered(data: &Data, path: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for row in objects(&data.dialogues)? {
        let text = row["chosen"].as_str().context("chosen")?;
        let Some((prompt, answer)) = text.rsplit_once("\n\nAssistant:") else { continue };
        let completion: String = answer.chars().take(90).collect();
        if lines.len() < 64 && prompt.len() < 300 && !completion.trim().is_empty() {
            lines.push(
                json!({"note": lines.len(), "prompt": format!("{prompt}\n\nAssistant:"), "completion": completion}).to_string(),
            );
        }
    }
    std::fs::write(path, lines.join("\n") + "\n")?;
    Ok(lines)
}

#[test]
fn a_row_is_scored_alone_as_among_others() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let rows = answered(&data, &at("rows.jsonl"))?;
    ensure!(rows.len() == 64, "{} rows", rows.len());
    for model in [&data.model, &data.bf16] {
        score(model, &at("rows.jsonl"), &at("all.jsonl"), None).succeed()?;
        let all = std::fs::read_to_string(at("all.jsonl"))?;
        ensure!(all.lines().count() == 64, "{} lines out for 64 in", all.lines().count());
        for (i, line) in all.lines().enumerate().step_by(21) {
            std::fs::write(at("one.jsonl"), &rows[i])?;
            score(model, &at("one.jsonl"), &at("again.jsonl"), None).succeed()?;
            ensure!(std::fs::read_to_string(at("again.jsonl"))?.trim_end() == line, "row {i} alone is another");
        }
        // What came out goes in again: the ids stand for the texts.
        score(model, &at("all.jsonl"), &at("again.jsonl"), None).succeed()?;
        ensure!(std::fs::read_to_string(at("again.jsonl"))? == all, "rows with their ids are others");
        // Backwards, with the fields that were there.
        std::fs::write(at("backwards.jsonl"), rows.iter().rev().flat_map(|row| [row, "\n"]).collect::<String>())?;
        score(model, &at("backwards.jsonl"), &at("again.jsonl"), None).succeed()?;
        ensure!(std::fs::read_to_string(at("again.jsonl"))?.lines().rev().eq(all.lines()), "backwards the rows are others");
        ensure!(objects(&at("all.jsonl"))?.iter().enumerate().all(|(i, row)| row["note"] == i), "a field went away");
    }
    Ok(())
}

#[test]
fn a_compressed_file_is_the_same_rows() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    answered(&data, &at("rows.jsonl"))?;
    score(&data.model, &at("rows.jsonl"), &at("plain.jsonl"), None).succeed()?;
    score(&data.model, &zipped(&at("rows.jsonl"))?, &at("zipped.jsonl"), None).succeed()?;
    ensure!(std::fs::read(at("plain.jsonl"))? == std::fs::read(at("zipped.jsonl"))?, "compressed rows are others");
    Ok(())
}

#[test]
fn a_text_is_scored_from_its_second_token() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("rows.jsonl"), "{\"text\": \"Once upon a time there was a bird.\"}\n\n  \n")?;
    let said = score(&data.model, &at("rows.jsonl"), &at("out.jsonl"), None).succeed()?;
    let [row] = objects(&at("out.jsonl"))?.try_into().map_err(|rows| anyhow::anyhow!("wanted one row, got {rows:?}"))?;
    let ids = row["ids"].as_array().context("ids")?;
    let logps = bits(&row, "logps")?;
    ensure!(ids.len() > 5 && logps.len() == ids.len() - 1 && row["prompt_ids"] == json!([]), "{row}");
    ensure!(said.out.starts_with(&format!("1 rows, {} tokens, mean log-probability -", logps.len())), "{}", said.out);
    // The same ids behind their first as a prompt.
    std::fs::write(at("ids.jsonl"), json!({"prompt_ids": ids[..1], "ids": ids[1..]}).to_string())?;
    let said = score(&data.model, &at("ids.jsonl"), &at("out.jsonl"), None).and("--quiet").succeed()?;
    ensure!(bits(&objects(&at("out.jsonl"))?[0], "logps")? == logps && said.out.is_empty(), "{}", said.out);
    Ok(())
}
