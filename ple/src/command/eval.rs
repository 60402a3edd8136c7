//! `ple eval`: numbers on a model's answers to the queries of a file. `metrics.json` has them all, `completions.jsonl` the answers,
//! `pairs.jsonl` what a judge from outside may read.

use super::{data_line, prompt_budget, required};
use crate::config::Config;
use crate::data::{self, Lines, Prompt, Row, hh};
use crate::eval::{self, overlap};
use crate::log::{self, number};
use crate::method::{Example, Sampling, Side};
use crate::open::Opened;
use crate::progress::Bars;
use crate::reward::{Rewards, Scores, funcs};
use crate::rollout::{self, Sample, Sampler};
use crate::{Error, Result, checkpoint, interrupt, logprob, pack};
use model::{Adapter, Keep, KvCache};
use runtime::host;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// Words of a segment of MSTTR.
const SEGMENT: usize = 100;

/// What is asked, and what the file answers.
struct Asked {
    prompts: Vec<Prompt>,
    /// The rows' own answers, by row.
    references: HashMap<u32, String>,
    /// The same as ids, each under its own prompt.
    examples: Vec<Example>,
}

/// Runs the command: one answer to every query, drawn like those of `ple generate`.
pub fn run(c: &Config) -> Result<()> {
    let mut opened = Opened::for_scoring(c)?;
    let rewards = if funcs(c).is_empty() { None } else { Some(Rewards::load(c, Some(&mut opened))?) };
    let mut said = Vec::new();
    let asked = read(c, &opened, &mut |line| said.push(line))?;
    let against = c.against.as_deref().map(|path| others(path, &asked.prompts)).transpose()?;
    let longest = asked.prompts.iter().map(|p| p.plain.len()).max().unwrap_or(1);
    let cache = rollout::cache(c, longest, asked.prompts.len())?;
    if c.dry_run {
        return log::print(&format!("{} queries, {} references\n", asked.prompts.len(), asked.references.len()));
    }
    let folder = required(&c.output_dir, "output_dir")?;
    checkpoint::create_folder(folder)?;
    said.iter().filter(|_| !c.quiet).for_each(|line| log::tell(line));
    let model = opened.model()?;
    let mut kv = KvCache::new(&opened.stream, model, cache, c.repetition_penalty != 1.0, None)?;
    let samples = sample(c, &opened, &asked.prompts, &mut kv)?;
    drop(kv);
    let scores = rewards.as_ref().map(|r| rollout::score(r, model, &asked.prompts, &samples)).transpose()?;
    let mut metrics = Map::new();
    let mut put = |name: &str, value: f64| drop(metrics.insert(name.into(), number(value)));
    of_answers(&samples, &mut put);
    if let (Some(rewards), Some(scores)) = (&rewards, &scores) {
        of_rewards(rewards, scores, &mut put);
    }
    of_model(c, &opened, &asked, &samples, &mut put)?;
    of_references(&asked, &samples, &mut put);
    let (total, answers) = (scores.as_ref().map(|s| &s.total), asked.prompts.iter().zip(&samples).enumerate());
    let lines = answers.map(|(i, (p, s))| {
        json!({ "row": p.row, "prompt": p.text, "completion": s.text, "ids": s.answer.ids, "finished": s.answer.stopped,
            "reward": total.map(|total| number(total[i])), "reference": asked.references.get(&p.row) })
    });
    write(&folder.join("completions.jsonl"), lines)?;
    let others = against.as_ref().unwrap_or(&asked.references);
    write(&folder.join("pairs.jsonl"), judged(&asked.prompts, &samples, others))?;
    host::write_file(&folder.join("metrics.json"), |out| writeln!(out, "{:#}", Value::Object(metrics.clone())))?;
    let text: Vec<String> = metrics.iter().map(|(name, value)| format!("{name:<28} {value}")).collect();
    if c.quiet { Ok(()) } else { log::print(&format!("{}\n", text.join("\n"))) }
}

fn write(path: &Path, mut lines: impl Iterator<Item = Value>) -> Result<()> {
    Ok(host::write_file(path, |out| lines.try_for_each(|line| writeln!(out, "{line}")))?)
}

