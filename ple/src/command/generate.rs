//! `ple generate`: answers to the queries of a file, one line out per answer, in the same order.

use super::{data_line, prompt_budget, required};
use crate::config::Config;
use crate::data::{self, Dropped, Lines, Prompt, Query, Row, RowKind, jsonl::Line};
use crate::method::{Sampling, Side};
use crate::open::Opened;
use crate::principle::Principle;
use crate::progress::Bars;
use crate::rollout::{self, Sample, Sampler};
use crate::{Error, Result, interrupt, log};
use model::KvCache;
use runtime::host;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::time::Instant;

/// What the file asks.
struct Asked {
    /// Fields of each row by its index.
    rows: HashMap<u32, Map<String, Value>>,
    /// In the order of the file.
    prompts: Vec<Prompt>,
    dropped: Dropped,
    principle: Option<Principle>,
}

/// Runs the command. Rows become prompts as those of `ple train` do; one with `prompt_ids` is used as it is. A row comes back
/// once per answer with `prompt` (without the principle), `completion`, `prompt_ids`, `ids`, `logps` (of `ids` at temperature
/// 1), `finished`, `sample` and `row`. Random numbers are those of iteration 0, side 0, or 1 under a principle: a row's answers
/// do not depend on the rows beside it.
pub fn run(c: &Config) -> Result<()> {
    if !c.dry_run {
        log::probe(required(&c.output_file, "output_file")?)?;
    }
    let opened = Opened::for_scoring(c)?;
    let asked = read(c, &opened)?;
    let model = opened.model()?;
    let longest = asked.prompts.iter().map(|p| p.plain.len().max(p.guided.len())).max().unwrap_or(1);
    let answers = asked.prompts.len().saturating_mul(c.num_generations as usize);
    let (cache, seen) = (rollout::cache(c, longest, answers)?, c.repetition_penalty != 1.0);
    if c.dry_run {
        return log::print(&format!("{answers} answers; {} bytes of cache\n", model.cache_plan(cache, seen)));
    }
    let say = |text: &str| {
        if !c.quiet {
            log::tell(text);
        }
    };
    if asked.dropped.total() > 0 {
        say(&data_line(&required(&c.dataset_name, "dataset_name")?.display().to_string(), asked.prompts.len(), &asked.dropped));
    }
    let mut kv = KvCache::new(&opened.stream, model, cache, seen, None)?;
    let start = Instant::now();
    let (samples, sides) = sample(c, &opened, &asked, &mut kv)?;
    let seconds = start.elapsed().as_secs_f64();
    host::write_file(required(&c.output_file, "output_file")?, |out| {
        samples.iter().try_for_each(|s| writeln!(out, "{}", line(&asked, &sides, s)))
    })?;
    let tokens: usize = samples.iter().map(|s| s.answer.ids.len()).sum();
    say(&format!("{} answers, {tokens} tokens, {:.0} tok/s", samples.len(), tokens as f64 / seconds.max(1e-9)));
    Ok(())
}

fn read(c: &Config, opened: &Opened) -> Result<Asked> {
    let path = required(&c.dataset_name, "dataset_name")?;
    let (mut rows, mut given, mut queries) = (HashMap::new(), Vec::new(), Vec::new());
    let (mut dropped, mut kind) = (Dropped::default(), None);
    let mut lines = Lines::open(path)?;
    while let Some(mut line) = lines.next().transpose()? {
        if line.fields.contains_key("prompt_ids") {
            given.push(as_it_is(c, opened, &lines, &line)?);
        } else {
            let told = data::chat::render(&lines, &mut line, &opened.tokenizer, data::chat::Want::Query)?;
            let row = Row::read(&lines, &line)?;
            kind = kind.or(Some(row.kind()));
            queries.extend(data::query(row, line.row, &opened.tokenizer, c.seed, &mut dropped)?.map(|query| query.told(told)));
        }
        rows.insert(line.row, line.fields);
    }
    let principle = principle(c, kind, &queries)?;
    let budget = prompt_budget(c, opened, principle.as_ref())?;
    let (mut prompts, later) = data::prompts(&queries, &opened.tokenizer, principle.as_ref(), budget)?;
    dropped.add(later);
    prompts.extend(given);
    prompts.sort_by_key(|p| p.row);
    match dropped.total() {
        _ if !prompts.is_empty() => Ok(Asked { rows, prompts, dropped, principle }),
        0 => Err(Error::file(path, "wanted at least one row, got none")),
        _ => Err(Error::file(path, format!("no query is left: {dropped}"))),
    }
}

