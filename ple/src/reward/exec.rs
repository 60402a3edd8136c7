//! `exec:COMMAND`: a program that scores. It is started once and kept. For every answer it reads one line on its standard input,
//! `{"prompt": .., "completion": ..}`, and writes one line, a number or `{"reward": number}`, in the same order; it must not wait
//! for the end of its input. `NaN` and infinities, as numbers are printed in most languages, are rewards that are not finite.
//!
//! A batch is what is scored at once. A program that ends, answers nothing in time, too much, or something else than a number is
//! restarted once and the batch sent again; if that fails too, the error says what came and what the program said.

use super::child::{Child, Next};
use super::{Reward, Scored};
use crate::{Error, Result};
use model::Transformer;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long more answers than wanted have to show themselves at a batch's end; later ones are seen before the next batch.
const AFTER: Duration = Duration::from_millis(100);

/// A program that scores.
pub struct Exec {
    name: String,
    unit: bool,
    /// Program and arguments.
    words: Vec<String>,
    /// For a batch.
    timeout: Duration,
    running: Mutex<Option<Child>>,
}

impl Exec {
    /// Starts nothing yet.
    pub fn new(name: &str, unit: bool, words: Vec<String>, timeout: Duration) -> Exec {
        Exec { name: name.to_string(), unit, words, timeout, running: Mutex::new(None) }
    }

    /// Starts the program before it is needed; an error if it cannot be started.
    pub fn start(&self) -> Result<()> {
        let child = self.child()?;
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    fn child(&self) -> Result<Child> {
        Child::start(&self.words).map_err(|e| self.error(format!("cannot start: {e}")))
    }

    fn error(&self, text: String) -> Error {
        Error::file(Path::new(self.words.first().map_or("", String::as_str)), format!("reward {}: {text}", self.name))
    }

    /// The answers to a batch, or what was wrong with them. An error is a signal to this process.
    fn ask(&self, child: &Child, texts: &[Scored<'_>]) -> Result<std::result::Result<Vec<f64>, String>> {
        let n = texts.len();
        let mut values = Vec::with_capacity(n);
        let deadline = Instant::now() + self.timeout;
        if let Next::Line(line) = child.next(Instant::now())? {
            return Ok(Err(format!("wanted no line before the next batch, got {}", short(&line))));
        }
        child.send(texts.iter().flat_map(request).collect());
        while let Some(text) = texts.get(values.len()) {
            let (row, got) = (text.row, values.len());
            let missing = |what: &str| Ok(Err(format!("wanted {n} answers, got {got} (none to row {row}) {what}")));
            match child.next(deadline)? {
                Next::Line(line) => match number(&line) {
                    Some(value) => values.push(value),
                    None => {
                        return Ok(Err(format!("row {row}: wanted a number or {{\"reward\": number}}, got {}", short(&line))));
                    }
                },
                Next::Late => {
                    let seconds = self.timeout.as_secs_f64();
                    return missing(&format!("within reward_timeout {seconds} s (does it flush every line?)"));
                }
                Next::Ended => return missing("before it closed its output"),
            }
        }
        match child.next(Instant::now() + AFTER)? {
            Next::Line(line) => Ok(Err(format!("wanted {n} answers, got more: {}", short(&line)))),
            Next::Late | Next::Ended => Ok(Ok(values)),
        }
    }
}

impl Reward for Exec {
    fn name(&self) -> &str {
        &self.name
    }
    fn unit(&self) -> bool {
        self.unit
    }
    fn score(&self, _: Option<&Transformer>, texts: &[Scored<'_>]) -> Result<Vec<f64>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed = None;
        for _ in 0..2 {
            let child = running.take().map_or_else(|| self.child(), Ok)?;
            match self.ask(&child, texts)? {
                Ok(values) => {
                    *running = Some(child);
                    return Ok(values);
                }
                Err(text) => failed = Some(format!("{text}; {}", child.end())),
            }
        }
        Err(self.error(format!("after a restart: {}", failed.unwrap_or_default())))
    }
}

/// A line to the program.
fn request(text: &Scored<'_>) -> Vec<u8> {
    let mut line = json!({"prompt": text.prompt, "completion": text.completion}).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// The number of an answer, NaN and infinities included.
pub(super) fn number(line: &str) -> Option<f64> {
    let line = line.trim();
    if let Ok(value) = line.parse() {
        return Some(value);
    }
    let object = |text: &str| serde_json::from_str::<Value>(text).ok();
    // What JSON lacks and writers of JSON write all the same.
    let quote = |text: String, word: &&str| {
        text.replace(&format!(": {word}"), &format!(":{word}")).replace(&format!(":{word}"), &format!(":\"{word}\""))
    };
    let quoted = || ["NaN", "Infinity", "-Infinity"].iter().fold(line.to_string(), quote);
    match object(line) {
        Some(value) => value.get("reward")?.as_f64(),
        None => object(&quoted())?.get("reward")?.as_str()?.parse().ok().filter(|x: &f64| !x.is_finite()),
    }
}

/// An answer as an error shows it.
fn short(line: &str) -> String {
    format!("{:?}", line.chars().take(80).collect::<String>())
}
