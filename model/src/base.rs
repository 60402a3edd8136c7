//! The base weights on the device, in one arena: matrices as the device keeps them, norms and biases in f32. Where every weight is tuned
//! beside bf16 activations, all of it is f32, and the matrices have copies in another (`places.rs`).

mod places;

use crate::Result;
use crate::adapter::Adapter;
use crate::config::{self, Config, Role, Spec};
use crate::lora::Tensor;
use crate::storage::{Held, Storage, Trained};
use crate::weights::Checkpoint;
use kernels::weight::{self, Weight};
use kernels::{adamw, sample};
use places::{Copies, Places, place};
use runtime::{Arena, DType, Region, Stream};
use std::collections::BTreeMap;
use std::path::Path;

/// Ordinal of the first base tensor in the random numbers of a fresh model; adapters count from 0.
const FIRST_ORDINAL: u32 = 1 << 16;

/// A matrix `[n, k]` and its bias.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    /// Its own, or that of its group: what is trained of it under full tuning, and where its gradient lies in an arena of the same layout.
    pub weight: Region,
    pub bias: Option<Region>,
    pub n: usize,
    pub k: usize,
    held: Held,
    /// What the rooms read if `weight` is a master.
    copy: Option<(Region, Held)>,
}

/// A norm's weight `[C]`, and its bias if it is a LayerNorm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    pub weight: Region,
    pub bias: Option<Region>,
}

/// One layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Before attention.
    pub input_norm: Norm,
    /// Of what attention adds to the stream.
    pub attention_norm: Option<Norm>,
    /// Before the MLP.
    pub middle_norm: Norm,
    /// Of what the MLP adds to the stream.
    pub mlp_norm: Option<Norm>,
    /// `[D]` of query heads and key heads.
    pub head_norms: Option<[Region; 2]>,
    /// In the order of [`crate::Config::modules`].
    pub modules: Vec<Matrix>,
}

/// The base weights.
#[derive(Debug)]
pub struct Base {
    arena: Arena,
    copies: Option<Copies>,
    pub(crate) storage: Storage,
    pub(crate) embedding: Matrix,
    /// `[P, C]` of learned positions.
    pub(crate) positions: Option<Matrix>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Norm,
    /// The LM head; the embedding if tied. None for a scalar head.
    pub(crate) head: Option<Matrix>,
    /// `[C]` of a scalar head.
    pub(crate) score: Option<Region>,
    tensors: Vec<Tensor>,
    /// Of each tensor.
    specs: Vec<Spec>,
    /// Modules of one layer.
    modules: usize,
    /// Paths of all modules -> layer and module.
    paths: BTreeMap<String, (usize, usize)>,
}

/// Row-major [rows, columns] elements of `size` bytes as [columns, rows].
fn transposed(bytes: &[u8], [rows, columns]: [usize; 2], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * size;
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    out
}

