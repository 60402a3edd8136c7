//! The transformer: base weights, adapter slots, and what forward and backward need of them.

use crate::acts::{self, Acts, Keep, Limits};
use crate::adapter::{self, Philox, fresh_score};
use crate::base::Base;
use crate::config::Config;
use crate::config::ModuleSpec;
use crate::grads::Tune;
use crate::lora::Lora;
use crate::products::Library;
use crate::rotary::Rotary;
use crate::storage::Trained;
use crate::weights::Checkpoint;
use crate::{Batch, Error, Result};
use kernels::{adamw, attention, linear, logprob};
use runtime::{Arena, Buffer, DType, Plan, Stream, View};
use std::ops::Range;
use std::path::Path;

/// Which adapter a pass runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adapter {
    /// The base alone.
    Off,
    /// A slot: policy, frozen reference, value, reward.
    Slot(u8),
}

/// The scalar head of a checkpoint, apart from it: `[C]`. That of an adapter lies in its slot.
#[derive(Debug)]
pub struct ScalarHead {
    /// The weights.
    pub weight: Buffer<f32>,
}

/// What a pass computes for its loss rows.
#[derive(Clone, Copy, Debug)]
pub enum Head<'a> {
    /// Log-probability of each row's target.
    LogProb {
        /// f32(1/T).
        inv_temperature: f32,
    },
    /// A scalar of each row, by these weights `[C]`: a [`ScalarHead`]'s, or those that are trained
    /// ([`Transformer::trained_head`]).
    Scalar(View<'a>),
}

/// A decoder-only transformer with adapter slots.
#[derive(Debug)]
pub struct Transformer {
    /// What config.json says.
    pub config: Config,
    pub(crate) base: Base,
    pub(crate) slots: Vec<Lora>,
    pub(crate) rotary: Rotary,
    /// Modules of a layer that share an input.
    pub(crate) groups: [Range<usize>; 4],
    /// Where the vendor's library multiplies.
    pub(crate) library: Option<Library>,
}

/// The storage that full tuning computes in: f32, or bf16 on a device.
fn tunable(s: &Stream, dtype: DType) -> DType {
    if s.host().is_none() && dtype == DType::Bf16 { DType::Bf16 } else { DType::F32 }
}

impl Transformer {
    /// Loads a Hugging Face folder. `dtype` None keeps the file's storage types.
    pub fn load(s: &Stream, folder: &Path, dtype: Option<DType>) -> Result<Transformer> {
        let config = Config::from_folder(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let base = Base::load(s, &config, &checkpoint, dtype, Trained::Nothing)?;
        Ok(Transformer::with(config, base))
    }

    /// The same for slots that hold adapters like this one, with its modules, ranks and scales: what a device that computes in bf16 has
    /// to know beforehand. In bf16 on a device, activations are bf16; everywhere else this is [`Transformer::load`].
    pub fn load_for(s: &Stream, folder: &Path, dtype: Option<DType>, like: &adapter::Adapter) -> Result<Transformer> {
        let config = Config::from_folder(folder)?;
        let base = Base::load(s, &config, &Checkpoint::open(folder)?, dtype, Trained::Adapter(like))?;
        Ok(Transformer::with(config, base))
    }

    /// The same for full tuning: f32 weights. On a device in bf16 they are the master of bf16 copies, which the rooms read beside bf16
    /// activations.
    pub fn load_full(s: &Stream, folder: &Path, dtype: DType) -> Result<Transformer> {
        let config = Config::from_folder(folder)?;
        let base = Base::load(s, &config, &Checkpoint::open(folder)?, Some(tunable(s, dtype)), Trained::Weights)?;
        Ok(Transformer::with(config, base))
    }

    /// The same with a scalar head in the place of the LM head; a fresh one (see [`crate::adapter::Adapter::with_score`]) where the folder
    /// has none.
    pub fn load_scalar(s: &Stream, folder: &Path, dtype: DType, seed: u64, philox: Philox) -> Result<Transformer> {
        let (mut config, checkpoint) = (Config::from_folder(folder)?, Checkpoint::open(folder)?);
        if config.scalar_head {
            return Transformer::load_full(s, folder, dtype);
        }
        checkpoint.check(&config.tensors())?;
        config.scalar_head = true;
        let score = fresh_score(config.hidden_size, seed, philox);
        let base = Base::headed(s, &config, &checkpoint, tunable(s, dtype), &score)?;
        Ok(Transformer::with(config, base))
    }

    /// Fresh weights, stored as those of [`Transformer::load_full`], for a folder that has a config.json and no weights.
    pub fn fresh(s: &Stream, folder: &Path, dtype: DType, seed: u64) -> Result<Transformer> {
        let config = Config::from_folder(folder)?;
        let base = Base::fresh(s, &config, tunable(s, dtype), seed)?;
        Ok(Transformer::with(config, base))
    }

    /// Weights of no checkpoint, for measuring speed: every matrix repeats these values from their beginning, norms are 1, biases 0.
    pub fn repeating(s: &Stream, config: Config, dtype: DType, like: &adapter::Adapter, values: &[f32]) -> Result<Transformer> {
        let base = Base::repeating(s, &config, dtype, like, values)?;
        Ok(Transformer::with(config, base))
    }

    fn with(config: Config, base: Base) -> Transformer {
        let (rotary, groups) = (Rotary::new(&config), config.groups());
        Transformer { config, base, slots: Vec::new(), rotary, groups, library: None }
    }

    /// The base weights.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The longest path: `max_position_embeddings`, at most 131072.
    pub fn positions(&self) -> usize {
        self.rotary.positions()
    }

    /// Every linear module that an adapter may tune, in layer and module order.
    pub fn modules(&self) -> Vec<ModuleSpec> {
        self.config.modules()
    }

    /// Storage of the activations: f32, or bf16 on a device whose base is bf16.
    pub fn stored(&self) -> DType {
        self.base.storage.acts
    }

    /// Sees to it that the base's strips, where there are any, hold this adapter.
    pub(crate) fn reside(&self, s: &Stream, adapter: Adapter) -> Result<()> {
        let Some(lora) = self.slot(adapter)?.filter(|lora| !lora.resident().get()) else { return Ok(()) };
        let Some(copies) = lora.copies(&self.base)? else { return Ok(()) };
        self.slots.iter().for_each(|slot| slot.resident().set(false));
        copies.write(s, lora.arena().flat())?;
        lora.resident().set(true);
        Ok(())
    }

    /// The copies that a step of the optimizer has to keep up; None where there are none.
    pub fn copies(&self, s: &Stream, tune: Tune) -> Result<Option<adamw::Copies<'_>>> {
        let Tune::Lora(slot) = tune else { return self.base.copies() };
        self.reside(s, Adapter::Slot(slot))?;
        self.slot(Adapter::Slot(slot))?.map_or(Ok(None), |lora| lora.copies(&self.base))
    }

