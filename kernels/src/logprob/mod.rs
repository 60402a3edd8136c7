//! From hidden rows to log-probabilities and back, without ever storing the logits.
//!
//! ```text
//! z_v    = chain over c ascending of fma(x_c, W_vc); capped_v = cap·tanh(z_v/cap) or z_v; t_v = capped_v·inv_T
//! s      = Σ_{v≠t} exp(t_v − t_t): tiles of 256 ids, each summed by A2, tile sums added ascending
//! logp   = −log1p(s)                                                          logp [M] =
//! if max t − t_t > 60:  Σ = Σ_v exp(t_v − max) in the same tiles, logp = (t_t − max) − log(Σ)
//! slope_v = 1 − q·q, q = capped_v/cap (1 without a cap)
//! e_v    = exp(t_v − t_t)·slope_v, +0 for v = t;  second form exp(t_v − max)·slope_v for every v
//! way_c  = fma(sum·slope_t, W_tc, 0 − u_c), u_c = chain over v ascending of fma(e_v, W_vc), sum = s or Σ          way [M, C] =
//! dx     = +0, then for every entry m in list order: dx[rows[m]] += way_m·((dlogp·inv_T)/(1 + s or Σ))            dx [N, C] =
//! p_v    = exp(t_v − t_t)/(1 + s), 1 − p_t = s/(1 + s);  second form p_v = exp(t_v − max)/Σ
//! dz_v   = ((dlogp·(onehot − p_v))·inv_T)·slope_v (no last factor without a cap)
//! dW_vc  = fma(dz_mv, x[rows[m], c], dW_vc) over the entries in list order     laid out as a weight of its own       dhead +=
//! ```
//! dlogp scales a whole row of dx, so the way that x is pushed is known before dlogp: forward makes it from each tile of logits while
//! they are at hand, and the head is read and multiplied twice in all. Kept for the backward calls, `[M]` each: t_t, the sum of the
//! form that was taken, and that form's maximum, +inf for the first form (a second form with an infinite maximum has a sum that is not
//! a number, and so has everything made from it).
//!
//! FLOPs: forward 2·M·C·V, twice that with the way; backward 2·M·C; backward_weight 4·M·C·V. Bytes: the head once per task of up to
//! 256 entries.
//!
//! The head is a [`Weight`] in f32, bf16 or f16, widened exactly. On CUDA a block goes over the vocabulary with 64 entries (backward_weight: over the entries with 64 ids), a thread owns whole chains: the CPU's bits. An entry whose
//! row or target does not exist is NaN there, and so is what is made of it; the CPU refuses it.
//!
//! On CUDA x and dx may be bf16, beside a head in bf16 (C a multiple of 8); the way stays f32, dx is rounded once. Then one k16 step of
//! mma.sync stands for 16 fma, ascending: over c, over the ids (way), over the list's entries (dhead). e and dz are rounded to bf16 for their
//! products, sums are of what is not. A tile's sum: 64 ids at a time every fourth pair ascending, joined as (0 + 2) + (1 + 3), the four
//! ascending.
//!
//! order: law (A1, A2, A4, in bf16 as above); dx by the order above in place of A6's, which multiplies by dlogp and divides before the chain and so needs
//! every logit a second time. Forward is split over entries, backward over rows, backward_weight over ids. [`of_logits`] gives the bits
//! of [`forward`].

mod cases;
mod cpu;
mod cuda;
mod mma;
mod mma_cases;
#[cfg(test)]
mod reference;
mod softmax;
#[cfg(test)]
mod tests;

use crate::linear::pack::Stock;
use crate::weight::{self, Layout, Weight};
pub(crate) use cases::cases;
pub(crate) use cuda::variants;
pub(crate) use mma_cases::cases_in_bf16;
use runtime::{DType, Element, Result, Stream, View, disjoint, ensure};

/// What [`forward`] leaves for the backward calls, `[M]` f32 each.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// Logit of the target after cap and temperature.
    pub z_target: View<'a>,
    /// Σ exp over the other ids relative to the target; in the second form over all ids relative to the maximum.
    pub sum: View<'a>,
    /// +inf, or the maximum where the second form was taken.
    pub max: View<'a>,
    /// [M, C] the way that x is pushed, for [`backward`]; empty if that will not be called.
    pub way: View<'a>,
}

impl Kept<'_> {
    /// Dtypes and lengths for M entries.
    fn check(&self, room: &str, m: usize) -> Result<()> {
        for (name, view) in [("kept.z_target", self.z_target), ("kept.sum", self.sum), ("kept.max", self.max)] {
            check::<f32>(room, name, view, m)?;
        }
        Ok(())
    }
}

