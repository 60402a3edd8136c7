//! Requests that cannot be answered, and limits that cannot serve them.

use super::refused;
use anyhow::{Result, ensure};
use kernels::sample::Sampling;
use model::{CacheLimits, Finished, KvCache, Request, Settings, generate};
use ple_tests::tiny::{self, POSITIONS, VOCABULARY};
use runtime::{DType, Isa, Stream};
use std::ops::ControlFlow;

const LIMITS: CacheLimits = CacheLimits { pages: 8, prefill_tokens: 100, batch: 2, positions: 128 };

struct Row {
    what: &'static str,
    prompt: Vec<u32>,
    new: usize,
    limits: CacheLimits,
    sampling: Sampling,
    words: &'static [&'static str],
}

fn row(what: &'static str, words: &'static [&'static str]) -> Row {
    Row { what, prompt: vec![1, 2, 3], new: 5, limits: LIMITS, sampling: Sampling::default(), words }
}

fn rows() -> Vec<Row> {
    let sampling = Sampling::default();
    vec![
        Row { prompt: Vec::new(), ..row("an empty prompt", &["request 1", "prompt of 0 tokens"]) },
        Row { prompt: vec![1, VOCABULARY], ..row("an id beyond the vocabulary", &["request 1", "ids below 323"]) },
        Row { new: 0, ..row("nothing to draw", &["request 0", "0 new ones"]) },
        Row { new: usize::MAX, ..row("more than any memory", &["request 0", "positions"]) },
        Row { new: POSITIONS, ..row("more than the positions", &["request 0", "positions"]) },
        Row { new: 127, ..row("more than the planned positions", &["request 0", "128 positions"]) },
        Row { new: 70, limits: CacheLimits { pages: 1, ..LIMITS }, ..row("more than the pages", &["request 0"]) },
        Row { limits: CacheLimits { prefill_tokens: 0, ..LIMITS }, ..row("no token in a prefill", &["prefills of 0 tokens"]) },
        Row { limits: CacheLimits { batch: 0, ..LIMITS }, ..row("no place for a sequence", &["batch"]) },
        Row { limits: CacheLimits { pages: 0, ..LIMITS }, ..row("no page", &["request"]) },
        Row { sampling: Sampling { temperature: f64::NAN, ..sampling }, ..row("temperature", &["temperature", "NaN"]) },
        Row { sampling: Sampling { temperature: -1.0, ..sampling }, ..row("temperature", &["temperature", "-1"]) },
        Row { sampling: Sampling { top_p: 0.0, ..sampling }, ..row("top_p", &["top_p", "0"]) },
        Row { sampling: Sampling { min_p: 2.0, ..sampling }, ..row("min_p", &["min_p", "2"]) },
        Row { sampling: Sampling { repetition_penalty: 0.0, ..sampling }, ..row("penalty", &["repetition_penalty", "0"]) },
    ]
}

#[test]
fn requests_that_cannot_be_answered() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let s = Stream::cpu(1, Isa::detect());
    let (model, slot) = tiny::load(&s, folder.path())?;
    for row in rows() {
        let mut kv = KvCache::new(&s, &model, row.limits, false, None)?;
        let request = |prompt: &[u32]| Request { prompt: prompt.to_vec(), ..Default::default() };
        let requests = [request(&[4, 5]), request(&row.prompt)];
        let settings = Settings { sampling: row.sampling, max_new_tokens: row.new, seed: 1, ..Settings::default() };
        refused(
            row.what,
            generate(&s, &model, &mut kv, &requests, &settings, slot, &mut |_, _| ControlFlow::Continue(())),
            row.words,
        )?;
        ensure!(kv.free_pages() == row.limits.pages, "{}: pages were lost", row.what);
    }
    let overlay = runtime::Arena::new(&s, 64)?;
    refused("an overlay that is too small", KvCache::new(&s, &model, LIMITS, false, Some(overlay)), &["overlay of 64 bytes"])
}

/// Requests at the very limits are answered.
#[test]
fn requests_at_the_limits() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let s = Stream::cpu(1, Isa::detect());
    let (model, slot) = tiny::load(&s, folder.path())?;
    for (prompt, new) in [(101usize, 27), (1, 127), (65, 63), (64, 1), (2, 62), (127, 1)] {
        let limits = CacheLimits { pages: (prompt + new).div_ceil(64), batch: 1, ..LIMITS };
        let mut kv = KvCache::new(&s, &model, limits, false, None)?;
        let requests = vec![Request { prompt: vec![3; prompt], ..Default::default() }; 3];
        let settings = Settings { max_new_tokens: new, seed: 1, ..Settings::default() };
        let out: Vec<Finished> =
            generate(&s, &model, &mut kv, &requests, &settings, slot, &mut |_, _| ControlFlow::Continue(()))?;
        ensure!(out.iter().all(|f| f.ids.len() == new && !f.stopped), "{prompt} + {new}: {out:?}");
    }
    Ok(())
}