    /// Adds an adapter slot.
    pub fn add_slot(&mut self, lora: Lora) -> Result<Adapter> {
        let index = u8::try_from(self.slots.len()).map_err(|_| Error::Batch("more than 256 adapter slots".into()))?;
        self.slots.push(lora);
        Ok(Adapter::Slot(index))
    }

    /// Puts another adapter in a slot; the one before is gone. Activations are planned for the ranks of the slots: those planned
    /// before are planned anew if the new ranks are larger.
    pub fn replace_slot(&mut self, adapter: Adapter, lora: Lora) -> Result<()> {
        let count = self.slots.len();
        let slot = if let Adapter::Slot(i) = adapter { self.slots.get_mut(i as usize) } else { None };
        *slot.ok_or_else(|| Error::Batch(format!("replace_slot: wanted one of {count} adapter slots, got {adapter:?}")))? = lora;
        Ok(())
    }

    /// The adapter of a slot.
    pub fn slot(&self, adapter: Adapter) -> Result<Option<&Lora>> {
        let Adapter::Slot(i) = adapter else { return Ok(None) };
        self.slots.get(i as usize).map(Some).ok_or_else(|| Error::Batch(format!("adapter slot {i} of {}", self.slots.len())))
    }

    /// The head of a sequence-classification checkpoint.
    pub fn scalar_head(&self, s: &Stream) -> Result<ScalarHead> {
        let region = self.base.score.ok_or_else(|| Error::Batch("the checkpoint has no score.weight".into()))?;
        let weight = s.zeros(self.config.hidden_size)?;
        weight.view().copy(s, self.base.arena().view(region)?)?;
        Ok(ScalarHead { weight })
    }

    /// Bytes of activations for these limits: what [`Transformer::acts`] takes.
    pub fn plan(&self, limits: Limits, keep: Keep) -> usize {
        let mut plan = Plan::default();
        self.regions(&mut plan, limits, keep);
        plan.bytes()
    }

    /// The most columns of S that a module group has over layers and slots.
    pub(crate) fn group_columns(&self) -> [usize; 4] {
        let mut most = [0; 4];
        for slot in &self.slots {
            let of = acts::group_columns(&self.config, |layer, module| self.base.storage.columns(slot.rank(layer, module)));
            most = std::array::from_fn(|g| most[g].max(of[g]));
        }
        most
    }

    fn regions(&self, plan: &mut Plan, limits: Limits, keep: Keep) -> acts::Regions {
        acts::plan(
            plan,
            &self.config,
            acts::Stored { dtype: self.stored(), room: self.room() },
            &self.group_columns(),
            &limits,
            keep,
        )
    }

    /// Activations for these limits, laid over `overlay` (or over an arena of their own).
    pub fn acts(&self, s: &Stream, limits: Limits, keep: Keep, overlay: Option<Arena>) -> Result<Acts> {
        let mut plan = Plan::default();
        let regions = self.regions(&mut plan, limits, keep);
        let overlay = match overlay {
            Some(overlay) if overlay.bytes() >= plan.bytes() => overlay,
            Some(overlay) => {
                return Err(Error::Batch(format!("overlay of {} bytes, the plan needs {}", overlay.bytes(), plan.bytes())));
            }
            None => Arena::new(s, plan.bytes())?,
        };
        Ok(Acts::on(overlay, regions, limits))
    }

