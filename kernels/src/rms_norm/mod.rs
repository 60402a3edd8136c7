//! RMSNorm with the residual sum before it.
//!
//! ```text
//! v[n,c]    = x[n,c] + delta[n,c]                      or x[n,c] without a delta
//! rstd[n]   = 1 / sqrt(Σ_c v² / C + eps)               Σ by LAW A2 (squares by fma), then /C, + eps, sqrt, 1/·
//! y[n,c]    = (v·rstd)·f,  f[c] = offset + w[c]        with offset 0 the factor is w itself
//! g[n,c]    = dy·f,  x̂[n,c] = x·rstd
//! dx[n,c]   = add + rstd·(g − x̂·m),  m[n] = Σ_c g·x̂ / C      Σ by LAW A2 (products by fma)
//! dw[c]    += p,  p = fma(dy[n,c], x̂[n,c], p)          rows of an example ascending from +0, examples in order (LAW A7)
//! ```
//! Every operation written here rounds by itself; `x` of the backward pass is the v of the forward pass.
//! x, delta, sum, y, dx, dy, add: [N, C] f32, on CUDA also bf16: each result is rounded once, and v is the rounded sum. w, dw: `[C]` f32.
//! rstd: `[N]` f32, kept for backward. `=` everywhere but in dw.
//! Bytes: forward 8 NC (16 NC with a delta), backward 12 NC (16 with `add`), dw 8 NC. FLOPs: 4 NC, 9 NC, 3 NC.
//! On CUDA rows of y, dx, dy and add may lie apart ([`View::apart`]), and a block owns a row and sums it in A2's own order: the CPU's bits.
//! Spans of `examples` are cut at N there; the CPU refuses them. order: law

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
    kernel!("rms_norm_forward", "rms_norm.cu"),
    kernel!("rms_norm_apply", "rms_norm.cu"),
    kernel!("rms_norm_backward", "rms_norm.cu"),
    kernel!("rms_norm_backward_weight", "rms_norm.cu"),
];

fn sizes(room: &str, rows: View<'_>, rstd: View<'_>, w: View<'_>) -> Result<usize> {
    let (n, c) = (rstd.len(), w.len());
    ensure!(c > 0 && rows.len() == n * c, "{room}: rows have {} elements, wanted [{n}, {c}]", rows.len());
    Ok(n * c)
}

