//! What the launchers of CUDA kernels share, and the list of every kernel with its variants.

use runtime::{Arg, DType, Defines, Kernel, Launch, Ptr, Result, View, ensure};

/// Threads of a block wherever threads run over elements.
pub(crate) const BLOCK: u32 = 256;

/// A kernel of the room that calls this: its source is `common.cuh`, `ptx.cuh` and the room's own file, each under its own name in
/// messages.
macro_rules! kernel {
    ($name:literal, $file:literal) => {
        runtime::Kernel {
            name: $name,
            cuda: concat!(
                "#line 1 \"common.cuh\"\n",
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/common.cuh")),
                "#line 1 \"ptx.cuh\"\n",
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/ptx.cuh")),
                concat!("#line 1 \"", $file, "\"\n"),
                include_str!($file)
            ),
            ascend: "",
        }
    };
}
pub(crate) use kernel;

/// One thread per element.
pub(crate) fn elements(n: usize) -> Result<Launch> {
    blocks(n.div_ceil(BLOCK as usize))
}

/// `n` blocks of [`BLOCK`] threads.
pub(crate) fn blocks(n: usize) -> Result<Launch> {
    ensure!(n <= i32::MAX as usize, "launch: {n} blocks, wanted at most {}", i32::MAX);
    Ok(Launch { grid: [n as u32, 1, 1], block: BLOCK, ..Launch::default() })
}

/// The operand's address; its dtype is what the kernel reads.
pub(crate) fn operand(room: &str, view: View<'_>, dtype: DType) -> Result<Arg<'static>> {
    ensure!(view.dtype() == dtype, "{room}: wanted {dtype}, got {}", view.dtype());
    Ok(Arg::Ptr(view.ptr()))
}

/// The same for an operand that may be absent: then a null pointer.
pub(crate) fn optional(room: &str, view: View<'_>, dtype: DType) -> Result<Arg<'static>> {
    if view.is_empty() { Ok(Arg::Ptr(Ptr(0))) } else { operand(room, view, dtype) }
}

/// A size that a kernel takes as 32 bits.
pub(crate) fn size(room: &str, n: usize) -> Result<Arg<'static>> {
    ensure!(u32::try_from(n).is_ok(), "{room}: a size of {n}, wanted at most {}", u32::MAX);
    Ok(Arg::U32(n as u32))
}

/// Every kernel and variant that a launcher here may ask for.
pub fn kernels() -> Vec<(Kernel, Defines)> {
    let rooms = [&crate::adamw::KERNELS[..], &crate::rms_norm::KERNELS, &crate::rope::KERNELS, &crate::swiglu::KERNELS];
    let plain = rooms.into_iter().flatten().map(|k| (*k, Defines::default()));
    let tables = [DType::F32, DType::Bf16, DType::F16].into_iter();
    let embedding = tables.flat_map(|t| crate::embedding::KERNELS.map(|k| (k, crate::embedding::variant(t))));
    let probes = crate::conformance::KERNELS.iter().map(|k| (*k, Defines::default()));
    plain.chain(embedding).chain(probes).collect()
}
