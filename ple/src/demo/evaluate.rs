//! What the demo measures: one answer of each adapter to every held-out prompt, and the log-probabilities of the held-out
//! references under each.

use super::{Demo, rows};
use crate::Result;
use crate::command::{generate, logprob, score};
use crate::config::Command;
use crate::data::{Tokens, sft::pair};
use model::Tokenizer;
use runtime::host;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Fields of an answer, in order.
const FIELDS: [&str; 6] = ["prompt", "completion", "prompt_ids", "ids", "logps", "reward"];

/// The three adapters, in the order of every table.
pub const NAMES: [&str; 3] = ["sft", "raft", "ple"];

/// `eval/prompts.jsonl`, the held-out prompts, and `eval/references.jsonl`: what they went on with, as text and as ids, the end
/// token included.
pub fn references(demo: &Demo) -> Result<()> {
    let tokenizer = Tokenizer::open(&demo.folder.join("model"))?;
    let path = demo.folder.join("data/held-out.jsonl");
    let mut lines = Vec::new();
    for row in rows(&path)? {
        let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default();
        let (prompt, completion) = (text("prompt"), text("completion"));
        let (prompt_ids, mut ids) = pair(&tokenizer, prompt, completion)?;
        ids.extend(tokenizer.eos());
        lines.push(json!({ "prompt": prompt, "completion": completion, "prompt_ids": prompt_ids, "ids": ids }));
    }
    let prompts: Vec<Value> = lines.iter().map(|line| json!({ "prompt": line["prompt"] })).collect();
    write(&demo.folder.join("eval/prompts.jsonl"), &prompts)?;
    write(&demo.folder.join("eval/references.jsonl"), &lines)
}

/// `eval/references-NAME.jsonl`: the same rows with `logps`.
pub fn perplexity(demo: &Demo, name: &str) -> Result<()> {
    let pairs = [
        ("model_name_or_path", demo.at("model")),
        ("adapter", demo.at(name)),
        ("dataset_name", demo.at("eval/references.jsonl")),
        ("output_file", demo.at(&format!("eval/references-{name}.jsonl"))),
    ];
    logprob::run(&demo.settings(Command::Logprob, "", &pairs)?)
}

/// `eval/NAME.jsonl`: an answer to every held-out prompt, with its reward, by `ple generate` and `ple score`.
pub fn answers(demo: &Demo, name: &str) -> Result<()> {
    let file = demo.at(&format!("eval/{name}.jsonl"));
    let pairs = [
        ("model_name_or_path", demo.at("model")),
        ("adapter", demo.at(name)),
        ("dataset_name", demo.at("eval/prompts.jsonl")),
        ("output_file", file.clone()),
    ];
    let words = "--max_prompt_length 32 --max_completion_length 40 --temperature 1";
    generate::run(&demo.settings(Command::Generate, words, &pairs)?)?;
    let lexicon = format!("lexicon:{}", demo.at("lexicon.txt"));
    let pairs = [("dataset_name", file.clone()), ("reward_funcs", lexicon), ("output_file", file.clone())];
    score::run(&demo.settings(Command::Score, "", &pairs)?)?;
    let of = |mut row: Map<String, Value>| {
        let kept = FIELDS.map(|field| (field.to_string(), row.remove(field).unwrap_or_default()));
        Value::Object(kept.into_iter().collect())
    };
    write(Path::new(&file), &rows(Path::new(&file))?.into_iter().map(of).collect::<Vec<_>>())
}

fn write(path: &Path, lines: &[Value]) -> Result<()> {
    Ok(host::write_file(path, |out| lines.iter().try_for_each(|line| writeln!(out, "{line}")))?)
}
