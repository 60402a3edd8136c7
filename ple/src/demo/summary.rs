//! `summary.json` and the table of it: every number is computed from the files beside it.

use super::{evaluate::NAMES, rows};
use crate::{Error, Result, eval, log::number};
use runtime::host;
use serde_json::{Map, Value};
use std::path::Path;

/// What one adapter's held-out answers are worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Mean reward of the answers.
    pub reward: f64,
    /// Perplexity of the held-out references under the adapter.
    pub ppl: f64,
    /// Distinct-2 of the answers.
    pub distinct2: f64,
    /// Mean tokens of an answer, its end token included.
    pub length: f64,
}

/// The summary of a demo's folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// In the order of [`NAMES`].
    pub measured: [Measured; 3],
    /// Largest difference between a token's log-probability when it was sampled and in the training forward, of both runs.
    pub gap: f64,
}

/// A field of a row as numbers.
fn numbers(path: &Path, row: &Map<String, Value>, name: &str) -> Result<Vec<f64>> {
    let list = row.get(name).and_then(Value::as_array);
    let all = list.and_then(|list| list.iter().map(Value::as_f64).collect());
    all.ok_or_else(|| Error::file(path, format!("field {name}: wanted a list of numbers, got another")))
}

fn measure(folder: &Path, name: &str) -> Result<Measured> {
    let path = folder.join("eval").join(format!("{name}.jsonl"));
    let answers = rows(&path)?;
    let reward = |row: &Map<String, Value>| row.get("reward").and_then(Value::as_f64).unwrap_or(f64::NAN);
    let texts = answers.iter().filter_map(|row| row.get("completion").and_then(Value::as_str));
    let lengths = answers.iter().map(|row| Ok(numbers(&path, row, "ids")?.len() as f64)).collect::<Result<Vec<_>>>()?;
    let path = folder.join("eval").join(format!("references-{name}.jsonl"));
    let single = |row: &Map<String, Value>| Ok(numbers(&path, row, "logps")?.iter().map(|l| *l as f32).collect::<Vec<f32>>());
    let logps = rows(&path)?.iter().map(single).collect::<Result<Vec<_>>>()?;
    Ok(Measured {
        reward: eval::mean(answers.iter().map(reward)),
        ppl: eval::perplexity(logps.iter().map(Vec::as_slice)),
        distinct2: eval::distinct(2, texts),
        length: eval::mean(lengths),
    })
}

/// Largest `logp_gap_max` of a run's log.
fn gap(folder: &Path, name: &str) -> Result<f64> {
    let logged = rows(&folder.join(name).join("log.jsonl"))?;
    Ok(logged.iter().filter_map(|row| row.get("logp_gap_max")?.as_f64()).fold(0.0, f64::max))
}

impl Summary {
    /// From the files of a demo's folder.
    pub fn of(folder: &Path) -> Result<Summary> {
        let [sft, raft, ple] = NAMES.map(|name| measure(folder, name));
        Ok(Summary { measured: [sft?, raft?, ple?], gap: gap(folder, "raft")?.max(gap(folder, "ple")?) })
    }

    /// Its numbers by name, as `summary.json` holds them.
    pub fn fields(&self) -> Vec<(String, f64)> {
        type Column = (&'static str, fn(&Measured) -> f64);
        let columns: [Column; 4] =
            [("reward", |m| m.reward), ("ppl", |m| m.ppl), ("distinct2", |m| m.distinct2), ("length", |m| m.length)];
        let named = |(column, of): Column| {
            let column = column.to_string();
            NAMES.iter().zip(self.measured).map(move |(name, m)| (format!("{column}_{name}"), of(&m)))
        };
        columns.into_iter().flat_map(named).chain([("logp_gap_max".into(), self.gap)]).collect()
    }

    /// Writes `summary.json`. A number that is not finite is an error.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let fields = self.fields();
        if let Some((name, value)) = fields.iter().find(|(_, value)| !value.is_finite()) {
            return Err(Error::Numeric(format!("summary: {name}: wanted a finite number, got {value}")));
        }
        let object: Map<String, Value> = fields.into_iter().map(|(name, value)| (name, number(value))).collect();
        let text = Value::Object(object);
        Ok(host::write_file(&folder.join("summary.json"), |out| writeln!(out, "{text:#}"))?)
    }

    /// For the terminal.
    pub fn table(&self) -> String {
        let mut text = format!("{:<8}{:>10}{:>10}{:>12}{:>10}\n", "", "reward", "ppl", "distinct-2", "length");
        for (name, m) in NAMES.iter().zip(self.measured) {
            text += &format!("{name:<8}{:>10.3}{:>10.3}{:>12.3}{:>10.2}\n", m.reward, m.ppl, m.distinct2, m.length);
        }
        text
    }
}
