//! Keys and values of running sequences in pages of 64 positions; a page is a block of attention.

use crate::acts::{self, Acts, Keep, Limits};
use crate::batch::{Batch, Parent, PrefixId};
use crate::transformer::Transformer;
use crate::{Error, Result};
use kernels::kv_store::{PAGE, Pages};
use pages::{MOST_PIECES, PageTable};
use runtime::{Arena, DType, Plan, Region, Stream, View};

mod pages;
pub use pages::{Path, Piece};

/// How much decoding is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Pages of 64 positions.
    pub pages: usize,
    /// Tokens of one prefill; longer prompts are prefilled in parts.
    pub prefill_tokens: usize,
    /// B: sequences that run at once.
    pub batch: usize,
    /// Longest path in positions.
    pub positions: usize,
}

/// Device regions beside the activations.
#[derive(Debug)]
struct Regions {
    /// `[L]` of `[P, K, D, 64]`
    keys: Vec<Region>,
    /// `[L]` of `[P, K, 64, D]`
    values: Vec<Region>,
    slots: Region,
    pieces: Region,
    first: Region,
    logits: Region,
    ids: Region,
    logps: Region,
    sampling_logps: Region,
    draws: Region,
    seen: Region,
}

/// Pages, and the activations that prefill and decode share.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) acts: Acts,
    at: Regions,
    limits: CacheLimits,
    pub(crate) table: PageTable,
    /// Path of each segment of the last prefill.
    prefilled: Vec<Path>,
    /// By [`PrefixId`].
    prefixes: Vec<Option<Path>>,
    /// Paths and pieces that were uploaded last.
    uploaded: (usize, usize),
    /// Host side of `slots` or `pieces`, and of `first`.
    staging: Vec<u32>,
    first: Vec<u32>,
    heads: (usize, usize),
    vocabulary: usize,
}

fn plan(p: &mut Plan, model: &Transformer, limits: &CacheLimits, seen: bool) -> Regions {
    let c = &model.config;
    let (page, rows, v) = (c.num_key_value_heads * c.head_dim * PAGE, limits.batch, c.vocab_size);
    let mut pages = || (0..c.num_hidden_layers).map(|_| p.region(limits.pages * page, DType::F32)).collect::<Vec<_>>();
    let (keys, values) = (pages(), pages());
    Regions {
        keys,
        values,
        slots: p.region(limits.prefill_tokens.max(rows), DType::U32),
        // Paths of a batch's trees that fork more often inside a page may take more pieces, which `upload_paths` refuses if all
        // together do not fit.
        pieces: p.region(4 * MOST_PIECES * rows * limits.positions.div_ceil(PAGE), DType::U32),
        first: p.region(rows + 1, DType::U32),
        logits: p.region(rows * v, DType::F32),
        ids: p.region(rows, DType::U32),
        logps: p.region(rows, DType::F32),
        sampling_logps: p.region(rows, DType::F32),
        draws: p.region(2 * rows, DType::U32),
        seen: p.region(if seen { rows * v } else { 0 }, DType::U32),
    }
}

impl Transformer {
    /// Bytes that [`KvCache::new`] takes.
    pub fn cache_plan(&self, limits: CacheLimits, seen: bool) -> usize {
        let mut p = Plan::default();
        plan(&mut p, self, &limits, seen);
        p.bytes() + Transformer::plan(self, act_limits(&limits), Keep::Nothing)
    }
}

fn act_limits(limits: &CacheLimits) -> Limits {
    let tokens = limits.prefill_tokens.max(limits.batch);
    Limits { tokens, loss_rows: 0, segments: tokens, examples: 0 }
}

