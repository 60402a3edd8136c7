//! The base weights on the device, in one arena: matrices as the device keeps them, norms and biases in f32.

use crate::Result;
use crate::config::Config;
use crate::lora::Tensor;
use crate::weights::Checkpoint;
use kernels::sample;
use kernels::weight::{self, Weight};
use runtime::{Arena, DType, Plan, Region, Stream};
use std::path::Path;

/// Linear modules of a layer.
pub const MODULES: usize = 7;
/// Index of `self_attn.q_proj`.
pub const Q: usize = 0;
/// Index of `self_attn.k_proj`.
pub const K: usize = 1;
/// Index of `self_attn.v_proj`.
pub const V: usize = 2;
/// Index of `self_attn.o_proj`.
pub const O: usize = 3;
/// Index of `mlp.gate_proj`.
pub const GATE: usize = 4;
/// Index of `mlp.up_proj`.
pub const UP: usize = 5;
/// Index of `mlp.down_proj`.
pub const DOWN: usize = 6;

/// A scalar head's name.
const SCORE: &str = "score.weight";

/// Ordinal of the first base tensor in the random numbers of a fresh model; adapters count from 0.
const FIRST_ORDINAL: u32 = 1 << 16;

/// Module paths inside a layer, by index.
pub const MODULE_NAMES: [&str; MODULES] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// A matrix `[n, k]` and its bias.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub weight: Region,
    pub bias: Option<Region>,
    pub n: usize,
    pub k: usize,
}

/// One layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer {
    pub input_norm: Region,
    pub post_norm: Region,
    pub modules: [Matrix; MODULES],
}

/// The base weights.
#[derive(Debug)]
pub struct Base {
    arena: Arena,
    form: weight::Layout,
    pub(crate) embedding: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Region,
    /// The LM head; the embedding if tied. None for a scalar head.
    pub(crate) head: Option<Matrix>,
    /// `[C]` of a scalar head.
    pub(crate) score: Option<Region>,
    tensors: Vec<Tensor>,
    sizes: [(usize, usize); MODULES],
}

/// Rows and columns of every module of a layer.
fn sizes(c: &Config) -> [(usize, usize); MODULES] {
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let (h, f) = (c.hidden_size, c.intermediate_size);
    [(q, h), (kv, h), (kv, h), (h, q), (f, h), (f, h), (h, f)]
}

/// The bytes of values rounded to a storage type (exact for f32).
fn stored_as(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Lays out every tensor; the dtype of matrices is asked by name.
struct Layout<'a> {
    plan: Plan,
    form: weight::Layout,
    tensors: Vec<Tensor>,
    dtype: &'a dyn Fn(&str) -> Result<DType>,
}

impl Layout<'_> {
    fn vector(&mut self, name: String, n: usize) -> Region {
        let region = self.plan.region(n, DType::F32);
        self.tensors.push(Tensor { name, region, shape: [1, n] });
        region
    }

    fn matrix(&mut self, name: &str, n: usize, k: usize, bias: bool) -> Result<Matrix> {
        let title = format!("{name}.weight");
        let weight = self.plan.region(self.form.len(&[n], k), (self.dtype)(&title)?);
        self.tensors.push(Tensor { name: title, region: weight, shape: [n, k] });
        let bias = bias.then(|| self.vector(format!("{name}.bias"), n));
        Ok(Matrix { weight, bias, n, k })
    }

    fn layer(&mut self, c: &Config, l: usize) -> Result<Layer> {
        let input_norm = self.vector(format!("model.layers.{l}.input_layernorm.weight"), c.hidden_size);
        let mut modules = [Matrix { weight: input_norm, bias: None, n: 0, k: 0 }; MODULES];
        for (m, (n, k)) in sizes(c).into_iter().enumerate() {
            let bias = if m < GATE { c.attention_bias } else { c.mlp_bias };
            modules[m] = self.matrix(&format!("model.layers.{l}.{}", MODULE_NAMES[m]), n, k, bias)?;
        }
        let post_norm = self.vector(format!("model.layers.{l}.post_attention_layernorm.weight"), c.hidden_size);
        Ok(Layer { input_norm, post_norm, modules })
    }
}

impl Base {
    /// Plans and allocates the weights without filling them.
    fn allocate(s: &Stream, c: &Config, dtype: &dyn Fn(&str) -> Result<DType>) -> Result<Base> {
        let mut layout = Layout { plan: Plan::default(), form: weight::Layout::of(s, &[]), tensors: Vec::new(), dtype };
        let embedding = layout.matrix("model.embed_tokens", c.vocab_size, c.hidden_size, false)?;
        let layers = (0..c.num_hidden_layers).map(|l| layout.layer(c, l)).collect::<Result<Vec<_>>>()?;
        let final_norm = layout.vector("model.norm.weight".into(), c.hidden_size);
        let score = c.scalar_head.then(|| layout.vector(SCORE.into(), c.hidden_size));
        let head = match (c.scalar_head, c.tie_word_embeddings) {
            (true, _) => None,
            (false, true) => Some(embedding),
            (false, false) => Some(layout.matrix("lm_head", c.vocab_size, c.hidden_size, false)?),
        };
        let arena = Arena::new(s, layout.plan.bytes())?;
        Ok(Base {
            arena,
            form: layout.form,
            embedding,
            layers,
            final_norm,
            head,
            score,
            tensors: layout.tensors,
            sizes: sizes(c),
        })
    }

