//! What is settled before weights are laid out: the storage of the activations, which matrices lie together, the adapter that strips are
//! left for, and whether the weights are themselves trained.
//!
//! A CUDA device on which the base is bf16 computes in bf16. Its modules that share an input lie in one augmented group
//! (`kernels/src/weight.rs`) with room for the bf16 copies of one adapter, so ranks are said before the base is loaded. Where every weight
//! is tuned, that is the copy of an f32 master. Everywhere else a matrix lies alone and activations are f32.

use crate::Result;
use crate::adapter::Adapter;
use crate::config::{Config, Role};
use kernels::weight::{Layout, Weight, strip};
use runtime::{DType, Stream, View};
use std::ops::Range;

/// What is trained on a base.
#[derive(Clone, Copy, Debug)]
pub enum Trained<'a> {
    /// Nothing.
    Nothing,
    /// An adapter like this one.
    Adapter(&'a Adapter),
    /// Every weight.
    Weights,
}

/// The storage of a base.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// Of the activations: f32, or bf16.
    pub acts: DType,
    /// Whether the weights beside bf16 activations are copies of an f32 master.
    pub master: bool,
    /// A matrix without strips.
    alone: Layout,
    groups: [Range<usize>; 4],
    /// `[L][module]` outputs, and ranks that strips are left for.
    outputs: Vec<Vec<usize>>,
    pub ranks: Vec<Vec<usize>>,
}

/// What the region of a matrix holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    form: Layout,
    /// Outputs of the matrices in it, `count` of them: of itself, or of all modules that share its input.
    n: [usize; 3],
    count: usize,
    /// Which of them it is.
    part: usize,
}

impl Storage {
    /// Storage of a base in `dtype` (None: as the file has it, beside f32 activations).
    pub fn new(s: &Stream, c: &Config, dtype: Option<DType>, trained: Trained<'_>) -> Storage {
        let bf16 = s.host().is_none() && dtype == Some(DType::Bf16);
        let modules = c.modules();
        let like = if let Trained::Adapter(like) = trained { Some(like) } else { None };
        let rank = |path: &str| like.and_then(|a| a.modules.iter().find(|m| m.path == path)).map_or(0, |m| m.r);
        let each = (modules.len() / c.num_hidden_layers.max(1)).max(1);
        let layers = || modules.chunks(each);
        Storage {
            acts: if bf16 { DType::Bf16 } else { DType::F32 },
            master: bf16 && matches!(trained, Trained::Weights),
            alone: Layout::of(s, &[]),
            groups: c.groups(),
            outputs: layers().map(|layer| layer.iter().map(|m| m.out_features).collect()).collect(),
            ranks: layers().map(|layer| layer.iter().map(|m| rank(&m.path)).collect()).collect(),
        }
    }

    /// Columns of S that an adapter of this rank takes.
    pub fn columns(&self, rank: usize) -> usize {
        if self.acts == DType::Bf16 { strip(rank) } else { rank }
    }

    /// The modules that lie in one region with this one, and columns of strips before its own.
    pub fn group(&self, layer: usize, module: usize) -> (Range<usize>, usize) {
        let group = self.groups.iter().find(|g| g.contains(&module)).filter(|_| self.acts == DType::Bf16);
        let group = group.cloned().unwrap_or(module..module + 1);
        let before = (group.start..module).map(|m| strip(self.ranks[layer][m])).sum();
        (group, before)
    }

    /// What the region of a matrix of `n` outputs holds where it lies by itself, as a master does.
    pub fn alone(&self, n: usize) -> Held {
        Held { form: self.alone, n: [n, 0, 0], count: 1, part: 0 }
    }

    /// What the region of a matrix of `n` outputs holds where the rooms read it.
    pub fn held(&self, role: Role, n: usize) -> Held {
        let Role::Weight(layer, module) = role else { return self.alone(n) };
        let (group, _) = self.group(layer, module);
        let form = match self.alone {
            Layout::Rows { .. } if self.acts == DType::Bf16 => {
                Layout::Rows { tail: group.clone().map(|m| strip(self.ranks[layer][m])).sum() }
            }
            alone => alone,
        };
        let n = std::array::from_fn(|i| group.clone().nth(i).map_or(0, |m| self.outputs[layer][m]));
        Held { form, n, count: group.len(), part: module - group.start }
    }
}

impl Held {
    /// Elements of the region, by K.
    pub fn len(&self, k: usize) -> usize {
        self.form.len(&self.n[..self.count], k)
    }

    /// The matrix in its region.
    pub fn weight<'a>(&self, region: View<'a>, k: usize) -> Result<Weight<'a>> {
        Ok(self.form.weight(region, &self.n[..self.count], k, self.part)?)
    }
}
