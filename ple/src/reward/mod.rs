//! Rewards: a number for every answer. Rule rewards read the completion; the principle is never shown to any of them.

use crate::config::nearest::nearest;
use crate::{Error, Result};
use std::path::PathBuf;

pub mod length;
pub mod lexicon;
pub mod norm;
#[cfg(test)]
mod tests;

/// An answer to score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored<'a> {
    /// The plain query.
    pub prompt: &'a str,
    /// The answer, special tokens left out.
    pub completion: &'a str,
    /// Tokens of the answer, its end token included.
    pub tokens: usize,
}

/// A source of rewards.
pub trait Reward {
    /// For the log: the source as given.
    fn name(&self) -> &str;
    /// Whether every score lies in [0, 1].
    fn unit(&self) -> bool;
    /// One score per answer, in order.
    fn score(&self, texts: &[Scored<'_>]) -> Result<Vec<f64>>;
}

/// A reward as asked for, before its files are read.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// `lexicon:POSITIVE[,NEGATIVE]`.
    Lexicon {
        /// Words that count their weight, +1 if they have none.
        positive: PathBuf,
        /// Words that count against.
        negative: Option<PathBuf>,
    },
    /// `length:N`.
    Length(u32),
}

const KINDS: [&str; 2] = ["lexicon", "length"];

impl Spec {
    /// Reads `kind:argument`; an unknown kind names the nearest.
    pub fn parse(text: &str) -> Result<Spec> {
        let wanted = |w: &str| Err(Error::Usage(format!("reward_funcs: wanted {w}, got `{text}`")));
        let (kind, argument) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "lexicon" => {
                let (positive, negative) = argument.split_once(',').map_or((argument, None), |(p, n)| (p, Some(n)));
                if positive.is_empty() || negative == Some("") {
                    return wanted("lexicon:POSITIVE[,NEGATIVE] with file names");
                }
                Ok(Spec::Lexicon { positive: positive.into(), negative: negative.map(PathBuf::from) })
            }
            "length" => match argument.parse() {
                Ok(n) if n > 0 => Ok(Spec::Length(n)),
                _ => wanted("length:N with N above 0"),
            },
            _ => {
                let near = nearest(kind, KINDS);
                Err(Error::Usage(format!("reward_funcs: unknown reward `{text}`; the nearest known is `{near}:`")))
            }
        }
    }

    /// Whether its scores lie in [0, 1].
    pub fn unit(&self) -> bool {
        match self {
            Spec::Lexicon { .. } | Spec::Length(_) => true,
        }
    }

    /// Reads its files.
    pub fn load(&self, name: &str) -> Result<Box<dyn Reward + Send + Sync>> {
        Ok(match self {
            Spec::Lexicon { positive, negative } => Box::new(lexicon::Lexicon::load(name, positive, negative.as_deref())?),
            Spec::Length(n) => Box::new(length::Length::new(name, *n)),
        })
    }
}

/// The weight of every reward: as given, or 1 each.
pub fn weights(rewards: usize, given: &[f64]) -> Result<Vec<f64>> {
    match given.len() {
        0 => Ok(vec![1.0; rewards]),
        n if n == rewards => Ok(given.to_vec()),
        n => Err(Error::Usage(format!("reward_weights: wanted one per reward, {rewards}, got {n}"))),
    }
}

/// A weighted sum lies in [0, 1] if its parts do, no weight is below 0 and the weights sum to 1.
pub fn is_unit(parts: &[bool], weights: &[f64]) -> bool {
    let sum: f64 = weights.iter().sum();
    parts.iter().all(|unit| *unit) && weights.iter().all(|w| *w >= 0.0) && (sum - 1.0).abs() < 1e-9
}

/// The weighted sum of all rewards.
pub struct Rewards {
    parts: Vec<Box<dyn Reward + Send + Sync>>,
    weights: Vec<f64>,
}

/// What [`Rewards::score`] gives, one entry per answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// The weighted sum.
    pub total: Vec<f64>,
    /// Per reward.
    pub parts: Vec<Vec<f64>>,
}

impl Rewards {
    /// From `reward_funcs` and `reward_weights`.
    pub fn load(funcs: &[String], given: &[f64]) -> Result<Rewards> {
        let parts = funcs.iter().map(|text| Spec::parse(text)?.load(text)).collect::<Result<_>>()?;
        Ok(Rewards { parts, weights: weights(funcs.len(), given)? })
    }

    /// Whether the sum lies in [0, 1].
    pub fn unit(&self) -> bool {
        is_unit(&self.parts.iter().map(|p| p.unit()).collect::<Vec<_>>(), &self.weights)
    }

    /// The sources as given, in the order of [`Scores::parts`].
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|p| p.name())
    }

    /// Scores of all answers; a source that gives another number of scores is an error.
    pub fn score(&self, texts: &[Scored<'_>]) -> Result<Scores> {
        let mut scores = Scores { total: vec![0.0; texts.len()], parts: Vec::with_capacity(self.parts.len()) };
        for (part, weight) in self.parts.iter().zip(&self.weights) {
            let values = part.score(texts)?;
            if values.len() != texts.len() {
                let text = format!("reward {}: wanted {} scores, got {}", part.name(), texts.len(), values.len());
                return Err(Error::Numeric(text));
            }
            scores.total.iter_mut().zip(&values).for_each(|(t, v)| *t += weight * v);
            scores.parts.push(values);
        }
        Ok(scores)
    }
}
