//! Attention of training and scoring over a forest of segments: causal or not, GQA, window, softcap.
//!
//! Rows `qkv [N, (h + 2k)·d]` f32 hold, side by side, h query heads, k key heads, k value heads of d values; query head i belongs to key
//! head i / (h/k). A row's path is its tree's segments from the root to it; position = index on the path. Row i sees key j of its path iff
//! (not causal, or pos_j ≤ pos_i) and (window 0, or pos_j > pos_i − window).
//!
//! ```text
//! t = dot(q_i, k_j)·scale        softcap c > 0: t = c·tanh(t/c)        t = t·log2(e)        e = floor(t)
//! block b = keys of positions 64b … 64b+63:  M_b = max e, w = 2^(t−e)·2^(e−M_b), l_b = Σ w, o_b = Σ w·v, joined to (M, l, o) ascending
//! out = o / l          log Σ exp = (M + log2 l)·ln 2
//! backward:  p = 2^(t−e)·2^(e−M)/l     D = dot(dO, O)     dt = p·(dot(dO, v) − D)·(1 − (capped/c)²)·scale
//!            dq = Σ_j dt·k_j     dk_j = Σ_i dt·q_i     dv_j = Σ_i p·dO_i
//! ```
//! `out [N, h·d]` f32 =, `m [N, h]` i32 =, `l [N, h]` f32 =, `dqkv [N, (h + 2k)·d]` f32 = (every element).
//!
//! Per visible pair of query and key and per query head: 4·d FLOPs forward, 10·d backward (14·d where trees are too few for the
//! threads and dq is computed apart from dk, dv). Bytes: qkv and out once per tile of 256 query rows, keys and values from cache.
//!
//! On CUDA in f32 a thread owns whole chains: the CPU's bits. There a block recomputes the scores for each 64 columns of d, gradients are
//! two passes, over queries and over keys, and segments are the caller's word: rows beyond N are cut off, a forest that is none gives
//! numbers without meaning; the CPU refuses it.
//!
//! On CUDA qkv, out, dout and dqkv may be bf16 (d a multiple of 8, padded with zeros to 16, 32, 64, 128 or 256 on the chip), and rows of out
//! and dqkv apart then ([`View::apart`]). One k16
//! step of mma.sync stands for 16 fma, ascending: over d, over a block's slots, over the path's slots (dq), over the lines of a segment from
//! the first that may see any of a tile's 64 keys, rows then heads (dk, dv). Slots that a line does not see have weight 0 and are
//! multiplied through, so a value that is not finite reaches the other rows of its block. Weights, p and dt are rounded to bf16 for their products;
//! o is divided by the sum of the rounded weights, l is the sum of the others; a block's sums run over every fourth pair of slots
//! ascending and join as (0 + 2) + (1 + 3); D likewise over every other eight of d, then both. A result is rounded once.
//!
//! order: law (A1, A2, A3, A6; in bf16 with the orders above). A row of `out`, `m`, `l` depends on its path alone, a row of `dqkv` on its tree alone.

pub(crate) mod block;
mod cases;
pub(crate) mod chains;
pub(crate) mod cpu;
mod cpu_backward;
pub(crate) mod cuda;
pub(crate) mod forest;
pub(crate) mod layout;
mod mma;
mod mma_cases;
#[cfg(test)]
pub(crate) mod reference;
pub(crate) mod scratch;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod tile;
mod weights;

pub(crate) use cases::cases;
pub(crate) use cuda::KERNELS;
use forest::Forest;
pub(crate) use mma::variants;
pub(crate) use mma_cases::cases_in_bf16;
use runtime::{DType, Result, Stream, View, disjoint, ensure};

/// A segment without a parent.
pub const ROOT: u32 = u32::MAX;

/// Most values of one head.
pub const MAX_HEAD_DIM: usize = 256;

/// Heads of a layer. Query head i uses kv head i / (h/k).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads: a multiple of `k`.
    pub h: usize,
    /// Key and value heads.
    pub k: usize,
    /// Values per head, 1…256.
    pub d: usize,
}

impl Heads {
    /// Values of a row of qkv.
    pub fn stride(self) -> usize {
        (self.h + 2 * self.k) * self.d
    }

    /// Query heads per kv head.
    pub fn group(self) -> usize {
        self.h / self.k
    }

    /// The room's limits; `room` names it in the error.
    pub fn check(self, room: &str) -> Result<()> {
        let Heads { h, k, d } = self;
        ensure!(k > 0 && h > 0 && h % k == 0 && h < 1 << 16, "{room}: {h} query heads on {k} kv heads");
        ensure!((1..=MAX_HEAD_DIM).contains(&d), "{room}: head_dim: wanted 1 to {MAX_HEAD_DIM}, got {d}");
        Ok(())
    }
}

/// What differs between families; 0 switches softcap and window off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// Multiplies q·k.
    pub scale: f32,
    /// cap·tanh(score/cap); 0 = off.
    pub softcap: f32,
    /// Keys at positions > pos − window are visible; 0 = all.
    pub window: u32,
    /// Keys behind the query's position are hidden.
    pub causal: bool,
}

