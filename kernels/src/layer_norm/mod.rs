//! LayerNorm with the residual sum before it.
//!
//! ```text
//! v[n,c]    = x[n,c] + delta[n,c]                      or x[n,c] without a delta
//! mean[n]   = Σ_c v / C                                Σ by LAW A2 (plain terms)
//! z[n,c]    = v − mean
//! rstd[n]   = 1 / sqrt(Σ_c z² / C + eps)               Σ by LAW A2 (squares by fma), then /C, + eps, sqrt, 1/·
//! y[n,c]    = (z·rstd)·w[c] + b[c]
//! g[n,c]    = dy·w[c],  x̂[n,c] = z·rstd,  m[n] = Σ_c g / C,  k[n] = Σ_c g·x̂ / C      Σ by LAW A2 (products by fma)
//! dx[n,c]   = add + rstd·((g − m) − x̂·k)
//! dw[c]    += p,  p = fma(dy[n,c], x̂[n,c], p)          rows of an example ascending from +0, examples in order (LAW A7)
//! db[c]    += p,  p = p + dy[n,c]                      likewise
//! ```
//! Every operation written here rounds by itself; `x` of the backward pass is the v of the forward pass.
//! x, delta, sum, y, dx, dy, add: [N, C] f32, on CUDA also bf16: each result is rounded once, and v is the rounded sum. w, b, dw, db: `[C]`
//! f32. stats: [N, 2] f32 of mean and rstd, kept for backward. `=` everywhere but in dw and db.
//! Bytes: forward 8 NC (16 NC with a delta), backward 12 NC (16 with `add`), dw and db 8 NC. FLOPs: 7 NC, 13 NC, 5 NC.
//! On CUDA rows of y, dx, dy and add may lie apart ([`View::apart`]), and a block owns a row and sums it in A2's own order: the CPU's bits. Spans of
//! `examples` are cut at N there; the CPU refuses them. order: law

use crate::cuda::{blocks, elements, kernel, operand, optional, pitch, rows_of, size, stored, variant};
use runtime::{Arg, DType::F32, DType::U32, Kernel, Launch, Result, Stream, View, disjoint, ensure};

mod cases;
mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cases::{cases, cases_in_bf16};

pub(crate) const KERNELS: [Kernel; 4] = [
    kernel!("layer_norm_forward", "layer_norm.cu"),
    kernel!("layer_norm_apply", "layer_norm.cu"),
    kernel!("layer_norm_backward", "layer_norm.cu"),
    kernel!("layer_norm_backward_weight", "layer_norm.cu"),
];

