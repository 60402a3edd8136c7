//! Prefill and decode: running sequences over pages, one token a step.

use crate::batch::Batch;
use crate::forward::Context;
use crate::kv_cache::KvCache;
use crate::sequence::{Finished, Sequence};
use crate::transformer::{Adapter, Transformer};
use crate::{Error, Result, Tokenizer};
use kernels::{logprob, sample};
use runtime::Stream;

/// Settings of a run: the same for all its sequences.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// How ids are drawn.
    pub sampling: sample::Sampling,
    /// Ids after which a sequence is finished; the id itself is kept.
    pub stop: Vec<u32>,
    /// Texts that finish a sequence with the token that completes one; the token itself is kept.
    pub stop_strings: Vec<String>,
    /// Reads the answers for `stop_strings`.
    pub tokenizer: Option<Tokenizer>,
    /// Longest completion.
    pub max_new_tokens: usize,
    /// Of all random numbers.
    pub seed: u64,
}

/// Sequences that are being decoded.
#[derive(Debug)]
pub struct DecodeRun {
    settings: Settings,
    adapter: Adapter,
    pub(crate) running: Vec<Sequence>,
    finished: Vec<Finished>,
    /// Host rows of a step: tokens, positions, slots, draws, read-back.
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    draws: Vec<u32>,
    seen: Vec<u32>,
    out: (Vec<u32>, Vec<f32>, Vec<f32>),
}

impl DecodeRun {
    /// No sequences yet.
    pub fn new(settings: Settings, adapter: Adapter) -> Result<DecodeRun> {
        settings.validate()?;
        Ok(DecodeRun {
            settings,
            adapter,
            running: Vec::new(),
            finished: Vec::new(),
            tokens: Vec::new(),
            positions: Vec::new(),
            slots: Vec::new(),
            draws: Vec::new(),
            seen: Vec::new(),
            out: Default::default(),
        })
    }

    /// What it runs with.
    pub fn adapter(&self) -> Adapter {
        self.adapter
    }

    /// Sequences in it.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Adds a sequence whose path holds all its tokens but the last.
    pub(crate) fn add(&mut self, sequence: Sequence) {
        self.running.push(sequence);
    }

    /// Takes the newest sequence out and gives its pages back; what it has drawn stays with it.
    pub(crate) fn preempt(&mut self, kv: &mut KvCache) -> Option<Sequence> {
        let mut newest = self.running.pop()?;
        kv.release(std::mem::take(&mut newest.path));
        Some(newest)
    }

    /// Most pages that `steps` steps will take.
    pub(crate) fn wanted(&self, kv: &KvCache, steps: usize) -> usize {
        let left = |q: &Sequence| self.settings.max_new_tokens - q.drawn();
        self.running.iter().map(|q| kv.table.wanted(&q.path, steps.min(left(q)), true)).sum()
    }

    /// Gives up what is running and its pages: after an error of [`Transformer::decode`] there is no going on.
    pub fn abandon(&mut self, kv: &mut KvCache) {
        self.running.drain(..).for_each(|q| kv.release(q.path));
    }
}

impl Transformer {
    /// Computes keys and values of a batch's tokens into pages; [`KvCache::take_paths`] then gives each segment's path.
    pub fn prefill(&self, s: &Stream, kv: &mut KvCache, b: &Batch, ad: Adapter) -> Result<()> {
        self.check(s, b)?;
        kv.acts.upload(s, b)?;
        kv.admit(s, b)?;
        let outcome = self.body(s, &kv.acts, ad, &Context::Prefill { cache: kv, cached: b.cached() });
        if outcome.is_err() {
            kv.release_prefilled();
        }
        outcome
    }

    /// Decodes up to `steps` tokens of every running sequence.
    pub fn decode(&self, s: &Stream, kv: &mut KvCache, run: &mut DecodeRun, steps: u32) -> Result<()> {
        for _ in 0..steps {
            if run.running.is_empty() {
                break;
            }
            self.step(s, kv, run)?;
        }
        Ok(())
    }

    /// The sequences that have finished since the last call, in order of `id`.
    pub fn collect(&self, s: &Stream, run: &mut DecodeRun) -> Result<Vec<Finished>> {
        s.synchronize()?;
        let mut finished = std::mem::take(&mut run.finished);
        finished.sort_by_key(|f| f.id);
        Ok(finished)
    }

