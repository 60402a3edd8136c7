//! `ple score`: rewards of given answers, one line out per line in, in the same order.

use super::required;
use crate::config::Config;
use crate::data::jsonl::{Line, kind};
use crate::data::{Lines, sft};
use crate::log::{self, number};
use crate::open::Opened;
use crate::reward::{Kind, Rewards, Scored, Scores, Spec, funcs};
use crate::{Error, Result};
use model::Tokenizer;
use runtime::host;
use serde_json::Value;
use talk::{Talk, Told};

mod talk;

/// An answer of the file.
struct Row {
    line: Line,
    prompt: String,
    completion: String,
    tokens: usize,
    /// Whether it was rendered from messages: its tokens are counted then.
    told: bool,
}

impl Row {
    fn scored(&self) -> Scored<'_> {
        Scored { row: self.line.row, prompt: &self.prompt, completion: &self.completion, tokens: self.tokens }
    }
}

/// Runs the command. A row is `prompt` and `completion`, or `text`, which is an answer without a prompt, or messages, whose last answer
/// is scored as a run scores it: rendered by the template of `model_name_or_path`. It comes back with all
/// its fields and `reward`, the weighted sum; with several rewards also `rewards`, each one's own value by its name. Rewards that
/// count tokens count those of `ids` if the row has them, else those of the completion behind its prompt, without an end token.
pub fn run(c: &Config) -> Result<()> {
    if !c.dry_run {
        log::probe(required(&c.output_file, "output_file")?)?;
    }
    let mut rows = read(c)?;
    let mut opened = if adapted(c)? { Some(Opened::for_scoring(c)?) } else { None };
    let rewards = Rewards::load(c, opened.as_mut())?;
    if rewards.counts() {
        count(c, opened.as_ref(), &mut rows)?;
    }
    if c.dry_run {
        return log::print(&format!("{} rows; {}\n", rows.len(), rewards.names().collect::<Vec<_>>().join(", ")));
    }
    let texts: Vec<Scored<'_>> = rows.iter().map(Row::scored).collect();
    let scores = rewards.score(opened.as_ref().map(Opened::model).transpose()?, &texts)?;
    finite(&rewards, &texts, &scores)?;
    let names: Vec<&str> = rewards.names().collect();
    host::write_file(required(&c.output_file, "output_file")?, |out| {
        for (i, row) in rows.iter().enumerate() {
            let mut fields = row.line.fields.clone();
            fields.insert("reward".into(), number(scores.total[i]));
            if names.len() > 1 {
                let parts = names.iter().zip(&scores.parts).map(|(name, part)| (name.to_string(), number(part[i])));
                fields.insert("rewards".into(), Value::Object(parts.collect()));
            }
            writeln!(out, "{}", Value::Object(fields))?;
        }
        Ok(())
    })?;
    if !c.quiet {
        let (mean, std) = moments(&scores.total);
        log::tell(&format!("{} rows, mean reward {mean:.6}, std {std:.6}", rows.len()));
    }
    Ok(())
}

/// Whether a reward is an adapter on the base model.
fn adapted(c: &Config) -> Result<bool> {
    let specs = funcs(c).iter().map(|text| Spec::parse(text)).collect::<Result<Vec<_>>>()?;
    Ok(specs.iter().any(|spec| matches!(spec.kind, Kind::Adapter(_))))
}

fn read(c: &Config) -> Result<Vec<Row>> {
    let path = required(&c.dataset_name, "dataset_name")?;
    let (mut lines, mut rows, mut talk) = (Lines::open(path)?, Vec::new(), None);
    while let Some(line) = lines.next().transpose()? {
        let mut messages = line.clone();
        if talk::is_told(&lines, &mut messages)? {
            let talk: &mut Talk = match &mut talk {
                Some(talk) => talk,
                none => none.insert(Talk::open(c)?),
            };
            let Told { prompt, completion, tokens } = talk.read(&lines, &messages)?;
            rows.push(Row { line, prompt, completion, tokens, told: true });
            continue;
        }
        let text = |name: &str| match line.fields.get(name) {
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(lines.error(line.line, format!("field {name}: wanted a string, got {}", kind(other)))),
            None => Ok(None),
        };
        let (prompt, completion) = match (text("prompt")?, text("completion")?) {
            (Some(prompt), Some(completion)) => (prompt, completion),
            (None, None) => match text("text")? {
                Some(text) => (String::new(), text),
                None => return Err(other_fields(&lines, &line)),
            },
            (Some(_), None) => return Err(lines.error(line.line, "field completion: wanted a string beside prompt, got none")),
            (None, Some(_)) => return Err(lines.error(line.line, "field prompt: wanted a string beside completion, got none")),
        };
        rows.push(Row { line, prompt, completion, tokens: 0, told: false });
    }
    if rows.is_empty() {
        return Err(Error::file(path, "wanted at least one row, got none"));
    }
    Ok(rows)
}

fn other_fields(lines: &Lines, line: &Line) -> Error {
    let names: Vec<_> = line.fields.keys().take(8).map(String::as_str).collect();
    lines.error(line.line, format!("fields: wanted prompt and completion, or text, got [{}]", names.join(", ")))
}

/// Counts the tokens of every answer.
fn count(c: &Config, opened: Option<&Opened>, rows: &mut [Row]) -> Result<()> {
    let path = required(&c.dataset_name, "dataset_name")?;
    let own = match (opened, &c.model_name_or_path) {
        (None, Some(folder)) if rows.iter().any(|row| !row.told && !row.line.fields.contains_key("ids")) => {
            Some(Tokenizer::open(folder)?)
        }
        _ => None,
    };
    let tokenizer = opened.map(|o| &o.tokenizer).or(own.as_ref());
    for row in rows.iter_mut().filter(|row| !row.told) {
        let wrong = |text: String| Error::file(path, format!("line {}: field ids: wanted {text}", row.line.line));
        row.tokens = match (row.line.fields.get("ids"), tokenizer) {
            (Some(Value::Array(ids)), _) => ids.len(),
            (Some(other), _) => return Err(wrong(format!("a list of ids, got {}", kind(other)))),
            (None, Some(tokenizer)) => sft::pair(tokenizer, &row.prompt, &row.completion)?.1.len(),
            (None, None) => {
                return Err(wrong("ids, or model_name_or_path whose tokenizer counts the tokens, got neither".into()));
            }
        };
    }
    Ok(())
}

/// A reward that is not finite is an error, never a result.
fn finite(rewards: &Rewards, texts: &[Scored<'_>], scores: &Scores) -> Result<()> {
    let all = || rewards.names().zip(&scores.parts).chain([("the weighted sum", &scores.total)]);
    for (i, text) in texts.iter().enumerate() {
        if let Some((name, part)) = all().find(|(_, part)| !part[i].is_finite()) {
            return Err(Error::Numeric(format!("row {}: wanted a finite reward, got {} from {name}", text.row, part[i])));
        }
    }
    Ok(())
}

/// Mean and (population) standard deviation.
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / n).sqrt())
}
