//! Prompts in, completions out, in the prompts' order whatever ran beside what.

use crate::decode::{DecodeRun, Settings};
use crate::kv_cache::KvCache;
use crate::sequence::{Finished, SampleKey, Sequence};
use crate::transformer::{Adapter, Transformer};
use crate::{Error, Result};
use kernels::kv_store::PAGE;
use runtime::Stream;
use schedule::Schedule;
use std::ops::ControlFlow;

mod schedule;
mod stream;
mod wave;

pub use stream::{Held, stream};

/// One completion to draw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Ids of the prompt.
    pub prompt: Vec<u32>,
    /// Names its random numbers.
    pub key: SampleKey,
}

/// How far a call of [`generate`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Requests that are finished.
    pub finished: usize,
    /// Tokens of these.
    pub tokens: usize,
}

/// What hears of it after each look, with the sequences that have finished since the last one, and may break off.
pub type Watch<'a> = dyn FnMut(Progress, &[Finished]) -> ControlFlow<()> + 'a;

/// Draws one completion for every request. What prompts have in common is computed once while it is held by one that runs or by the
/// last one admitted; sequences take pages as they grow, and when there are none left the newest waits again, with what it has
/// drawn. Errors: an empty prompt, an id beyond the vocabulary, a request longer than the positions or the free pages, stop strings
/// without a tokenizer, a `watch` that breaks off. An error gives every page back.
pub fn generate(
    s: &Stream,
    model: &Transformer,
    kv: &mut KvCache,
    requests: &[Request],
    settings: &Settings,
    adapter: Adapter,
    watch: &mut Watch<'_>,
) -> Result<Vec<Finished>> {
    kv.release_prefilled();
    check(model, kv, requests, settings)?;
    let mut order: Vec<usize> = (0..requests.len()).collect();
    // Prompts that begin alike follow each other.
    order.sort_by(|&a, &b| requests[a].prompt.cmp(&requests[b].prompt));
    let sequence = |&id: &usize| Sequence::new(id, requests[id].key, &requests[id].prompt);
    let waiting = order.iter().map(sequence).collect();
    let run = DecodeRun::new(settings.clone(), adapter)?;
    Schedule::new(s, model, kv, run, waiting).run(requests.len(), watch)
}

/// Every request by itself fits the plan and the pages that are free.
fn check(model: &Transformer, kv: &KvCache, requests: &[Request], settings: &Settings) -> Result<()> {
    let limits = kv.limits();
    if (limits.batch == 0 || limits.prefill_tokens == 0) && !requests.is_empty() {
        let (batch, tokens) = (limits.batch, limits.prefill_tokens);
        return Err(Error::Batch(format!(
            "the cache is planned for a batch of {batch} sequences and prefills of {tokens} tokens"
        )));
    }
    let most = model.positions().min(limits.positions);
    for (i, request) in requests.iter().enumerate() {
        let (prompt, total) = (request.prompt.len(), request.prompt.len().saturating_add(settings.max_new_tokens));
        let ids = request.prompt.iter().all(|&id| (id as usize) < model.config.vocab_size);
        if prompt == 0 || settings.max_new_tokens == 0 || total > most || !ids {
            let n = settings.max_new_tokens;
            return Err(Error::Batch(format!(
                "request {i}: a prompt of {prompt} tokens and {n} new ones; wanted 1..{most} positions in all and ids below {}",
                model.config.vocab_size
            )));
        }
        let (wanted, free, all) = (total.div_ceil(PAGE), kv.free_pages(), limits.pages);
        if wanted > free {
            return Err(Error::Batch(format!("request {i}: wanted {wanted} KV pages, got {free} free ones of {all}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
