//! `regex:PATTERN` and `contains:TEXT`: 1 if the completion has it somewhere, else 0. Letters count as written; `(?i)` begins a
//! pattern that takes both cases.

use super::{Reward, Scored};
use crate::{Error, Result};
use fancy_regex::{Regex, RegexBuilder};
use model::Transformer;

/// Steps after which a pattern that goes back and forth over a text gives up.
const STEPS: usize = 1_000_000;

/// A pattern; an answer on which it takes more than a million steps is an error, not a hang.
pub fn compile(pattern: &str) -> std::result::Result<Regex, Box<fancy_regex::Error>> {
    RegexBuilder::new(pattern).backtrack_limit(STEPS).build().map_err(Box::new)
}

/// Whether a pattern matches.
pub struct Matches {
    name: String,
    regex: Regex,
}

impl Matches {
    /// A compiled pattern.
    pub fn new(name: &str, regex: Regex) -> Matches {
        Matches { name: name.to_string(), regex }
    }
}

impl Reward for Matches {
    fn name(&self) -> &str {
        &self.name
    }
    fn unit(&self) -> bool {
        true
    }
    fn score(&self, _: Option<&Transformer>, texts: &[Scored<'_>]) -> Result<Vec<f64>> {
        let one = |t: &Scored<'_>| match self.regex.is_match(t.completion) {
            Ok(found) => Ok(f64::from(u8::from(found))),
            Err(e) => {
                let text = format!("reward_funcs: {}: row {}: wanted a pattern that ends within {STEPS} steps", self.name, t.row);
                Err(Error::Usage(format!("{text}, got {e}")))
            }
        };
        texts.iter().map(one).collect()
    }
}

/// Whether a text is there.
pub struct Contains {
    name: String,
    text: String,
}

impl Contains {
    /// The text, as written.
    pub fn new(name: &str, text: &str) -> Contains {
        Contains { name: name.to_string(), text: text.to_string() }
    }
}

impl Reward for Contains {
    fn name(&self) -> &str {
        &self.name
    }
    fn unit(&self) -> bool {
        true
    }
    fn score(&self, _: Option<&Transformer>, texts: &[Scored<'_>]) -> Result<Vec<f64>> {
        Ok(texts.iter().map(|t| f64::from(u8::from(t.completion.contains(&self.text)))).collect())
    }
}
