//! One completion, told as it is drawn.

use super::schedule::{Kept, Schedule};
use super::{Request, check};
use crate::Result;
use crate::decode::{DecodeRun, Settings};
use crate::kv_cache::KvCache;
use crate::sequence::{Finished, Sequence};
use crate::transformer::{Adapter, Transformer};
use kernels::kv_store::PAGE;
use runtime::Stream;
use std::ops::ControlFlow;

/// What a conversation has in the pages: keys and values of the last prompt, so that a prompt that goes on from it computes what is new
/// alone. They belong to one cache and one adapter.
#[derive(Debug, Default)]
pub struct Held(Option<Kept>);

impl Held {
    /// Gives the pages back.
    pub fn forget(&mut self, kv: &mut KvCache) {
        self.0.take().into_iter().for_each(|kept| kv.forget(kept.id));
    }
}

/// Draws one completion, the same as [`super::generate`] draws for the request. `tell` hears of new ids as they come and may break off:
/// then the completion ends there, not stopped. Errors are those of `generate`; after one nothing is held.
pub fn stream(
    s: &Stream,
    model: &Transformer,
    kv: &mut KvCache,
    request: &Request,
    settings: &Settings,
    adapter: Adapter,
    held: &mut Held,
    tell: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
) -> Result<Finished> {
    kv.release_prefilled();
    let pages = request.prompt.len().saturating_add(settings.max_new_tokens).div_ceil(PAGE);
    // One more, because a prompt that goes on inside a page has a copy of it.
    if pages.saturating_add(1) > kv.free_pages() {
        held.forget(kv);
    }
    if let Err(error) = check(model, kv, std::slice::from_ref(request), settings) {
        held.forget(kv);
        return Err(error);
    }
    let waiting = [Sequence::new(0, request.key, &request.prompt)].into();
    let run = DecodeRun::new(settings.clone(), adapter)?;
    let mut schedule = Schedule::new(s, model, kv, run, waiting);
    schedule.last = held.0.take();
    let outcome = draw(&mut schedule, tell);
    if outcome.is_ok() {
        held.0 = schedule.last.take();
    }
    schedule.end();
    outcome
}

fn draw(x: &mut Schedule<'_>, tell: &mut dyn FnMut(&[u32]) -> ControlFlow<()>) -> Result<Finished> {
    let mut told = 0;
    loop {
        x.admit()?;
        // Room is made at the cost of what is held, so only where there is none.
        if x.run.wanted(x.kv, 1) > x.kv.free_pages() {
            x.make_room();
        }
        x.model.decode(x.s, x.kv, &mut x.run, 1)?;
        if let Some(done) = x.model.collect(x.s, &mut x.run)?.pop() {
            let _ = tell(&done.ids[told..]);
            return Ok(done);
        }
        let Some(sequence) = x.run.running.first() else { continue };
        let new = &sequence.tokens[sequence.prompt + told..];
        told += new.len();
        if tell(new).is_break() {
            let mut sequence = x.run.running.remove(0);
            x.kv.release(std::mem::take(&mut sequence.path));
            return Ok(sequence.finished());
        }
    }
}
