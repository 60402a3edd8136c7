//! What the bytes of a journal say.

use super::line::{self, Line};
use super::{Head, Key, Rewarded, Sampled};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// What a journal holds, in (row, side, sample) order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// Answers.
    pub samples: BTreeMap<Key, Sampled>,
    /// Their rewards; of some answers or of all.
    pub rewards: BTreeMap<Key, Rewarded>,
}

/// A journal as its bytes say.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub head: Option<Head>,
    pub held: Held,
    /// Bytes of the lines before the first that is damaged or cut short.
    pub whole: u64,
}

/// Reads lines up to the first that is damaged or cut short; with `wanted`, no line after a head of other answers.
pub(super) fn contents(path: &Path, bytes: &[u8], wanted: Option<&Head>) -> Result<Contents> {
    let mut contents = Contents::default();
    for (i, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        let fault = |text: String| Error::file(path, format!("line {}: {text}", i + 1));
        let Some(body) = line::checked(line) else { break };
        match (i, line::parse(&body)) {
            (0, Ok(Line::Head(head))) => {
                let other = wanted.is_some_and(|wanted| !wanted.answers_as(&head));
                contents.head = Some(head);
                if other {
                    break;
                }
            }
            (0, _) => break,
            (_, Ok(Line::Sampled(sample))) => contents.held.add_sample(sample).map_err(fault)?,
            (_, Ok(Line::Rewarded(reward))) => contents.held.add_reward(reward).map_err(fault)?,
            (_, Ok(Line::Head(_))) => return Err(fault("wanted an answer or a reward, got a second head".into())),
            (_, Err(text)) => return Err(fault(text)),
        }
        contents.whole += line.len() as u64;
    }
    Ok(contents)
}

impl Held {
    fn add_sample(&mut self, sample: Sampled) -> std::result::Result<(), String> {
        let before = self.samples.get(&sample.key);
        if before.is_some_and(|before| before.line() != sample.line()) {
            return Err(format!("{}: wanted the answer that stands before, got another", sample.key));
        }
        self.samples.entry(sample.key).or_insert(sample);
        Ok(())
    }

    fn add_reward(&mut self, reward: Rewarded) -> std::result::Result<(), String> {
        if !self.samples.contains_key(&reward.key) {
            return Err(format!("{}: wanted its answer before its reward, got none", reward.key));
        }
        let before = self.rewards.get(&reward.key);
        if before.is_some_and(|before| before.line() != reward.line()) {
            return Err(format!("{}: wanted the reward that stands before, got another", reward.key));
        }
        self.rewards.entry(reward.key).or_insert(reward);
        Ok(())
    }
}
