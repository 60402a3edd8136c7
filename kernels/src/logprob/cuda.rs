//! The CUDA form in f32, and dx in any storage: launches of logprob.cu over checked operands.

use super::{Kept, Scaling};
use crate::cuda::{blocks, kernel, operand, optional, size};
use crate::weight::Rows;
use runtime::{Arg, DType, DType::F32, DType::U32, Defines, Error, Kernel, Launch, Result, Stream, View, ensure};

pub(crate) const KERNELS: [Kernel; 4] = [
    kernel!("logprob_forward", "logprob.cu", "linear/tile.cuh", "logprob/rows.cuh"),
    kernel!("logprob_backward", "logprob.cu", "linear/tile.cuh", "logprob/rows.cuh"),
    kernel!("logprob_backward_weight", "logprob.cu", "linear/tile.cuh", "logprob/rows.cuh"),
    kernel!("logprob_of_logits", "logprob.cu", "linear/tile.cuh", "logprob/rows.cuh"),
];

/// Entries, or ids, of a block.
const TILE: usize = 64;

/// The variant for the head's storage.
fn variant(room: &str, head: DType) -> Result<Defines> {
    let which = [F32, DType::Bf16, DType::F16].iter().position(|d| *d == head);
    match which {
        Some(which) => Ok(Defines(if which > 0 { vec![("HEAD", which as i64)] } else { Vec::new() })),
        None => Err(Error::Shape(format!("{room}: head: wanted f32, bf16 or f16, got {head}"))),
    }
}

/// Every variant that a launcher here may ask for.
pub(crate) fn variants() -> Vec<(Kernel, Defines)> {
    let heads = [vec![], vec![("HEAD", 1)], vec![("HEAD", 2)]].into_iter().map(Defines);
    let of_heads = heads.flat_map(|head| [0, 2].map(|i| (KERNELS[i], head.clone())));
    let backward = [F32, DType::Bf16].map(|stored| (KERNELS[1], crate::cuda::variant(stored)));
    let rest = [(KERNELS[3], Defines::default())].into_iter().chain(super::mma::KERNELS.map(|k| (k, Defines::default())));
    of_heads.chain(backward).chain(rest).collect()
}

/// The struct `Scaling` of logprob.cu.
pub(super) fn scales(scaling: Scaling) -> Vec<u8> {
    [scaling.softcap, scaling.inv_temperature].iter().flat_map(|v| v.to_ne_bytes()).collect()
}

/// The struct `Sizes`.
fn sizes(room: &str, m: usize, n: usize, head: Rows<'_>) -> Result<Vec<u8>> {
    let all = [m, n, head.k, head.n, head.ld()];
    ensure!(all.iter().all(|&v| v < i32::MAX as usize), "{room}: sizes {all:?}, wanted below {}", i32::MAX);
    Ok(all.iter().flat_map(|&v| (v as u32).to_ne_bytes()).collect())
}

/// What [`forward`] and [`backward_weight`] read: x, rows, targets, the head.
pub(super) struct Inputs<'a> {
    pub x: View<'a>,
    pub rows: View<'a>,
    pub targets: View<'a>,
    pub head: Rows<'a>,
    pub scaling: Scaling,
}

impl Inputs<'_> {
    /// As kernels take them, and the head's storage.
    fn operands(&self, room: &str) -> Result<(Vec<Arg<'static>>, DType)> {
        let stored = self.head.group.dtype();
        let rows = [operand(room, self.rows, U32)?, operand(room, self.targets, U32)?];
        Ok(([&[operand(room, self.x, F32)?], &rows[..], &[operand(room, self.head.own()?, stored)?]].concat(), stored))
    }

    pub(super) fn sizes(&self, room: &str) -> Result<Vec<u8>> {
        sizes(room, self.rows.len(), self.x.len() / self.head.k, self.head)
    }
}

pub(super) fn forward(s: &Stream, logp: View<'_>, kept: Kept<'_>, from: &Inputs<'_>) -> Result<()> {
    let room = "logprob::forward";
    let (inputs, stored) = from.operands(room)?;
    let (sizes, scales) = (from.sizes(room)?, scales(from.scaling));
    let each = [logp, kept.z_target, kept.sum, kept.max].map(|v| operand(room, v, F32));
    let each = each.into_iter().collect::<Result<Vec<_>>>()?;
    let args = [&each[..], &[optional(room, kept.way, F32)?], &inputs, &[Arg::Struct(&sizes), Arg::Struct(&scales)]].concat();
    let launch = Launch { defines: variant(room, stored)?, ..blocks(from.rows.len().div_ceil(TILE))? };
    // SAFETY: the kernel's arguments; the caller checked what they cover, and the kernel reads no row or id that is not there.
    unsafe { s.launch(&KERNELS[0], &launch, &args) }
}

pub(super) fn backward(
    s: &Stream,
    dx: View<'_>,
    dlogp: View<'_>,
    kept: Kept<'_>,
    rows: View<'_>,
    scaling: Scaling,
) -> Result<()> {
    let (room, m) = ("logprob::backward", rows.len());
    if m == 0 {
        return dx.zero(s);
    }
    let c = kept.way.len() / m;
    let views = [dlogp, kept.sum, kept.max, kept.way].map(|v| operand(room, v, F32));
    let views = views.into_iter().collect::<Result<Vec<_>>>()?;
    let rest = [operand(room, rows, U32)?, size(room, m)?, size(room, c)?, Arg::Bits(scaling.inv_temperature)];
    let launch = Launch { defines: crate::cuda::variant(dx.dtype()), ..blocks(dx.len() / c)? };
    // SAFETY: as in `forward`.
    unsafe { s.launch(&KERNELS[1], &launch, &[&[operand(room, dx, dx.dtype())?], &views[..], &rest].concat()) }
}

/// dhead's rows lie `ld` apart.
pub(super) fn backward_weight(
    s: &Stream,
    dhead: (View<'_>, usize),
    dlogp: View<'_>,
    kept: Kept<'_>,
    from: &Inputs<'_>,
) -> Result<()> {
    let room = "logprob::backward_weight";
    let (inputs, stored) = from.operands(room)?;
    let (sizes, scales) = (from.sizes(room)?, scales(from.scaling));
    let views = [dhead.0, dlogp, kept.z_target, kept.sum, kept.max].map(|v| operand(room, v, F32));
    let views = views.into_iter().collect::<Result<Vec<_>>>()?;
    let rest = [Arg::Struct(&sizes), size(room, dhead.1)?, Arg::Struct(&scales)];
    let launch = Launch { defines: variant(room, stored)?, ..blocks(from.head.n.div_ceil(TILE))? };
    // SAFETY: as in `forward`.
    unsafe { s.launch(&KERNELS[2], &launch, &[&views[..], &inputs, &rest].concat()) }
}

pub(super) fn of_logits(s: &Stream, logp: View<'_>, logits: View<'_>, ids: View<'_>, scaling: Scaling) -> Result<()> {
    let (room, v, scales) = ("logprob::of_logits", logits.len() / ids.len(), scales(scaling));
    let views = [operand(room, logp, F32)?, operand(room, logits, F32)?, operand(room, ids, U32)?];
    let args = [&views[..], &[size(room, v)?, Arg::Struct(&scales)]].concat();
    // SAFETY: as in `forward`.
    unsafe { s.launch(&KERNELS[3], &blocks(ids.len())?, &args) }
}
