//! `length:N`: min(1, tokens / N).

use super::{Reward, Scored};
use crate::Result;
use model::Transformer;

/// Longer is better, up to N tokens.
pub struct Length {
    name: String,
    tokens: u32,
}

impl Length {
    /// `tokens` is N, above 0.
    pub fn new(name: &str, tokens: u32) -> Length {
        Length { name: name.to_string(), tokens: tokens.max(1) }
    }
}

impl Reward for Length {
    fn name(&self) -> &str {
        &self.name
    }
    fn unit(&self) -> bool {
        true
    }
    fn counts(&self) -> bool {
        true
    }
    fn score(&self, _: Option<&Transformer>, texts: &[Scored<'_>]) -> Result<Vec<f64>> {
        Ok(texts.iter().map(|t| (t.tokens as f64 / f64::from(self.tokens)).min(1.0)).collect())
    }
}
