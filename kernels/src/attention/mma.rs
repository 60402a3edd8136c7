//! The CUDA form in bf16: launches of mma.cu over checked operands.

use super::cuda::{structs, tiles};
use super::{Heads, Params};
use crate::cuda::{kernel, operand, pitch, rows_of};
use runtime::{Arg, DType::Bf16, DType::F32, DType::I32, DType::U32, Defines, Kernel, Launch, Result, Stream, View, ensure};

const KERNELS: [Kernel; 3] = [
    kernel!("attention_mma_forward", "mma.cu", "linear/chunks.cuh", "attention/forest.cuh"),
    kernel!("attention_mma_backward_query", "mma.cu", "linear/chunks.cuh", "attention/forest.cuh"),
    kernel!("attention_mma_backward_key", "mma.cu", "linear/chunks.cuh", "attention/forest.cuh"),
];

/// Head dims that there are kernels for; a head is padded with zeros to the next.
const DIMS: [usize; 5] = [16, 32, 64, 128, 256];
/// Rows of a tile.
const TILE: usize = 64;
/// Threads of a block.
const THREADS: u32 = 128;
/// Columns of out, dk and dv that a block has accumulators for; of dq it has all.
const COLUMNS: usize = 128;

fn variant(dim: usize) -> Defines {
    Defines(vec![("HEAD_DIM", dim as i64)])
}

/// Every kernel and variant.
pub(crate) fn variants() -> impl Iterator<Item = (Kernel, Defines)> {
    KERNELS.into_iter().flat_map(|k| DIMS.map(|dim| (k, variant(dim))))
}

/// A launch over tiles of `lines` a row and blocks of columns, with so many tiles of rows in shared memory.
fn launch(room: &str, n: usize, lines: usize, count: usize, heads: Heads, held: usize) -> Result<Launch> {
    ensure!(heads.d.is_multiple_of(8), "{room}: head_dim {}, wanted a multiple of 8 in bf16", heads.d);
    let dim = DIMS.into_iter().find(|dim| *dim >= heads.d).unwrap_or(super::MAX_HEAD_DIM);
    Ok(Launch {
        grid: [tiles(n, lines, count), heads.k as u32, dim.div_ceil(COLUMNS) as u32],
        block: THREADS,
        shared: (held * TILE * dim * 2) as u32,
        defines: variant(dim),
        ..Launch::default()
    })
}

/// Outputs out, m, l.
pub(super) fn forward(
    s: &Stream,
    [out, m, l]: [View<'_>; 3],
    qkv: View<'_>,
    segments: View<'_>,
    heads: Heads,
    params: Params,
) -> Result<()> {
    let (room, n, count) = ("attention::forward", qkv.len() / heads.stride(), segments.len() / 4);
    let launch = launch(room, n, heads.group(), count, heads, 5)?;
    if n == 0 {
        return Ok(());
    }
    let [shape, params] = structs(count, n, n, heads, params)?;
    let outputs = [rows_of(room, out, Bf16)?, operand(room, m, I32)?, operand(room, l, F32)?];
    let inputs = [operand(room, qkv, Bf16)?, operand(room, segments, U32)?];
    let rest = [Arg::Struct(&shape), Arg::Struct(&params), eights(room, out, heads.h * heads.d)?];
    // SAFETY: the kernel's arguments; the caller checked what they cover, and the kernel cuts segments at the rows there are.
    unsafe { s.launch(&KERNELS[0], &launch, &[&outputs[..], &inputs, &rest].concat()) }
}

/// The pitch of rows that are read and written by eights.
fn eights(room: &str, view: View<'_>, width: usize) -> Result<Arg<'static>> {
    let ld = view.pitch(width)?;
    ensure!(ld.is_multiple_of(8), "{room}: rows {ld} apart, wanted a multiple of 8 in bf16");
    pitch(room, view, width)
}

/// `saved`: dout, out, qkv, m, l.
pub(super) fn backward(
    s: &Stream,
    dqkv: View<'_>,
    saved: [View<'_>; 5],
    segments: View<'_>,
    heads: Heads,
    params: Params,
) -> Result<()> {
    let (room, n, count) = ("attention::backward", dqkv.len() / heads.stride(), segments.len() / 4);
    let by_key = launch(room, n, 1, count, heads, 6)?;
    let by_query = Launch { grid: [tiles(n, heads.group(), count), heads.k as u32, 1], ..by_key.clone() };
    if n == 0 {
        return Ok(());
    }
    let [shape, params] = structs(count, n, n, heads, params)?;
    let [dout, out, qkv, m, l] = saved;
    let rows = [rows_of(room, dqkv, Bf16)?, operand(room, dout, Bf16)?, rows_of(room, out, Bf16)?, operand(room, qkv, Bf16)?];
    let pitches = [eights(room, dqkv, heads.stride())?, eights(room, out, heads.h * heads.d)?];
    let rest = [operand(room, m, I32)?, operand(room, l, F32)?, operand(room, segments, U32)?];
    let args = [&rows[..], &rest, &[Arg::Struct(&shape), Arg::Struct(&params)], &pitches].concat();
    // SAFETY: as in `forward`.
    unsafe {
        s.launch(&KERNELS[1], &by_query, &args)?;
        s.launch(&KERNELS[2], &by_key, &args)
    }
}
