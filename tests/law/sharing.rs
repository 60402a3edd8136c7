//! Sharing, preemption and breaking off: what requests have in common is computed once, and none of it shows in the results.

use super::decoding::{FEWEST, LONGEST, NEW, ROOMY, Service, alike, kinds, run, same, settings};
use super::{Setup, is_portable, reference, setups};
use anyhow::{Result, ensure};
use model::{CacheLimits, Error, Finished, KvCache, Request, Settings, generate};
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
        let outcome = generate(&s, &model, &mut kv, &requests, &settings, slot, &mut |_| {
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
