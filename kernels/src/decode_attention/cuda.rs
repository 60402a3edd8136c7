//! The CUDA form in f32: launches of decode_attention.cu over checked operands.

use super::ROOM;
use crate::attention::cuda::{launch, structs};
use crate::attention::{Heads, Params};
use crate::cuda::{kernel, operand, size};
use crate::kv_store::{PAGE, Pages};
use runtime::{Arg, DType::F32, DType::I32, DType::U32, Kernel, Launch, Result, Stream, View, ensure};

pub(crate) const KERNELS: [Kernel; 2] = [
    kernel!("decode_attention_forward", "decode_attention.cu", "linear/tile.cuh", "attention/forest.cuh", "attention/lines.cuh"),
    kernel!("decode_attention_prefill", "decode_attention.cu", "linear/tile.cuh", "attention/forest.cuh", "attention/lines.cuh"),
];

/// Lines of a tile.
const TILE: usize = 64;

/// Where the paths lie.
#[derive(Clone, Copy)]
pub(super) struct Paths<'a> {
    pub pages: Pages<'a>,
    /// P
    pub count: usize,
    /// [·, 4] u32
    pub pieces: View<'a>,
    /// [paths + 1] u32
    pub first: View<'a>,
}

impl Paths<'_> {
    /// The struct `Pages` of decode_attention.cu.
    fn bytes(&self) -> Result<Vec<u8>> {
        let views = [(self.pages.k, F32), (self.pages.v, F32), (self.pieces, U32), (self.first, U32)];
        let mut bytes = Vec::new();
        for (view, dtype) in views {
            ensure!(view.dtype() == dtype, "{ROOM}: wanted {dtype}, got {}", view.dtype());
            bytes.extend_from_slice(&view.ptr().0.to_ne_bytes());
        }
        for n in [self.pieces.len() / 4, self.count] {
            ensure!(n < i32::MAX as usize, "{ROOM}: a size of {n}, wanted below {}", i32::MAX);
            bytes.extend_from_slice(&(n as u32).to_ne_bytes());
        }
        Ok(bytes)
    }
}

pub(super) fn forward(
    s: &Stream,
    out: View<'_>,
    qkv: View<'_>,
    pos: View<'_>,
    paths: Paths<'_>,
    heads: Heads,
    params: Params,
) -> Result<()> {
    let n = pos.len();
    if n == 0 {
        return Ok(());
    }
    let ([shape, params], pages) = (structs(0, n, paths.count * PAGE, heads, params)?, paths.bytes()?);
    let views = [operand(ROOM, out, F32)?, operand(ROOM, qkv, F32)?, operand(ROOM, pos, U32)?];
    let args = [&views[..], &[Arg::Struct(&pages), Arg::Struct(&shape), Arg::Struct(&params)]].concat();
    let tiles = n * heads.group().div_ceil(TILE);
    size(ROOM, tiles)?;
    let [_, y, z] = launch(n, heads.group(), 0, heads).grid;
    let launch = Launch { grid: [tiles as u32, y, z], ..launch(n, heads.group(), 0, heads) };
    // SAFETY: the kernel's arguments; the caller checked what they cover, and the kernel reads no piece or page that is not there.
    unsafe { s.launch(&KERNELS[0], &launch, &args) }
}

pub(super) fn prefill(
    s: &Stream,
    [out, m, l]: [View<'_>; 3],
    qkv: View<'_>,
    segments: View<'_>,
    paths: Paths<'_>,
    heads: Heads,
    params: Params,
) -> Result<()> {
    let (n, count) = (qkv.len() / heads.stride(), segments.len() / 4);
    if n == 0 {
        return Ok(());
    }
    let ([shape, params], pages) = (structs(count, n, paths.count * PAGE, heads, params)?, paths.bytes()?);
    let views = [operand(ROOM, out, F32)?, operand(ROOM, m, I32)?, operand(ROOM, l, F32)?];
    let inputs = [operand(ROOM, qkv, F32)?, operand(ROOM, segments, U32)?];
    let structs = [Arg::Struct(&pages), Arg::Struct(&shape), Arg::Struct(&params)];
    // SAFETY: as in `forward`.
    unsafe { s.launch(&KERNELS[1], &launch(n, heads.group(), count, heads), &[&views[..], &inputs, &structs].concat()) }
}
