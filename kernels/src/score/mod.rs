//! Scalar head: one number per listed row, for rewards and values.
//!
//! ```text
//! out[m]      = acc,  acc = fma(x[rows[m], c], w[c], acc),  c ascending from +0          (LAW A1)
//! dx[r, c]    = Σ over m with rows[m] = r, in list order, of dout[m]·w[c]; product and sum round; +0 where no entry is
//! dw[c]      += p,  p = fma(dout[m], x[rows[m], c], p)       entries of an example ascending from +0, examples in order (A7)
//! ```
//! x, dx: [N, C] f32, on CUDA also bf16, dx rounded once. rows: `[M]` u32 into N. w, dw: `[C]` f32. out, dout: `[M]` f32. `=` everywhere but in dw.
//! A bias is the caller's. Bytes: forward 4 MC, backward 4 NC + 4 MC, dw 4 MC. FLOPs: 2 MC each.
//! On CUDA a thread owns whole chains: the CPU's bits. An entry whose row does not exist is NaN there, in `out` and in dw, and spans of
//! `examples` are cut at M; the CPU refuses both.
//! order: law

use crate::cuda::{blocks, elements, kernel, operand, size, stored, variant};
use runtime::{DType::F32, DType::U32, Error, Kernel, Launch, Result, Stream, View, disjoint, ensure};

mod cases;
mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cases::cases;

pub(crate) const KERNELS: [Kernel; 3] = [
    kernel!("score_forward", "score.cu", "logprob/rows.cuh"),
    kernel!("score_backward", "score.cu", "logprob/rows.cuh"),
    kernel!("score_backward_weight", "score.cu", "logprob/rows.cuh"),
];

/// Rows of x.
fn count(room: &str, x: View<'_>, c: usize) -> Result<usize> {
    ensure!(c > 0 && x.len().is_multiple_of(c), "{room}: x has {} elements, wanted [N, {c}]", x.len());
    Ok(x.len() / c)
}

fn within(room: &str, rows: &[u32], x: View<'_>, c: usize) -> Result<()> {
    let n = count(room, x, c)?;
    match rows.iter().enumerate().find(|(_, row)| **row as usize >= n) {
        Some((m, row)) => Err(Error::Shape(format!("{room}: entry {m} is row {row} of {n}"))),
        None => Ok(()),
    }
}

/// out `[M]` of the listed rows of x [N, C].
pub fn forward(s: &Stream, out: View<'_>, x: View<'_>, rows: View<'_>, w: View<'_>) -> Result<()> {
    ensure!(out.len() == rows.len(), "score::forward: out has {} elements, wanted {}", out.len(), rows.len());
    disjoint("score::forward", &[out], &[x, rows, w])?;
    let Some(pool) = s.host() else {
        let (room, n) = ("score::forward", count("score::forward", x, w.len())?);
        let launch = Launch { defines: variant(stored(room, x)?), ..elements(rows.len())? };
        let views = [operand(room, out, F32)?, operand(room, x, x.dtype())?, operand(room, rows, U32)?, operand(room, w, F32)?];
        let sizes = [size(room, rows.len())?, size(room, n)?, size(room, w.len())?];
        // SAFETY: the kernel's arguments, checked to be [N, C], `[M]` and `[C]`; it reads no row that is not there.
        return unsafe { s.launch(&KERNELS[0], &launch, &[&views[..], &sizes].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    let (out, data, rows, weight) = unsafe { (out.host_mut()?, x.host()?, rows.host()?, w.host()?) };
    within("score::forward", rows, x, w.len())?;
    cpu::forward(pool, out, data, rows, weight);
    Ok(())
}

/// dx [N, C], every row of it, of dout `[M]`.
pub fn backward(s: &Stream, dx: View<'_>, dout: View<'_>, rows: View<'_>, w: View<'_>) -> Result<()> {
    ensure!(dout.len() == rows.len(), "score::backward: dout has {} elements, wanted {}", dout.len(), rows.len());
    disjoint("score::backward", &[dx], &[dout, rows, w])?;
    let Some(pool) = s.host() else {
        let (room, n) = ("score::backward", count("score::backward", dx, w.len())?);
        let launch = Launch { defines: variant(stored(room, dx)?), ..blocks(n)? };
        let views =
            [operand(room, dx, dx.dtype())?, operand(room, dout, F32)?, operand(room, rows, U32)?, operand(room, w, F32)?];
        let sizes = [size(room, rows.len())?, size(room, w.len())?];
        // SAFETY: as in `forward`.
        return unsafe { s.launch(&KERNELS[1], &launch, &[&views[..], &sizes].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    let (out, dout, rows, weight) = unsafe { (dx.host_mut()?, dout.host()?, rows.host()?, w.host()?) };
    within("score::backward", rows, dx, w.len())?;
    cpu::backward(pool, out, dout, rows, weight);
    Ok(())
}

/// dw `[C]` += one partial per example; `examples` is u32 [E, 2], the {start, end} of each example's entries.
pub fn backward_weight(s: &Stream, dw: View<'_>, dout: View<'_>, x: View<'_>, rows: View<'_>, examples: View<'_>) -> Result<()> {
    ensure!(dout.len() == rows.len(), "score::backward_weight: dout has {} elements, wanted {}", dout.len(), rows.len());
    disjoint("score::backward_weight", &[dw], &[dout, x, rows, examples])?;
    let Some(pool) = s.host() else {
        let (room, n) = ("score::backward_weight", count("score::backward_weight", x, dw.len())?);
        ensure!(examples.len().is_multiple_of(2), "{room}: examples has {} elements, wanted [E, 2]", examples.len());
        let launch = Launch { defines: variant(stored(room, x)?), ..elements(dw.len())? };
        let views = [operand(room, dw, F32)?, operand(room, dout, F32)?, operand(room, x, x.dtype())?];
        let lists = [operand(room, rows, U32)?, operand(room, examples, U32)?];
        let sizes =
            [examples.len() / 2, rows.len(), n, dw.len()].map(|n| size(room, n)).into_iter().collect::<Result<Vec<_>>>()?;
        // SAFETY: as in `forward`; the kernel cuts spans at the entries there are.
        return unsafe { s.launch(&KERNELS[2], &launch, &[&views[..], &lists, &sizes].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    let (out, dout, data) = unsafe { (dw.host_mut()?, dout.host()?, x.host()?) };
    // SAFETY: as above.
    let (rows, examples) = unsafe { (rows.host()?, examples.host()?) };
    within("score::backward_weight", rows, x, dw.len())?;
    crate::spans("score::backward_weight", examples, rows.len())?;
    cpu::backward_weight(pool, out, dout, data, rows, examples);
    Ok(())
}
