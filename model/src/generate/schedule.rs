//! Which sequences run: they are admitted in order while pages last, and the newest waits again when pages run out.

use super::wave::{self, From, Wave};
use super::{Progress, Watch};
use crate::batch::PrefixId;
use crate::decode::DecodeRun;
use crate::kv_cache::{KvCache, Path};
use crate::sequence::{Finished, Sequence};
use crate::transformer::Transformer;
use crate::{Error, Result};
use runtime::Stream;
use std::collections::VecDeque;

/// Steps between two looks at what has finished.
const STEPS: u32 = 4;

/// A prefix in the cache and its tokens.
#[derive(Debug)]
pub(super) struct Kept {
    pub id: PrefixId,
    pub tokens: Vec<u32>,
}

/// A call's sequences. Every running sequence comes before every waiting one, so that the oldest runs to its end whatever happens
/// to the others.
#[derive(Debug)]
pub(super) struct Schedule<'a> {
    pub s: &'a Stream,
    pub model: &'a Transformer,
    pub kv: &'a mut KvCache,
    pub run: DecodeRun,
    pub waiting: VecDeque<Sequence>,
    /// What was prefilled last, so that the next prompt may go on from it when nobody runs who has it.
    pub last: Option<Kept>,
    /// Prefixes of the prefill that is being made.
    held: Vec<PrefixId>,
}

impl<'a> Schedule<'a> {
    pub fn new(
        s: &'a Stream,
        model: &'a Transformer,
        kv: &'a mut KvCache,
        run: DecodeRun,
        waiting: VecDeque<Sequence>,
    ) -> Schedule<'a> {
        Schedule { s, model, kv, run, waiting, last: None, held: Vec::new() }
    }

    /// Draws everything; holds no page afterwards, whatever the outcome.
    pub fn run(mut self, requests: usize, watch: &mut Watch<'_>) -> Result<Vec<Finished>> {
        let outcome = self.draw(requests, watch);
        self.end();
        outcome
    }

    /// Gives every page back.
    pub fn end(mut self) {
        self.run.abandon(self.kv);
        self.kv.release_prefilled();
        self.forget_last();
        self.waiting.drain(..).for_each(|sequence| self.kv.release(sequence.path));
    }

    /// Prefills and starts what waits, as far as there is room.
    pub fn admit(&mut self) -> Result<()> {
        while let Some(wave) = wave::next(self)? {
            self.prefill(wave)?;
        }
        self.let_go();
        Ok(())
    }

    fn draw(&mut self, requests: usize, watch: &mut Watch<'_>) -> Result<Vec<Finished>> {
        let mut out: Vec<Finished> = vec![Finished::default(); requests];
        let mut done = Progress::default();
        while done.finished < requests {
            self.admit()?;
            self.make_room();
            self.model.decode(self.s, self.kv, &mut self.run, STEPS)?;
            let new = self.model.collect(self.s, &mut self.run)?;
            let tokens: usize = new.iter().map(|f| f.ids.len()).sum();
            done = Progress { finished: done.finished + new.len(), tokens: done.tokens + tokens };
            if watch(done, &new).is_break() {
                return Err(Error::Interrupted);
            }
            for finished in new {
                let id = finished.id;
                out[id] = finished;
            }
        }
        Ok(out)
    }

    /// Takes pages back until the next steps cannot run dry: first those of the kept prefix, then those of the newest sequences.
    /// A sequence that is alone and not even then has enough (it forked off others inside pages) waits too: it begins again with
    /// pages of its own, of which there are enough.
    pub fn make_room(&mut self) {
        if self.waiting.is_empty() {
            self.forget_last();
        }
        while self.run.wanted(self.kv, STEPS as usize) > self.kv.free_pages() {
            if !self.forget_last() {
                self.run.preempt(self.kv).into_iter().for_each(|newest| self.waiting.push_front(newest));
            }
        }
    }

    /// Computes a wave and starts its sequences.
    pub fn prefill(&mut self, wave: Wave) -> Result<()> {
        if !wave.batch.segments.is_empty() {
            self.model.prefill(self.s, self.kv, &wave.batch, self.run.adapter())?;
        }
        if let Some(mut sequence) = wave.part {
            sequence.path = self.kv.after(0)?;
            self.waiting.push_front(sequence);
        }
        for (mut sequence, from) in wave.members {
            sequence.path = match from {
                From::Nothing => Path::default(),
                From::Kept(id) => self.kv.go_on(id)?,
                From::Segment(segment) => self.kv.after(segment)?,
            };
            self.run.add(sequence);
        }
        self.kv.release_prefilled();
        self.let_go();
        if let Some(newest) = self.run.running.last() {
            let path = self.kv.share(&newest.path);
            let last = Kept { id: self.kv.keep_path(path), tokens: newest.before().to_vec() };
            self.forget_last();
            self.last = Some(last);
        }
        Ok(())
    }

    /// The longest beginning of a sequence that is in the pages, held until [`Schedule::let_go`].
    pub fn shared(&mut self, sequence: &Sequence) -> (From, usize) {
        let tokens = sequence.before();
        let last = self.last.iter().filter_map(|kept| Some((self.kv.kept(kept.id).ok()?, &*kept.tokens)));
        let running = self.run.running.iter().map(|q| (&q.path, q.before()));
        let shares = last.chain(running).map(|(path, known)| (path.sharable(wave::common(known, tokens)), path));
        match shares.max_by_key(|(len, _)| *len) {
            Some((len, path)) if len > 0 => {
                let prefix = path.prefix(len);
                let path = self.kv.share(&prefix);
                (From::Kept(self.hold(path)), len as usize)
            }
            _ => (From::Nothing, 0),
        }
    }

    /// Keeps a path until [`Schedule::let_go`].
    pub fn hold(&mut self, path: Path) -> PrefixId {
        let id = self.kv.keep_path(path);
        self.held.push(id);
        id
    }

    /// Gives up the prefixes that the last wave went on from.
    fn let_go(&mut self) {
        self.held.drain(..).for_each(|id| self.kv.forget(id));
    }

    /// Gives up the prefix of the last prefill; whether there was one.
    pub fn forget_last(&mut self) -> bool {
        self.let_go();
        self.last.take().map(|kept| self.kv.forget(kept.id)).is_some()
    }
}
