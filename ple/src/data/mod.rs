//! Rows of text in, token ids out: JSONL files, the kinds of rows, queries for sampling, examples for the supervised stage.

use crate::{Error, Result};
use model::Template;
use std::ops::Range;

pub mod chat;
pub mod check;
pub mod hh;
pub mod jsonl;
pub mod order;
pub mod pairs;
pub mod prompts;
pub mod queries;
pub mod row;
pub mod sft;
pub mod sharegpt;
#[cfg(test)]
pub(crate) mod tests;
pub mod tldr;

pub use jsonl::Lines;
pub use order::{draw, shuffle};
pub use pairs::{Fit, judged, pairs};
pub use prompts::{Prompt, prompts};
pub use queries::{Query, queries, query};
pub use row::{Row, RowKind};
pub use sft::groups;

/// What is needed of a tokenizer.
pub trait Tokens {
    /// Ids of a text, with the special tokens the tokenizer puts around a whole text or without.
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>>;
    /// Text of ids.
    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String>;
    /// The id that ends an answer.
    fn eos(&self) -> Option<u32>;
    /// What makes texts of messages, if there is anything that does.
    fn template(&self) -> Result<Option<Template>> {
        Ok(None)
    }
    /// Ids of a rendered text, and of each whether any of its bytes lies in `marked`.
    fn encode_marked(&self, text: &str, marked: &[Range<usize>]) -> Result<(Vec<u32>, Vec<bool>)> {
        let _ = (text, marked);
        Err(Error::Usage("assistant_only_loss: wanted a tokenizer that knows where its tokens lie".into()))
    }
}

/// Rows left out, by reason; the caller prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Dialogue pairs with no common prompt: one of the two goes on with a turn of the human after they part.
    pub other_prompt: u32,
    /// Dialogue pairs with an empty last reply.
    pub empty_reply: u32,
    /// Texts too short to begin a query or to train on.
    pub short: u32,
    /// Rows whose prompt leaves no room within the length limit.
    pub long: u32,
    /// Pairs of equal answers.
    pub identical: u32,
}

impl Dropped {
    /// All of them.
    pub fn total(&self) -> u32 {
        self.other_prompt + self.empty_reply + self.short + self.long + self.identical
    }

    /// Adds the counts of a later stage over the same rows.
    pub fn add(&mut self, later: Dropped) {
        self.other_prompt += later.other_prompt;
        self.empty_reply += later.empty_reply;
        self.short += later.short;
        self.long += later.long;
        self.identical += later.identical;
    }
}

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Dropped { other_prompt, empty_reply, short, long, identical } = self;
        write!(
            f,
            "{other_prompt} without a common prompt, {empty_reply} with an empty reply, {short} too short, {long} too long"
        )?;
        if *identical > 0 { write!(f, ", {identical} with equal answers") } else { Ok(()) }
    }
}