    pub(crate) fn heads(&self) -> attention::Heads {
        let c = &self.config;
        attention::Heads { h: c.num_attention_heads, k: c.num_key_value_heads, d: c.head_dim }
    }

    pub(crate) fn attention(&self, layer: usize) -> attention::Params {
        let c = &self.config;
        let scale = 1.0 / (c.query_pre_attn_scalar as f32).sqrt();
        attention::Params { scale, softcap: c.attn_logit_softcapping, window: c.windows[layer], causal: true }
    }

    /// What happens to a logit before the softmax.
    pub(crate) fn scaling(&self, inv_temperature: f32) -> logprob::Scaling {
        logprob::Scaling { softcap: self.config.final_logit_softcapping, inv_temperature }
    }

    /// The rotary table of a layer; None if its heads do not turn.
    pub(crate) fn turn(&self, layer: usize) -> Option<View<'_>> {
        self.rotary.view(self.config.windows[layer] > 0)
    }

    /// Width of a row of q, k and v.
    pub(crate) fn qkv_width(&self) -> usize {
        let h = self.heads();
        (h.h + 2 * h.k) * h.d
    }

    /// The operands of one module.
    fn part<'a>(&'a self, layer: usize, module: usize, lora: Option<&'a Lora>) -> Result<linear::Part<'a>> {
        let m = &self.base.layers[layer].modules[module];
        let bias = m.bias.map(|b| self.base.arena().view(b)).transpose()?;
        let weight = lora.and_then(|l| l.weight(layer, module)).unwrap_or_else(|| self.base.weight(m))?;
        let lora = lora.map_or(Ok(None), |l| l.of(layer, module))?;
        Ok(linear::Part { weight, bias, lora })
    }

    /// Calls `run` with the operands of a module group.
    pub(crate) fn group<R>(
        &self,
        layer: usize,
        group: usize,
        adapter: Adapter,
        run: impl FnOnce(&[linear::Part<'_>]) -> Result<R>,
    ) -> Result<R> {
        let lora = self.slot(adapter)?;
        let part = |module: usize| self.part(layer, module, lora);
        let Range { start: first, end } = self.groups[group];
        match end - first {
            3 => run(&[part(first)?, part(first + 1)?, part(first + 2)?]),
            2 => run(&[part(first)?, part(first + 1)?]),
            _ => run(&[part(first)?]),
        }
    }

    /// Columns of S of a group: ΣR, in bf16 those of its strips.
    pub(crate) fn columns(&self, layer: usize, group: usize, adapter: Adapter) -> Result<usize> {
        let (lora, storage) = (self.slot(adapter)?, &self.base.storage);
        Ok(lora.map_or(0, |l| self.groups[group].clone().map(|m| storage.columns(l.rank(layer, m))).sum()))
    }

    /// Lengths that belong together, ids, positions and loss rows within bounds, and positions those of their segments; then
    /// there is a table for them.
    pub(crate) fn check(&self, s: &Stream, b: &Batch) -> Result<()> {
        if b.pos.len() != b.tokens() || b.targets.len() != b.loss_rows() || b.trees.len() != b.examples.len() {
            return Err(Error::Batch("tokens and pos, rows and targets, trees and examples must have equal lengths".into()));
        }
        let (v, n) = (self.config.vocab_size as u32, b.tokens() as u32);
        let wrong =
            |what: &str, i: usize, got: u32, most: u32| Err(Error::Batch(format!("{what} {i} is {got}, must be below {most}")));
        for (what, values, most) in [
            ("token", &b.tokens, v),
            ("target", &b.targets, v),
            ("loss row", &b.rows, n),
            ("position", &b.pos, self.positions() as u32),
        ] {
            if let Some(i) = values.iter().position(|&x| x >= most) {
                return wrong(what, i, values[i], most);
            }
        }
        for (i, segment) in b.segments.iter().enumerate() {
            let rows = b.pos.get(segment.start as usize..).and_then(|pos| pos.get(..segment.len as usize));
            let counts = |pos: &[u32]| pos.iter().zip(u64::from(segment.pos0)..).all(|(&pos, wanted)| u64::from(pos) == wanted);
            if !rows.is_some_and(counts) {
                let pos0 = segment.pos0;
                return Err(Error::Batch(format!("segment {i}: the positions of its rows must count on from its pos0 {pos0}")));
            }
        }
        self.reach(s, &b.pos)
    }

    /// Rotary tables for these positions.
    pub(crate) fn reach(&self, s: &Stream, positions: &[u32]) -> Result<()> {
        self.rotary.reach(s, positions.iter().max().map_or(0, |&last| last as usize + 1))
    }
}
