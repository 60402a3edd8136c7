//! Base and adapter side by side against the merged folder, on the same prompts: how far apart the logits are, and where greedy decoding
//! would go another way.

use super::Inputs;
use crate::config::Config;
use crate::data::{self, Dropped};
use crate::reward::scalar::last_token;
use crate::{Result, interrupt, log, open};
use model::merge::Merged;
use model::{Adapter, Batch, Config as ModelConfig, Head, Keep, Limits, Lora, Parent, Tokenizer, Transformer};
use runtime::Stream;
use serde_json::{Value, json};
use std::fmt;
use std::path::Path;

/// Prompts for models whose user gives none.
const BUILT_IN: [&str; 12] = [
    "Once upon a time, there was a little girl who",
    "The capital of France is",
    "Question: What is 17 plus 25?\nAnswer:",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "I watched this film last night and I thought it was",
    "Dear Sir or Madam,\n\nI am writing to",
    "Human: How do I boil an egg?\n\nAssistant:",
    "Water boils at a lower temperature on a mountain because",
    "{\"name\": \"Ada\", \"born\": 1815, \"field\": \"",
    "The three laws of motion say that",
    "Es war einmal ein König, der",
    "Summary: The meeting was moved to Tuesday. The main points were",
];
/// Positions that are compared at most: the logits of all of them are kept while the second model is loaded.
const POSITIONS: usize = 512;
/// Tokens of one prompt at most.
const LONGEST: usize = 128;

/// What was found.
pub enum Audit {
    /// Of a language model.
    Logits { prompts: usize, positions: usize, most: f64, other: usize },
    /// Of a scalar head.
    Scores { prompts: usize, most: f64 },
    /// Why nothing was compared.
    Nothing(&'static str),
}

impl Audit {
    pub fn json(&self) -> Value {
        match self {
            Audit::Logits { prompts, positions, most, other } => json!({
                "prompts": prompts, "positions": positions, "max_abs_logit_difference": log::number(*most),
                "greedy_differences": other, "greedy_share": *other as f64 / (*positions).max(1) as f64
            }),
            Audit::Scores { prompts, most } => json!({ "prompts": prompts, "max_abs_score_difference": log::number(*most) }),
            Audit::Nothing(why) => json!({ "not_compared": why }),
        }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Audit::Logits { prompts, positions, most, other } => {
                let share = 100.0 * *other as f64 / (*positions).max(1) as f64;
                write!(f, "{prompts} prompts, {positions} positions: max |Δlogit| {most:.3e}, ")?;
                write!(f, "another greedy token at {other} ({share:.2} %)")
            }
            Audit::Scores { prompts, most } => write!(f, "{prompts} prompts: max |Δscore| {most:.3e}"),
            Audit::Nothing(why) => write!(f, "not compared: {why}"),
        }
    }
}

/// The prompts of the settings as ids, as many as the bounds allow, and what was left out.
pub fn prompts(c: &Config, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<(Vec<Vec<u32>>, Dropped)> {
    let budget = LONGEST.min(config.max_position_embeddings);
    let (mut all, mut dropped) = (Vec::new(), Dropped::default());
    match &c.dataset_name {
        Some(path) => {
            let (queries, _, first) = data::queries(path, tokenizer, c.seed)?;
            let (prompts, later) = data::prompts(&queries, tokenizer, None, budget)?;
            all.extend(prompts.into_iter().map(|p| p.plain));
            dropped = first;
            dropped.add(later);
            if all.is_empty() {
                return Err(crate::Error::file(path, format!("wanted at least one prompt, none is left: {dropped}")));
            }
        }
        None => {
            for text in BUILT_IN {
                let mut ids = tokenizer.encode(text, true)?;
                ids.truncate(budget);
                all.push(ids);
            }
        }
    }
    all.retain(|ids| !ids.is_empty() && ids.iter().all(|id| (*id as usize) < config.vocab_size));
    let mut positions = 0;
    let fits =
        all.iter().take_while(|ids| (positions + ids.len() <= POSITIONS).then(|| positions += ids.len()).is_some()).count();
    all.truncate(fits);
    Ok((all, dropped))
}

/// Runs both on the device of the settings, one after the other.
pub fn compare(c: &Config, inputs: &Inputs<'_>, merged: &Merged, new: &Path, prompts: &[Vec<u32>]) -> Result<Audit> {
    if !inputs.adapter.saved.is_empty() {
        return Ok(Audit::Nothing("embedding or head are the adapter's own, which no base runs beside itself"));
    }
    if prompts.is_empty() {
        return Ok(Audit::Nothing("no prompt has a token of the model"));
    }
    let s = open::stream(c)?;
    let scalar = merged.headed || inputs.config.scalar_head;
    let before = {
        let mut model = Transformer::load(&s, inputs.base, None)?;
        let lora = Lora::upload(&s, model.base(), inputs.adapter.clone())?;
        let slot = model.add_slot(lora)?;
        run(&s, &model, slot, inputs.adapter.score.as_deref(), scalar, prompts)?
    };
    let after = run(&s, &Transformer::load(&s, new, None)?, Adapter::Off, None, scalar, prompts)?;
    let most = before.iter().zip(&after).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, larger);
    if scalar {
        return Ok(Audit::Scores { prompts: prompts.len(), most });
    }
    let rows = |all: &[f32]| all.chunks_exact(inputs.config.vocab_size).map(greedy).collect::<Vec<_>>();
    let (before, after) = (rows(&before), rows(&after));
    let other = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    Ok(Audit::Logits { prompts: prompts.len(), positions: before.len(), most, other })
}

/// NaN is larger than anything.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// The lowest id of the maximum.
fn greedy(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// `[N, V]` logits of all prompts, or a score of each.
fn run(
    s: &Stream,
    model: &Transformer,
    slot: Adapter,
    score: Option<&[f32]>,
    scalar: bool,
    prompts: &[Vec<u32>],
) -> Result<Vec<f32>> {
    if scalar {
        let head = match score {
            Some(score) => s.upload(score)?,
            None => model.scalar_head(s)?.weight,
        };
        return last_token(s, model, slot, head.view(), prompts, POSITIONS);
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
    let limits = Limits { tokens: longest, loss_rows: 0, segments: 1, examples: 0 };
    let mut acts = model.acts(s, limits, Keep::Nothing, None)?;
    let (mut batch, mut logits) = (Batch::default(), Vec::new());
    for ids in prompts {
        interrupt::check()?;
        batch.clear();
        batch.segment(ids, Parent::Root, 0);
        model.forward(s, &mut acts, &batch, slot, Head::LogProb { inv_temperature: 1.0 }, Keep::Nothing)?;
        logits.extend(model.logits(s, &acts)?);
    }
    Ok(logits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_id_and_nan_is_seen() {
        assert_eq!((greedy(&[1.0, 3.0, 3.0]), greedy(&[f32::NEG_INFINITY; 2])), (1, 0));
        assert!([1.0, f64::NAN, 2.0].into_iter().fold(0.0, larger).is_nan());
        assert_eq!([1.0, 3.0, 2.0].into_iter().fold(0.0, larger), 3.0);
    }
}