/// y and rstd of `x`, or of `sum` = x + delta, which is written only when a delta is given (and may be empty otherwise).
pub fn forward(
    s: &Stream,
    y: View<'_>,
    rstd: View<'_>,
    sum: View<'_>,
    x: View<'_>,
    delta: Option<View<'_>>,
    w: View<'_>,
    eps: f32,
    weight_offset: f32,
) -> Result<()> {
    let len = sizes("rms_norm::forward", x, rstd, w)?;
    ensure!(y.len() == len, "rms_norm::forward: y has {} elements, wanted {len}", y.len());
    let (sum, delta) = match delta {
        Some(delta) => {
            let fits = sum.len() == len && delta.len() == len;
            ensure!(fits, "rms_norm::forward: sum and delta have {} and {} elements, wanted {len}", sum.len(), delta.len());
            (sum, delta)
        }
        None => (View::none(x.dtype()), View::none(x.dtype())),
    };
    disjoint("rms_norm::forward", &[y, rstd, sum], &[x, delta, w])?;
    let Some(pool) = s.host() else {
        let (room, stored) = ("rms_norm::forward", stored("rms_norm::forward", x)?);
        let out = [rows_of(room, y, stored)?, operand(room, rstd, F32)?, optional(room, sum, stored)?];
        let input = [operand(room, x, stored)?, optional(room, delta, stored)?, operand(room, w, F32)?];
        let launch = Launch { defines: variant(stored), ..blocks(rstd.len())? };
        let scalars = [size(room, w.len())?, pitch(room, y, w.len())?, Arg::Bits(eps), Arg::Bits(weight_offset)];
        // SAFETY: the kernel's arguments, checked to be [rows, C], `[rows]` and `[C]`.
        return unsafe { s.launch(&KERNELS[0], &launch, &[&out[..], &input, &scalars].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the outputs apart from everything else.
    unsafe {
        let out = (y.host_mut()?, rstd.host_mut()?, sum.host_mut()?);
        cpu::forward(pool, out, x.host()?, delta.host()?, w.host()?, eps, weight_offset);
    }
    Ok(())
}

/// y again from `x` (the v of forward) and the kept rstd: the same bits as forward's.
pub fn apply(s: &Stream, y: View<'_>, x: View<'_>, rstd: View<'_>, w: View<'_>, weight_offset: f32) -> Result<()> {
    let len = sizes("rms_norm::apply", x, rstd, w)?;
    ensure!(y.len() == len, "rms_norm::apply: y has {} elements, wanted {len}", y.len());
    disjoint("rms_norm::apply", &[y], &[x, rstd, w])?;
    let Some(pool) = s.host() else {
        let (room, stored) = ("rms_norm::apply", stored("rms_norm::apply", x)?);
        let launch = Launch { defines: variant(stored), ..blocks(rstd.len())? };
        let views = [rows_of(room, y, stored)?, operand(room, x, stored)?, operand(room, rstd, F32)?, operand(room, w, F32)?];
        let scalars = [size(room, w.len())?, pitch(room, y, w.len())?, Arg::Bits(weight_offset)];
        let args = [&views[..], &scalars].concat();
        // SAFETY: as in `forward`.
        return unsafe { s.launch(&KERNELS[1], &launch, &args) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    unsafe { cpu::apply(pool, y.host_mut()?, x.host()?, rstd.host()?, w.host()?, weight_offset) };
    Ok(())
}

/// dx of `x` (the v of forward), plus `add`, the gradient that reaches x beside the norm.
pub fn backward(
    s: &Stream,
    dx: View<'_>,
    dy: View<'_>,
    x: View<'_>,
    rstd: View<'_>,
    w: View<'_>,
    add: Option<View<'_>>,
    weight_offset: f32,
) -> Result<()> {
    let len = sizes("rms_norm::backward", x, rstd, w)?;
    let added = add.map_or(len, |a| a.len());
    let fits = dx.len() == len && dy.len() == len && added == len;
    ensure!(fits, "rms_norm::backward: dx, dy, add have {}, {}, {added} elements, wanted {len}", dx.len(), dy.len());
    let add = add.unwrap_or(View::none(x.dtype()));
    disjoint("rms_norm::backward", &[dx], &[dy, x, rstd, w, add])?;
    let Some(pool) = s.host() else {
        let (room, stored) = ("rms_norm::backward", stored("rms_norm::backward", x)?);
        let launch = Launch { defines: variant(stored), ..blocks(rstd.len())? };
        let views = [rows_of(room, dx, stored)?, rows_of(room, dy, stored)?, operand(room, x, stored)?];
        let rest = [operand(room, rstd, F32)?, operand(room, w, F32)?, rows_of(room, add, stored)?];
        let pitches = [pitch(room, dx, w.len())?, pitch(room, dy, w.len())?, pitch(room, add, w.len())?];
        let args = [&views[..], &rest, &[size(room, w.len())?], &pitches, &[Arg::Bits(weight_offset)]].concat();
        // SAFETY: as in `forward`.
        return unsafe { s.launch(&KERNELS[2], &launch, &args) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    unsafe {
        cpu::backward(pool, dx.host_mut()?, dy.host()?, x.host()?, rstd.host()?, w.host()?, add.host()?, weight_offset);
    }
    Ok(())
}

/// dw += one partial per example; `examples` is u32 [E, 2], the {start, end} of each example's rows.
pub fn backward_weight(s: &Stream, dw: View<'_>, dy: View<'_>, x: View<'_>, rstd: View<'_>, examples: View<'_>) -> Result<()> {
    let len = sizes("rms_norm::backward_weight", x, rstd, dw)?;
    ensure!(dy.len() == len, "rms_norm::backward_weight: dy has {} elements, wanted {len}", dy.len());
    disjoint("rms_norm::backward_weight", &[dw], &[dy, x, rstd, examples])?;
    let Some(pool) = s.host() else {
        let (room, stored) = ("rms_norm::backward_weight", stored("rms_norm::backward_weight", x)?);
        let launch = Launch { defines: variant(stored), ..elements(dw.len())? };
        ensure!(examples.len().is_multiple_of(2), "{room}: examples has {} elements, wanted [E, 2]", examples.len());
        let rows = [operand(room, dw, F32)?, operand(room, dy, stored)?, operand(room, x, stored)?];
        let rest = [operand(room, rstd, F32)?, operand(room, examples, U32)?];
        let sizes = [size(room, examples.len() / 2)?, size(room, rstd.len())?, size(room, dw.len())?];
        // SAFETY: as in `forward`; the kernel cuts spans at the rows there are.
        return unsafe { s.launch(&KERNELS[3], &launch, &[&rows[..], &rest, &sizes].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    let (dw, dy, x, rstd, examples) = unsafe { (dw.host_mut()?, dy.host()?, x.host()?, rstd.host()?, examples.host()?) };
    crate::spans("rms_norm::backward_weight", examples, rstd.len())?;
    cpu::backward_weight(pool, dw, dy, x, rstd, examples);
    Ok(())
}