    fn step(&self, s: &Stream, kv: &mut KvCache, run: &mut DecodeRun) -> Result<()> {
        let n = run.running.len();
        self.upload_step(s, kv, run)?;
        self.body(s, &kv.acts, run.adapter, &Context::Decode { cache: kv })?;
        self.final_norm(s, &kv.acts)?;
        let logits = kv.logits(n)?;
        self.logits_of(s, logits, kv.acts.view(kv.acts.at.hidden, n * self.config.hidden_size)?)?;
        let [ids, logps, sampling_logps, draws] = kv.sampled(n)?;
        // The cap is the model's, whatever the settings say.
        let sampling = sample::Sampling { softcap: self.config.final_logit_softcapping, ..run.settings.sampling };
        sample::forward(s, ids, sampling_logps, logits, draws, kv.seen(n)?, &sampling)?;
        logprob::of_logits(s, logps, logits, ids, self.scaling(1.0))?;
        let out = &mut run.out;
        out.0.resize(n, 0);
        out.1.resize(n, 0.0);
        out.2.resize(n, 0.0);
        ids.read(s, &mut out.0)?;
        logps.read(s, &mut out.1)?;
        sampling_logps.read(s, &mut out.2)?;
        self.advance(kv, run)
    }

    fn upload_step(&self, s: &Stream, kv: &mut KvCache, run: &mut DecodeRun) -> Result<()> {
        let n = run.running.len();
        kv.acts.decode_rows(n);
        [&mut run.tokens, &mut run.positions, &mut run.slots, &mut run.draws].into_iter().for_each(Vec::clear);
        for q in &mut run.running {
            run.tokens.extend(q.tokens.last());
            run.positions.push(q.path.len);
            run.slots.push(kv.table.append(&mut q.path)?);
            let k = q.key;
            let draw = sample::draw(run.settings.seed, k.row, k.side, k.sample, q.drawn() as u32, k.iteration);
            run.draws.extend_from_slice(&[draw as u32, (draw >> 32) as u32]);
        }
        if let Some(i) = run.positions.iter().position(|&p| p as usize >= self.positions()) {
            return Err(Error::Batch(format!("sequence {i} is longer than {} positions", self.positions())));
        }
        self.reach(s, &run.positions)?;
        kv.upload_step(s, &run.slots, run.running.iter().map(|q| &q.path))?;
        kv.acts.view(kv.acts.at.tokens, n)?.write(s, &run.tokens)?;
        kv.acts.view(kv.acts.at.pos, n)?.write(s, &run.positions)?;
        kv.sampled(n)?[3].write(s, &run.draws)?;
        self.upload_seen(s, kv, run)
    }

    /// Marks prompt ids and counts completion ids, where penalties need them.
    fn upload_seen(&self, s: &Stream, kv: &KvCache, run: &mut DecodeRun) -> Result<()> {
        let v = self.config.vocab_size;
        let seen = kv.seen(run.running.len())?;
        if seen.is_empty() {
            return Ok(());
        }
        run.seen.clear();
        run.seen.resize(run.running.len() * v, 0);
        for (q, row) in run.running.iter().zip(run.seen.chunks_exact_mut(v)) {
            let (prompt, drawn) = q.tokens.split_at(q.prompt);
            prompt.iter().for_each(|&id| row[id as usize] |= sample::IN_PROMPT);
            drawn.iter().for_each(|&id| row[id as usize] += 1);
        }
        Ok(seen.write(s, &run.seen)?)
    }

    /// Takes the sampled ids in and moves finished sequences out.
    fn advance(&self, kv: &mut KvCache, run: &mut DecodeRun) -> Result<()> {
        let settings = &run.settings;
        for (i, q) in run.running.iter_mut().enumerate() {
            let id = run.out.0[i];
            q.tokens.push(id);
            q.done.logps.push(run.out.1[i]);
            q.done.sampling_logps.push(run.out.2[i]);
            q.done.stopped = settings.ends(id, &mut q.tail)?;
        }
        let finished = &mut run.finished;
        run.running.retain_mut(|q| {
            let ends = q.done.stopped || q.drawn() >= settings.max_new_tokens;
            if ends {
                kv.release(std::mem::take(&mut q.path));
                finished.push(q.finished());
            }
            !ends
        });
        Ok(())
    }
}