fn read(c: &Config, opened: &Opened, tell: &mut dyn FnMut(String)) -> Result<Asked> {
    let path = required(&c.dataset_name, "dataset_name")?;
    let (queries, _, mut dropped) = data::queries(path, &opened.tokenizer, c.seed)?;
    let (prompts, later) = data::prompts(&queries, &opened.tokenizer, None, prompt_budget(c, opened, None)?)?;
    dropped.add(later);
    tell(data_line(&path.display().to_string(), prompts.len(), &dropped));
    if prompts.is_empty() {
        return Err(Error::file(path, format!("no query is left: {dropped}")));
    }
    let (mut references, mut examples, most) = (HashMap::new(), Vec::new(), opened.model()?.positions());
    let mut lines = Lines::open(path)?;
    while let Some(line) = lines.next().transpose()? {
        let (prompt, answer) = match Row::read(&lines, &line)? {
            Row::Answered { prompt, completion } => (prompt, completion),
            Row::Dialogue { chosen, rejected } => match hh::split(&chosen, &rejected) {
                Ok((prompt, reply, _)) => (prompt.to_string(), reply.to_string()),
                Err(_) => continue,
            },
            Row::Text(_) | Row::Prompt(_) => continue,
        };
        let (prompt, mut ids) = data::sft::pair(&opened.tokenizer, &prompt, &answer)?;
        ids.extend(opened.tokenizer.eos.filter(|eos| ids.last() != Some(eos)));
        if !ids.is_empty() && !prompt.is_empty() && prompt.len() + ids.len() <= most {
            examples.push(Example { row: line.row, prompt, answers: vec![ids], ..Example::default() });
        }
        references.insert(line.row, answer);
    }
    Ok(Asked { prompts, references, examples })
}

fn sample(c: &Config, opened: &Opened, prompts: &[Prompt], kv: &mut KvCache) -> Result<Vec<Sample>> {
    let (model, sampling) = (opened.model()?, Sampling::of(c));
    let sides = [Side { principle: false, samples: 1, sampling }];
    let settings = rollout::settings(c, opened, model);
    let repeats = vec![0; prompts.len()];
    let sampler = Sampler { stream: &opened.stream, model, policy: opened.policy, settings, iteration: 0, repeats };
    let bar = Bars::new(c).phase("answers", prompts.len());
    sampler.sample(&opened.tokenizer, prompts, &sides, kv, &mut (), &mut |p| {
        bar.at(p.finished, p.tokens);
        interrupt::watch()
    })
}

fn of_answers(samples: &[Sample], put: &mut dyn FnMut(&str, f64)) {
    let texts = || samples.iter().map(|s| s.text.as_str());
    let lengths: Vec<f64> = samples.iter().map(|s| s.answer.ids.len() as f64).collect();
    let (mean, deviation) = eval::moments(&lengths);
    put("answers", samples.len() as f64);
    put("length/mean", mean);
    put("length/std", deviation);
    put("length/min", lengths.iter().copied().fold(f64::INFINITY, f64::min));
    put("length/max", lengths.iter().copied().fold(0.0, f64::max));
    put("length/clipped", eval::mean(samples.iter().map(|s| f64::from(!s.answer.stopped))));
    put("distinct_1", eval::distinct(1, texts()));
    put("distinct_2", eval::distinct(2, texts()));
    put("msttr_100", overlap::msttr(SEGMENT, texts()));
}

fn of_rewards(rewards: &Rewards, scores: &Scores, put: &mut dyn FnMut(&str, f64)) {
    let (mean, deviation) = eval::moments(&scores.total);
    put("reward", mean);
    put("reward_std", deviation);
    put("reward_se", deviation / (scores.total.len() as f64).sqrt());
    for (name, part) in rewards.names().zip(&scores.parts).filter(|_| scores.parts.len() > 1) {
        put(&format!("rewards/{name}/mean"), eval::moments(part).0);
    }
}

