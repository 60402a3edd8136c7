//! An adapter on the device: the A and B of every tuned module, side by side in one arena, and its scalar head if it has one.
//!
//! DoRA is for reading only: a module's slot holds g ⊙ W in f32 (4·O·I bytes) and g ⊙ B, so the rooms compute g ⊙ (W x + scale·B A x) + b
//! as they compute everything else.

use crate::adapter::{Adapter, AdapterModule};
use crate::base::Base;
use crate::{Error, Result};
use kernels::adamw::{self, Side, Target};
use kernels::linear;
use kernels::weight::{self, Layout, Weight};
use runtime::{Arena, DType, Plan, Region, Stream, View};
use std::cell::Cell;

/// One tuned module.
#[derive(Clone, Copy, Debug)]
struct Module {
    /// `[R, I]`
    a: Region,
    /// `[O, R]`
    b: Region,
    rank: usize,
    scale: f32,
    /// DoRA: g ⊙ W `[O, I]` in the place of the base's matrix.
    weight: Option<(Region, usize, usize)>,
}

/// One tensor of the arena, for names on disk and for the gradient norm.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// PEFT's name without the `base_model.model.` prefix, or the base's own name.
    pub name: String,
    /// Where it lies.
    pub region: Region,
    /// Rows and columns.
    pub shape: [usize; 2],
}

/// An adapter slot: what [`crate::Adapter`] names.
#[derive(Debug)]
pub struct Lora {
    arena: Arena,
    /// `[L][module]`
    modules: Vec<Vec<Option<Module>>>,
    /// `[C]` the scalar head, where the adapter has one.
    score: Option<Region>,
    tensors: Vec<Tensor>,
    form: Layout,
    source: Adapter,
    /// Where its copies go in a base that holds strips.
    copies: Option<adamw::Table>,
    /// Whether those strips hold its numbers as they stand.
    resident: Cell<bool>,
}

impl Lora {
    /// Bytes on the device.
    pub(crate) fn bytes(&self) -> usize {
        self.arena.bytes() + self.copies.as_ref().map_or(0, adamw::Table::bytes)
    }

    /// Uploads an adapter for this base.
    pub fn upload(s: &Stream, base: &Base, adapter: Adapter) -> Result<Lora> {
        let (mut plan, form) = (Plan::default(), Layout::of(s, &[]));
        let mut modules = vec![vec![None; base.modules()]; base.layers()];
        let mut tensors = Vec::new();
        for m in &adapter.modules {
            let (layer, module) =
                base.locate(&m.path).ok_or_else(|| Error::Batch(format!("adapter module {} is not in the model", m.path)))?;
            let (o, i) = base.size(layer, module);
            let region = |plan: &mut Plan, tensors: &mut Vec<Tensor>, side: char, shape: [usize; 2]| {
                let region = plan.region(shape[0] * shape[1], DType::F32);
                tensors.push(Tensor { name: format!("{}.lora_{side}.weight", m.path), region, shape });
                region
            };
            let a = region(&mut plan, &mut tensors, 'A', [m.r, i]);
            let b = region(&mut plan, &mut tensors, 'B', [o, m.r]);
            let weight = m.magnitude.as_ref().map(|_| (plan.region(form.len(&[o], i), DType::F32), o, i));
            modules[layer][module] = Some(Module { a, b, rank: m.r, scale: m.scale, weight });
        }
        let score = adapter.score.as_ref().map(|score| {
            let (region, shape) = (plan.region(score.len(), DType::F32), [1, score.len()]);
            tensors.push(Tensor { name: "score.weight".into(), region, shape });
            region
        });
        let arena = Arena::new(s, plan.bytes())?;
        let copies = copies(s, base, &adapter, &modules)?;
        let lora = Lora { arena, modules, score, tensors, form, source: adapter, copies, resident: Cell::new(false) };
        lora.write(s, &lora.source)?;
        lora.source.modules.iter().try_for_each(|m| lora.lengthen(s, base, m))?;
        Ok(lora)
    }

    /// Writes g ⊙ W and g ⊙ B of a DoRA module.
    fn lengthen(&self, s: &Stream, base: &Base, m: &AdapterModule) -> Result<()> {
        let Some((layer, module)) = base.locate(&m.path).filter(|_| m.magnitude.is_some()) else { return Ok(()) };
        let mut w = weight::read(s, base.weight(&base.layers[layer].modules[module])?)?;
        let (Some(gain), Some(own)) = (m.gain(&w)?, &self.modules[layer][module]) else { return Ok(()) };
        let times = |values: &mut [f32], width: usize| {
            values.chunks_exact_mut(width).zip(&gain).for_each(|(row, g)| row.iter_mut().for_each(|v| *v *= g));
        };
        times(&mut w, m.in_features);
        let mut b = m.b.clone();
        times(&mut b, m.r);
        self.arena.view(own.b)?.write(s, &b)?;
        match &own.weight {
            Some(own) => Ok(weight::load(s, self.matrix(own)?, bytemuck::cast_slice(&w))?),
            None => Ok(()),
        }
    }

