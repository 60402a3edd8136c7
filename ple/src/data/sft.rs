//! Rows with answers as ids, for the supervised stage (ALGORITHMS §5.4, TRL's `keep_start`).

use super::chat::{self, AsRendered, Told, Want};
use super::queries::nothing_left;
use super::{Dropped, Lines, Row, Tokens, hh};
use crate::method::{Answer, Group};
use crate::{Error, Result, interrupt};
use std::path::Path;

/// What the loss falls on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossOn {
    /// The completion alone, or everything; unset means so for rows that have a prompt.
    pub completion: Option<bool>,
    /// Of a whole conversation, what the assistant wrote.
    pub assistant: bool,
}

impl LossOn {
    /// Of the settings.
    pub fn of(c: &crate::config::Config) -> LossOn {
        LossOn { completion: c.completion_only_loss, assistant: c.assistant_only_loss }
    }
}

impl From<Option<bool>> for LossOn {
    fn from(completion: Option<bool>) -> LossOn {
        LossOn { completion, assistant: false }
    }
}

/// Every row of a file that has an answer within `max_length` tokens: prompt, and on its one side the answer with its end
/// token. The loss falls on the answer; on everything where a row is a text or `completion_only` is `Some(false)`.
pub fn groups(path: &Path, tokens: &dyn Tokens, max_length: usize, on: impl Into<LossOn>) -> Result<(Vec<Group>, Dropped)> {
    let LossOn { completion: completion_only, assistant } = on.into();
    let want = if assistant { Want::Assistant } else { Want::Whole };
    let (mut groups, mut dropped) = (Vec::new(), Dropped::default());
    let mut lines = Lines::open(path)?;
    while let Some(mut line) = lines.next().transpose()? {
        interrupt::check()?;
        let told = chat::render(&lines, &mut line, tokens, want)?;
        let (rendered, mut loss) = (AsRendered(tokens), Vec::new());
        let tokens: &dyn Tokens = match &told {
            Told::Text if assistant => {
                let text = "assistant_only_loss true wants rows of messages, got a row of text";
                return Err(Error::Usage(lines.error(line.line, text).to_string()));
            }
            Told::Text => tokens,
            Told::Chat(..) => &rendered,
            Told::Unpaired => {
                dropped.other_prompt += 1;
                continue;
            }
        };
        let (prompt, ids, apart) = match Row::read(&lines, &line)? {
            Row::Text(_) if completion_only == Some(true) => {
                let text = "completion_only_loss true wants rows of prompt and completion, got a text";
                return Err(Error::Usage(lines.error(line.line, text).to_string()));
            }
            Row::Text(text) => match &told {
                Told::Chat(_, spans) if assistant => {
                    let (ids, marked) = rendered.0.encode_marked(&text, spans)?;
                    loss = marked;
                    (Vec::new(), ids, false)
                }
                _ => (Vec::new(), tokens.encode(&text, true)?, false),
            },
            Row::Prompt(_) => return Err(lines.error(line.line, "field completion: wanted a string beside prompt, got none")),
            Row::Answered { prompt, completion } => border(tokens, &prompt, &completion)?,
            Row::Dialogue { chosen, rejected } => match hh::split(&chosen, &rejected) {
                Ok((prompt, reply, _)) => border(tokens, prompt, reply)?,
                Err(why) => {
                    dropped.count(why);
                    continue;
                }
            },
        };
        let whole = completion_only == Some(false);
        match example(tokens, prompt, ids, max_length, whole) {
            Ok((prompt, mut answer)) => {
                loss.truncate(answer.ids.len());
                if !loss.is_empty() && !loss.iter().skip(1).any(|on| *on) {
                    dropped.short += 1;
                    continue;
                }
                (answer.loss, answer.apart) = (loss, apart);
                groups.push(Group { row: line.row, prompt, sides: vec![vec![answer]], ..Group::default() });
            }
            Err(Left::Long) => dropped.long += 1,
            Err(Left::Short) => dropped.short += 1,
        }
    }
    if groups.is_empty() { Err(nothing_left(path, dropped)) } else { Ok((groups, dropped)) }
}

/// Ids of prompt and completion: tokenised as one text if the prompt's ids begin it, else apart (a token spans the border).
pub fn pair(tokens: &dyn Tokens, prompt: &str, completion: &str) -> Result<(Vec<u32>, Vec<u32>)> {
    border(tokens, prompt, completion).map(|(prompt, ids, _)| (prompt, ids))
}

/// The same, and whether they were tokenised apart.
pub(super) fn border(tokens: &dyn Tokens, prompt: &str, completion: &str) -> Result<(Vec<u32>, Vec<u32>, bool)> {
    let ids = tokens.encode(prompt, true)?;
    let joint = tokens.encode(&format!("{prompt}{completion}"), true)?;
    match joint.strip_prefix(ids.as_slice()) {
        Some(rest) => {
            let rest = rest.to_vec();
            Ok((ids, rest, false))
        }
        None => Ok((ids, tokens.encode(completion, false)?, true)),
    }
}

/// Why a row is left out.
pub(super) enum Left {
    Short,
    Long,
}

/// Ends the answer, cuts its end off, and joins it with the prompt if the loss falls on both.
pub(super) fn example(
    tokens: &dyn Tokens,
    mut prompt: Vec<u32>,
    mut ids: Vec<u32>,
    max_length: usize,
    whole: bool,
) -> std::result::Result<(Vec<u32>, Answer), Left> {
    if let Some(eos) = tokens.eos()
        && ids.last() != Some(&eos)
    {
        ids.push(eos);
    }
    if prompt.len() >= max_length {
        return Err(Left::Long);
    }
    ids.truncate(max_length - prompt.len());
    if whole {
        prompt.append(&mut ids);
        std::mem::swap(&mut prompt, &mut ids);
    }
    // Without a prompt the first token only conditions.
    if ids.len() < if prompt.is_empty() { 2 } else { 1 } {
        return Err(Left::Short);
    }
    let finished = ids.last().copied() == tokens.eos() && tokens.eos().is_some();
    Ok((prompt, Answer { ids, finished, reward: f64::NAN, ..Answer::default() }))
}
