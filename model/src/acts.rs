//! Activations: one plan, one allocation, made once for the largest micro-batch. Nothing is allocated in a steady step.

use crate::batch::{Batch, Parent};
use crate::config::Config;
use crate::norm;
use crate::{Error, Result};
use kernels::attention;
use kernels::linear::library::pitch;
use runtime::{Arena, DType, Plan, Region, Stream, View};

/// What a forward leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Only `out`.
    Nothing,
    /// Everything that [`crate::Transformer::backward`] reads.
    Backward,
    /// Of each layer its input; the backward makes what else it reads again from it, layer by layer in one set of regions, with the same
    /// bits.
    Inputs,
}

/// The largest micro-batch that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// N.
    pub tokens: usize,
    /// M.
    pub loss_rows: usize,
    /// Segments.
    pub segments: usize,
    /// Examples (trees).
    pub examples: usize,
}

/// Groups of modules that share an input ([`Config::groups`]): q, k, v; o; gate, up; down.
pub(crate) const QKV: usize = 0;
pub(crate) const ATTENTION_OUT: usize = 1;
pub(crate) const GATE_UP: usize = 2;
pub(crate) const MLP_OUT: usize = 3;

/// What one layer leaves for its backward. T columns of a norm's stats are rstd, or mean and rstd.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerActs {
    /// `[N, C]` residual stream before the attention norm.
    pub input: Region,
    /// `[N, T]`
    pub input_stats: Region,
    /// `[N, (H+2K)·D]` before the norms of its heads; empty where there are none.
    pub raw_qkv: Region,
    /// `[N, H+K]` likewise.
    pub head_rstd: Region,
    /// `[N, (H+2K)·D]` after RoPE.
    pub qkv: Region,
    /// `[N, H·D]` rows apart
    pub attended: Region,
    /// `[N, H]` i32
    pub maximum: Region,
    /// `[N, H]`
    pub denominator: Region,
    /// `[N, C]` and `[N, T]`: output of o_proj where it is normed, and of that norm.
    pub attention_out: Region,
    pub attention_stats: Region,
    /// `[N, C]` residual stream before the MLP norm.
    pub middle: Region,
    /// `[N, T]`
    pub middle_stats: Region,
    /// `[N, 2F]`, or `[N, F]` without a gate.
    pub gate_up: Region,
    /// `[N, C]` and `[N, T]`: output of down_proj where it is normed, and of that norm.
    pub mlp_out: Region,
    pub mlp_stats: Region,
    /// `[N, ΣR]` of each group; in bf16 the columns of its strips.
    pub lora: [Region; 4],
}

/// Regions of the backward.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gradients {
    /// `[N, C]` of the residual stream, and the one before it; rows apart.
    pub stream: [Region; 2],
    /// `[N, C]` of a normed input, or, rows apart, of a module's output that is normed.
    pub normed: Region,
    /// `[N, (H+2K)·D]` rows apart
    pub qkv: Region,
    /// `[N, H·D]`
    pub attended: Region,
    /// `[N, 2F]`, or `[N, F]` without a gate; rows apart.
    pub gate_up: Region,
    /// `[N, F]`
    pub activated: Region,
    /// `[N, ΣR]`
    pub lora: Region,
}

/// How rows of activations are stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    /// f32 or bf16.
    pub dtype: DType,
    /// Columns of strips that those leave room for which go into a module, forward or back: [`Acts::rows`]. 0: all rows lie side by side.
    pub room: usize,
}

/// The regions of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Regions {
    /// Of [`Stored`].
    pub room: usize,
    pub tokens: Region,
    pub pos: Region,
    pub segments: Region,
    pub rows: Region,
    pub targets: Region,
    pub trees: Region,
    pub entries: Region,
    pub layers: Vec<LayerActs>,
    /// `[N, C]` normed input of a group, rows apart; reused.
    pub normed: Region,
    /// `[N, C]` output of o_proj or down_proj; reused.
    pub projected: Region,
    /// `[N, F]` rows apart
    pub activated: Region,
    /// `[N, C]` residual stream before the final norm.
    pub last: Region,
    /// `[N, T]`
    pub last_stats: Region,
    /// `[N, C]`
    pub hidden: Region,
    /// `[M]`
    pub out: Region,
    pub kept: [Region; 3],
    /// `[M, C]` that the head's backward scales; empty without one.
    pub way: Region,
    pub gradients: Option<Gradients>,
    /// What a forward leaves at most.
    pub keep: Keep,
}