    fn matrix(&self, (region, n, k): &(Region, usize, usize)) -> Result<Weight<'_>> {
        Ok(self.form.weight(self.arena.view(*region)?, &[*n], *k, 0)?)
    }

    /// The matrix that stands in the place of the base's, if there is one.
    pub(crate) fn weight(&self, layer: usize, module: usize) -> Option<Result<Weight<'_>>> {
        self.modules[layer][module].as_ref()?.weight.as_ref().map(|m| self.matrix(m))
    }

    /// Whether it can be run but not trained.
    pub fn is_dora(&self) -> bool {
        self.source.is_dora()
    }

    /// Takes the numbers of another adapter on the same modules with the same ranks and scales, in place.
    pub fn reload(&self, s: &Stream, adapter: &Adapter) -> Result<()> {
        let shape = |m: &AdapterModule| (m.path.clone(), m.r, m.scale.to_bits());
        let [wanted, got] = [&self.source, adapter].map(|a| a.modules.iter().map(shape).collect::<Vec<_>>());
        if wanted != got {
            let at = wanted.iter().zip(&got).position(|(w, g)| w != g).unwrap_or(wanted.len().min(got.len()));
            let said = |list: &[(String, usize, u32)]| match list.get(at) {
                Some((path, r, scale)) => format!("{path} of rank {r} and scale {}", f32::from_bits(*scale)),
                None => "no module".into(),
            };
            return Err(Error::Batch(format!("adapter module {at}: wanted {}, got {}", said(&wanted), said(&got))));
        }
        if self.is_dora() || adapter.is_dora() {
            return Err(Error::Batch("a DoRA adapter is read once, with its base, and not reloaded".into()));
        }
        let [wanted, got] = [&self.source, adapter].map(|a| a.score.as_ref().map(Vec::len));
        if wanted != got {
            return Err(Error::Batch(format!("adapter's scalar head: wanted columns {wanted:?}, got {got:?}")));
        }
        self.write(s, adapter)
    }

    fn write(&self, s: &Stream, adapter: &Adapter) -> Result<()> {
        self.resident.set(false);
        for (m, pair) in adapter.modules.iter().zip(self.tensors.chunks_exact(2)) {
            self.arena.view(pair[0].region)?.write(s, &m.a)?;
            self.arena.view(pair[1].region)?.write(s, &m.b)?;
        }
        if let (Some(region), Some(score)) = (self.score, &adapter.score) {
            self.arena.view(region)?.write(s, score)?;
        }
        Ok(())
    }

    /// Its copies in the base's strips; None where the base has none.
    pub(crate) fn copies<'a>(&'a self, base: &'a Base) -> Result<Option<adamw::Copies<'a>>> {
        Ok(self.copies.as_ref().map(|table| table.over(base.arena().flat())).transpose()?)
    }

    /// Whether the strips hold it, and what to say when that changes.
    pub(crate) fn resident(&self) -> &Cell<bool> {
        &self.resident
    }

    /// The adapter as it stands now, for saving.
    pub fn download(&self, s: &Stream) -> Result<Adapter> {
        let mut adapter = self.source.clone();
        if self.is_dora() {
            return Ok(adapter);
        }
        for (m, pair) in adapter.modules.iter_mut().zip(self.tensors.chunks_exact(2)) {
            self.arena.view(pair[0].region)?.read(s, &mut m.a)?;
            self.arena.view(pair[1].region)?.read(s, &mut m.b)?;
        }
        if let (Some(region), Some(score)) = (self.score, &mut adapter.score) {
            self.arena.view(region)?.read(s, score)?;
        }
        Ok(adapter)
    }

    /// All parameters.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Every tensor, in arena order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Trainable parameters.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(|t| t.region.len()).sum()
    }

    /// `[C]` the scalar head, if there is one.
    pub fn score(&self) -> Option<Result<View<'_>>> {
        self.score.map(|region| Ok(self.arena.view(region)?))
    }

    /// Where it lies, also in a gradient arena of the same layout.
    pub(crate) fn score_region(&self) -> Option<Region> {
        self.score
    }

    /// Rank of a module; 0 if it is not tuned.
    pub fn rank(&self, layer: usize, module: usize) -> usize {
        self.modules[layer][module].map_or(0, |m| m.rank)
    }

    /// The module's operands.
    pub fn of(&self, layer: usize, module: usize) -> Result<Option<linear::Lora<'_>>> {
        let Some(m) = self.modules[layer][module] else { return Ok(None) };
        Ok(Some(linear::Lora { rank: m.rank, scale: m.scale, a: self.arena.view(m.a)?, b: self.arena.view(m.b)? }))
    }

    /// Where the module's A and B lie, also in a gradient arena of the same layout.
    pub fn regions(&self, layer: usize, module: usize) -> Option<(Region, Region)> {
        self.modules[layer][module].map(|m| (m.a, m.b))
    }
}

/// Where the copies of an adapter go in this base. An adapter that the base's strips were not left for is an error.
fn copies(s: &Stream, base: &Base, adapter: &Adapter, modules: &[Vec<Option<Module>>]) -> Result<Option<adamw::Table>> {
    let storage = &base.storage;
    if storage.acts == DType::F32 {
        return Ok(None);
    }
    if adapter.is_dora() {
        return Err(Error::Batch("DoRA adapters run beside f32 activations: load the base with dtype float32".into()));
    }
    let mut targets = Vec::new();
    for (layer, row) in modules.iter().enumerate() {
        for (module, own) in row.iter().enumerate() {
            let (wanted, got) = (storage.ranks[layer][module], own.map_or(0, |m| m.rank));
            if wanted != got {
                let text =
                    format!("layer {layer} module {module}: the base was laid out for rank {wanted}, the adapter has {got}");
                return Err(Error::Batch(text));
            }
            let Some(m) = own else { continue };
            let weight = base.weight(&base.layers[layer].modules[module])?.rows("adapter")?;
            let slot = storage.group(layer, module).1;
            for (side, region) in [(Side::A, m.a), (Side::B, m.b)] {
                let start = region.words().start;
                let elements = start..start + region.len();
                targets.push(Target { elements, side, weight, slot, rank: m.rank, scale: m.scale });
            }
        }
    }
    targets.sort_by_key(|t| t.elements.start);
    Ok(if targets.is_empty() { None } else { Some(adamw::Table::new(s, &targets)?) })
}
