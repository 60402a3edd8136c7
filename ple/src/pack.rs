//! Examples to micro-batches: consecutive examples while they fit a token budget. A tree is never cut, and how the cuts fall never
//! changes a result.

use crate::method::{Example, Totals};
use crate::{Error, Result};
use model::{Batch, Limits};

/// Tokens and loss rows an example takes.
fn size(example: &Example) -> (usize, usize) {
    let answers: usize = example.answers.iter().map(Vec::len).sum();
    let tokens = example.prompt.len() + answers - example.answers.len();
    (tokens.max(1), answers)
}

/// Tokens of the largest example: what [`Limits::tokens`] must at least be.
pub fn longest<'a>(examples: impl IntoIterator<Item = &'a Example>) -> usize {
    examples.into_iter().map(|e| size(e).0).max().unwrap_or(1)
}

/// Limits for a token budget: every row may be a loss row, and an answer's last token is one without being computed.
pub fn limits(tokens: usize) -> Limits {
    Limits { tokens, loss_rows: 2 * tokens, segments: tokens, examples: tokens }
}

/// How many of `examples` make the next micro-batch (at least one).
pub fn next(examples: &[&Example], limits: Limits) -> Result<usize> {
    let (mut tokens, mut rows) = (0, 0);
    for (i, example) in examples.iter().enumerate() {
        let (t, r) = size(example);
        (tokens, rows) = (tokens + t, rows + r);
        if tokens > limits.tokens || rows > limits.loss_rows || i >= limits.examples {
            if i == 0 {
                return Err(Error::Usage(format!(
                    "row {}: {tokens} tokens do not fit max_tokens_per_micro_batch {}",
                    example.row, limits.tokens
                )));
            }
            return Ok(i);
        }
    }
    Ok(examples.len())
}

/// Fills `batch` with examples.
pub fn fill(batch: &mut Batch, examples: &[&Example]) -> Result<()> {
    batch.clear();
    for example in examples {
        // At most a handful of answers: the slices live on the stack.
        const MOST: usize = 16;
        let mut answers: [&[u32]; MOST] = [&[]; MOST];
        let count = example.answers.len();
        if count <= MOST {
            answers.iter_mut().zip(&example.answers).for_each(|(slot, answer)| *slot = answer);
            batch.example(&example.prompt, &answers[..count], example.tag)?;
        } else {
            let all: Vec<&[u32]> = example.answers.iter().map(Vec::as_slice).collect();
            batch.example(&example.prompt, &all, example.tag)?;
        }
        batch.side.weight.extend_from_slice(&example.weights);
        batch.side.ref_logp.extend_from_slice(&example.ref_logp);
    }
    Ok(())
}

/// Counts over an optimizer batch.
pub fn totals(examples: &[&Example]) -> Totals {
    let mut totals = Totals { examples: examples.len() as f64, ..Totals::default() };
    for example in examples {
        // A text's first token is not predicted.
        let given = if example.prompt.is_empty() { 1 } else { 0 };
        totals.tokens += (size(example).1 - given) as f64;
        totals.weight += example.weights.iter().map(|w| *w as f64).sum::<f64>();
    }
    totals
}
