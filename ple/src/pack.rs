//! Examples to micro-batches: consecutive examples while they fit a token budget. A tree is never cut, and how the cuts fall never
//! changes a result.

use crate::method::{Example, Heads, Totals};
use crate::{Error, Result};
use model::{Batch, Limits, Parent, Span};

/// Tokens and loss rows an example takes: every token of an answer is a row of log-probabilities, its last one is one of values.
fn size(example: &Example, heads: Heads) -> (usize, usize) {
    let answers: usize = example.answers.iter().map(Vec::len).sum();
    if heads == Heads::Scalar {
        return (example.prompt.len() + answers, example.answers.len());
    }
    let tokens = example.prompt.len() + answers - example.answers.len();
    (tokens.max(1), answers)
}

/// Tokens of the largest example: what [`Limits::tokens`] must at least be.
pub fn longest<'a>(examples: impl IntoIterator<Item = &'a Example>) -> usize {
    longest_for(Heads::LogProb, examples)
}

/// The same for other heads.
pub fn longest_for<'a>(heads: Heads, examples: impl IntoIterator<Item = &'a Example>) -> usize {
    examples.into_iter().map(|e| size(e, heads).0).max().unwrap_or(1)
}

/// Limits for a token budget: every row may be a loss row, and an answer's last token is one without being computed.
pub fn limits(tokens: usize) -> Limits {
    Limits { tokens, loss_rows: 2 * tokens, segments: tokens, examples: tokens }
}

/// How many of `examples` make the next micro-batch (at least one).
pub fn next(examples: &[&Example], heads: Heads, limits: Limits) -> Result<usize> {
    let (mut tokens, mut rows) = (0, 0);
    for (i, example) in examples.iter().enumerate() {
        let (t, r) = size(example, heads);
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
pub fn fill(batch: &mut Batch, heads: Heads, examples: &[&Example]) -> Result<()> {
    batch.clear();
    for example in examples {
        side(batch, example);
        if heads == Heads::Scalar {
            ends(batch, example)?;
            continue;
        }
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
        leave_out(batch, example);
    }
    Ok(())
}

/// Takes the loss rows out of the batch's last example that the loss does not fall on.
fn leave_out(batch: &mut Batch, example: &Example) {
    if example.loss.is_empty() {
        return;
    }
    let Some(spans) = batch.examples.last().map(|span| span.range()) else { return };
    let Some(first) = batch.sequences.get(spans.start).map(|span| span.start as usize) else { return };
    let (rows, targets) = (batch.rows.split_off(first), batch.targets.split_off(first));
    for (i, sequence) in spans.enumerate() {
        let span = batch.sequences[sequence].range();
        let ids = example.answers[i].len();
        let start = batch.rows.len() as u32;
        for (at, row) in span.clone().enumerate() {
            // Without a prompt the first id has no row.
            let id = at + ids - span.len();
            if example.loss.get(i).and_then(|loss| loss.get(id)).copied().unwrap_or(true) {
                batch.rows.push(rows[row - first]);
                batch.targets.push(targets[row - first]);
            }
        }
        batch.sequences[sequence] = Span { start, end: batch.rows.len() as u32 };
    }
}

/// What the method knows of the example.
fn side(batch: &mut Batch, example: &Example) {
    let side = &mut batch.side;
    side.weight.extend_from_slice(&example.weights);
    side.ref_logp.extend_from_slice(&example.ref_logp);
    side.old_logp.extend_from_slice(&example.old_logp);
    side.advantage.extend_from_slice(&example.advantage);
}

/// Adds an example whose loss rows are the last tokens of its answers: the second rule of rows, for the scalar head. Without a
/// prompt each answer begins its own path.
fn ends(batch: &mut Batch, example: &Example) -> Result<()> {
    if example.answers.is_empty() || example.answers.iter().any(Vec::is_empty) {
        let text = "an example needs at least one answer, and every answer at least one token";
        return Err(model::Error::Batch(format!("row {}: {text}", example.row)).into());
    }
    let (first, sequence) = (batch.tokens() as u32, batch.sequences.len() as u32);
    let parent = match example.prompt.as_slice() {
        [] => Parent::Root,
        prompt => Parent::Segment(batch.segment(prompt, Parent::Root, 0)),
    };
    for answer in &example.answers {
        batch.segment(answer, parent, example.prompt.len() as u32);
        let row = batch.loss_rows() as u32;
        batch.rows.push(batch.tokens() as u32 - 1);
        batch.targets.push(0);
        batch.sequences.push(Span { start: row, end: row + 1 });
    }
    batch.examples.push(Span { start: sequence, end: batch.sequences.len() as u32 });
    batch.trees.push(Span { start: first, end: batch.tokens() as u32 });
    batch.tags.push(example.tag);
    Ok(())
}

/// Counts over an optimizer batch.
pub fn totals(heads: Heads, examples: &[&Example]) -> Totals {
    let mut totals = Totals { examples: examples.len() as f64, ..Totals::default() };
    for example in examples {
        // A text's first token is not predicted.
        let given = usize::from(example.prompt.is_empty() && heads != Heads::Scalar);
        totals.answers += example.answers.len() as f64;
        let skipped = example.loss.iter().map(|loss| loss.iter().skip(given).filter(|on| !**on).count()).sum::<usize>();
        totals.tokens += (size(example, heads).1 - given - skipped) as f64;
        totals.weight += example.weights.iter().map(|w| *w as f64).sum::<f64>();
    }
    totals
}