    /// Loads a checkpoint. Matrices keep the file's storage type unless `dtype` says otherwise (f32 widens exactly).
    pub fn load(s: &Stream, c: &Config, checkpoint: &Checkpoint, dtype: Option<DType>) -> Result<Base> {
        checkpoint.check(&c.tensors())?;
        let stored = |name: &str| Ok(dtype.unwrap_or(checkpoint.tensor(name)?.dtype));
        let base = Base::allocate(s, c, &stored)?;
        base.fill(s, checkpoint)?;
        Ok(base)
    }

    /// Loads a checkpoint, that has been checked, without its LM head and with this scalar head `[C]`.
    pub fn headed(s: &Stream, c: &Config, checkpoint: &Checkpoint, dtype: DType, score: &[f32]) -> Result<Base> {
        let mut base = Base::allocate(s, c, &|_| Ok(dtype))?;
        let head = base.tensors.iter().position(|t| t.name == SCORE).map(|at| base.tensors.remove(at));
        base.fill(s, checkpoint)?;
        if let Some(head) = head {
            base.arena.view(head.region)?.write(s, score)?;
            base.tensors.push(head);
        }
        Ok(base)
    }

    /// Takes the weights of another checkpoint of the same model, in place.
    pub fn reload(&self, s: &Stream, c: &Config, checkpoint: &Checkpoint) -> Result<()> {
        checkpoint.check(&c.tensors())?;
        self.fill(s, checkpoint)
    }

    fn fill(&self, s: &Stream, checkpoint: &Checkpoint) -> Result<()> {
        for t in &self.tensors {
            let data = checkpoint.tensor(&t.name)?;
            data.check_finite()?;
            let view = self.arena.view(t.region)?;
            if !self.is_matrix(t) {
                view.write(s, &data.to_f32())?;
            } else if view.dtype() == data.dtype {
                weight::load(s, self.matrix(t.region, t.shape)?, data.bytes)?;
            } else {
                weight::load(s, self.matrix(t.region, t.shape)?, &stored_as(&data.to_f32(), view.dtype()))?;
            }
        }
        Ok(())
    }

    /// Fresh f32 weights: matrices uniform with standard deviation 0.02 (LAW "init": tensor ordinal in the counter), norms 1, biases 0.
    pub fn fresh(s: &Stream, c: &Config, seed: u64) -> Result<Base> {
        let base = Base::allocate(s, c, &|_| Ok(DType::F32))?;
        let key = sample::key(seed, sample::Tag::Init);
        for (ordinal, t) in base.tensors.iter().enumerate() {
            let view = base.arena.view(t.region)?;
            if base.is_matrix(t) {
                let bound = 0.02 * 3f32.sqrt();
                let w: Vec<f32> = (0..t.shape[0] * t.shape[1])
                    .map(|i| {
                        let word = sample::philox(
                            key,
                            [(i / 4) as u32, ((i / 4) as u64 >> 32) as u32, FIRST_ORDINAL + ordinal as u32, 0],
                        )[i % 4];
                        (2.0 * ((word >> 8) as f32 * (-24f32).exp2()) - 1.0) * bound
                    })
                    .collect();
                weight::load(s, base.matrix(t.region, t.shape)?, bytemuck::cast_slice(&w))?;
            } else if !t.name.ends_with("bias") {
                view.write(s, &vec![1.0f32; t.region.len()])?;
            }
        }
        Ok(base)
    }

    /// Writes `model.safetensors` in f32 with Hugging Face's names. Weights that are not finite are an error.
    pub fn save(&self, s: &Stream, folder: &Path) -> Result<()> {
        let mut rows: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        for t in &self.tensors {
            if self.is_matrix(t) {
                rows.push((t.name.clone(), t.shape.to_vec(), weight::read(s, self.matrix(t.region, t.shape)?)?));
                continue;
            }
            let mut w = vec![0.0; t.shape[0] * t.shape[1]];
            self.arena.view(t.region)?.read(s, &mut w)?;
            let shape = if t.name == SCORE { t.shape.to_vec() } else { vec![t.shape[1]] };
            rows.push((t.name.clone(), shape, w));
        }
        let tensors: Vec<_> = rows
            .iter()
            .map(|(name, shape, w)| (name.clone(), DType::F32, shape.clone(), bytemuck::cast_slice::<f32, u8>(w)))
            .collect();
        crate::weights::write_finite(&folder.join("model.safetensors"), &tensors)
    }

    fn is_matrix(&self, t: &Tensor) -> bool {
        t.name.ends_with("_proj.weight") || t.name == "model.embed_tokens.weight" || t.name == "lm_head.weight"
    }

    /// Where everything lies.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Every tensor in arena order. Matrices are laid out as the device keeps them.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// L.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Outputs and inputs of a module.
    pub fn size(&self, module: usize) -> (usize, usize) {
        self.sizes[module]
    }

    /// Layer and module of a path such as `model.layers.3.mlp.up_proj`.
    pub fn locate(&self, path: &str) -> Option<(usize, usize)> {
        let (layer, name) = path.strip_prefix("model.layers.")?.split_once('.')?;
        let layer = layer.parse().ok().filter(|l| *l < self.layers())?;
        Some((layer, MODULE_NAMES.iter().position(|m| *m == name)?))
    }

    /// Parameters, each once.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(|t| t.shape[0] * t.shape[1]).sum()
    }

    fn matrix(&self, region: Region, [n, k]: [usize; 2]) -> Result<Weight<'_>> {
        Ok(self.form.weight(self.arena.view(region)?, &[n], k, 0)?)
    }

    pub(crate) fn weight(&self, m: &Matrix) -> Result<Weight<'_>> {
        self.matrix(m.weight, [m.n, m.k])
    }
}