impl Params {
    /// The room's limits; `room` names it in the error.
    pub fn check(self, room: &str) -> Result<()> {
        ensure!(self.scale.is_finite(), "{room}: scale {}", self.scale);
        ensure!(self.softcap.is_finite() && self.softcap >= 0.0, "{room}: softcap {}", self.softcap);
        Ok(())
    }

    /// First position visible from `pos`.
    pub fn first(self, pos: usize) -> usize {
        if self.window == 0 { 0 } else { (pos + 1).saturating_sub(self.window as usize) }
    }
}

/// One operand: its length and dtype, or an error that names it.
pub(crate) fn operand(room: &str, name: &str, view: View<'_>, len: usize, dtype: DType) -> Result<()> {
    let (got, got_type) = (view.len(), view.dtype());
    ensure!(got == len && got_type == dtype, "{room}: {name}: wanted {len} {dtype}, got {got} {got_type}");
    Ok(())
}

/// Rows of qkv, stored so, after the checks that forward and backward share.
pub(crate) fn rows(
    stored: DType,
    qkv: View<'_>,
    m: View<'_>,
    l: View<'_>,
    segments: View<'_>,
    heads: Heads,
    params: Params,
) -> Result<usize> {
    heads.check("attention")?;
    params.check("attention")?;
    let n = qkv.len() / heads.stride();
    operand("attention", "qkv", qkv, n * heads.stride(), stored)?;
    operand("attention", "m", m, n * heads.h, DType::I32)?;
    operand("attention", "l", l, n * heads.h, DType::F32)?;
    operand("attention", "segments", segments, segments.len() / 4 * 4, DType::U32)?;
    Ok(n)
}

/// Storage of the activations.
fn stored(s: &Stream, qkv: View<'_>) -> Result<DType> {
    if s.host().is_some() { Ok(DType::F32) } else { crate::cuda::stored("attention", qkv) }
}

/// The forest of `n` rows; without causal order every tree is one segment.
fn forest(words: &[u32], n: usize, params: Params) -> Result<Forest<'_>> {
    let forest = Forest::new(words, n)?;
    if !params.causal {
        let child = (0..forest.len()).find(|&i| forest.get(i).parent.is_some());
        ensure!(child.is_none(), "attention: segment {child:?} has a parent, which wants causal order");
    }
    Ok(forest)
}

/// `out`, `m`, `l` = attention of every row over its path. `segments [S, 4]` u32 = {start row, len, pos0, parent or ROOT}, in row order and
/// covering all rows.
pub fn forward(
    s: &Stream,
    out: View<'_>,
    m: View<'_>,
    l: View<'_>,
    qkv: View<'_>,
    segments: View<'_>,
    heads: Heads,
    params: Params,
) -> Result<()> {
    let stored = stored(s, qkv)?;
    let n = rows(stored, qkv, m, l, segments, heads, params)?;
    operand("attention", "out", out, n * heads.h * heads.d, stored)?;
    disjoint("attention", &[out, m, l], &[qkv, segments])?;
    let Some(pool) = s.host() else {
        let go = if stored == DType::Bf16 { mma::forward } else { cuda::forward };
        return go(s, [out, m, l], qkv, segments, heads, params);
    };
    // SAFETY: the device is the CPU, and `disjoint` showed that no output overlaps another operand.
    unsafe {
        let forest = forest(segments.host()?, n, params)?;
        cpu::forward(pool, out.host_mut()?, m.host_mut()?, l.host_mut()?, qkv.host()?, (forest, None), heads, params);
    }
    Ok(())
}

/// `dqkv` = the gradient of `qkv`, given `dout [N, h·d]` and what [`forward`] left in `out`, `m`, `l`.
pub fn backward(
    s: &Stream,
    dqkv: View<'_>,
    dout: View<'_>,
    out: View<'_>,
    qkv: View<'_>,
    m: View<'_>,
    l: View<'_>,
    segments: View<'_>,
    heads: Heads,
    params: Params,
) -> Result<()> {
    let stored = stored(s, qkv)?;
    let n = rows(stored, qkv, m, l, segments, heads, params)?;
    operand("attention", "dqkv", dqkv, n * heads.stride(), stored)?;
    operand("attention", "dout", dout, n * heads.h * heads.d, stored)?;
    operand("attention", "out", out, n * heads.h * heads.d, stored)?;
    disjoint("attention", &[dqkv], &[dout, out, qkv, m, l, segments])?;
    let Some(pool) = s.host() else {
        let go = if stored == DType::Bf16 { mma::backward } else { cuda::backward };
        return go(s, dqkv, [dout, out, qkv, m, l], segments, heads, params);
    };
    // SAFETY: the device is the CPU, and `disjoint` showed that the output overlaps no other operand.
    unsafe {
        let forest = forest(segments.host()?, n, params)?;
        let saved = cpu_backward::Saved { dout: dout.host()?, out: out.host()?, qkv: qkv.host()?, m: m.host()?, l: l.host()? };
        cpu_backward::backward(pool, dqkv.host_mut()?, saved, forest, heads, params);
    }
    Ok(())
}
