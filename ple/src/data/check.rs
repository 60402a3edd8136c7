//! What is odd about what a run will train on: first and end tokens that are missing or stand twice, answers that were cut off, rows
//! without anything in the loss, prompts that end inside a token. It looks at ids, so at what is trained, and stops nothing.

use super::{Prompt, Tokens};
use crate::Result;
use crate::method::{Answer, Group};

/// Rows that a run looks at by itself.
pub const LOOKED_AT: usize = 64;
/// Rows that a line names of each kind.
const NAMED: usize = 3;

/// The tokens at both ends of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Begins a text (BOS).
    pub first: Option<u32>,
    /// Whether the tokenizer puts it there by itself.
    pub added: bool,
    /// Each ends a text (EOS).
    pub stop: Vec<u32>,
}

impl Ends {
    /// Of a tokenizer whose first token is `first`, and the ids that end an answer.
    pub fn of(tokens: &dyn Tokens, first: Option<u32>, stop: Vec<u32>) -> Result<Ends> {
        let added = first.is_some() && tokens.encode("", true)?.first().copied() == first;
        Ok(Ends { first, added, stop })
    }
}

/// What may be odd about a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odd {
    /// Its first token twice.
    DoubleFirst,
    /// Without the first token that the tokenizer adds.
    NoFirst,
    /// It does not end, and was not cut off.
    NoEnd,
    /// Its end token twice.
    DoubleEnd,
    /// Its end was cut off at the length limit.
    Cut,
    /// No text is in the loss.
    Empty,
    /// A token would lie on both sides of the prompt's end.
    Apart,
}

impl Odd {
    const ALL: [Odd; 7] = [Odd::DoubleFirst, Odd::NoFirst, Odd::NoEnd, Odd::DoubleEnd, Odd::Cut, Odd::Empty, Odd::Apart];

    /// What such rows do.
    pub fn text(self) -> &'static str {
        match self {
            Odd::DoubleFirst => "begin with BOS twice",
            Odd::NoFirst => "begin without the BOS that the tokenizer adds",
            Odd::NoEnd => "end without EOS",
            Odd::DoubleEnd => "end with EOS twice",
            Odd::Cut => "are cut off at the length limit",
            Odd::Empty => "have no text in the loss",
            Odd::Apart => "have a prompt that ends inside a token",
        }
    }

    /// Whether it is a fault of the rows rather than of the limits that they met.
    pub fn is_fault(self) -> bool {
        self != Odd::Cut
    }
}

/// What is odd about the answers of a group, at most `max_length` tokens with their prompt.
pub fn group(group: &Group, tokens: &dyn Tokens, ends: &Ends, max_length: usize) -> Result<Vec<Odd>> {
    let mut odd = Vec::new();
    for answer in group.sides.iter().flatten() {
        odd.extend(begins(group.prompt.iter().chain(&answer.ids), ends));
        let cut = group.prompt.len() + answer.ids.len() >= max_length;
        odd.extend(ending(answer, tokens, ends, cut)?);
        let conditions = usize::from(group.prompt.is_empty());
        let counts = |i: usize| i >= conditions && answer.loss.get(i).copied().unwrap_or(answer.loss.is_empty());
        let text = answer.ids.iter().enumerate().filter(|(i, id)| counts(*i) && !ends.stop.contains(id));
        let ids: Vec<u32> = text.map(|(_, id)| *id).collect();
        if tokens.decode(&ids, true)?.trim().is_empty() {
            odd.push(Odd::Empty);
        }
        odd.extend(answer.apart.then_some(Odd::Apart));
    }
    Ok(once(odd))
}

