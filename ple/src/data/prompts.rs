//! Queries as ids, plain and guided, within a budget. The principle is never cut; what is cut of x is decided with the
//! principle and serves both sides, the reward and training (ALGORITHMS §6.4, last row).

use super::chat::AsRendered;
use super::{Dropped, Query, Tokens, hh, tldr};
use crate::principle::Principle;
use crate::{Result, interrupt};

/// A query ready to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Index of the row in the file.
    pub row: u32,
    /// x as it is answered, scored and trained on.
    pub text: String,
    /// Ids of x.
    pub plain: Vec<u32>,
    /// Ids of the guided x; of x where there is no principle.
    pub guided: Vec<u32>,
}

/// Every query that fits `budget` tokens on both sides, cut if need be: a dialogue loses its first turns, a post its last
/// paragraphs; any other query that is too long is left out.
pub fn prompts(
    queries: &[Query],
    tokens: &dyn Tokens,
    principle: Option<&Principle>,
    budget: usize,
) -> Result<(Vec<Prompt>, Dropped)> {
    let (mut prompts, mut dropped) = (Vec::with_capacity(queries.len()), Dropped::default());
    for query in queries {
        interrupt::check()?;
        match cut(query, tokens, principle, budget)? {
            Some(prompt) => prompts.push(prompt),
            None => dropped.long += 1,
        }
    }
    Ok((prompts, dropped))
}

fn cut(query: &Query, tokens: &dyn Tokens, principle: Option<&Principle>, budget: usize) -> Result<Option<Prompt>> {
    if let Some(chat) = &query.chat {
        let plain = AsRendered(tokens).encode(&query.text, true)?;
        let guided = match (principle, tokens.template()?) {
            (Some(principle), Some(template)) => tokens.encode(&chat.guided(principle).query(&template)?, false)?,
            _ => plain.clone(),
        };
        let fits = guided.len().max(plain.len()) <= budget && !plain.is_empty();
        return Ok(fits.then(|| Prompt { row: query.row, text: query.text.clone(), plain, guided }));
    }
    let attempt = |text: &str| -> Result<Option<Prompt>> {
        let plain = tokens.encode(text, true)?;
        let guided = principle.map_or_else(|| Ok(plain.clone()), |p| tokens.encode(&p.guide(text), true))?;
        let fits = guided.len().max(plain.len()) <= budget && !plain.is_empty();
        Ok(fits.then(|| Prompt { row: query.row, text: text.to_string(), plain, guided }))
    };
    if let Some(whole) = attempt(&query.text)? {
        return Ok(Some(whole));
    }
    for rest in hh::later_starts(&query.text) {
        if let Some(prompt) = attempt(rest)? {
            return Ok(Some(prompt));
        }
    }
    match tldr::cut(&query.text, &mut |text| Ok(attempt(text)?.is_some()))? {
        Some(text) => attempt(&text),
        None => Ok(None),
    }
}