fn plan_layer(p: &mut Plan, c: &Config, Stored { dtype: stored, room }: Stored, n: usize, columns: &[usize; 4]) -> LayerActs {
    let (h, q, t) = (c.hidden_size, c.num_attention_heads * c.head_dim, norm::stats(c));
    let width = q + 2 * c.num_key_value_heads * c.head_dim;
    let heads = c.num_attention_heads + c.num_key_value_heads;
    let [raw, after_attention, after_mlp] = [c.norms_heads(), c.norms_after(1), c.norms_after(3)].map(usize::from);
    LayerActs {
        input: p.region(n * h, stored),
        input_stats: p.region(n * t, DType::F32),
        raw_qkv: p.region(raw * n * width, stored),
        head_rstd: p.region(raw * n * heads, DType::F32),
        qkv: p.region(n * width, stored),
        attended: p.region(n * pitch(q, room), stored),
        maximum: p.region(n * c.num_attention_heads, DType::I32),
        denominator: p.region(n * c.num_attention_heads, DType::F32),
        attention_out: p.region(after_attention * n * h, stored),
        attention_stats: p.region(after_attention * n * t, DType::F32),
        middle: p.region(n * h, stored),
        middle_stats: p.region(n * t, DType::F32),
        gate_up: p.region(n * c.inner_width(), stored),
        mlp_out: p.region(after_mlp * n * h, stored),
        mlp_stats: p.region(after_mlp * n * t, DType::F32),
        lora: columns.map(|t| p.region(n * t, stored)),
    }
}

/// Plans activations for a model; `columns` are the most columns of S that a group has over layers and slots.
/// Whatever a row has one number of, log-probabilities and what the head keeps are f32 in both.
pub(crate) fn plan(p: &mut Plan, c: &Config, rows: Stored, columns: &[usize; 4], limits: &Limits, keep: Keep) -> Regions {
    let (n, m, Stored { dtype: stored, room }) = (limits.tokens, limits.loss_rows, rows);
    let (h, q, f) = (c.hidden_size, c.num_attention_heads * c.head_dim, c.intermediate_size);
    // Where layers share one set of regions, a layer reads only its own and the `middle` of the one before.
    let layers = match keep {
        Keep::Backward => (0..c.num_hidden_layers).map(|_| plan_layer(p, c, rows, n, columns)).collect(),
        Keep::Nothing => vec![plan_layer(p, c, rows, n, columns); c.num_hidden_layers],
        Keep::Inputs => {
            let first = plan_layer(p, c, rows, n, columns);
            let other = |_| LayerActs { input: p.region(n * h, stored), ..first };
            std::iter::once(first).chain((1..c.num_hidden_layers).map(other)).collect()
        }
    };
    let gradients = (keep != Keep::Nothing).then(|| Gradients {
        stream: [p.region(n * pitch(h, room), stored), p.region(n * pitch(h, room), stored)],
        normed: p.region(n * pitch(h, room), stored),
        qkv: p.region(n * pitch(q + 2 * c.num_key_value_heads * c.head_dim, room), stored),
        attended: p.region(n * q, stored),
        gate_up: p.region(n * pitch(c.inner_width(), room), stored),
        activated: p.region(n * f, stored),
        lora: p.region(n * columns.iter().max().copied().unwrap_or(0), stored),
    });
    Regions {
        room,
        tokens: p.region(n, DType::U32),
        pos: p.region(n, DType::U32),
        segments: p.region(4 * limits.segments, DType::U32),
        rows: p.region(m, DType::U32),
        targets: p.region(m, DType::U32),
        trees: p.region(2 * limits.examples, DType::U32),
        entries: p.region(2 * limits.examples, DType::U32),
        layers,
        normed: p.region(n * pitch(h, room), stored),
        projected: p.region(n * h, stored),
        activated: p.region(n * pitch(f, room), stored),
        last: p.region(n * h, stored),
        last_stats: p.region(n * norm::stats(c), DType::F32),
        hidden: p.region(n * h, stored),
        out: p.region(m, DType::F32),
        kept: [p.region(m, DType::F32), p.region(m, DType::F32), p.region(m, DType::F32)],
        way: p.region(if keep == Keep::Nothing { 0 } else { m * h }, DType::F32),
        gradients,
        keep,
    }
}

/// Activations of one micro-batch in an overlay arena.
#[derive(Debug)]
pub struct Acts {
    overlay: Arena,
    pub(crate) at: Regions,
    limits: Limits,
    /// Host side of `segments`, `trees` and `entries`.
    staging: Vec<u32>,
    /// N and M of the last forward.
    pub(crate) size: (usize, usize),
    /// Segments of it.
    pub(crate) segment_count: usize,
    /// The layer that regions which all share hold, once a forward is through.
    pub(crate) held: Option<usize>,
}

