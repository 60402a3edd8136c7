//! What is prefilled together: the next waiting sequences, each from where another already has its tokens in the pages.

use super::schedule::Schedule;
use crate::Result;
use crate::batch::{Batch, Parent, PrefixId};
use crate::sequence::Sequence;
use kernels::kv_store::PAGE;

/// Tokens in common with a prompt of the same wave that are worth a wave of their own: computing so many costs about as much as one
/// more pass over the weights.
const WORTH: usize = PAGE;

/// Where a sequence's keys and values are when its wave has been computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// A prompt of one token needs none.
    Nothing,
    /// All of them were there.
    Kept(PrefixId),
    /// At the end of a segment of the wave.
    Segment(u32),
}

/// The next sequences to run, and what has to be computed for them.
#[derive(Debug, Default)]
pub(super) struct Wave {
    pub batch: Batch,
    pub members: Vec<(Sequence, From)>,
    /// A sequence that is longer than a prefill: segment 0 is its next part.
    pub part: Option<Sequence>,
    /// Pages it takes.
    pages: usize,
}

/// Tokens at the beginning of both.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The next wave; None if nobody waits or nobody fits.
pub(super) fn next(x: &mut Schedule<'_>) -> Result<Option<Wave>> {
    let mut wave = Wave::default();
    while wave.part.is_none() && x.run.running() + wave.members.len() < x.kv.limits().batch {
        let Some(sequence) = x.waiting.pop_front() else { break };
        if let Some(declined) = wave.take(x, sequence)? {
            x.waiting.push_front(declined);
            break;
        }
    }
    Ok((wave.part.is_some() || !wave.members.is_empty()).then_some(wave))
}

impl Wave {
    /// Takes a sequence in, or gives it back if it does not fit or does better in the next wave.
    fn take(&mut self, x: &mut Schedule<'_>, mut sequence: Sequence) -> Result<Option<Sequence>> {
        if sequence.path.len > 0 {
            // There was room for all of it when its first part was taken.
            let path = std::mem::take(&mut sequence.path);
            let len = path.len as usize;
            let id = x.hold(path);
            self.accept(x, sequence, From::Kept(id), len);
            return Ok(None);
        }
        let target = sequence.before().len();
        let (overlap, twin) = self.overlap(&sequence);
        let (from, len) = match twin {
            Some(from) => (from, target),
            None => x.shared(&sequence),
        };
        let beside = x.run.running() + self.members.len();
        let tokens = self.batch.tokens() + (target - len);
        let pages = match from {
            From::Kept(id) => x.kv.table.wanted(x.kv.kept(id)?, target - len, beside > 0),
            _ => (target - len).div_ceil(PAGE),
        };
        // Whoever runs will soon want a page more.
        let spare = if beside > 0 { beside + 1 } else { 0 };
        let room = self.pages + pages + spare <= x.kv.free_pages();
        if !room && beside == 0 && x.forget_last() {
            return self.take(x, sequence);
        }
        let longer = tokens > x.kv.limits().prefill_tokens && !self.members.is_empty();
        if (!room && beside > 0) || longer || (twin.is_none() && overlap > len + WORTH) {
            return Ok(Some(sequence));
        }
        self.pages += pages;
        self.accept(x, sequence, from, len);
        Ok(None)
    }

    /// Most tokens in common with a member, and the member that has all of them and no more.
    fn overlap(&self, sequence: &Sequence) -> (usize, Option<From>) {
        let tokens = sequence.before();
        let most = self.members.iter().map(|(other, _)| common(other.before(), tokens)).max().unwrap_or(0);
        let twin = self.members.iter().find(|(other, _)| other.before() == tokens).map(|(_, from)| *from);
        (most, twin)
    }

    /// Adds what a sequence lacks behind its first `len` tokens.
    fn accept(&mut self, x: &Schedule<'_>, sequence: Sequence, from: From, len: usize) {
        let (lacks, most) = (&sequence.before()[len..], x.kv.limits().prefill_tokens);
        let parent = if let From::Kept(id) = from { Parent::Cached(id) } else { Parent::Root };
        if lacks.len() > most {
            self.batch.segment(&lacks[..most], parent, len as u32);
            self.part = Some(sequence);
        } else if lacks.is_empty() {
            self.members.push((sequence, from));
        } else {
            let segment = self.batch.segment(lacks, parent, len as u32);
            self.members.push((sequence, From::Segment(segment)));
        }
    }
}
