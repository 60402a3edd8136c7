//! One pass through a model: examples to log-probabilities, and back to gradients.

use anyhow::Result;
use model::{Adapter, Batch, Grads, Head, Keep, Limits, Transformer, Tune};
use runtime::Stream;

/// A prompt and its answers.
pub type Example = (Vec<u32>, Vec<Vec<u32>>);

/// Log-probabilities at temperature 1.
pub const LOGPROB: Head<'static> = Head::LogProb { inv_temperature: 1.0 };

/// Examples as one micro-batch; each prompt is computed once.
pub fn batch(examples: &[Example]) -> Result<Batch> {
    let mut batch = Batch::default();
    for (i, (prompt, answers)) in examples.iter().enumerate() {
        let answers: Vec<&[u32]> = answers.iter().map(Vec::as_slice).collect();
        batch.example(prompt, &answers, i as u32)?;
    }
    Ok(batch)
}

/// Limits that just fit a batch.
pub fn limits(b: &Batch) -> Limits {
    Limits { tokens: b.tokens(), loss_rows: b.loss_rows(), segments: b.segments.len(), examples: b.examples.len() }
}

/// `[M]` log-probabilities of a batch.
pub fn logps(s: &Stream, model: &Transformer, b: &Batch, adapter: Adapter, keep: Keep) -> Result<Vec<f32>> {
    let mut acts = model.acts(s, limits(b), keep, None)?;
    let mut out = Vec::new();
    model.forward(s, &mut acts, b, adapter, LOGPROB, keep)?;
    acts.out(s, &mut out)?;
    Ok(out)
}

/// Log-probabilities cut into the batch's sequences.
pub fn by_sequence(b: &Batch, out: &[f32]) -> Vec<Vec<f32>> {
    b.sequences.iter().map(|span| out[span.range()].to_vec()).collect()
}

/// `[N, V]` logits of whole texts, packed.
pub fn logits(s: &Stream, model: &Transformer, texts: &[Vec<u32>], adapter: Adapter) -> Result<Vec<f32>> {
    let mut b = Batch::default();
    for text in texts {
        b.segment(text, model::Parent::Root, 0);
    }
    let mut acts = model.acts(s, limits(&b), Keep::Nothing, None)?;
    model.forward(s, &mut acts, &b, adapter, LOGPROB, Keep::Nothing)?;
    Ok(model.logits(s, &acts)?)
}

/// What is tuned, as the adapter a pass runs with.
pub fn adapter_of(tune: Tune) -> Adapter {
    match tune {
        Tune::Lora(slot) => Adapter::Slot(slot),
        Tune::Full => Adapter::Off,
    }
}

/// Adds a batch's gradients to `grads`, of a forward that keeps everything; `dlogp` makes d loss / d logp of the log-probabilities, which are returned.
pub fn backward(
    s: &Stream,
    model: &Transformer,
    b: &Batch,
    tune: Tune,
    grads: &mut Grads,
    dlogp: impl FnOnce(&[f32]) -> Vec<f32>,
) -> Result<Vec<f32>> {
    let mut acts = model.acts(s, limits(b), Keep::Backward, None)?;
    let mut out = Vec::new();
    model.forward(s, &mut acts, b, adapter_of(tune), LOGPROB, Keep::Backward)?;
    acts.out(s, &mut out)?;
    let dout = s.upload(&dlogp(&out))?;
    model.backward(s, &mut acts, b, adapter_of(tune), LOGPROB, &dout, grads)?;
    Ok(out)
}
