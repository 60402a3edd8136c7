//! Files of rows: what is no row, what is no answer, what is too long; and word lists.

use super::{Case, FILE, Stage, USAGE, absent, bytes, folder, refuse, refuse_by};
use crate::e2e::{objects, zipped};
use anyhow::{Result, ensure};

const ROWS: &str = "rows.jsonl";

#[test]
fn of_log_probabilities() -> Result<()> {
    let long = format!("{{\"text\": \"{}\"}}\n", "w3 ".repeat(3 << 20));
    let endless = vec![b'x'; (64 << 20) + 2];
    let deep = format!("{}1{}", "[".repeat(50_000), "]".repeat(50_000));
    let cases: Vec<Case> = vec![
        ("absent", absent(ROWS), &["rows.jsonl: cannot open"]),
        ("a folder", folder(ROWS), &["rows.jsonl"]),
        ("nothing", bytes(ROWS, ""), &["rows.jsonl: wanted at least one row, got none"]),
        ("blank lines", bytes(ROWS, "\n \n"), &["rows.jsonl: wanted at least one row, got none"]),
        (
            "other bytes",
            bytes(ROWS, b"{\"text\": \"w3 w4\"}\n{\"text\": \"\xff\xfe\"}\n"),
            &["rows.jsonl: line 2", "UTF-8", "column 11"],
        ),
        ("no JSON", bytes(ROWS, "{\"text\": \"w3 w4\"}\n{\"text\": "), &["rows.jsonl: line 2", "JSON"]),
        ("no object", bytes(ROWS, "[1, 2]\n"), &["rows.jsonl: line 1", "JSON object", "a list"]),
        ("deeper than any", bytes(ROWS, deep), &["rows.jsonl: line 1", "JSON object"]),
        ("other fields", bytes(ROWS, r#"{"question": "why"}"#), &["rows.jsonl: line 1", "prompt and completion", "question"]),
        ("a text of another type", bytes(ROWS, r#"{"text": 7}"#), &["rows.jsonl: line 1: field text", "a string", "a number"]),
        ("no prompt", bytes(ROWS, r#"{"completion": "w3"}"#), &["rows.jsonl: line 1: field prompt", "got none"]),
        ("no completion", bytes(ROWS, r#"{"prompt": "w3"}"#), &["rows.jsonl: line 1", "prompt and completion"]),
        (
            "an empty completion",
            bytes(ROWS, r#"{"prompt": "w3", "completion": ""}"#),
            &["rows.jsonl: line 1: field completion", "an empty one"],
        ),
        (
            "a completion without tokens",
            bytes(ROWS, r#"{"prompt": "w3", "completion": "  "}"#),
            &["rows.jsonl: line 1", "at least one token"],
        ),
        ("a text of one token", bytes(ROWS, r#"{"text": " "}"#), &["rows.jsonl: line 1", "at least one token"]),
        (
            "a dialogue in turns",
            bytes(ROWS, r#"{"messages": [{"role": "user", "content": "w3"}]}"#),
            &["rows.jsonl: line 1", "messages"],
        ),
        (
            "ids beyond the vocabulary",
            bytes(ROWS, r#"{"prompt_ids": [1], "ids": [323]}"#),
            &["rows.jsonl: line 1", "vocabulary's 323", "got 323"],
        ),
        ("negative ids", bytes(ROWS, r#"{"prompt_ids": [1], "ids": [-1]}"#), &["rows.jsonl: line 1: field ids", "list of ids"]),
        (
            "ids of text",
            bytes(ROWS, r#"{"prompt_ids": "1", "ids": [2]}"#),
            &["rows.jsonl: line 1: field prompt_ids", "list of ids"],
        ),
        ("no ids", bytes(ROWS, r#"{"prompt_ids": [1]}"#), &["rows.jsonl: line 1: field ids", "got none"]),
        ("an empty list of ids", bytes(ROWS, r#"{"prompt_ids": [1], "ids": []}"#), &["rows.jsonl: line 1", "at least one token"]),
        ("longer than the model", bytes(ROWS, long), &["rows.jsonl: line 1", "at most 512 positions"]),
        ("a line without an end", bytes(ROWS, endless), &["rows.jsonl: line 1", "at most 67108864 bytes"]),
        ("compressed rubbish", bytes(ROWS, b"\x1f\x8b\x08\x00rubbish"), &["rows.jsonl: line 1: cannot read"]),
    ];
    refuse(&Stage::new()?, cases)
}

#[test]
fn a_line_of_ten_megabytes_is_a_row() -> Result<()> {
    let stage = Stage::new()?;
    let note = "x".repeat(10 << 20);
    stage.write(ROWS, format!("{{\"note\": \"{note}\", \"text\": \"w3 w4 w5\"}}\n{{\"text\": \"w6 w7\"}}"))?;
    stage.score().succeed()?;
    let rows = objects(&stage.path("out.jsonl"))?;
    ensure!(
        rows.len() == 2 && rows[0]["note"] == note.as_str() && rows[0]["ids"].as_array().is_some_and(|i| i.len() == 4),
        "rows differ"
    );
    // The end of a compressed file is missing.
    std::fs::remove_file(stage.path("out.jsonl"))?;
    let file = std::fs::read(zipped(&stage.path(ROWS))?)?;
    stage.write(ROWS, &file[..file.len() - 9])?;
    stage.score().refuse(FILE, &["rows.jsonl: line", "cannot read"])?;
    stage.left_clean()
}

#[test]
fn of_training() -> Result<()> {
    let stage = Stage::new()?;
    let dialogue = r#"{"chosen": "\n\nHuman: w3\n\nAssistant: w4", "rejected": "\n\nHuman: w5\n\nAssistant: w6"}"#;
    let cases: Vec<Case> = vec![
        ("prompts alone", bytes(ROWS, r#"{"prompt": "w3"}"#), &["rows.jsonl: line 1: field completion", "beside prompt"]),
        ("half a dialogue", bytes(ROWS, r#"{"chosen": "w3"}"#), &["rows.jsonl: line 1: field rejected", "got none"]),
        ("no dialogue in common", bytes(ROWS, dialogue), &["rows.jsonl: no row is left", "1 without a common prompt"]),
        (
            "all too long",
            bytes(ROWS, format!("{{\"prompt\": \"{}\", \"completion\": \"w4\"}}", "w3 ".repeat(2000))),
            &["rows.jsonl: no row is left", "1 too long"],
        ),
        ("nothing", bytes(ROWS, ""), &["rows.jsonl: wanted at least one row"]),
    ];
    refuse_by(&stage, cases, FILE, Stage::sft)?;
    let text: Vec<Case> = vec![("texts", bytes(ROWS, r#"{"text": "w3 w4"}"#), &["rows.jsonl: line 1", "completion_only_loss"])];
    refuse_by(&stage, text, USAGE, |stage| stage.sft().and("--completion_only_loss true"))?;
    let queries: Vec<Case> = vec![
        (
            "queries too long",
            bytes(ROWS, format!("{{\"prompt\": \"{}\"}}", "w3 ".repeat(600))),
            &["rows.jsonl: no query is left", "1 too long"],
        ),
        ("short texts", bytes(ROWS, r#"{"text": "w3"}"#), &["rows.jsonl: no row is left", "1 too short"]),
    ];
    refuse_by(&stage, queries, FILE, Stage::train)?;
    let missing = |key: &str| stage.sft().key(key, stage.path("none.jsonl"));
    missing("eval_dataset_name").refuse(FILE, &["none.jsonl: cannot open"])?;
    stage.train().key("sft_dataset_name", stage.path("none.jsonl")).refuse(FILE, &["none.jsonl: cannot open"])?;
    stage.left_clean()
}

#[test]
fn of_words() -> Result<()> {
    let stage = Stage::new()?;
    let cases: Vec<(&[u8], &[&str])> = vec![
        (b"; nothing\n", &["words.txt: wanted at least one word"]),
        (b"good\nbad minus\n", &["words.txt: line 2: weight", "minus"]),
        (b"good 1 2 3 4\n", &["words.txt: line 1", "5 words"]),
        (b"good\n\xff\n", &["words.txt: line 2", "UTF-8"]),
        (b"good inf\n", &["words.txt: line 1: weight", "inf"]),
    ];
    for (text, words) in cases {
        stage.write("words.txt", text)?;
        stage.train().key("reward_funcs", format!("lexicon:{}", stage.path("words.txt").display())).refuse(FILE, words)?;
    }
    stage.train().and("--reward_funcs lexicon:/none.txt").refuse(FILE, &["/none.txt: cannot read"])?;
    stage.left_clean()
}