/// N·C, after the checks that all launchers share.
fn sizes(room: &str, rows: &[View<'_>], stats: View<'_>, vectors: [View<'_>; 2]) -> Result<usize> {
    let (n, c) = (stats.len() / 2, vectors[0].len());
    ensure!(stats.len() == 2 * n, "{room}: stats has {} elements, wanted [N, 2]", stats.len());
    ensure!(c > 0 && vectors[1].len() == c, "{room}: weight and bias have {c} and {} elements", vectors[1].len());
    for rows in rows {
        ensure!(rows.len() == n * c, "{room}: rows have {} elements, wanted [{n}, {c}]", rows.len());
    }
    Ok(n * c)
}

/// y and stats of `x`, or of `sum` = x + delta, which is written only when a delta is given (and may be empty otherwise).
pub fn forward(
    s: &Stream,
    y: View<'_>,
    stats: View<'_>,
    sum: View<'_>,
    x: View<'_>,
    delta: Option<View<'_>>,
    [w, b]: [View<'_>; 2],
    eps: f32,
) -> Result<()> {
    let room = "layer_norm::forward";
    sizes(room, &[y, x], stats, [w, b])?;
    let none = View::none(x.dtype());
    let (sum, delta) = delta.map_or((none, none), |delta| (sum, delta));
    let fits = sum.len() == delta.len() && (delta.is_empty() || delta.len() == x.len());
    ensure!(fits, "{room}: sum and delta have {} and {} elements, wanted {}", sum.len(), delta.len(), x.len());
    disjoint(room, &[y, stats, sum], &[x, delta, w, b])?;
    let Some(pool) = s.host() else {
        let stored = stored(room, x)?;
        let out = [rows_of(room, y, stored)?, operand(room, stats, F32)?, optional(room, sum, stored)?];
        let rows = [operand(room, x, stored)?, optional(room, delta, stored)?];
        let rest = [operand(room, w, F32)?, operand(room, b, F32)?];
        let scalars = [size(room, w.len())?, pitch(room, y, w.len())?, Arg::Bits(eps)];
        let launch = Launch { defines: variant(stored), ..blocks(stats.len() / 2)? };
        // SAFETY: the kernel's arguments, checked to be [N, C], [N, 2] and `[C]`.
        return unsafe { s.launch(&KERNELS[0], &launch, &[&out[..], &rows, &rest, &scalars].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the outputs apart from everything else.
    unsafe {
        let out = (y.host_mut()?, stats.host_mut()?, sum.host_mut()?);
        cpu::forward(pool, out, x.host()?, delta.host()?, [w.host()?, b.host()?], eps);
    }
    Ok(())
}

/// y again from `x` (the v of forward) and the kept stats: the same bits as forward's.
pub fn apply(s: &Stream, y: View<'_>, x: View<'_>, stats: View<'_>, [w, b]: [View<'_>; 2]) -> Result<()> {
    let room = "layer_norm::apply";
    sizes(room, &[y, x], stats, [w, b])?;
    disjoint(room, &[y], &[x, stats, w, b])?;
    let Some(pool) = s.host() else {
        let stored = stored(room, x)?;
        let views = [rows_of(room, y, stored)?, operand(room, x, stored)?, operand(room, stats, F32)?];
        let rest = [operand(room, w, F32)?, operand(room, b, F32)?];
        let sizes = [size(room, w.len())?, pitch(room, y, w.len())?];
        let launch = Launch { defines: variant(stored), ..blocks(stats.len() / 2)? };
        // SAFETY: as in `forward`.
        return unsafe { s.launch(&KERNELS[1], &launch, &[&views[..], &rest, &sizes].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    unsafe { cpu::apply(pool, y.host_mut()?, x.host()?, stats.host()?, [w.host()?, b.host()?]) };
    Ok(())
}

/// dx of `x` (the v of forward), plus `add`, the gradient that reaches x beside the norm.
pub fn backward(
    s: &Stream,
    dx: View<'_>,
    dy: View<'_>,
    x: View<'_>,
    stats: View<'_>,
    w: View<'_>,
    add: Option<View<'_>>,
) -> Result<()> {
    let room = "layer_norm::backward";
    let len = sizes(room, &[dx, dy, x], stats, [w, w])?;
    ensure!(add.is_none_or(|a| a.len() == len), "{room}: add has {} elements, wanted {len}", add.map_or(0, |a| a.len()));
    let add = add.unwrap_or(View::none(x.dtype()));
    disjoint(room, &[dx], &[dy, x, stats, w, add])?;
    let Some(pool) = s.host() else {
        let stored = stored(room, x)?;
        let rows = [rows_of(room, dx, stored)?, rows_of(room, dy, stored)?, operand(room, x, stored)?];
        let rest = [operand(room, stats, F32)?, operand(room, w, F32)?, rows_of(room, add, stored)?];
        let sizes = [size(room, w.len())?, pitch(room, dx, w.len())?, pitch(room, dy, w.len())?, pitch(room, add, w.len())?];
        let launch = Launch { defines: variant(stored), ..blocks(stats.len() / 2)? };
        // SAFETY: as in `forward`.
        return unsafe { s.launch(&KERNELS[2], &launch, &[&rows[..], &rest, &sizes].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    unsafe { cpu::backward(pool, dx.host_mut()?, dy.host()?, x.host()?, stats.host()?, w.host()?, add.host()?) };
    Ok(())
}

/// dw and db += one partial per example; `examples` is u32 [E, 2], the {start, end} of each example's rows.
pub fn backward_weight(
    s: &Stream,
    dw: View<'_>,
    db: View<'_>,
    dy: View<'_>,
    x: View<'_>,
    stats: View<'_>,
    examples: View<'_>,
) -> Result<()> {
    let room = "layer_norm::backward_weight";
    sizes(room, &[dy, x], stats, [dw, db])?;
    disjoint(room, &[dw, db], &[dy, x, stats, examples])?;
    let Some(pool) = s.host() else {
        let stored = stored(room, x)?;
        ensure!(examples.len().is_multiple_of(2), "{room}: examples has {} elements, wanted [E, 2]", examples.len());
        let out = [operand(room, dw, F32)?, operand(room, db, F32)?, operand(room, dy, stored)?, operand(room, x, stored)?];
        let rest = [operand(room, stats, F32)?, operand(room, examples, U32)?];
        let sizes = [size(room, examples.len() / 2)?, size(room, stats.len() / 2)?, size(room, dw.len())?];
        let launch = Launch { defines: variant(stored), ..elements(dw.len())? };
        // SAFETY: as in `forward`; the kernel cuts spans at the rows there are.
        return unsafe { s.launch(&KERNELS[3], &launch, &[&out[..], &rest, &sizes].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the outputs apart from each other and from everything else.
    let (dw, db, dy, x) = unsafe { (dw.host_mut()?, db.host_mut()?, dy.host()?, x.host()?) };
    // SAFETY: as above.
    let (stats, examples) = unsafe { (stats.host()?, examples.host()?) };
    crate::spans(room, examples, stats.len() / 2)?;
    cpu::backward_weight(pool, dw, dy, x, stats, examples);
    cpu::backward_bias(pool, db, dy, examples);
    Ok(())
}