impl Acts {
    /// Lays a plan over an arena that is large enough for it.
    pub(crate) fn on(overlay: Arena, at: Regions, limits: Limits) -> Acts {
        Acts { overlay, at, limits, staging: Vec::new(), size: (0, 0), segment_count: 0, held: None }
    }

    /// The arena, for the next phase's plan.
    pub fn into_overlay(self) -> Arena {
        self.overlay
    }

    /// What fits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What they were planned for.
    pub fn keep(&self) -> Keep {
        self.at.keep
    }

    /// `[M]` log-probabilities or scores of the last forward.
    pub fn out(&self, s: &Stream, out: &mut Vec<f32>) -> Result<()> {
        out.resize(self.size.1, 0.0);
        Ok(self.view(self.at.out, self.size.1)?.read(s, out)?)
    }

    /// `[S, 4]` of the last forward.
    pub(crate) fn segments(&self) -> Result<View<'_>> {
        self.view(self.at.segments, 4 * self.segment_count)
    }

    /// Sets N without a batch: decoding uploads its own rows.
    pub(crate) fn decode_rows(&mut self, n: usize) {
        self.size = (n, 0);
        self.segment_count = 0;
    }

    /// The first `len` elements of a region.
    pub(crate) fn view(&self, region: Region, len: usize) -> Result<View<'_>> {
        Ok(self.overlay.view(region)?.slice(0..len)?)
    }

    /// N rows of a region that is planned with them apart: what a norm, an activation or attention leaves for the module after it, and
    /// the gradient of what a module gives.
    pub(crate) fn rows(&self, region: Region, width: usize) -> Result<View<'_>> {
        let ld = pitch(width, self.at.room);
        Ok(self.view(region, self.size.0 * ld)?.apart(width, ld)?)
    }

    /// Uploads a batch whose lengths belong together, after checking that it fits.
    pub(crate) fn upload(&mut self, s: &Stream, b: &Batch) -> Result<()> {
        let have = [b.tokens(), b.loss_rows(), b.segments.len(), b.examples.len()];
        let most = [self.limits.tokens, self.limits.loss_rows, self.limits.segments, self.limits.examples];
        for ((what, have), most) in ["tokens", "loss rows", "segments", "examples"].iter().zip(have).zip(most) {
            if have > most {
                return Err(Error::Batch(format!("{have} {what}, planned for {most}")));
            }
        }
        self.size = (b.tokens(), b.loss_rows());
        self.segment_count = b.segments.len();
        self.view(self.at.tokens, b.tokens())?.write(s, &b.tokens)?;
        self.view(self.at.pos, b.tokens())?.write(s, &b.pos)?;
        self.view(self.at.rows, b.loss_rows())?.write(s, &b.rows)?;
        self.view(self.at.targets, b.loss_rows())?.write(s, &b.targets)?;
        let mut staging = std::mem::take(&mut self.staging);
        staging.clear();
        for segment in &b.segments {
            let parent = match segment.parent {
                Parent::Root | Parent::Cached(_) => attention::ROOT,
                Parent::Segment(parent) => parent,
            };
            staging.extend_from_slice(&[segment.start, segment.len, segment.pos0, parent]);
        }
        self.view(self.at.segments, staging.len())?.write(s, &staging)?;
        staging.clear();
        staging.extend(b.trees.iter().flat_map(|t| [t.start, t.end]));
        self.view(self.at.trees, staging.len())?.write(s, &staging)?;
        staging.clear();
        for example in &b.examples {
            let spans = b.sequences.get(example.range()).filter(|spans| !spans.is_empty());
            let (first, last) = spans.and_then(|spans| Some((spans.first()?.start, spans.last()?.end))).unwrap_or((0, 0));
            staging.extend_from_slice(&[first, last]);
        }
        self.view(self.at.entries, staging.len())?.write(s, &staging)?;
        self.staging = staging;
        Ok(())
    }
}

/// The most columns of S of each group over the layers of a slot.
pub(crate) fn group_columns(c: &Config, columns: impl Fn(usize, usize) -> usize) -> [usize; 4] {
    let of = |group: std::ops::Range<usize>, layer: usize| group.map(|m| columns(layer, m)).sum::<usize>();
    c.groups().map(|group| (0..c.num_hidden_layers).map(|layer| of(group.clone(), layer)).max().unwrap_or(0))
}
