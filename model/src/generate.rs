//! The scheduler: prompts in, completions out, in the prompts' order whatever ran beside what.

use crate::batch::{Batch, Parent};
use crate::decode::{DecodeRun, Finished, SampleKey, Settings};
use crate::kv_cache::KvCache;
use crate::transformer::{Adapter, Transformer};
use crate::{Error, Result};
use kernels::kv_store::PAGE;
use runtime::Stream;
use std::ops::ControlFlow;

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

/// What hears of it after each look, and may break off.
pub type Watch<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// Steps between two looks at what has finished.
const STEPS: u32 = 4;

fn pages(request: &Request, settings: &Settings) -> usize {
    request.prompt.len().saturating_add(settings.max_new_tokens).div_ceil(PAGE)
}

/// Draws one completion for every request. Errors: an empty prompt, an id beyond the vocabulary, a request longer than the
/// positions or the free pages, a `watch` that breaks off. An error gives every page back.
pub fn generate(
    s: &Stream,
    model: &Transformer,
    kv: &mut KvCache,
    requests: &[Request],
    settings: &Settings,
    adapter: Adapter,
    watch: &mut Watch<'_>,
) -> Result<Vec<Finished>> {
    if kv.limits().batch == 0 && !requests.is_empty() {
        return Err(Error::Batch("the cache is planned for a batch of 0 sequences".into()));
    }
    kv.release_prefilled();
    let most = model.positions().min(kv.limits().positions);
    for (i, request) in requests.iter().enumerate() {
        let (prompt, total) = (request.prompt.len(), request.prompt.len().saturating_add(settings.max_new_tokens));
        let fits = total <= most && prompt <= kv.limits().prefill_tokens.saturating_add(1);
        let ids = request.prompt.iter().all(|&id| (id as usize) < model.config.vocab_size);
        if prompt == 0 || settings.max_new_tokens == 0 || !fits || !ids {
            let n = settings.max_new_tokens;
            return Err(Error::Batch(format!(
                "request {i}: a prompt of {prompt} tokens and {n} new ones; wanted 1..{most} positions in all and ids below {}",
                model.config.vocab_size
            )));
        }
        let (wanted, free, all) = (pages(request, settings), kv.free_pages(), kv.limits().pages);
        if wanted > free {
            return Err(Error::Batch(format!("request {i}: wanted {wanted} KV pages, got {free} free ones of {all}")));
        }
    }
    let mut run = DecodeRun::new(settings.clone(), adapter)?;
    let outcome = schedule(s, model, kv, &mut run, requests, settings, watch);
    run.abandon(kv);
    outcome
}

/// Draws the completions of requests that fit one by one.
fn schedule(
    s: &Stream,
    model: &Transformer,
    kv: &mut KvCache,
    run: &mut DecodeRun,
    requests: &[Request],
    settings: &Settings,
    watch: &mut Watch<'_>,
) -> Result<Vec<Finished>> {
    let mut out: Vec<Finished> = vec![Finished::default(); requests.len()];
    let (mut next, mut done) = (0, Progress::default());
    // Pages promised to running sequences, so that none of them can run dry.
    let (mut promised, free) = (0, kv.free_pages());
    while done.finished < requests.len() {
        let first = next;
        let mut tokens = 0;
        while let Some(request) = requests.get(next) {
            let (pages, prompt) = (pages(request, settings), request.prompt.len() - 1);
            let room = run.running() + (next - first) < kv.limits().batch;
            if !room || promised + pages > free || tokens + prompt > kv.limits().prefill_tokens {
                break;
            }
            (promised, tokens, next) = (promised + pages, tokens + prompt, next + 1);
        }
        admit(s, model, kv, run, &requests[first..next], first)?;
        model.decode(s, kv, run, STEPS)?;
        for finished in model.collect(s, run)? {
            promised -= pages(&requests[finished.id], settings);
            done = Progress { finished: done.finished + 1, tokens: done.tokens + finished.ids.len() };
            let id = finished.id;
            out[id] = finished;
        }
        if watch(done).is_break() {
            return Err(Error::Interrupted);
        }
    }
    Ok(out)
}

/// Prefills all but the last id of each prompt and adds the sequences to the run.
fn admit(
    s: &Stream,
    model: &Transformer,
    kv: &mut KvCache,
    run: &mut DecodeRun,
    requests: &[Request],
    first: usize,
) -> Result<()> {
    let mut batch = Batch::default();
    for request in requests {
        let prompt = &request.prompt[..request.prompt.len() - 1];
        if !prompt.is_empty() {
            batch.segment(prompt, Parent::Root, 0);
        }
    }
    if !batch.segments.is_empty() {
        model.prefill(s, kv, &batch, run.adapter())?;
    }
    let mut paths = kv.take_paths().into_iter();
    for (i, request) in requests.iter().enumerate() {
        let path = if request.prompt.len() > 1 { paths.next().unwrap_or_default() } else { Default::default() };
        run.add(first + i, request.key, path, request.prompt.clone())?;
    }
    Ok(())
}