/// What the model itself says: how likely references are, and how far its answers are from the base's.
fn of_model(c: &Config, opened: &Opened, asked: &Asked, samples: &[Sample], put: &mut dyn FnMut(&str, f64)) -> Result<()> {
    let own: Vec<Example> = asked
        .prompts
        .iter()
        .zip(samples)
        .filter(|(_, s)| !s.answer.ids.is_empty())
        .map(|(p, s)| Example { row: p.row, prompt: p.plain.clone(), answers: vec![s.answer.ids.clone()], ..Example::default() })
        .collect();
    let (s, model) = (&opened.stream, opened.model()?);
    let budget = pack::longest(own.iter().chain(&asked.examples)).max(c.max_tokens_per_micro_batch as usize);
    let mut acts = model.acts(s, pack::limits(budget), Keep::Nothing, None)?;
    if !asked.examples.is_empty() {
        let examples: Vec<&Example> = asked.examples.iter().collect();
        let (loss, tokens) = logprob::mean_loss(s, model, &mut acts, opened.policy, &examples)?;
        put("perplexity", loss.exp());
        put("perplexity/tokens", tokens as f64);
    }
    if opened.policy != Adapter::Off {
        let examples: Vec<&Example> = own.iter().collect();
        let policy = logprob::score(s, model, &mut acts, opened.policy, &examples)?;
        let base = logprob::score(s, model, &mut acts, Adapter::Off, &examples)?;
        let (per_token, per_answer) = eval::kl(&policy, &base);
        put("kl", per_token);
        put("kl/answer", per_answer);
    }
    Ok(())
}

fn of_references(asked: &Asked, samples: &[Sample], put: &mut dyn FnMut(&str, f64)) {
    let pairs: Vec<(&str, &str)> = asked
        .prompts
        .iter()
        .zip(samples)
        .filter_map(|(p, s)| Some((s.text.as_str(), asked.references.get(&p.row)?.as_str())))
        .collect();
    if pairs.is_empty() {
        return;
    }
    put("references", pairs.len() as f64);
    put("bleu_4", overlap::bleu(pairs.iter().copied()));
    let rouge: Vec<[f64; 3]> = pairs.iter().map(|(answer, reference)| overlap::rouge(answer, reference)).collect();
    for (i, name) in ["rouge_1", "rouge_2", "rouge_l"].into_iter().enumerate() {
        put(name, eval::mean(rouge.iter().map(|r| r[i])));
    }
}

/// Completions of another model to the same queries, by row: a file of `ple generate` or of this command.
fn others(path: &Path, prompts: &[Prompt]) -> Result<HashMap<u32, String>> {
    let (mut by_prompt, mut lines) = (HashMap::new(), Lines::open(path)?);
    while let Some(line) = lines.next().transpose()? {
        match Row::read(&lines, &line)? {
            Row::Answered { prompt, completion } => by_prompt.entry(prompt).or_insert(completion),
            _ => return Err(lines.error(line.line, "field completion: wanted a string beside prompt, got none")),
        };
    }
    let found: HashMap<u32, String> = prompts.iter().filter_map(|p| Some((p.row, by_prompt.get(&p.text)?.clone()))).collect();
    if found.len() == prompts.len() {
        return Ok(found);
    }
    let (n, all) = (found.len(), prompts.len());
    Err(Error::file(path, format!("against: wanted an answer to each of the {all} queries of dataset_name, got {n}")))
}

/// Two lines a query, the model's answer first and second, so that a judge's liking for a place cancels out.
fn judged<'a>(
    prompts: &'a [Prompt],
    samples: &'a [Sample],
    others: &'a HashMap<u32, String>,
) -> impl Iterator<Item = Value> + 'a {
    let pairs = prompts.iter().zip(samples).filter_map(|(p, s)| Some((p, s.text.trim(), others.get(&p.row)?.trim())));
    pairs.flat_map(|(p, own, other)| {
        let line = |first: &str, second: &str, model: &str| json!({ "row": p.row, "prompt": p.text, "first": first, "second": second, "model": model });
        [line(own, other, "first"), line(other, own, "second")]
    })
}