impl KvCache {
    /// Plans pages and activations into `overlay` (or an arena of their own). `seen` reserves what penalties need.
    pub fn new(s: &Stream, model: &Transformer, limits: CacheLimits, seen: bool, overlay: Option<Arena>) -> Result<KvCache> {
        if model.stored() != DType::F32 {
            let text =
                format!("decoding wants f32 activations (dtype float32) on {}, got {}", s.backend().name(), model.stored());
            return Err(Error::Batch(text));
        }
        let mut p = Plan::default();
        let at = plan(&mut p, model, &limits, seen);
        let regions = acts::plan(
            &mut p,
            &model.config,
            acts::Stored { dtype: DType::F32, room: 0 },
            &model.group_columns(),
            &act_limits(&limits),
            Keep::Nothing,
        );
        let overlay = match overlay {
            Some(overlay) if overlay.bytes() >= p.bytes() => overlay,
            Some(overlay) => {
                return Err(Error::Batch(format!("overlay of {} bytes, the cache needs {}", overlay.bytes(), p.bytes())));
            }
            None => Arena::new(s, p.bytes())?,
        };
        Ok(KvCache {
            acts: Acts::on(overlay, regions, act_limits(&limits)),
            at,
            limits,
            table: PageTable::new(limits.pages),
            prefilled: Vec::new(),
            prefixes: Vec::new(),
            uploaded: (0, 0),
            staging: Vec::new(),
            first: Vec::new(),
            heads: (model.config.num_key_value_heads, model.config.head_dim),
            vocabulary: model.config.vocab_size,
        })
    }

    /// What was planned.
    pub fn limits(&self) -> CacheLimits {
        self.limits
    }

    /// Pages that nobody holds.
    pub fn free_pages(&self) -> usize {
        self.table.free()
    }

    /// The arena, for the next phase's plan.
    pub fn into_overlay(self) -> Arena {
        self.acts.into_overlay()
    }

    /// The paths of the last prefill's segments; the caller holds their pages from now on.
    pub fn take_paths(&mut self) -> Vec<Path> {
        std::mem::take(&mut self.prefilled)
    }

    /// Keeps the prefix that ends with a segment of the last prefill, until [`KvCache::forget`].
    pub fn keep(&mut self, segment: u32) -> Result<PrefixId> {
        let path = self.after(segment)?;
        Ok(self.keep_path(path))
    }

    /// A path that goes on where a segment of the last prefill ends.
    pub(crate) fn after(&mut self, segment: u32) -> Result<Path> {
        let count = self.prefilled.len();
        let path = self.prefilled.get(segment as usize);
        let path = path.ok_or_else(|| Error::Batch(format!("segment {segment} of a prefill of {count}")))?;
        Ok(self.table.share(path))
    }

    /// A path that goes on where a kept prefix ends.
    pub(crate) fn go_on(&mut self, id: PrefixId) -> Result<Path> {
        let path = self.kept(id)?.clone();
        Ok(self.share(&path))
    }

    /// Keeps a path that the caller held.
    pub(crate) fn keep_path(&mut self, path: Path) -> PrefixId {
        let place = self.prefixes.iter().position(Option::is_none).unwrap_or(self.prefixes.len());
        self.prefixes.resize(self.prefixes.len().max(place + 1), None);
        self.prefixes[place] = Some(path);
        PrefixId(place as u32)
    }

    /// The path of a prefix that is kept.
    pub(crate) fn kept(&self, id: PrefixId) -> Result<&Path> {
        let path = self.prefixes.get(id.0 as usize).and_then(Option::as_ref);
        path.ok_or_else(|| Error::Batch(format!("prefix {} is not in the cache", id.0)))
    }

    /// Gives a prefix's pages back, as far as no path goes on from them.
    pub fn forget(&mut self, id: PrefixId) {
        if let Some(path) = self.prefixes.get_mut(id.0 as usize).and_then(Option::take) {
            self.table.release(path);
        }
    }

    /// Another holder of the same pages.
    pub fn share(&mut self, path: &Path) -> Path {
        self.table.share(path)
    }

    /// Gives a path's pages back.
    pub fn release(&mut self, path: Path) {
        self.table.release(path);
    }

    /// Pages for every token of a batch; leaves the slots on the device and the paths in `prefilled`.
    pub(crate) fn admit(&mut self, s: &Stream, b: &Batch) -> Result<()> {
        let mut slots = std::mem::take(&mut self.staging);
        slots.clear();
        self.release_prefilled();
        let mut paths = Vec::with_capacity(b.segments.len());
        let outcome = self.extend(b, &mut paths, &mut slots);
        let outcome = outcome.and_then(|()| Ok(self.acts.view(self.at.slots, slots.len())?.write(s, &slots)?));
        self.staging = slots;
        let outcome = outcome.and_then(|()| if b.cached() { self.upload_paths(s, paths.iter()) } else { Ok(()) });
        self.prefilled = paths;
        if outcome.is_err() {
            self.release_prefilled();
        }
        outcome
    }

