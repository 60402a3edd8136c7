//! What a checkpoint holds and what an adapter may sit on, by the family's names.

use super::family::Width;
use super::{Config, ModuleSpec, Positions, TensorSpec};
use std::ops::Range;

/// What a tensor is to the transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// `[V, C]`
    Embedding,
    /// `[P, C]`
    Positions,
    /// Weight and bias of a layer's norm, as numbered in [`super::family::Names::norms`].
    Norm(usize, usize),
    NormBias(usize, usize),
    /// Of query heads (0) or key heads (1).
    HeadNorm(usize, usize),
    /// Of a layer's module.
    Weight(usize, usize),
    Bias(usize, usize),
    FinalNorm,
    FinalNormBias,
    /// `[1, C]`, last of all.
    Score,
    /// `[V, C]`
    Head,
}

impl Role {
    /// Whether it lies as the device keeps matrices.
    pub fn matrix(self) -> bool {
        matches!(self, Role::Embedding | Role::Positions | Role::Weight(..) | Role::Head)
    }
}

/// A tensor as the checkpoint has it.
#[derive(Debug)]
pub(crate) struct Spec {
    pub name: String,
    pub role: Role,
    /// On disk.
    pub shape: Vec<usize>,
    /// Rows and columns here.
    pub here: [usize; 2],
    /// Whether the disk has the transpose.
    pub transposed: bool,
}

impl Config {
    /// Every tensor that a checkpoint of this model holds, in the order in which the model runs them.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        self.specs().into_iter().map(|s| TensorSpec { name: s.name, shape: s.shape }).collect()
    }

    /// Every linear module that an adapter may sit on (what PEFT calls `all-linear`), in the order in which the model runs them.
    pub fn modules(&self) -> Vec<ModuleSpec> {
        let all =
            (0..self.num_hidden_layers).flat_map(|layer| self.family.groups.iter().copied().flatten().map(move |m| (layer, m)));
        let spec = |(layer, m): (usize, &super::family::Module)| ModuleSpec {
            path: format!("{}{layer}.{}", self.family.names.layer, m.name),
            in_features: self.width(m.input),
            out_features: self.width(m.output),
        };
        all.map(spec).collect()
    }

    /// The modules of a layer by the groups that share an input: q, k, v; o; gate, up; down.
    pub(crate) fn groups(&self) -> [Range<usize>; 4] {
        let mut next = 0;
        self.family.groups.map(|group| {
            next += group.len();
            next - group.len()..next
        })
    }

    /// Whether query and key heads are normed.
    pub(crate) fn norms_heads(&self) -> bool {
        self.family.names.head_norms.is_some()
    }

    /// Whether what attention (1) or the MLP (3) adds is normed.
    pub(crate) fn norms_after(&self, which: usize) -> bool {
        self.family.names.norms[which].is_some()
    }

    /// Whether PEFT calls this model's modules Conv1D.
    pub fn fan_in_fan_out(&self) -> bool {
        self.family.conv1d
    }

    fn width(&self, width: Width) -> usize {
        let (h, k, d) = (self.num_attention_heads, self.num_key_value_heads, self.head_dim);
        match width {
            Width::Hidden => self.hidden_size,
            Width::Queries => h * d,
            Width::Keys => k * d,
            Width::All => (h + 2 * k) * d,
            Width::Ffn => self.intermediate_size,
        }
    }

    /// [`Config::tensors`] with what each of them is.
    pub(crate) fn specs(&self) -> Vec<Spec> {
        let (names, c, v) = (&self.family.names, self.hidden_size, self.vocab_size);
        let mut list = List { all: Vec::new(), config: self };
        list.matrix(names.embedding, Role::Embedding, [v, c], false);
        if self.family.positions == Positions::Learned {
            list.matrix(names.positions, Role::Positions, [self.max_position_embeddings, c], false);
        }
        for layer in 0..self.num_hidden_layers {
            list.layer(layer);
        }
        list.norm(names.final_norm, [Role::FinalNorm, Role::FinalNormBias]);
        if self.scalar_head {
            list.matrix("score", Role::Score, [1, c], false);
        } else if !self.tie_word_embeddings {
            list.matrix("lm_head", Role::Head, [v, c], false);
        }
        list.all
    }
}

struct List<'a> {
    all: Vec<Spec>,
    config: &'a Config,
}

impl List<'_> {
    fn vector(&mut self, name: String, role: Role, n: usize) {
        self.all.push(Spec { name, role, shape: vec![n], here: [1, n], transposed: false });
    }

    fn matrix(&mut self, name: &str, role: Role, [n, k]: [usize; 2], transposed: bool) {
        let shape = if transposed { vec![k, n] } else { vec![n, k] };
        self.all.push(Spec { name: format!("{name}.weight"), role, shape, here: [n, k], transposed });
    }

    fn norm(&mut self, name: &str, [weight, bias]: [Role; 2]) {
        self.vector(format!("{name}.weight"), weight, self.config.hidden_size);
        if self.config.family.norm == super::Norm::Layer {
            self.vector(format!("{name}.bias"), bias, self.config.hidden_size);
        }
    }

    fn layer(&mut self, layer: usize) {
        let (config, family) = (self.config, self.config.family);
        let path = |name: &str| format!("{}{layer}.{name}", family.names.layer);
        let mut index = 0;
        for half in [0, 2] {
            self.layer_norm(layer, half);
            for group in [half, half + 1] {
                for module in family.groups[group] {
                    let (n, k) = (config.width(module.output), config.width(module.input));
                    self.matrix(&path(module.name), Role::Weight(layer, index), [n, k], family.conv1d);
                    if config.biases[group] {
                        self.vector(format!("{}.bias", path(module.name)), Role::Bias(layer, index), n);
                    }
                    index += 1;
                }
                if let (0, Some(names)) = (group, family.names.head_norms) {
                    let vector =
                        |i: usize| self.vector(format!("{}.weight", path(names[i])), Role::HeadNorm(layer, i), config.head_dim);
                    (0..2).for_each(vector);
                }
            }
            self.layer_norm(layer, half + 1);
        }
    }

    fn layer_norm(&mut self, layer: usize, which: usize) {
        let family = self.config.family;
        if let Some(name) = family.names.norms[which] {
            let roles = [Role::Norm(layer, which), Role::NormBias(layer, which)];
            self.norm(&format!("{}{layer}.{name}", family.names.layer), roles);
        }
    }
}
