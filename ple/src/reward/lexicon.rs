//! `lexicon:POSITIVE[,NEGATIVE]`: s = Σ weights of the completion's words; score = ½·(1 + s / √(s² + 15)).
//!
//! Words are lower-cased and split at everything that is not a letter. A file holds `word` or `word weight` per line, default
//! weight 1; `;` and `#` begin comments; in a file of at least four columns parted by tabs the second is the weight (VADER).
//! The second file counts against; a word of both files has the difference.

use super::{Reward, Scored};
use crate::{Error, Result};
use model::Transformer;
use std::collections::HashMap;
use std::path::Path;

/// Weighted words.
pub struct Lexicon {
    name: String,
    words: HashMap<String, f64>,
}

impl Lexicon {
    /// Reads one or two files.
    pub fn load(name: &str, positive: &Path, negative: Option<&Path>) -> Result<Lexicon> {
        let mut words = read(positive)?;
        for (word, weight) in negative.map(read).transpose()?.unwrap_or_default() {
            *words.entry(word).or_insert(0.0) -= weight;
        }
        Ok(Lexicon { name: name.to_string(), words })
    }

    /// Σ weights of the words of a text, in order.
    pub fn sum(&self, text: &str) -> f64 {
        let words = text.split(|c: char| !c.is_alphabetic()).filter(|w| !w.is_empty());
        words.filter_map(|w| self.words.get(&w.to_lowercase())).sum()
    }
}

impl Reward for Lexicon {
    fn name(&self) -> &str {
        &self.name
    }
    fn unit(&self) -> bool {
        true
    }
    fn score(&self, _: Option<&Transformer>, texts: &[Scored<'_>]) -> Result<Vec<f64>> {
        let squash = |s: f64| 0.5 * (1.0 + s / (s * s + 15.0).sqrt());
        Ok(texts.iter().map(|t| squash(self.sum(t.completion))).collect())
    }
}

/// The words of a file; the last line of a word wins.
fn read(path: &Path) -> Result<HashMap<String, f64>> {
    let bytes = std::fs::read(path).map_err(|e| Error::file(path, format!("cannot read: {e}")))?;
    let mut words = HashMap::new();
    for (number, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let wrong = |text: String| Error::file(path, format!("line {}: {text}", number + 1));
        let line = std::str::from_utf8(line).map_err(|_| wrong("wanted UTF-8, got other bytes".into()))?;
        let line = line.trim_start_matches('\u{feff}').trim_end();
        if line.trim().is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        let tabs: Vec<&str> = line.split('\t').collect();
        let fields = if tabs.len() >= 4 { tabs[..2].to_vec() } else { line.split_whitespace().collect() };
        let (word, weight) = match fields.as_slice() {
            [word] => (*word, 1.0),
            [word, weight] => match weight.trim().parse::<f64>() {
                Ok(w) if w.is_finite() && w.abs() <= 1e6 => (*word, w),
                _ => return Err(wrong(format!("weight: wanted a number, got `{weight}`"))),
            },
            _ => return Err(wrong(format!("wanted `word` or `word weight`, got {} words", fields.len()))),
        };
        words.insert(word.to_lowercase(), weight);
    }
    if words.is_empty() {
        return Err(Error::file(path, "wanted at least one word, got none"));
    }
    Ok(words)
}
