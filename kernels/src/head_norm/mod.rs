//! RMSNorm of each query and key head of a row, before the rotary positions.
//!
//! ```text
//! rstd[n,h]   = 1 / sqrt(Σ_i x² / D + eps)              Σ by LAW A2 (squares by fma), then /D, + eps, sqrt, 1/·
//! y[n,h,i]    = (x·rstd)·f,  f[i] = offset + w[i]       with offset 0 the factor is w itself; w = wq for h < H, else wk
//! backward:     g = d·f,  x̂ = x·rstd,  d = rstd·(g − x̂·m),  m = Σ_i g·x̂ / D      in place; Σ by LAW A2 (products by fma)
//! dw[i]      += p,  p = fma(d[n,h,i], x̂[n,h,i], p)      from +0 over an example's rows ascending, in a row heads ascending (LAW A7)
//! ```
//! Every operation written here rounds by itself. x, y, d: [N, stride] f32, on CUDA also bf16, each result rounded once, of which the first (H + K)·D columns are heads; the rest of a
//! row (the values) is copied to y and stays as it is in d. w, dw: [wq, wk], each `[D]` f32. rstd: [N, H + K] f32, kept for backward. `=`
//! everywhere but in dw, whose d is that from before `backward`.
//! Bytes: forward 8·N·stride, backward 12·N·(H + K)·D, dw 8·N·(H + K)·D. FLOPs of a head's element: 4, 9, 3.
//! On CUDA rows of `backward`'s d may lie apart ([`View::apart`]), and sixteen lanes own a head and sum it in A2's own order: the CPU's bits.
//! Spans of `examples` are cut at N there; the CPU refuses them. order: law

use crate::cuda::{BLOCK, blocks, elements, kernel, operand, pitch, rows_of, size, stored, variant};
use runtime::{Arg, DType, DType::F32, DType::U32, Kernel, Launch, Result, Stream, View, disjoint, ensure};

mod cases;
mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cases::cases;

pub(crate) const KERNELS: [Kernel; 3] = [
    kernel!("head_norm_forward", "head_norm.cu"),
    kernel!("head_norm_backward", "head_norm.cu"),
    kernel!("head_norm_backward_weight", "head_norm.cu"),
];

/// Lanes of a head.
const LANES: usize = 16;

/// What the operands must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// H, heads under wq.
    pub queries: usize,
    /// K, heads under wk.
    pub keys: usize,
    /// D
    pub d: usize,
    /// Columns of a row.
    pub stride: usize,
}

impl Shape {
    fn heads(self) -> usize {
        self.queries + self.keys
    }

