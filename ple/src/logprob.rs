//! Log-probabilities of given ids through the training forward: `ple logprob`, the gap measurement, held-out loss.

use crate::method::{Example, Heads};
use crate::{Result, interrupt, pack};
use model::{Acts, Adapter, Batch, Head, Keep, Transformer};
use runtime::Stream;

/// Per example, the log-probabilities of its loss rows in order (all answers one after the other). A signal breaks it off.
pub fn score(s: &Stream, model: &Transformer, acts: &mut Acts, adapter: Adapter, examples: &[&Example]) -> Result<Vec<Vec<f32>>> {
    score_telling(s, model, acts, adapter, examples, &mut |_, _| ())
}

/// The same; `tell` hears after each micro-batch of the examples that are done and of the tokens computed for them.
pub fn score_telling(
    s: &Stream,
    model: &Transformer,
    acts: &mut Acts,
    adapter: Adapter,
    examples: &[&Example],
    tell: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Vec<f32>>> {
    let mut tokens = 0;
    let (mut batch, mut out, mut all) = (Batch::default(), Vec::new(), Vec::with_capacity(examples.len()));
    let mut rest = examples;
    while !rest.is_empty() {
        interrupt::check()?;
        let (now, later) = rest.split_at(pack::next(rest, Heads::LogProb, acts.limits())?);
        rest = later;
        pack::fill(&mut batch, Heads::LogProb, now)?;
        model.forward(s, acts, &batch, adapter, Head::LogProb { inv_temperature: 1.0 }, Keep::Nothing)?;
        acts.out(s, &mut out)?;
        for example in &batch.examples {
            let spans = &batch.sequences[example.range()];
            all.push(spans.iter().flat_map(|span| &out[span.range()]).copied().collect());
        }
        tokens += batch.tokens();
        tell(all.len(), tokens);
    }
    Ok(all)
}

/// Mean negative log-probability per token of the examples, and the tokens.
pub fn mean_loss(
    s: &Stream,
    model: &Transformer,
    acts: &mut Acts,
    adapter: Adapter,
    examples: &[&Example],
) -> Result<(f64, usize)> {
    let logps = score(s, model, acts, adapter, examples)?;
    let tokens: usize = logps.iter().map(Vec::len).sum();
    let sum: f64 = logps.iter().flatten().map(|l| *l as f64).sum();
    Ok((-sum / tokens.max(1) as f64, tokens))
}
