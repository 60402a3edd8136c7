//! The CUDA form in f32: launches of attention.cu over checked operands.

use super::{Heads, Params};
use crate::cuda::{BLOCK, kernel, operand};
use runtime::{Arg, DType::F32, DType::I32, DType::U32, Kernel, Launch, Result, Stream, View, ensure};

pub(crate) const KERNELS: [Kernel; 3] = [
    kernel!("attention_forward", "attention.cu", "linear/tile.cuh", "attention/forest.cuh", "attention/lines.cuh"),
    kernel!("attention_backward_query", "attention.cu", "linear/tile.cuh", "attention/forest.cuh", "attention/lines.cuh"),
    kernel!("attention_backward_key", "attention.cu", "linear/tile.cuh", "attention/forest.cuh", "attention/lines.cuh"),
];

/// Lines of a tile, and columns of a block.
const TILE: usize = 64;

/// The structs `Shape` and `Params` of forest.cuh: `count` segments of n rows, on paths of so many positions.
pub(crate) fn structs(count: usize, n: usize, positions: usize, heads: Heads, params: Params) -> Result<[Vec<u8>; 2]> {
    // Kernels count lines, and tiles of lines of each segment, in 32 bits.
    ensure!(n.max(count) * heads.h < i32::MAX as usize, "attention: {n} rows of {} heads in {count} segments", heads.h);
    let words = |w: &[u32]| w.iter().flat_map(|w| w.to_ne_bytes()).collect();
    ensure!(positions < i32::MAX as usize, "attention: {positions} positions");
    let shape = [count, n, heads.h, heads.k, heads.d, positions].map(|v| v as u32);
    let params = [params.scale.to_bits(), params.softcap.to_bits(), params.window, params.causal.into()];
    Ok([words(&shape), words(&params)])
}

/// Tiles of `lines` a row, which begin anew with each segment: as many as there may be.
pub(super) fn tiles(n: usize, lines: usize, count: usize) -> u32 {
    ((n * lines).div_ceil(TILE) + count) as u32
}

/// Blocks over them, the kv heads and the columns.
pub(crate) fn launch(n: usize, lines: usize, count: usize, heads: Heads) -> Launch {
    Launch { grid: [tiles(n, lines, count), heads.k as u32, heads.d.div_ceil(TILE) as u32], block: BLOCK, ..Launch::default() }
}

/// Rows of qkv.
fn rows(qkv: View<'_>, heads: Heads) -> usize {
    qkv.len() / heads.stride()
}

pub(super) fn forward(
    s: &Stream,
    [out, m, l]: [View<'_>; 3],
    qkv: View<'_>,
    segments: View<'_>,
    heads: Heads,
    params: Params,
) -> Result<()> {
    let (room, n, count) = ("attention::forward", rows(qkv, heads), segments.len() / 4);
    if n == 0 {
        return Ok(());
    }
    let [shape, params] = structs(count, n, n, heads, params)?;
    let outputs = [operand(room, out, F32)?, operand(room, m, I32)?, operand(room, l, F32)?];
    let inputs = [operand(room, qkv, F32)?, operand(room, segments, U32)?, Arg::Struct(&shape), Arg::Struct(&params)];
    // SAFETY: the kernel's arguments; the caller checked what they cover, and the kernel cuts segments at the rows there are.
    unsafe { s.launch(&KERNELS[0], &launch(n, heads.group(), count, heads), &[&outputs[..], &inputs].concat()) }
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
    let (room, n, count) = ("attention::backward", rows(dqkv, heads), segments.len() / 4);
    if n == 0 {
        return Ok(());
    }
    let [shape, params] = structs(count, n, n, heads, params)?;
    let [dout, out, qkv, m, l] = saved;
    let rows = [dqkv, dout, out, qkv].map(|v| operand(room, v, F32)).into_iter().collect::<Result<Vec<_>>>()?;
    let rest = [operand(room, m, I32)?, operand(room, l, F32)?, operand(room, segments, U32)?];
    let args = [&rows[..], &rest, &[Arg::Struct(&shape), Arg::Struct(&params)]].concat();
    for (kernel, lines) in [(&KERNELS[1], heads.group()), (&KERNELS[2], 1)] {
        // SAFETY: as in `forward`.
        unsafe { s.launch(kernel, &launch(n, lines, count, heads), &args)? };
    }
    Ok(())
}