    fn check(self, room: &str, rows: &[View<'_>], rstd: View<'_>, w: [View<'_>; 2]) -> Result<()> {
        let Shape { d, stride, .. } = self;
        let heads = self.heads();
        ensure!(d > 0 && heads > 0 && heads.saturating_mul(d) <= stride, "{room}: {heads} heads of {d} in rows of {stride}");
        ensure!(w.iter().all(|w| w.len() == d), "{room}: weights of {} and {} elements, wanted {d}", w[0].len(), w[1].len());
        ensure!(rstd.len().is_multiple_of(heads), "{room}: rstd has {} elements, wanted [N, {heads}]", rstd.len());
        let n = rstd.len() / heads;
        for rows in rows {
            ensure!(rows.len() == n * stride, "{room}: rows have {} elements, wanted [{n}, {stride}]", rows.len());
        }
        Ok(())
    }

    /// The struct `Heads` of head_norm.cu, which counts columns in 32 bits.
    fn bytes(self, room: &str) -> Result<Vec<u8>> {
        let Shape { queries, keys, d, stride } = self;
        ensure!(stride < i32::MAX as usize, "{room}: rows of {stride}, wanted less than {}", i32::MAX);
        Ok([queries, keys, d, stride].iter().flat_map(|v| (*v as u32).to_ne_bytes()).collect())
    }
}

/// Sixteen lanes for each of so many groups.
fn lanes(groups: usize, stored: DType) -> Result<Launch> {
    Ok(Launch { defines: variant(stored), ..blocks(groups.div_ceil(BLOCK as usize / LANES))? })
}

/// y and rstd of x.
pub fn forward(
    s: &Stream,
    y: View<'_>,
    rstd: View<'_>,
    x: View<'_>,
    w: [View<'_>; 2],
    shape: Shape,
    eps: f32,
    weight_offset: f32,
) -> Result<()> {
    let room = "head_norm::forward";
    shape.check(room, &[y, x], rstd, w)?;
    disjoint(room, &[y, rstd], &[x, w[0], w[1]])?;
    let Some(pool) = s.host() else {
        let (n, stored, bytes) = (rstd.len() / shape.heads(), stored(room, x)?, shape.bytes(room)?);
        let out = [operand(room, y, stored)?, operand(room, rstd, F32)?, operand(room, x, stored)?];
        let rest = [operand(room, w[0], F32)?, operand(room, w[1], F32)?, Arg::U64(n as u64)];
        let scalars = [Arg::Struct(&bytes), Arg::Bits(eps), Arg::Bits(weight_offset)];
        // A group for each head, and one for the rest of the row.
        let launch = lanes(rstd.len() + n, stored)?;
        // SAFETY: the kernel's arguments; `check` made sure of what they cover.
        return unsafe { s.launch(&KERNELS[0], &launch, &[out, rest, scalars].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the outputs apart from everything else.
    unsafe {
        let w = [w[0].host()?, w[1].host()?];
        cpu::forward(pool, y.host_mut()?, rstd.host_mut()?, x.host()?, w, shape, eps, weight_offset);
    }
    Ok(())
}

/// d, the gradient of y, becomes that of x.
pub fn backward(
    s: &Stream,
    d: View<'_>,
    x: View<'_>,
    rstd: View<'_>,
    w: [View<'_>; 2],
    shape: Shape,
    weight_offset: f32,
) -> Result<()> {
    let room = "head_norm::backward";
    shape.check(room, &[d, x], rstd, w)?;
    disjoint(room, &[d], &[x, rstd, w[0], w[1]])?;
    let Some(pool) = s.host() else {
        let (n, stored, bytes) = (rstd.len() / shape.heads(), stored(room, x)?, shape.bytes(room)?);
        let rows = [rows_of(room, d, stored)?, operand(room, x, stored)?, operand(room, rstd, F32)?];
        let rest = [operand(room, w[0], F32)?, operand(room, w[1], F32)?, Arg::U64(n as u64)];
        let scalars = [Arg::Struct(&bytes), pitch(room, d, shape.stride)?, Arg::Bits(weight_offset)];
        let args = [rows, rest, scalars].concat();
        // SAFETY: as in `forward`.
        return unsafe { s.launch(&KERNELS[1], &lanes(rstd.len(), stored)?, &args) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps d apart from everything else.
    unsafe {
        let w = [w[0].host()?, w[1].host()?];
        cpu::backward(pool, d.host_mut()?, x.host()?, rstd.host()?, w, shape, weight_offset);
    }
    Ok(())
}

/// dw += one partial per example; `examples` is u32 [E, 2], the {start, end} of each example's rows; d is the gradient of y.
pub fn backward_weight(
    s: &Stream,
    dw: [View<'_>; 2],
    d: View<'_>,
    x: View<'_>,
    rstd: View<'_>,
    examples: View<'_>,
    shape: Shape,
) -> Result<()> {
    let room = "head_norm::backward_weight";
    shape.check(room, &[d, x], rstd, dw)?;
    disjoint(room, &dw, &[d, x, rstd, examples])?;
    let Some(pool) = s.host() else {
        let (n, stored, bytes) = (rstd.len() / shape.heads(), stored(room, x)?, shape.bytes(room)?);
        ensure!(examples.len().is_multiple_of(2), "{room}: examples has {} elements, wanted [E, 2]", examples.len());
        let out = [operand(room, dw[0], F32)?, operand(room, dw[1], F32)?, operand(room, d, stored)?, operand(room, x, stored)?];
        let rest = [operand(room, rstd, F32)?, operand(room, examples, U32)?, size(room, examples.len() / 2)?, size(room, n)?];
        let launch = Launch { defines: variant(stored), ..elements(2 * shape.d)? };
        // SAFETY: as in `forward`; the kernel cuts spans at the rows there are.
        return unsafe { s.launch(&KERNELS[2], &launch, &[&out[..], &rest, &[Arg::Struct(&bytes)]].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the outputs apart from each other and from everything else.
    let (dwq, dwk, d, x) = unsafe { (dw[0].host_mut()?, dw[1].host_mut()?, d.host()?, x.host()?) };
    // SAFETY: as above.
    let (rstd, examples) = unsafe { (rstd.host()?, examples.host()?) };
    crate::spans(room, examples, rstd.len() / shape.heads())?;
    cpu::backward_weight(pool, dwq, d, x, rstd, examples, shape, 0..shape.queries);
    cpu::backward_weight(pool, dwk, d, x, rstd, examples, shape, shape.queries..shape.heads());
    Ok(())
}
