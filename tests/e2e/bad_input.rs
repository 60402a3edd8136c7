//! Commands that cannot run: their exit code, and an error that names file, field, wanted and got.

use super::data;
use super::process::fails;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// Usage.
const USAGE: i32 = 2;
/// A file of data, a model or a run.
const FILE: i32 = 3;
/// A device, or memory.
const DEVICE: i32 = 4;

struct Row<'a> {
    what: &'a str,
    argv: Vec<&'a str>,
    code: i32,
    words: &'a [&'a str],
}

fn check(rows: &[Row<'_>]) -> Result<()> {
    for row in rows {
        let (code, said) = fails(&row.argv).with_context(|| row.what.to_string())?;
        ensure!(code == row.code, "{}: exit code {code}, wanted {}: {said}", row.what, row.code);
        for word in row.words {
            ensure!(said.contains(word), "{}: the error does not say {word:?}: {said}", row.what);
        }
    }
    Ok(())
}

#[test]
fn settings() -> Result<()> {
    const SFT: [&str; 7] = ["sft", "--model_name_or_path", "m", "--dataset_name", "rows.jsonl", "--output_dir", "out"];
    let row = |what, more: &[&'static str], words| Row { what, argv: [&SFT, more].concat(), code: USAGE, words };
    check(&[
        Row { what: "an unknown command", argv: vec!["trian"], code: USAGE, words: &["trian"] },
        row("an unknown key", &["--learning_rat", "1"], &["learning_rat", "learning_rate"]),
        row("a number that is none", &["--learning_rate", "fast"], &["learning_rate", "fast"]),
        row("a number out of range", &["--adam_beta1", "1.5"], &["adam_beta1", "1.5"]),
        row("dropout", &["--lora_dropout", "0.1"], &["lora_dropout", "0.1"]),
        Row { code: DEVICE, ..row("a device that is not there", &["--device", "tpu:0"], &["tpu:0"]) },
    ])
}

/// Rows that cannot be scored, and what is said of them.
const ROWS: [(&str, &[u8], &[&str]); 8] = [
    ("no JSON", b"{\"text\": \"one two\"}\n{\"text\": ", &["line 2", "JSON"]),
    ("no object", b"[1, 2]\n", &["line 1"]),
    ("missing fields", b"{\"question\": \"why\"}\n", &["line 1", "prompt"]),
    ("a field of another type", b"{\"text\": 7}\n", &["line 1", "text"]),
    ("an empty completion", b"{\"prompt\": \"why\", \"completion\": \"\"}\n", &["line 1", "completion"]),
    ("bad UTF-8", b"{\"text\": \"\xff\xfe\"}\n", &["line 1", "UTF-8"]),
    ("ids beyond the vocabulary", b"{\"prompt_ids\": [1], \"ids\": [512]}\n", &["line 1", "512"]),
    ("no row", b"\n", &["row"]),
];

#[test]
fn rows_and_folders() -> Result<()> {
    let Some(data) = data() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let model = data.model.to_string_lossy().into_owned();
    let (rows, out) = (path("rows.jsonl"), path("out.jsonl"));
    let score = |model: &str, adapter: Option<&str>| -> Vec<String> {
        let mut argv = vec!["logprob", "--model_name_or_path", model, "--dataset_name", &rows, "--output_file", &out];
        argv.extend(adapter.iter().flat_map(|adapter| ["--adapter", adapter]));
        argv.into_iter().map(str::to_string).collect()
    };
    let expect = |what: &str, argv: &[String], words: &[&str]| {
        check(&[Row { what, argv: argv.iter().map(String::as_str).collect(), code: FILE, words }])
    };
    for (what, bytes, words) in ROWS {
        std::fs::write(&rows, bytes)?;
        expect(what, &score(&model, None), &[&["rows.jsonl"], words].concat())?;
        ensure!(!Path::new(&out).exists(), "{what}: an output was written");
    }
    let long = format!("{{\"text\": \"{}\"}}\n", "word ".repeat(2 << 20));
    std::fs::write(&rows, long)?;
    expect("a line of 10 MB", &score(&model, None), &["rows.jsonl", "line 1", "512 positions"])?;
    std::fs::write(&rows, "{\"text\": \"Once upon a time\"}\n")?;
    expect("a folder that is not there", &score(&path("nothing"), None), &["nothing", "model folder"])?;
    expect("an adapter that is not there", &score(&model, Some(&path("nothing"))), &["nothing", "adapter_config.json"])?;
    let broken = dir.path().join("broken");
    std::fs::create_dir(&broken)?;
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(data.model.join(name), broken.join(name))?;
    }
    std::fs::write(broken.join("model.safetensors"), "version https://git-lfs.github.com/spec/v1\n")?;
    expect("a pointer instead of weights", &score(&path("broken"), None), &["model.safetensors"])?;
    std::fs::copy(data.model.join("model.safetensors"), broken.join("model.safetensors"))?;
    std::fs::write(broken.join("tokenizer.json"), "{\"version\": \"1.0\"}")?;
    expect("a broken tokenizer", &score(&path("broken"), None), &["tokenizer.json"])
}

#[test]
fn disks() -> Result<()> {
    let Some(data) = data() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (full, model) = (dir.path().join("full"), data.model.to_string_lossy().into_owned());
    std::fs::create_dir(&full)?;
    let rows = dir.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"text\": \"Once upon a time there was a bird.\"}\n")?;
    let (rows, out) = (rows.to_string_lossy().into_owned(), full.to_string_lossy().into_owned());
    std::os::unix::fs::symlink("/dev/full", full.join("log.jsonl"))?;
    let sft = vec!["sft", "--model_name_or_path", &model, "--dataset_name", &rows, "--output_dir", &out];
    check(&[Row { what: "a full disk", argv: sft, code: FILE, words: &["log.jsonl", "No space left"] }])?;
    let nowhere = "/proc/ple-tests";
    let sft = vec!["sft", "--model_name_or_path", &model, "--dataset_name", &rows, "--output_dir", nowhere];
    check(&[Row { what: "a folder that cannot be made", argv: sft, code: FILE, words: &[nowhere] }])?;
    let to_full =
        vec!["logprob", "--model_name_or_path", &model, "--dataset_name", &rows, "--output_file", "/proc/ple-tests.jsonl"];
    check(&[Row { what: "a file that cannot be made", argv: to_full, code: FILE, words: &["/proc/ple-tests.jsonl"] }])
}
