//! Sharing, preemption and breaking off: what requests have in common is computed once, and none of it shows in the results.

use super::decoding::{FEWEST, LONGEST, NEW, ROOMY, Service, alike, kinds, run, same, settings};
use super::{Setup, is_portable, reference, setups};
use anyhow::{Result, ensure};
use model::{CacheLimits, Error, Finished, KvCache, Request, Settings, Tokenizer, generate};
use ple_tests::tiny;
use runtime::DType;
use std::ops::ControlFlow;
use std::path::Path;

/// Every request in a call of its own: nobody is there to share with.
fn alone(setup: Setup, folder: &Path, requests: &[Request], settings: &Settings) -> Result<Vec<Finished>> {
    let service = Service { batch: 1, pages: FEWEST, prefill: LONGEST, reversed: false };
    let mut out = Vec::new();
    for (id, request) in requests.iter().enumerate() {
        let one = run(setup, folder, service, std::slice::from_ref(request), settings)?;
        out.extend(one.into_iter().map(|f| Finished { id, ..f }));
    }
    Ok(out)
}

#[test]
fn shared_beginnings_do_not_show() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    // The beginning ends inside the first page, at its end, behind it, and inside the second.
    for (sampling, common) in kinds().into_iter().zip([63, 64, 65, 100]) {
        let (requests, settings) = (alike(common), settings(sampling));
        let wanted = alone(reference(), folder.path(), &requests, &settings)?;
        ensure!(wanted.iter().any(|f| f.ids.len() == NEW) && wanted.iter().any(|f| f.stopped), "no mix of answers");
        let services = [
            ROOMY,
            Service { reversed: true, ..ROOMY },
            Service { batch: 2, ..ROOMY },
            Service { batch: 7, pages: 9, prefill: 40, reversed: false },
            // Everybody is admitted and nearly nobody can stay.
            Service { batch: 64, pages: FEWEST, prefill: 4096, reversed: true },
            Service { batch: 64, pages: FEWEST + 2, prefill: 5, reversed: false },
        ];
        for service in services {
            let got = run(reference(), folder.path(), service, &requests, &settings)?;
            same(&format!("{common} in common, {service:?}"), &got, &wanted)?;
        }
    }
    Ok(())
}

#[test]
fn preempted_samples_are_the_same_on_threads_and_instruction_sets() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let (requests, settings) = (alike(70), settings(kinds()[1]));
    let wanted = alone(reference(), folder.path(), &requests, &settings)?;
    for setup in setups() {
        let count = if is_portable(setup) { 5 } else { requests.len() };
        let service = Service { batch: 8, pages: FEWEST + 1, prefill: 60, reversed: false };
        let got = run(setup, folder.path(), service, &requests[..count], &settings)?;
        same(&format!("{setup:?}"), &got, &wanted[..count])?;
    }
    Ok(())
}

/// A tokenizer of words `w0`, `w1`, … with blanks between them.
fn words() -> Result<Tokenizer> {
    let folder = tempfile::tempdir()?;
    let vocabulary: serde_json::Map<_, _> = (0..tiny::VOCABULARY).map(|id| (format!("w{id}"), id.into())).collect();
    let file = serde_json::json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}});
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string())?;
    Ok(Tokenizer::open(folder.path())?)
}

/// Answers end with the token that completes a stop string, also one of several tokens and also where they were preempted in it.
#[test]
fn stop_strings_end_answers_wherever_they_run() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let (requests, endless, tokenizer) = (alike(70), Settings { stop: Vec::new(), ..settings(kinds()[0]) }, words()?);
    let whole = alone(reference(), folder.path(), &requests, &endless)?;
    // Two neighbours of an answer, of which the second is cut short, and a digit that is in many words.
    let pair = format!("w{} w{}", whole[0].ids[20], whole[0].ids[21] / 10);
    let stops = Settings { stop_strings: vec![pair, "66".into()], tokenizer: Some(tokenizer.clone()), ..endless };
    let cut = |f: &Finished| -> Result<Finished> {
        let texts = (1..=f.ids.len()).map(|n| Ok(tokenizer.decode(&f.ids[..n], false)?)).collect::<Result<Vec<_>>>()?;
        let end = texts.iter().position(|text| stops.stop_strings.iter().any(|stop| text.contains(stop)));
        let n = end.map_or(f.ids.len(), |i| i + 1);
        let (ids, logps, sampling_logps) = (f.ids[..n].to_vec(), f.logps[..n].to_vec(), f.sampling_logps[..n].to_vec());
        Ok(Finished { id: f.id, ids, logps, sampling_logps, stopped: end.is_some() })
    };
    let wanted = whole.iter().map(cut).collect::<Result<Vec<_>>>()?;
    ensure!(wanted[0].stopped && wanted[0].ids.len() <= 22 && wanted.iter().any(|f| !f.stopped), "{wanted:?}");
    for service in [ROOMY, Service { batch: 64, pages: FEWEST, prefill: 9, reversed: true }] {
        same(&format!("{service:?}"), &run(reference(), folder.path(), service, &requests, &stops)?, &wanted)?;
    }
    Ok(())
}

/// A caller that breaks off, at every look in turn: every page comes back, and the same cache then serves the whole call.
#[test]
fn breaking_off_gives_every_page_back() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let (s, model, slot) = reference().load(folder.path())?;
    let (requests, settings) = (alike(70), settings(kinds()[0]));
    let limits = CacheLimits { pages: FEWEST + 3, prefill_tokens: 50, batch: 6, positions: LONGEST + NEW };
    let mut kv = KvCache::new(&s, &model, limits, false, None)?;
    let (mut looks, mut allowed) = (0, 0);
    let whole = loop {
        let mut left = allowed;
        let outcome = generate(&s, &model, &mut kv, &requests, &settings, slot, &mut |_, _| {
            left -= 1;
            if left < 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        ensure!(kv.free_pages() == limits.pages, "{} of {} pages after {allowed} looks", kv.free_pages(), limits.pages);
        match outcome {
            Err(Error::Interrupted) => looks += 1,
            other => break other?,
        }
        allowed += 1;
    };
    ensure!(looks > 20, "broken off {looks} times");
    same("after breaking off", &whole, &alone(reference(), folder.path(), &requests, &settings)?)
}