/// What happens to a logit before the softmax.
#[derive(Clone, Copy, Debug)]
pub struct Scaling {
    /// cap·tanh(z/cap); 0 = off.
    pub softcap: f32,
    /// f32(1/T)
    pub inv_temperature: f32,
}

/// Dtype and length of an operand.
fn check<T: Element>(room: &str, name: &str, view: View<'_>, len: usize) -> Result<()> {
    ensure!(view.dtype() == T::DTYPE, "{room}: {name}: wanted {}, got {}", T::DTYPE, view.dtype());
    ensure!(view.len() == len, "{room}: {name}: wanted {len} elements, got {}", view.len());
    Ok(())
}

/// Every index below `limit`.
fn below<'a>(room: &str, name: &str, view: View<'a>, limit: usize) -> Result<&'a [u32]> {
    // SAFETY: the device is the CPU (callers looked); indices are inputs, and outputs are f32.
    let list = unsafe { view.host::<u32>()? };
    for (i, &value) in list.iter().enumerate() {
        ensure!((value as usize) < limit, "{room}: {name}[{i}] = {value}, wanted below {limit}");
    }
    Ok(list)
}

/// Storage of the activations.
fn stored(s: &Stream, room: &str, x: View<'_>) -> Result<DType> {
    if s.host().is_some() { Ok(DType::F32) } else { crate::cuda::stored(room, x) }
}

/// Shapes shared by forward and backward_weight: x [N, C], rows and targets `[M]`, head [V, C]. M.
fn entries(
    s: &Stream,
    room: &str,
    x: View<'_>,
    rows: View<'_>,
    targets: View<'_>,
    head: Weight<'_>,
    sc: Scaling,
) -> Result<usize> {
    let (v, c) = head.shape();
    match s.host() {
        Some(_) => head.panels(room).map(drop)?,
        None => head.rows(room).map(drop)?,
    }
    ensure!(v > 0 && c > 0, "{room}: head [{v}, {c}] is empty");
    let stored = stored(s, room, x)?;
    ensure!(x.dtype() == stored && x.len().is_multiple_of(c), "{room}: x: {} {} are no rows of {c} {stored}", x.len(), x.dtype());
    ensure!(sc.softcap >= 0.0, "{room}: softcap {}, wanted 0 or more", sc.softcap);
    check::<u32>(room, "rows", rows, rows.len())?;
    check::<u32>(room, "targets", targets, rows.len())?;
    Ok(rows.len())
}

/// logp `[M]` = of the targets `[M]` (ids below V) after hidden rows `rows` `[M]` of x [N, C], and `kept` = for the backward calls;
/// an empty `kept.way` is not made.
pub fn forward(
    s: &Stream,
    logp: View<'_>,
    kept: Kept<'_>,
    x: View<'_>,
    rows: View<'_>,
    targets: View<'_>,
    head: Weight<'_>,
    scaling: Scaling,
) -> Result<()> {
    let room = "logprob::forward";
    let (m, (v, c)) = (entries(s, room, x, rows, targets, head, scaling)?, head.shape());
    let Kept { z_target, sum, max, way } = kept;
    check::<f32>(room, "logp", logp, m)?;
    kept.check(room, m)?;
    check::<f32>(room, "kept.way", way, if way.is_empty() { 0 } else { m * c })?;
    disjoint(room, &[logp, z_target, sum, max, way], &[x, rows, targets, head.data()])?;
    let Some(pool) = s.host() else {
        let go = if x.dtype() == DType::Bf16 { mma::forward } else { cuda::forward };
        return go(s, logp, kept, &cuda::Inputs { x, rows, targets, head: head.rows(room)?, scaling });
    };
    let named = (below(room, "rows", rows, x.len() / c)?, below(room, "targets", targets, v)?);
    // SAFETY: the device is the CPU; `disjoint` keeps the outputs away from everything else.
    unsafe {
        let (z, sum, max) = (z_target.host_mut()?, sum.host_mut()?, max.host_mut()?);
        let out = cpu::Outputs { logp: logp.host_mut()?, z, sum, max, way: way.host_mut()? };
        let head = cpu::Head { stock: Stock::new(head.panels(room)?)?, v, c };
        cpu::forward(pool, out, x.host()?, named.0, named.1, &head, scaling);
    }
    Ok(())
}