/// What is odd about a query that is answered by sampling. Its end is inside a token if another letter would change its tokens, which
/// a space does wherever words carry the space before them.
pub fn prompt(prompt: &Prompt, tokens: &dyn Tokens, ends: &Ends) -> Result<Vec<Odd>> {
    let mut odd: Vec<Odd> = [&prompt.plain, &prompt.guided].into_iter().flat_map(|ids| begins(ids.iter(), ends)).collect();
    if prompt.text.ends_with(' ') {
        // A rendered one was tokenised without special tokens.
        let special = tokens.encode(&prompt.text, true)? == prompt.plain;
        let longer = tokens.encode(&format!("{}a", prompt.text), special)?;
        odd.extend((!longer.starts_with(&prompt.plain)).then_some(Odd::Apart));
    }
    Ok(once(odd))
}

fn once(mut odd: Vec<Odd>) -> Vec<Odd> {
    let found = odd.clone();
    odd.clear();
    odd.extend(Odd::ALL.into_iter().filter(|kind| found.contains(kind)));
    odd
}

fn begins<'a>(ids: impl Iterator<Item = &'a u32>, ends: &Ends) -> Option<Odd> {
    let first = ends.first?;
    let two: Vec<u32> = ids.take(2).copied().collect();
    match two.as_slice() {
        [a, b] if *a == first && *b == first => Some(Odd::DoubleFirst),
        [a, ..] if *a != first && ends.added => Some(Odd::NoFirst),
        _ => None,
    }
}

/// White space may follow an end token, as templates write it.
fn ending(answer: &Answer, tokens: &dyn Tokens, ends: &Ends, cut: bool) -> Result<Option<Odd>> {
    let last = answer.ids.iter().rposition(|id| ends.stop.contains(id));
    let ended = match last {
        Some(at) => tokens.decode(&answer.ids[at + 1..], false)?.trim().is_empty(),
        None => false,
    };
    Ok(match last {
        Some(at) if ended && at > 0 && answer.ids[at - 1] == answer.ids[at] => Some(Odd::DoubleEnd),
        Some(_) if ended => None,
        _ if cut => Some(Odd::Cut),
        _ => Some(Odd::NoEnd),
    })
}

/// What was looked at and what is odd of it, in a line. `looked` has every row that was looked at with what is odd about it, of `all`.
pub fn line(looked: &[(u32, Vec<Odd>)], all: usize, ends: &Ends) -> String {
    let of = |kind: Odd| looked.iter().filter(move |(_, odd)| odd.contains(&kind)).map(|(row, _)| *row);
    let mut found: Vec<String> = Vec::new();
    for kind in Odd::ALL {
        let rows: Vec<u32> = of(kind).collect();
        if rows.is_empty() {
            continue;
        }
        let named: Vec<String> = rows.iter().take(NAMED).map(u32::to_string).collect();
        let more = if rows.len() > NAMED { ", …" } else { "" };
        found.push(format!("{} {} (row {}{more})", rows.len(), kind.text(), named.join(", ")));
    }
    if ends.stop.is_empty() {
        found.push("no EOS is known".into());
    }
    let looked = if looked.len() < all { format!("first {} of {all}", looked.len()) } else { looked.len().to_string() };
    let said = if found.is_empty() { "nothing is odd about BOS, EOS, borders and loss".into() } else { found.join("; ") };
    format!("check {looked} rows: {said}")
}

/// The line on the first rows that are trained on.
pub fn groups_line(groups: &[Group], tokens: &dyn Tokens, ends: &Ends, max_length: usize) -> Result<String> {
    let first = groups.iter().take(LOOKED_AT);
    let looked = first.map(|g| Ok((g.row, group(g, tokens, ends, max_length)?))).collect::<Result<Vec<_>>>()?;
    Ok(line(&looked, groups.len(), ends))
}

/// The line on the first queries.
pub fn prompts_line(prompts: &[Prompt], tokens: &dyn Tokens, ends: &Ends) -> Result<String> {
    let first = prompts.iter().take(LOOKED_AT);
    let looked = first.map(|p| Ok((p.row, prompt(p, tokens, ends)?))).collect::<Result<Vec<_>>>()?;
    Ok(line(&looked, prompts.len(), ends))
}

#[cfg(test)]
mod tests;