    /// Gives back the pages of the last prefill, unless its paths were taken.
    pub(crate) fn release_prefilled(&mut self) {
        std::mem::take(&mut self.prefilled).into_iter().for_each(|path| self.release(path));
    }

    /// A path for every segment and a slot for every token. What is held stands in `paths` at every moment, also on an error.
    fn extend(&mut self, b: &Batch, paths: &mut Vec<Path>, slots: &mut Vec<u32>) -> Result<()> {
        for segment in &b.segments {
            let path = match segment.parent {
                Parent::Root => Path::default(),
                Parent::Segment(parent) => {
                    let parent =
                        paths.get(parent as usize).ok_or_else(|| Error::Batch("a parent must come before its child".into()))?;
                    self.share(parent)
                }
                Parent::Cached(id) => self.go_on(id)?,
            };
            let len = path.len;
            paths.push(path);
            if len != segment.pos0 {
                return Err(Error::Batch(format!("segment at position {} after a path of {len}", segment.pos0)));
            }
            let Some(path) = paths.last_mut() else { continue };
            for _ in 0..segment.len {
                slots.push(self.table.append(path)?);
            }
        }
        Ok(())
    }

    /// Uploads the rows of one decode step: their slots, and the pieces of their paths.
    pub(crate) fn upload_step<'p>(&mut self, s: &Stream, slots: &[u32], paths: impl Iterator<Item = &'p Path>) -> Result<()> {
        self.acts.view(self.at.slots, slots.len())?.write(s, slots)?;
        self.upload_paths(s, paths)
    }

    /// Uploads the pieces of the paths that rows or segments read.
    fn upload_paths<'p>(&mut self, s: &Stream, paths: impl Iterator<Item = &'p Path>) -> Result<()> {
        let (most, rows) = (self.at.pieces.len() / 4, self.at.first.len() - 1);
        let (mut pieces, mut first) = (std::mem::take(&mut self.staging), std::mem::take(&mut self.first));
        pieces.clear();
        first.clear();
        first.push(0u32);
        for path in paths {
            pieces.extend(path.pieces.iter().flat_map(|p| [p.page, p.block, p.from, p.to]));
            first.push(pieces.len() as u32 / 4);
        }
        let (got, count) = (pieces.len() / 4, first.len() - 1);
        if got > most || count > rows {
            return Err(Error::Batch(format!("{count} paths in {got} pieces, planned for {rows} in {most}")));
        }
        self.acts.view(self.at.pieces, pieces.len())?.write(s, &pieces)?;
        self.acts.view(self.at.first, first.len())?.write(s, &first)?;
        self.uploaded = (count, got);
        (self.staging, self.first) = (pieces, first);
        Ok(())
    }

    pub(crate) fn layer(&self, layer: usize) -> Result<Pages<'_>> {
        let len = self.limits.pages * self.heads.0 * self.heads.1 * PAGE;
        Ok(Pages { k: self.acts.view(self.at.keys[layer], len)?, v: self.acts.view(self.at.values[layer], len)? })
    }

    pub(crate) fn slots(&self, n: usize) -> Result<View<'_>> {
        self.acts.view(self.at.slots, n)
    }

    /// The pieces that were uploaded last, and where each path's begin.
    pub(crate) fn pieces(&self) -> Result<(View<'_>, View<'_>)> {
        let (paths, pieces) = self.uploaded;
        Ok((self.acts.view(self.at.pieces, 4 * pieces)?, self.acts.view(self.at.first, paths + 1)?))
    }

    pub(crate) fn logits(&self, n: usize) -> Result<View<'_>> {
        self.acts.view(self.at.logits, n * self.vocabulary)
    }

    /// Sampled ids, log-probabilities, sampling log-probabilities, draws.
    pub(crate) fn sampled(&self, n: usize) -> Result<[View<'_>; 4]> {
        let a = &self.acts;
        Ok([
            a.view(self.at.ids, n)?,
            a.view(self.at.logps, n)?,
            a.view(self.at.sampling_logps, n)?,
            a.view(self.at.draws, 2 * n)?,
        ])
    }

    /// What penalties count: `[n, V]`, or empty.
    pub(crate) fn seen(&self, n: usize) -> Result<View<'_>> {
        self.acts.view(self.at.seen, if self.at.seen.is_empty() { 0 } else { n * self.vocabulary })
    }
}

#[cfg(test)]
mod tests;
