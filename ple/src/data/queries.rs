//! Queries for sampling: the prompt of a row, or the beginning of a text.

use super::chat::{self, Chat, Told, Want};
use super::{Dropped, Lines, Row, RowKind, Tokens, hh, order};
use crate::{Error, Result};
use kernels::sample::{Tag, key, philox};
use std::path::Path;

/// Texts of at most this many characters are left out.
const SHORT: usize = 200;

/// What a policy is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Index of the row in the file, before any filter.
    pub row: u32,
    /// x, without the principle.
    pub text: String,
    /// The messages that x was rendered from, if it was.
    pub chat: Option<Chat>,
}

/// All queries of a file and the kind of its first row. Texts (reviews) of more than 200 characters give their first 2 to 8
/// tokens, the number drawn by row (ALGORITHMS §5.2).
pub fn queries(path: &Path, tokens: &dyn Tokens, seed: u64) -> Result<(Vec<Query>, RowKind, Dropped)> {
    let (mut queries, mut dropped, mut kind) = (Vec::new(), Dropped::default(), None);
    let mut lines = Lines::open(path)?;
    while let Some(mut line) = lines.next().transpose()? {
        let told = chat::render(&lines, &mut line, tokens, Want::Query)?;
        let row = Row::read(&lines, &line)?;
        kind = kind.or(Some(row.kind()));
        queries.extend(query(row, line.row, tokens, seed, &mut dropped)?.map(|query| query.told(told)));
    }
    match kind {
        Some(kind) if !queries.is_empty() => Ok((queries, kind, dropped)),
        _ => Err(nothing_left(path, dropped)),
    }
}

impl Query {
    /// With the messages that it was rendered from.
    pub fn told(self, told: Told) -> Query {
        match told {
            Told::Chat(chat, _) => Query { chat: Some(*chat), ..self },
            _ => self,
        }
    }
}

/// The query of a row, or None, counted, where it has none.
pub fn query(row: Row, index: u32, tokens: &dyn Tokens, seed: u64, dropped: &mut Dropped) -> Result<Option<Query>> {
    let text = match row {
        Row::Prompt(text) | Row::Answered { prompt: text, .. } => text,
        Row::Dialogue { chosen, rejected } => match hh::split(&chosen, &rejected) {
            Ok((prompt, ..)) => prompt.to_string(),
            Err(why) => {
                dropped.count(why);
                return Ok(None);
            }
        },
        Row::Text(text) if text.chars().count() <= SHORT => String::new(),
        Row::Text(text) => prefix(&text, index, tokens, seed)?,
    };
    dropped.short += u32::from(text.is_empty());
    Ok((!text.is_empty()).then_some(Query { row: index, text, chat: None }))
}

/// The first 2 to 8 tokens of a text as a text; half a character at its end is left out.
fn prefix(text: &str, row: u32, tokens: &dyn Tokens, seed: u64) -> Result<String> {
    let count = 2 + order::below(philox(key(seed, Tag::PrefixLength), [row, 0, 0, 0]), 7) as usize;
    // 8 tokens lie in the first characters of any text; the rest is not worth encoding.
    let beginning: String = text.chars().take(1024).collect();
    let ids = tokens.encode(&beginning, false)?;
    let prefix = tokens.decode(&ids[..count.min(ids.len())], true)?;
    Ok(prefix.trim_end_matches('\u{fffd}').to_string())
}

/// The error for a file of which nothing is left.
pub(super) fn nothing_left(path: &Path, dropped: Dropped) -> Error {
    match dropped.total() {
        0 => Error::file(path, "wanted at least one row, got none"),
        n => Error::file(path, format!("no row is left: {n} were left out ({dropped})")),
    }
}

impl Dropped {
    /// Counts a pair of dialogues.
    pub(super) fn count(&mut self, why: hh::Unpaired) {
        match why {
            hh::Unpaired::OtherPrompt => self.other_prompt += 1,
            hh::Unpaired::EmptyReply => self.empty_reply += 1,
        }
    }
}
