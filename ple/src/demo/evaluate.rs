//! What the demo measures: one answer of each adapter to every held-out prompt, and the log-probabilities of the held-out
//! references under each.

use super::{Demo, rows};
use crate::command::logprob;
use crate::config::Command;
use crate::data::{Tokens, sft::pair};
use crate::log::number;
use crate::method::{Sampling, Side};
use crate::open::Opened;
use crate::reward::Rewards;
use crate::rollout::{self, Sampler};
use crate::{Result, data, interrupt, principle::Principle};
use model::{CacheLimits, KvCache, Settings, Tokenizer};
use runtime::host;
use serde_json::{Value, json};
use std::path::Path;

/// The three adapters, in the order of every table.
pub const NAMES: [&str; 3] = ["sft", "raft", "ple"];

/// `eval/references.jsonl`: what the held-out remarks went on with, as text and as ids, the end token included.
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

/// `eval/NAME.jsonl`: an answer to every held-out prompt, with its reward.
pub fn answers(demo: &Demo, name: &str) -> Result<()> {
    let pairs = [
        ("model_name_or_path", demo.at("model")),
        ("adapter", demo.at(name)),
        ("dataset_name", demo.at("data/held-out.jsonl")),
        ("output_file", demo.at(&format!("eval/{name}.jsonl"))),
    ];
    let words = "--max_prompt_length 32 --max_completion_length 40 --temperature 1";
    let c = demo.settings(Command::Generate, words, &pairs)?;
    let rewards = Rewards::load(&[format!("lexicon:{}", demo.at("lexicon.txt"))], &[])?;
    let opened = Opened::for_scoring(&c)?;
    let (queries, ..) = data::queries(Path::new(&demo.at("data/held-out.jsonl")), &opened.tokenizer, c.seed)?;
    let principle = Principle { text: super::grammar::PRINCIPLE.into() };
    let (prompts, _) = data::prompts(&queries, &opened.tokenizer, &principle, 32)?;
    let model = opened.model()?;
    let cache = CacheLimits { pages: 32 * 2, prefill_tokens: 1024, batch: 32, positions: 72 };
    let mut kv = KvCache::new(&opened.stream, model, cache, false, None)?;
    let settings = Settings {
        sampling: kernels::sample::Sampling::default(),
        stop: opened.stop(&model.config),
        max_new_tokens: c.max_completion_length as usize,
        seed: c.seed,
    };
    let sampler = Sampler {
        stream: &opened.stream,
        model,
        policy: opened.policy,
        settings,
        iteration: u32::MAX,
        repeats: vec![0; prompts.len()],
    };
    let sides = [Side { principle: false, samples: 1, sampling: Sampling::of(&c) }];
    let mut samples = sampler.sample(&opened.tokenizer, &prompts, &sides, &mut kv, &mut |_| interrupt::watch())?;
    let scores = rollout::score(&rewards, &prompts, &samples)?;
    samples.iter_mut().zip(&scores.total).for_each(|(s, r)| s.reward = *r);
    let line = |s: &rollout::Sample| {
        let p = &prompts[s.query];
        json!({ "prompt": p.text, "completion": s.text, "prompt_ids": p.plain, "ids": s.answer.ids,
            "logps": logprob::exact(&s.answer.logps), "reward": number(s.reward) })
    };
    write(&demo.folder.join(format!("eval/{name}.jsonl")), &samples.iter().map(line).collect::<Vec<_>>())
}

fn write(path: &Path, lines: &[Value]) -> Result<()> {
    Ok(host::write_file(path, |out| lines.iter().try_for_each(|line| writeln!(out, "{line}")))?)
}
