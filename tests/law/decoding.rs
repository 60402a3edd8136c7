//! Sampling: ids and log-probabilities are those of the request alone, and the training forward finds the same bits again.

use super::{Setup, is_portable, reference, setups};
use anyhow::{Context, Result, ensure};
use kernels::sample::Sampling;
use model::{CacheLimits, Finished, Keep, KvCache, Progress, Request, SampleKey, Settings, generate};
use ple_tests::pass;
use ple_tests::tensors::same_bits;
use ple_tests::tiny::{self, Random};
use runtime::DType;
use std::ops::ControlFlow;
use std::path::Path;

pub const NEW: usize = 70;
pub const LONGEST: usize = 130;

fn key(row: usize) -> SampleKey {
    SampleKey { row: row as u32, side: row as u32 % 2, sample: 3, iteration: 2 }
}

pub fn requests() -> Vec<Request> {
    let mut random = Random(21);
    let lengths = [1, 2, 30, 63, 64, 65, 66, 90, LONGEST, 5, 128, 3];
    lengths.iter().enumerate().map(|(i, n)| Request { prompt: random.ids(*n), key: key(i) }).collect()
}

/// Prompts that have a beginning of `common` tokens in common, some in threes, one that is the beginning itself, and some that have
/// nothing to do with them.
pub fn alike(common: usize) -> Vec<Request> {
    let mut random = Random(22);
    let beginning = random.ids(common);
    let mut prompts = vec![beginning.clone(), random.ids(LONGEST), beginning[..common - 1].to_vec()];
    for more in [1, 3, 17, 30, 30] {
        let prompt = [beginning.clone(), random.ids(more.min(LONGEST - common))].concat();
        prompts.extend(vec![prompt; if more == 17 || more == 1 { 3 } else { 1 }]);
    }
    prompts.push(random.ids(2));
    prompts.iter().enumerate().map(|(row, prompt)| Request { prompt: prompt.clone(), key: key(row) }).collect()
}

pub fn settings(sampling: Sampling) -> Settings {
    Settings { sampling, stop: vec![17, 40], max_new_tokens: NEW, seed: 42, ..Settings::default() }
}

/// What a server may choose freely.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    pub batch: usize,
    pub pages: usize,
    pub prefill: usize,
    pub reversed: bool,
}

pub const ROOMY: Service = Service { batch: 12, pages: 64, prefill: 1024, reversed: false };
/// Pages of the longest request.
pub const FEWEST: usize = (LONGEST + NEW).div_ceil(64);

pub fn run(setup: Setup, folder: &Path, service: Service, requests: &[Request], settings: &Settings) -> Result<Vec<Finished>> {
    let (s, model, slot) = setup.load(folder)?;
    let limits =
        CacheLimits { pages: service.pages, prefill_tokens: service.prefill, batch: service.batch, positions: LONGEST + NEW };
    let penalties = settings.sampling.repetition_penalty != 1.0 || settings.sampling.presence_penalty != 0.0;
    let mut kv = KvCache::new(&s, &model, limits, penalties, None)?;
    let mut order: Vec<Request> = requests.to_vec();
    if service.reversed {
        order.reverse();
    }
    let mut progress = Vec::new();
    let mut out = generate(&s, &model, &mut kv, &order, settings, slot, &mut |done, _| {
        progress.push(done);
        ControlFlow::Continue(())
    })?;
    let tokens = out.iter().map(|f| f.ids.len()).sum();
    ensure!(progress.last() == Some(&Progress { finished: requests.len(), tokens }), "progress was told as {progress:?}");
    ensure!(progress.is_sorted_by_key(|p| (p.finished, p.tokens)), "progress was told as {progress:?}");
    ensure!(kv.free_pages() == service.pages, "{} of {} pages were given back", kv.free_pages(), service.pages);
    if service.reversed {
        out.reverse();
    }
    Ok(out)
}

pub fn same(what: &str, a: &[Finished], b: &[Finished]) -> Result<()> {
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let what = format!("{what}: request {i}");
        ensure!(a.ids == b.ids, "{what}: ids {:?} and {:?}", a.ids, b.ids);
        ensure!(a.stopped == b.stopped, "{what}: one stopped, the other did not");
        same_bits(&what, &a.logps, &b.logps)?;
        same_bits(&what, &a.sampling_logps, &b.sampling_logps)?;
    }
    ensure!(a.len() == b.len(), "{what}: {} and {} completions", a.len(), b.len());
    Ok(())
}

