//! Greedy ids: all prompts together and each alone, with and without adapter, and with a stop id.

use super::lm::{Lm, Rows};
use anyhow::{Result, ensure};
use kernels::sample::Sampling;
use model::{Adapter, CacheLimits, Finished, KvCache, Request, SampleKey, Settings, Transformer, generate};
use runtime::Stream;
use std::ops::ControlFlow;

/// Pages, prefill and batch that just fit these prompts.
fn limits(prompts: &[Vec<u32>], new: usize) -> CacheLimits {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
    let (positions, batch) = (longest + new, prompts.len());
    let tokens = prompts.iter().map(Vec::len).sum();
    CacheLimits { pages: batch * positions.div_ceil(64), prefill_tokens: tokens, batch, positions }
}

fn run(
    s: &Stream,
    model: &Transformer,
    prompts: &[Vec<u32>],
    new: usize,
    stop: &[u32],
    adapter: Adapter,
) -> Result<Vec<Finished>> {
    let settings = Settings {
        sampling: Sampling { temperature: 0.0, ..Default::default() },
        stop: stop.to_vec(),
        max_new_tokens: new,
        ..Settings::default()
    };
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .map(|(i, prompt)| Request { prompt: prompt.clone(), key: SampleKey { row: i as u32, ..Default::default() } })
        .collect();
    let mut kv = KvCache::new(s, model, limits(prompts, new), false, None)?;
    Ok(generate(s, model, &mut kv, &requests, &settings, adapter, &mut |_, _| ControlFlow::Continue(()))?)
}

/// The most likely continuation of each prompt.
pub fn greedy(
    s: &Stream,
    model: &Transformer,
    prompts: &[Vec<u32>],
    new: usize,
    stop: &[u32],
    adapter: Adapter,
) -> Result<Vec<Vec<u32>>> {
    Ok(run(s, model, prompts, new, stop, adapter)?.into_iter().map(|f| f.ids).collect())
}

/// `greedy_ids`, `adapter/greedy_ids` and `greedy_stop`, exactly.
pub fn compare(case: &mut Lm, sft: &Rows) -> Result<()> {
    let prompts: Vec<Vec<u32>> = (0..sft.texts.len()).map(|i| sft.prompt(i)).collect();
    let new = case.golden.shape("greedy_ids")?[1];
    let ids = greedy(&case.s, &case.model, &prompts, new, &[], Adapter::Off)?;
    case.golden.same("greedy_ids", &ids.concat())?;
    for (prompt, together) in prompts.iter().zip(&ids) {
        let alone = greedy(&case.s, &case.model, std::slice::from_ref(prompt), new, &[], Adapter::Off)?;
        ensure!(alone[0] == *together, "greedy ids of a prompt alone: {:?}, beside others: {together:?}", alone[0]);
    }
    if let Some((_, slot)) = &case.adapter {
        let ids = greedy(&case.s, &case.model, &prompts, new, &[], *slot)?;
        case.golden.same("adapter/greedy_ids", &ids.concat())?;
    }
    let eos = case.golden.input_ids("greedy_stop/eos_id")?;
    let stopped = run(&case.s, &case.model, &prompts, new, &eos, Adapter::Off)?;
    let lens: Vec<u32> = stopped.iter().map(|f| f.ids.len() as u32).collect();
    case.golden.same("greedy_stop/lens", &lens)?;
    for (f, whole) in stopped.iter().zip(&ids) {
        ensure!(f.ids == whole[..f.ids.len()], "with a stop id: {:?}, without: {whole:?}", f.ids);
        ensure!(f.stopped == (f.ids.last() == eos.first()), "{:?} ended by its stop id: {}", f.ids, f.stopped);
    }
    Ok(())
}
