//! Embedding: rows of a table.
//!
//! ```text
//! x[n,c] = table[tokens[n], c]·scale           widened exactly; scale 1 is no multiplication
//! dtable[tokens[n], c] += dx[n,c]·scale        product (none by 1) and sum round, rows ascending
//! ```
//! x, dx: [N, C] f32. tokens: `[N]` u32. table: a [`Weight`] [V, C], on the CPU in f32, bf16 or f16. On CUDA x, dx and table are all f32 or
//! all bf16, x rounded once. dtable: [V, C] f32, laid out as a weight without an adapter, of one example: the caller clears it first and adds
//! it to the total afterwards (LAW A7). Bytes: N·C·(4 + size of a weight); backward 12 NC. FLOPs: NC. order: law
//! An id outside the table is an error on the CPU, which looks; on CUDA, where looking would wait, its row is NaN and its gradient dropped.

use crate::cuda::{blocks, elements, kernel, operand, size, stored, variant};
use crate::weight::{self, Layout, Weight};
use half::{bf16, f16};
use runtime::{Arg, DType, DType::F32, DType::U32, Error, Kernel, Launch, Result, Stream, View, disjoint, ensure};

mod cases;
mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cases::{cases, cases_in_bf16};

pub(crate) const KERNELS: [Kernel; 2] =
    [kernel!("embedding_forward", "embedding.cu"), kernel!("embedding_backward", "embedding.cu")];

pub(crate) const ADD: [Kernel; 1] = [kernel!("embedding_add", "embedding.cu")];

/// total += part, element by element in f32, on CUDA: how an example's dtable joins the others' (LAW A7).
pub(crate) fn add(s: &Stream, total: View<'_>, part: View<'_>) -> Result<()> {
    let room = "embedding::add";
    let args = [operand(room, total, F32)?, operand(room, part, F32)?, Arg::U64(total.len() as u64)];
    // SAFETY: the kernel's arguments; the caller checked that both are as long.
    unsafe { s.launch(&ADD[0], &elements(total.len())?, &args) }
}

fn within(room: &str, tokens: &[u32], v: usize) -> Result<()> {
    match tokens.iter().enumerate().find(|(_, id)| **id as usize >= v) {
        Some((n, id)) => Err(Error::Shape(format!("{room}: row {n} has id {id}, the vocabulary has {v}"))),
        None => Ok(()),
    }
}

/// x [N, C] of tokens `[N]`; an id outside the table is [`Error::Shape`] naming row and id.
pub fn forward<'a>(s: &Stream, x: View<'_>, tokens: View<'_>, table: impl Into<Weight<'a>>, scale: f32) -> Result<()> {
    let (room, table) = ("embedding::forward", table.into());
    let (n, (v, c)) = (tokens.len(), table.shape());
    ensure!(c > 0 && x.len() == n * c, "{room}: x has {} elements, wanted [{n}, {c}]", x.len());
    disjoint(room, &[x], &[tokens, table.data()])?;
    let Some(pool) = s.host() else {
        let (stored, table) = (stored(room, x)?, table.rows(room)?);
        let launch = Launch { defines: variant(stored), ..elements(x.len())? };
        let views = [operand(room, x, stored)?, operand(room, tokens, U32)?, operand(room, table.own()?, stored)?];
        let sizes = [Arg::U64(x.len() as u64), size(room, c)?, size(room, table.ld())?, size(room, v)?, Arg::Bits(scale)];
        // SAFETY: the kernel's arguments; the shapes were checked, ids it checks itself.
        return unsafe { s.launch(&KERNELS[0], &launch, &[&views[..], &sizes].concat()) };
    };
    let table = table.panels(room)?;
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    unsafe {
        let (x, tokens) = (x.host_mut()?, tokens.host()?);
        within("embedding::forward", tokens, table.n)?;
        match table.data.dtype() {
            DType::Bf16 => cpu::forward(pool, x, tokens, table.data.host::<bf16>()?, c, scale),
            DType::F16 => cpu::forward(pool, x, tokens, table.data.host::<f16>()?, c, scale),
            _ => cpu::forward(pool, x, tokens, table.data.host::<f32>()?, c, scale),
        }
    }
    Ok(())
}

/// dtable ([n, C] f32, laid out as a weight) += dx [N, C]·scale by tokens `[N]`; the rows are one example's.
pub fn backward(s: &Stream, dtable: View<'_>, dx: View<'_>, tokens: View<'_>, n: usize, scale: f32) -> Result<()> {
    let c = dx.len().checked_div(tokens.len()).unwrap_or(0);
    ensure!(dx.len() == c * tokens.len(), "embedding::backward: dx has {} elements for {} rows", dx.len(), tokens.len());
    if c == 0 {
        return Ok(());
    }
    let wanted = Layout::of(s, &[]).len(&[n], c);
    ensure!(dtable.len() == wanted, "embedding::backward: dtable has {} elements, wanted {wanted}", dtable.len());
    disjoint("embedding::backward", &[dtable], &[dx, tokens])?;
    let Some(pool) = s.host() else {
        let room = "embedding::backward";
        let stored = stored(room, dx)?;
        let launch = Launch { defines: variant(stored), ..blocks(tokens.len())? };
        let views = [operand(room, dtable, F32)?, operand(room, dx, stored)?, operand(room, tokens, U32)?];
        let sizes = [size(room, tokens.len())?, size(room, c)?, size(room, weight::row(c, 0))?, size(room, n)?];
        // SAFETY: as in `forward`.
        return unsafe { s.launch(&KERNELS[1], &launch, &[&views[..], &sizes, &[Arg::Bits(scale)]].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    let (dtable, dx, tokens) = unsafe { (dtable.host_mut()?, dx.host()?, tokens.host()?) };
    within("embedding::backward", tokens, n)?;
    cpu::backward(pool, dtable, dx, tokens, c, scale);
    Ok(())
}