pub fn kinds() -> Vec<Sampling> {
    let plain = Sampling::default();
    vec![
        Sampling { temperature: 1.0, ..plain },
        Sampling { temperature: 0.8, top_k: 50, top_p: 0.9, min_p: 0.01, ..plain },
        Sampling { temperature: 1.2, repetition_penalty: 1.3, frequency_penalty: 0.1, presence_penalty: 0.2, ..plain },
        Sampling { temperature: 0.0, ..plain },
    ]
}

#[test]
fn samples_depend_on_their_request_alone() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let requests = requests();
    for sampling in kinds() {
        let settings = settings(sampling);
        let wanted = run(reference(), folder.path(), ROOMY, &requests, &settings)?;
        ensure!(
            wanted.iter().any(|f| f.stopped) && wanted.iter().any(|f| f.ids.len() == NEW),
            "no mix of short and long answers"
        );
        for service in [
            Service { batch: 1, pages: FEWEST, prefill: LONGEST, reversed: false },
            Service { batch: 5, pages: FEWEST + 1, prefill: 150, reversed: true },
            Service { batch: 64, pages: 7, prefill: 4096, reversed: false },
            Service { batch: 12, pages: FEWEST, prefill: 7, reversed: false },
            Service { reversed: true, ..ROOMY },
        ] {
            same(&format!("{service:?}"), &run(reference(), folder.path(), service, &requests, &settings)?, &wanted)?;
        }
    }
    Ok(())
}

#[test]
fn samples_are_the_same_on_threads_and_instruction_sets() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let (requests, settings) = (requests(), settings(kinds()[1]));
    let wanted = run(reference(), folder.path(), ROOMY, &requests, &settings)?;
    for setup in setups() {
        let count = if is_portable(setup) { 3 } else { requests.len() };
        let got = run(setup, folder.path(), ROOMY, &requests[..count], &settings)?;
        same(&format!("{setup:?}"), &got, &wanted[..count])?;
    }
    Ok(())
}

/// The gap between sampler and trainer is not small: it is zero.
#[test]
fn training_finds_the_sampled_log_probabilities() -> Result<()> {
    for (tied, dtype) in [(true, DType::F32), (false, DType::Bf16)] {
        found(tiny::folder(tied, dtype)?.path())?;
    }
    Ok(())
}

#[test]
fn training_finds_them_in_every_family() -> Result<()> {
    for config in tiny::families() {
        found(tiny::of(&config, DType::F32)?.path()).with_context(|| config["model_type"].to_string())?;
    }
    Ok(())
}

fn found(folder: &Path) -> Result<()> {
    let requests = requests();
    let finished = run(reference(), folder, ROOMY, &requests, &settings(kinds()[0]))?;
    for setup in [reference()].into_iter().chain(setups().into_iter().filter(|s| !is_portable(*s))) {
        let (s, model, slot) = setup.load(folder)?;
        let examples: Vec<_> = requests.iter().zip(&finished).map(|(r, f)| (r.prompt.clone(), vec![f.ids.clone()])).collect();
        let b = pass::batch(&examples)?;
        for keep in [Keep::Nothing, Keep::Backward] {
            let scored = pass::logps(&s, &model, &b, slot, keep)?;
            let sampled: Vec<f32> = finished.iter().flat_map(|f| f.logps.clone()).collect();
            let gap = scored.iter().zip(&sampled).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            ensure!(sampled.iter().all(|l| l.is_finite() && *l <= 0.0), "a log-probability is none");
            ensure!(gap == 0.0, "the gap between sampling and training is {gap}");
            same_bits("sampled and scored", &scored, &sampled)?;
        }
    }
    Ok(())
}

/// At temperature 1 without filters the two distributions are one, up to the rounding of integer masses.
#[test]
fn sampling_log_probabilities_agree_with_the_plain_distribution() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let finished = run(reference(), folder.path(), ROOMY, &requests(), &settings(kinds()[0]))?;
    let mut pairs = finished.iter().flat_map(|f| f.logps.iter().zip(&f.sampling_logps));
    ensure!(pairs.all(|(a, b)| (a - b).abs() < 1e-4), "the two log-probabilities of a draw differ by more than 1e-4");
    Ok(())
}
