//! Rewards: a number for every answer. Rules and commands read the answer, models the plain query and the answer as one text; the
//! principle is never shown to any of them.

use crate::config::Config;
use crate::open::Opened;
use crate::{Error, Result};
use model::Transformer;

mod child;
pub mod exec;
pub mod length;
pub mod lexicon;
pub mod norm;
pub mod pattern;
pub mod scalar;
mod spec;
#[cfg(test)]
mod tests;

pub use spec::{Kind, Site, Spec, funcs};

/// An answer to score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored<'a> {
    /// Of the file it comes from; errors name it.
    pub row: u32,
    /// The plain query.
    pub prompt: &'a str,
    /// The answer, special tokens left out.
    pub completion: &'a str,
    /// Tokens of the answer, its end token included if it has one; 0 where no reward counts them.
    pub tokens: usize,
}

/// A source of rewards.
pub trait Reward {
    /// For the log: the source as given.
    fn name(&self) -> &str;
    /// Whether every score lies in [0, 1].
    fn unit(&self) -> bool;
    /// Whether it reads [`Scored::tokens`].
    fn counts(&self) -> bool {
        false
    }
    /// One score per answer, in order. `base` is the model that an adapter reward was loaded on.
    fn score(&self, base: Option<&Transformer>, texts: &[Scored<'_>]) -> Result<Vec<f64>>;
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
    parts: Vec<Box<dyn Reward>>,
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
    /// From the settings: reads every file, puts adapters on `base`, starts commands (a dry run starts none).
    pub fn load(c: &Config, base: Option<&mut Opened>) -> Result<Rewards> {
        let (names, mut site) = (funcs(c), Site::new(c, base));
        let parts = names.iter().map(|text| Spec::parse(text)?.load(&mut site)).collect::<Result<_>>()?;
        Ok(Rewards { parts, weights: weights(names.len(), &c.reward_weights)? })
    }

    /// Whether the sum lies in [0, 1].
    pub fn unit(&self) -> bool {
        is_unit(&self.parts.iter().map(|p| p.unit()).collect::<Vec<_>>(), &self.weights)
    }

    /// Whether a part reads [`Scored::tokens`].
    pub fn counts(&self) -> bool {
        self.parts.iter().any(|p| p.counts())
    }

    /// The sources as given, in the order of [`Scores::parts`].
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|p| p.name())
    }

    /// Scores of all answers; a source that gives another number of scores, or leaves the range it promised, is an error. Scores
    /// that are not finite are passed on.
    pub fn score(&self, base: Option<&Transformer>, texts: &[Scored<'_>]) -> Result<Scores> {
        let mut scores = Scores { total: vec![0.0; texts.len()], parts: Vec::with_capacity(self.parts.len()) };
        for (part, weight) in self.parts.iter().zip(&self.weights) {
            let values = part.score(base, texts)?;
            let wrong = |text: String| Err(Error::Numeric(format!("reward {}: {text}", part.name())));
            if values.len() != texts.len() {
                return wrong(format!("wanted {} scores, got {}", texts.len(), values.len()));
            }
            let outside = |v: &f64| part.unit() && v.is_finite() && !(0.0..=1.0).contains(v);
            if let Some((text, v)) = texts.iter().zip(&values).find(|(_, v)| outside(v)) {
                return wrong(format!("row {}: wanted a score in [0, 1], got {v}", text.row));
            }
            scores.total.iter_mut().zip(&values).for_each(|(t, v)| *t += weight * v);
            scores.parts.push(values);
        }
        Ok(scores)
    }
}
