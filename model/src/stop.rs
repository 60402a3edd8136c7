//! When a completion ends by its text: the text grows with the ids, and only its new end is looked at.

use crate::{Error, Result, Settings, Tokenizer};

/// A character is in at most so many tokens; what waits longer is no character.
const PENDING: usize = 4;
/// What stands for bytes that are no character, or not yet.
const REPLACEMENT: char = '\u{fffd}';

/// The end of a completion's text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail {
    /// The last ids: `known` of them are in the text already and say how the next one is written.
    ids: Vec<u32>,
    known: usize,
    /// Bytes that the known ids decode to.
    bytes: usize,
    /// The end of the text, as long as a stop string may need.
    text: String,
}

impl Tail {
    /// Takes one more id in; whether a stop string is complete. It is a function of the ids alone, and costs the decoding of a few.
    pub fn push(&mut self, id: u32, stops: &[String], tokenizer: &Tokenizer) -> Result<bool> {
        self.ids.push(id);
        let decoded = tokenizer.decode(&self.ids, false)?;
        // Bytes that are no character yet may change how many there are.
        let fresh = decoded.get(self.bytes..).unwrap_or_default();
        let pending = fresh.is_empty() || fresh.ends_with(REPLACEMENT);
        let before = self.text.len();
        self.text.push_str(fresh.trim_end_matches(REPLACEMENT));
        let found = stops.iter().any(|stop| self.text.contains(stop.as_str()));
        if pending && self.ids.len() - self.known < PENDING {
            self.text.truncate(before);
            return Ok(found);
        }
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        let cut = self.text.floor_char_boundary((self.text.len() + 1).saturating_sub(longest));
        self.text.drain(..cut);
        self.ids.drain(..self.known);
        self.known = self.ids.len();
        self.bytes = tokenizer.decode(&self.ids, false)?.len();
        Ok(found)
    }
}

impl Settings {
    /// Whether a completion that goes on with `id` ends by it.
    pub(crate) fn ends(&self, id: u32, tail: &mut Tail) -> Result<bool> {
        if self.stop_strings.is_empty() {
            return Ok(self.stop.contains(&id));
        }
        let tokenizer = self.tokenizer.as_ref().ok_or_else(unreadable)?;
        Ok(tail.push(id, &self.stop_strings, tokenizer)? || self.stop.contains(&id))
    }

    /// Settings that cannot be used, by name.
    pub(crate) fn validate(&self) -> Result<()> {
        self.sampling.validate().map_err(Error::Batch)?;
        if let Some(i) = self.stop_strings.iter().position(String::is_empty) {
            return Err(Error::Batch(format!("stop_strings[{i}]: wanted a text, got an empty one")));
        }
        if !self.stop_strings.is_empty() && self.tokenizer.is_none() {
            return Err(unreadable());
        }
        Ok(())
    }
}

fn unreadable() -> Error {
    Error::Batch("stop_strings: wanted a tokenizer to read the answers with, got none".into())
}

#[cfg(test)]
mod tests;
