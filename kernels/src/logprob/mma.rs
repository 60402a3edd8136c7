//! The CUDA form in bf16: launches of mma.cu over checked operands.

use super::Kept;
use super::cuda::{Inputs, scales};
use crate::cuda::{kernel, operand, optional, size};
use runtime::{Arg, DType::Bf16, DType::F32, DType::U32, Kernel, Launch, Result, Stream, View, ensure};

pub(crate) const KERNELS: [Kernel; 2] = [
    kernel!("logprob_mma_forward", "mma.cu", "linear/chunks.cuh"),
    kernel!("logprob_mma_backward_weight", "mma.cu", "linear/chunks.cuh"),
];

/// Lines of a block.
const LINES: usize = 64;
/// Bytes of what a block holds: two stages of 256 rows by 64 columns, 64 by 256 factors, and the sums and maxima of four warps.
const SHARED: usize = 2 * 256 * 64 * 2 + LINES * 256 * 2 + 2 * 4 * LINES * 4;

fn launch(blocks: usize) -> Result<Launch> {
    Ok(Launch { shared: SHARED as u32, ..crate::cuda::blocks(blocks.div_ceil(LINES))? })
}

impl Inputs<'_> {
    /// x, rows, targets and the head as the kernels take them.
    fn in_bf16(&self, room: &str) -> Result<Vec<Arg<'static>>> {
        ensure!(self.head.k.is_multiple_of(8), "{room}: {} columns, wanted a multiple of 8 in bf16", self.head.k);
        let stored = self.head.group.dtype();
        ensure!(stored == Bf16, "{room}: head: wanted bf16 beside bf16 activations, got {stored}");
        let rows = [operand(room, self.x, Bf16)?, operand(room, self.rows, U32)?, operand(room, self.targets, U32)?];
        Ok([&rows[..], &[operand(room, self.head.own()?, Bf16)?]].concat())
    }
}

pub(super) fn forward(s: &Stream, logp: View<'_>, kept: Kept<'_>, from: &Inputs<'_>) -> Result<()> {
    let room = "logprob::forward";
    let (inputs, sizes, scales) = (from.in_bf16(room)?, from.sizes(room)?, scales(from.scaling));
    let each = [logp, kept.z_target, kept.sum, kept.max].map(|v| operand(room, v, F32));
    let each = each.into_iter().collect::<Result<Vec<_>>>()?;
    let args = [&each[..], &[optional(room, kept.way, F32)?], &inputs, &[Arg::Struct(&sizes), Arg::Struct(&scales)]].concat();
    // SAFETY: the kernel's arguments; the caller checked what they cover, and the kernel reads no row or id that is not there.
    unsafe { s.launch(&KERNELS[0], &launch(from.rows.len())?, &args) }
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
    let (inputs, sizes, scales) = (from.in_bf16(room)?, from.sizes(room)?, scales(from.scaling));
    let views = [dhead.0, dlogp, kept.z_target, kept.sum, kept.max].map(|v| operand(room, v, F32));
    let views = views.into_iter().collect::<Result<Vec<_>>>()?;
    let rest = [Arg::Struct(&sizes), size(room, dhead.1)?, Arg::Struct(&scales)];
    // SAFETY: as in `forward`.
    unsafe { s.launch(&KERNELS[1], &launch(from.head.n)?, &[&views[..], &inputs, &rest].concat()) }
}
