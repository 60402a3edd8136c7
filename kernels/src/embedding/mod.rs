//! Embedding: rows of a packed table.
//!
//! ```text
//! x[n,c] = table[tokens[n], c]·scale           widened exactly; scale 1 is no multiplication
//! dtable[tokens[n], c] += dx[n,c]              plain adds, rows ascending
//! ```
//! x, dx: [N, C] f32. tokens: `[N]` u32. table: panels [V, C] in f32, bf16 or f16. dtable: panels [V, C] f32, of one example: the
//! caller clears it first and adds it to the total afterwards (LAW A7). Bytes: N·C·(4 + size of a weight); backward 12 NC.
//! FLOPs: NC. order: law
//! An id outside the table is an error on the CPU, which looks; on CUDA, where looking would wait, its row is NaN and its gradient dropped.

use crate::cuda::{blocks, elements, kernel, operand, size};
use crate::panels::{Panels, packed_len};
use half::{bf16, f16};
use runtime::{Arg, DType, DType::F32, DType::U32, Defines, Error, Kernel, Launch, Result, Stream, View, disjoint, ensure};

mod cases;
mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cases::cases;

pub(crate) const KERNELS: [Kernel; 2] =
    [kernel!("embedding_forward", "embedding.cu"), kernel!("embedding_backward", "embedding.cu")];

/// The kernels' variant for a table of this storage.
pub(crate) fn variant(table: DType) -> Defines {
    let which = match table {
        DType::Bf16 => 1,
        DType::F16 => 2,
        _ => 0,
    };
    Defines(vec![("TABLE", which)])
}

fn within(room: &str, tokens: &[u32], v: usize) -> Result<()> {
    match tokens.iter().enumerate().find(|(_, id)| **id as usize >= v) {
        Some((n, id)) => Err(Error::Shape(format!("{room}: row {n} has id {id}, the vocabulary has {v}"))),
        None => Ok(()),
    }
}

/// x [N, C] of tokens `[N]`; an id outside the table is [`Error::Shape`] naming row and id.
pub fn forward(s: &Stream, x: View<'_>, tokens: View<'_>, table: Panels<'_>, scale: f32) -> Result<()> {
    let (n, c) = (tokens.len(), table.k);
    ensure!(c > 0 && x.len() == n * c, "embedding::forward: x has {} elements, wanted [{n}, {c}]", x.len());
    let table = Panels::new(table.data, table.n, c)?;
    disjoint("embedding::forward", &[x], &[tokens, table.data])?;
    let Some(pool) = s.host() else {
        let room = "embedding::forward";
        let launch = Launch { defines: variant(table.data.dtype()), ..elements(x.len())? };
        let views = [operand(room, x, F32)?, operand(room, tokens, U32)?, Arg::Ptr(table.data.ptr())];
        let sizes = [Arg::U64(x.len() as u64), size(room, c)?, size(room, table.n)?, Arg::Bits(scale)];
        // SAFETY: the kernel's arguments; the shapes were checked, ids it checks itself.
        return unsafe { s.launch(&KERNELS[0], &launch, &[&views[..], &sizes].concat()) };
    };
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

/// dtable (panels [n, C] f32) += dx [N, C] by tokens `[N]`; the rows are one example's. A scale is the caller's.
pub fn backward(s: &Stream, dtable: View<'_>, dx: View<'_>, tokens: View<'_>, n: usize) -> Result<()> {
    let c = dx.len().checked_div(tokens.len()).unwrap_or(0);
    ensure!(dx.len() == c * tokens.len(), "embedding::backward: dx has {} elements for {} rows", dx.len(), tokens.len());
    if c == 0 {
        return Ok(());
    }
    let wanted = packed_len(n, c);
    ensure!(dtable.len() == wanted, "embedding::backward: dtable has {} elements, wanted {wanted}", dtable.len());
    disjoint("embedding::backward", &[dtable], &[dx, tokens])?;
    let Some(pool) = s.host() else {
        let room = "embedding::backward";
        let launch = Launch { defines: variant(F32), ..blocks(tokens.len())? };
        let views = [operand(room, dtable, F32)?, operand(room, dx, F32)?, operand(room, tokens, U32)?];
        let sizes = [size(room, tokens.len())?, size(room, c)?, size(room, n)?];
        // SAFETY: as in `forward`.
        return unsafe { s.launch(&KERNELS[1], &launch, &[views, sizes].concat()) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    let (dtable, dx, tokens) = unsafe { (dtable.host_mut()?, dx.host()?, tokens.host()?) };
    within("embedding::backward", tokens, n)?;
    cpu::backward(pool, dtable, dx, tokens, c);
    Ok(())
}
