//! One completion: what names it, what it has drawn, and where its keys and values are.

use crate::kv_cache::Path;
use crate::stop::Tail;

/// What names a sample's random numbers (LAW "Random numbers").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleKey {
    /// Index in the input before any filter.
    pub row: u32,
    /// Plain 0, guided 1.
    pub side: u32,
    /// Counts on over repeats of a row inside one iteration.
    pub sample: u32,
    /// Of the training loop.
    pub iteration: u32,
}

/// A sequence that has ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finished {
    /// The caller's number for it.
    pub id: usize,
    /// Completion, the stop id included.
    pub ids: Vec<u32>,
    /// Log-probability of each id, temperature 1, untruncated (LAW A4).
    pub logps: Vec<f32>,
    /// Log-probability of each id under the distribution it was drawn from.
    pub sampling_logps: Vec<f32>,
    /// Whether it ended with a stop id or a stop string rather than by the length limit.
    pub stopped: bool,
}

/// A request and what has been drawn for it, waiting or running.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    pub key: SampleKey,
    /// Prompt and completion.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Keys and values of all tokens but the last; empty while it waits.
    pub path: Path,
    /// The end of its text, for stop strings.
    pub tail: Tail,
    /// What will be handed out; its ids stay in `tokens` until then.
    pub done: Finished,
}

impl Sequence {
    /// The sequence of a prompt of at least one token.
    pub fn new(id: usize, key: SampleKey, prompt: &[u32]) -> Sequence {
        let done = Finished { id, ..Finished::default() };
        Sequence { key, tokens: prompt.to_vec(), prompt: prompt.len(), done, ..Sequence::default() }
    }

    /// The tokens whose keys and values a step needs.
    pub fn before(&self) -> &[u32] {
        &self.tokens[..self.tokens.len().saturating_sub(1)]
    }

    /// Tokens drawn so far.
    pub fn drawn(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// What is handed out; the sequence is empty afterwards.
    pub fn finished(&mut self) -> Finished {
        self.done.ids = self.tokens.split_off(self.prompt);
        std::mem::take(&mut self.done)
    }
}