/// dx [N, C] = from dlogp `[M]` and what [`forward`] kept; rows that no entry names become 0.
pub fn backward(s: &Stream, dx: View<'_>, dlogp: View<'_>, kept: Kept<'_>, rows: View<'_>, scaling: Scaling) -> Result<()> {
    let room = "logprob::backward";
    let (m, Kept { z_target, sum, max, way }) = (rows.len(), kept);
    check::<f32>(room, "dlogp", dlogp, m)?;
    kept.check(room, m)?;
    let c = way.len().checked_div(m).unwrap_or(1);
    ensure!(m == 0 || c > 0, "{room}: kept.way is empty: forward was not asked for it");
    check::<f32>(room, "kept.way", way, m * c)?;
    let stored = stored(s, room, dx)?;
    ensure!(
        dx.dtype() == stored && dx.len().is_multiple_of(c),
        "{room}: dx: {} {} are no rows of {c} {stored}",
        dx.len(),
        dx.dtype()
    );
    check::<u32>(room, "rows", rows, m)?;
    disjoint(room, &[dx], &[dlogp, z_target, sum, max, way, rows])?;
    let Some(pool) = s.host() else { return cuda::backward(s, dx, dlogp, kept, rows, scaling) };
    let named = below(room, "rows", rows, dx.len() / c)?;
    // SAFETY: the device is the CPU; `disjoint` keeps dx away from everything else.
    unsafe {
        let back = cpu::Back { dlogp: dlogp.host()?, z: z_target.host()?, sum: sum.host()?, max: max.host()? };
        cpu::backward(pool, dx.host_mut()?, back, way.host()?, named, scaling.inv_temperature);
    }
    Ok(())
}

/// dhead (laid out as a weight without an adapter, f32) += from dlogp `[M]`: the chain goes on from what is there.
pub fn backward_weight(
    s: &Stream,
    dhead: View<'_>,
    dlogp: View<'_>,
    kept: Kept<'_>,
    x: View<'_>,
    rows: View<'_>,
    targets: View<'_>,
    head: Weight<'_>,
    scaling: Scaling,
) -> Result<()> {
    let room = "logprob::backward_weight";
    let (m, (v, c)) = (entries(s, room, x, rows, targets, head, scaling)?, head.shape());
    let Kept { z_target, sum, max, .. } = kept;
    check::<f32>(room, "dhead", dhead, Layout::of(s, &[]).len(&[v], c))?;
    check::<f32>(room, "dlogp", dlogp, m)?;
    kept.check(room, m)?;
    disjoint(room, &[dhead], &[dlogp, z_target, sum, max, x, rows, targets, head.data()])?;
    let Some(pool) = s.host() else {
        let inputs = cuda::Inputs { x, rows, targets, head: head.rows(room)?, scaling };
        let go = if x.dtype() == DType::Bf16 { mma::backward_weight } else { cuda::backward_weight };
        return go(s, (dhead, weight::row(c, 0)), dlogp, kept, &inputs);
    };
    let named = (below(room, "rows", rows, x.len() / c)?, below(room, "targets", targets, v)?);
    // SAFETY: the device is the CPU; `disjoint` keeps dhead away from everything else.
    unsafe {
        let back = cpu::Back { dlogp: dlogp.host()?, z: z_target.host()?, sum: sum.host()?, max: max.host()? };
        let head = cpu::Head { stock: Stock::new(head.panels(room)?)?, v, c };
        cpu::backward_weight(pool, dhead.host_mut()?, back, x.host()?, named.0, named.1, &head, scaling);
    }
    Ok(())
}

/// logp `[B]` = of `ids` `[B]` under stored logits [B, V] (z as [`crate::linear::forward`] writes it: before cap and temperature).
pub fn of_logits(s: &Stream, logp: View<'_>, logits: View<'_>, ids: View<'_>, scaling: Scaling) -> Result<()> {
    let room = "logprob::of_logits";
    let b = ids.len();
    check::<f32>(room, "logp", logp, b)?;
    if b == 0 {
        return check::<f32>(room, "logits", logits, 0);
    }
    let v = logits.len() / b;
    check::<f32>(room, "logits", logits, b * v)?;
    ensure!(scaling.softcap >= 0.0, "{room}: softcap {}, wanted 0 or more", scaling.softcap);
    check::<u32>(room, "ids", ids, b)?;
    disjoint(room, &[logp], &[logits, ids])?;
    let Some(pool) = s.host() else { return cuda::of_logits(s, logp, logits, ids, scaling) };
    let list = below(room, "ids", ids, v)?;
    // SAFETY: the device is the CPU; `disjoint` keeps logp away from the rest.
    unsafe { cpu::of_logits(pool, logp.host_mut()?, logits.host()?, list, v, scaling) };
    Ok(())
}
