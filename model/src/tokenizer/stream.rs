//! Text of ids as they come.

use super::Tokenizer;
use crate::Result;

/// A character is in at most so many tokens; what waits longer is no character.
const PENDING: usize = 4;
/// What stands for bytes that are no character, or not yet.
const REPLACEMENT: char = '\u{fffd}';

/// Gives whole characters only, special tokens left out: put together, the pieces are the text of all ids, as long as that is text.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The last ids; the text of the first `known` has been given and says how the next one is written.
    ids: Vec<u32>,
    known: usize,
    /// Bytes of that text.
    bytes: usize,
}

impl TextStream {
    /// Takes one more id in; the text that it completes, which may be none.
    pub fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> Result<String> {
        self.ids.push(id);
        self.take(tokenizer, PENDING)
    }

    /// What has been held back.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        self.take(tokenizer, 0)
    }

    fn take(&mut self, tokenizer: &Tokenizer, patience: usize) -> Result<String> {
        let decoded = tokenizer.decode(&self.ids, true)?;
        // Bytes that are no character yet may change how many there are.
        let fresh = decoded.get(self.bytes..).unwrap_or_default().to_string();
        let waits = fresh.ends_with(REPLACEMENT) && self.ids.len() - self.known < patience;
        // A token without text says nothing of how the next one is written.
        if fresh.is_empty() || waits {
            return Ok(String::new());
        }
        self.ids.drain(..self.known);
        self.known = self.ids.len();
        self.bytes = tokenizer.decode(&self.ids, true)?.len();
        Ok(fresh)
    }
}