/// The principle of the settings; there is none unless they give one.
fn principle(c: &Config, kind: Option<RowKind>, queries: &[Query]) -> Result<Option<Principle>> {
    if c.ple_principle.is_none() && c.ple_principle_file.is_none() {
        return Ok(None);
    }
    Principle::choose(c, kind.unwrap_or(RowKind::Prompt), queries.first().map_or("", |q| &q.text)).map(Some)
}

/// A row that says what its prompt is.
fn as_it_is(c: &Config, opened: &Opened, lines: &Lines, line: &Line) -> Result<Prompt> {
    let invalid = |text: String| lines.error(line.line, text);
    let ids = super::logprob::ids(&line.fields, "prompt_ids", &invalid)?.unwrap_or_default();
    let (vocabulary, most) = (opened.model()?.config.vocab_size, opened.model()?.positions());
    if ids.is_empty() {
        return Err(invalid("field prompt_ids: wanted at least one id, got none".into()));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        return Err(invalid(format!("field prompt_ids: wanted ids below the vocabulary's {vocabulary}, got {id}")));
    }
    if ids.len() + c.max_completion_length as usize > most {
        let (n, answer) = (ids.len(), c.max_completion_length);
        return Err(invalid(format!(
            "field prompt_ids: wanted at most {most} positions with an answer of {answer}, got {n} ids"
        )));
    }
    let text = match line.fields.get("prompt") {
        Some(Value::String(text)) => text.clone(),
        Some(other) => return Err(invalid(format!("field prompt: wanted a string, got {}", data::jsonl::kind(other)))),
        None => opened.tokenizer.decode(&ids, true)?,
    };
    Ok(Prompt { row: line.row, text, plain: ids.clone(), guided: ids })
}

/// Answers in the order of the file, and the sides they were drawn on.
fn sample(c: &Config, opened: &Opened, asked: &Asked, kv: &mut KvCache) -> Result<(Vec<Sample>, Vec<Side>)> {
    let (model, guided, sampling) = (opened.model()?, asked.principle.is_some(), Sampling::of(c));
    let samples = |principle: bool| if principle == guided { c.num_generations } else { 0 };
    let sides = [false, true].map(|principle| Side { principle, samples: samples(principle), sampling }).to_vec();
    let settings = rollout::settings(c, opened, model);
    let repeats = vec![0; asked.prompts.len()];
    let sampler = Sampler { stream: &opened.stream, model, policy: opened.policy, settings, iteration: 0, repeats };
    let bar = Bars::new(c).phase("answers", asked.prompts.len() * c.num_generations as usize);
    let samples = sampler.sample(&opened.tokenizer, &asked.prompts, &sides, kv, &mut (), &mut |p| {
        bar.at(p.finished, p.tokens);
        interrupt::watch()
    })?;
    Ok((samples, sides))
}

fn line(asked: &Asked, sides: &[Side], s: &Sample) -> Value {
    let prompt = &asked.prompts[s.query];
    let mut fields = asked.rows.get(&prompt.row).cloned().unwrap_or_default();
    let own = [
        ("prompt", json!(prompt.text)),
        ("completion", json!(s.text)),
        ("prompt_ids", json!(rollout::prompt_of(&asked.prompts, sides, s))),
        ("ids", json!(s.answer.ids)),
        ("logps", super::logprob::exact(&s.answer.logps)),
        ("finished", json!(s.answer.stopped)),
        ("sample", json!(s.sample)),
        ("row", json!(prompt.row)),
    ];
    own.into_iter().for_each(|(name, value)| drop(fields.insert(name.into(), value)));
    Value::Object(fields)
}