/// The bytes of values rounded to a storage type (exact for f32).
fn stored_as(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

impl Base {
    /// Plans and allocates the weights without filling them.
    fn allocate(s: &Stream, c: &Config, storage: Storage, dtype: &dyn Fn(&str) -> Result<DType>) -> Result<Base> {
        let mut specs = c.specs();
        specs.sort_by_key(|spec| place(spec.role));
        let places = Places::new(&specs, &storage, dtype)?;
        let tensor = |Spec { name, role, here, .. }: &Spec| -> Result<Tensor> {
            Ok(Tensor { name: name.clone(), region: places.get(*role)?, shape: *here })
        };
        let tensors = specs.iter().map(tensor).collect::<Result<_>>()?;
        let modules = c.modules();
        let each = modules.len() / c.num_hidden_layers.max(1);
        let paths = modules.into_iter().enumerate().map(|(i, m)| (m.path, (i / each.max(1), i % each.max(1)))).collect();
        let embedding = places.matrix(&specs, Role::Embedding, None)?;
        let head = if c.tie_word_embeddings { Some(embedding) } else { places.matrix(&specs, Role::Head, None).ok() };
        Ok(Base {
            arena: Arena::new(s, places.plan.bytes())?,
            copies: places.copies(s, &specs)?,
            storage,
            embedding,
            positions: places.matrix(&specs, Role::Positions, None).ok(),
            layers: (0..c.num_hidden_layers).map(|l| places.layer(&specs, l, each)).collect::<Result<_>>()?,
            final_norm: places.norm(Role::FinalNorm, Role::FinalNormBias)?,
            head: head.filter(|_| !c.scalar_head),
            score: places.get(Role::Score).ok(),
            tensors,
            specs,
            modules: each,
            paths,
        })
    }

    /// Loads a checkpoint. Matrices keep the file's storage type unless `dtype` says otherwise (f32 widens exactly). In bf16 on a device
    /// nothing else can be trained than what is said here.
    pub(crate) fn load(
        s: &Stream,
        c: &Config,
        checkpoint: &Checkpoint,
        dtype: Option<DType>,
        trained: Trained<'_>,
    ) -> Result<Base> {
        checkpoint.check(&c.tensors())?;
        let stored = |name: &str| Ok(dtype.unwrap_or(checkpoint.tensor(name)?.dtype));
        let base = Base::allocate(s, c, Storage::new(s, c, dtype, trained), &stored)?;
        base.fill(s, checkpoint)?;
        Ok(base)
    }

    /// Loads a checkpoint, that has been checked, without its LM head and with this scalar head `[C]`, for full tuning.
    pub(crate) fn headed(s: &Stream, c: &Config, checkpoint: &Checkpoint, dtype: DType, score: &[f32]) -> Result<Base> {
        let base = Base::allocate(s, c, Storage::new(s, c, Some(dtype), Trained::Weights), &|_| Ok(dtype))?;
        base.fill_but(s, checkpoint, Some(Role::Score))?;
        if let Some(head) = base.score {
            base.arena.view(head)?.write(s, score)?;
        }
        Ok(base)
    }

    /// Takes the weights of another checkpoint of the same model, in place.
    pub fn reload(&self, s: &Stream, c: &Config, checkpoint: &Checkpoint) -> Result<()> {
        checkpoint.check(&c.tensors())?;
        self.fill(s, checkpoint)
    }

    fn fill(&self, s: &Stream, checkpoint: &Checkpoint) -> Result<()> {
        self.fill_but(s, checkpoint, None)
    }

    fn fill_but(&self, s: &Stream, checkpoint: &Checkpoint, absent: Option<Role>) -> Result<()> {
        for (t, spec) in self.tensors.iter().zip(&self.specs).filter(|(_, spec)| Some(spec.role) != absent) {
            let data = checkpoint.tensor(&t.name)?;
            data.check_finite()?;
            let view = self.arena.view(t.region)?;
            if !spec.role.matrix() {
                view.write(s, &data.to_f32())?;
                continue;
            }
            let rounded = (view.dtype() != data.dtype).then(|| stored_as(&data.to_f32(), view.dtype()));
            let bytes = rounded.as_deref().unwrap_or(data.bytes);
            let [n, k] = t.shape;
            let turned = spec.transposed.then(|| transposed(bytes, [k, n], view.dtype().size()));
            weight::load(s, self.of(t, spec)?, turned.as_deref().unwrap_or(bytes))?;
        }
        self.copy(s)
    }

    /// Writes the copies of the master, where there is one.
    fn copy(&self, s: &Stream) -> Result<()> {
        self.copies()?.map_or(Ok(()), |copies| Ok(copies.write(s, self.arena.flat())?))
    }

    /// The copies that a step of the optimizer over [`Base::arena`] has to keep up.
    pub(crate) fn copies(&self) -> Result<Option<adamw::Copies<'_>>> {
        self.copies.as_ref().map(Copies::kept).transpose()
    }

    /// Fresh f32 weights for full tuning, with copies where a device computes in `dtype`: matrices uniform with standard deviation 0.02
    /// (LAW "init": tensor ordinal in the counter), norms 1, biases 0.
    pub(crate) fn fresh(s: &Stream, c: &Config, dtype: DType, seed: u64) -> Result<Base> {
        let storage = Storage::new(s, c, Some(dtype), Trained::Weights);
        let acts = storage.acts;
        let base = Base::allocate(s, c, storage, &|_| Ok(acts))?;
        let key = sample::key(seed, sample::Tag::Init);
        let bound = 0.02 * 3f32.sqrt();
        base.sow(s, c, &|ordinal, count| {
            let value = |i: usize| {
                let counter = [(i / 4) as u32, ((i / 4) as u64 >> 32) as u32, FIRST_ORDINAL + ordinal, 0];
                let word = sample::philox(key, counter)[i % 4];
                (2.0 * ((word >> 8) as f32 * (-24f32).exp2()) - 1.0) * bound
            };
            stored_as(&(0..count).map(value).collect::<Vec<f32>>(), DType::F32)
        })?;
        Ok(base)
    }

    /// Weights of no checkpoint, for measuring speed: every matrix repeats these values from their beginning, norms are 1, biases 0.
    pub(crate) fn repeating(s: &Stream, c: &Config, dtype: DType, like: &Adapter, values: &[f32]) -> Result<Base> {
        let base = Base::allocate(s, c, Storage::new(s, c, Some(dtype), Trained::Adapter(like)), &|_| Ok(dtype))?;
        let block = stored_as(values, dtype);
        base.sow(s, c, &|_, count| {
            let mut bytes = block.repeat((count * dtype.size()).div_ceil(block.len().max(1)));
            bytes.truncate(count * dtype.size());
            bytes
        })?;
        Ok(base)
    }

    /// Fills matrices with the bytes that `bytes` gives of a tensor's ordinal and its elements, norms with 1; biases stay 0.
    fn sow(&self, s: &Stream, c: &Config, bytes: &dyn Fn(u32, usize) -> Vec<u8>) -> Result<()> {
        for (ordinal, (t, spec)) in self.tensors.iter().zip(&self.specs).enumerate() {
            if spec.role.matrix() {
                weight::load(s, self.of(t, spec)?, &bytes(ordinal as u32, t.shape[0] * t.shape[1]))?;
            } else if !t.name.ends_with("bias") {
                // What multiplies is 1: an offset of 1 leaves 0.
                let one = if let config::Norm::Rms { offset } = c.norm() { 1.0 - offset } else { 1.0 };
                self.arena.view(t.region)?.write(s, &vec![one; t.region.len()])?;
            }
        }
        self.copy(s)
    }

    /// Writes `model.safetensors` in f32 with Hugging Face's names and layout. Weights that are not finite are an error.
    pub fn save(&self, s: &Stream, folder: &Path) -> Result<()> {
        let mut rows: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        for (t, spec) in self.tensors.iter().zip(&self.specs) {
            let [n, k] = t.shape;
            let mut w = match spec.role.matrix() {
                true => weight::read(s, self.of(t, spec)?)?,
                false => vec![0.0; k],
            };
            if !spec.role.matrix() {
                self.arena.view(t.region)?.read(s, &mut w)?;
            } else if spec.transposed {
                w = (0..n * k).map(|i| w[i % n * k + i / n]).collect();
            }
            rows.push((t.name.clone(), spec.shape.clone(), w));
        }
        let tensors: Vec<_> = rows
            .iter()
            .map(|(name, shape, w)| (name.clone(), DType::F32, shape.clone(), bytemuck::cast_slice::<f32, u8>(w)))
            .collect();
        crate::weights::write_finite(&folder.join("model.safetensors"), &tensors)
    }

    /// Where everything lies but copies of a master.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Bytes on the device, a master and its copies among them.
    pub fn bytes(&self) -> usize {
        self.arena.bytes() + self.copies.as_ref().map_or(0, Copies::bytes)
    }

    /// Every tensor in arena order. Matrices are laid out as the device keeps them; those of a group share their region.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Whether all of it is f32, which is what can be tuned.
    pub(crate) fn tunable(&self) -> Result<bool> {
        self.tensors.iter().try_fold(true, |all, t| Ok(all && self.arena.view(t.region)?.dtype() == DType::F32))
    }

    /// L.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Outputs and inputs of a module.
    pub fn size(&self, layer: usize, module: usize) -> (usize, usize) {
        let m = self.layers[layer].modules[module];
        (m.n, m.k)
    }

    /// Modules of one layer.
    pub fn modules(&self) -> usize {
        self.modules
    }

    /// Layer and module of a path such as `model.layers.3.mlp.up_proj`.
    pub fn locate(&self, path: &str) -> Option<(usize, usize)> {
        self.paths.get(path).copied()
    }

    /// Parameters, each once.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(|t| t.shape[0] * t.shape[1]).sum()
    }

    /// A tensor that is a matrix, where it is loaded and saved.
    fn of(&self, t: &Tensor, spec: &Spec) -> Result<Weight<'_>> {
        let ([n, k], storage) = (t.shape, &self.storage);
        let held = if storage.master { storage.alone(n) } else { storage.held(spec.role, n) };
        held.weight(self.arena.view(t.region)?, k)
    }

    /// A matrix as the rooms read it.
    pub(crate) fn weight(&self, m: &Matrix) -> Result<Weight<'_>> {
        match (&m.copy, &self.copies) {
            (Some((region, held)), Some(copies)) => held.weight(copies.view(*region)?, m.k),
            _ => m.held.weight(self.arena.view(m.weight)?, m.k),
        }
    }
}
