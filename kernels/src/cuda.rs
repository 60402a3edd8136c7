//! What the launchers of CUDA kernels share, and the list of every kernel with its variants.

use runtime::{Arg, DType, Defines, Kernel, Launch, Ptr, Result, View, ensure};

/// Threads of a block wherever threads run over elements.
pub(crate) const BLOCK: u32 = 256;

/// A kernel of the room that calls this: its source is `common.cuh`, `ptx.cuh`, `stored.cuh`, the rooms' headers that it names and the
/// room's own file, each under its own name in messages.
macro_rules! kernel {
    ($name:literal, $file:literal $(, $header:literal)*) => {
        runtime::Kernel {
            name: $name,
            cuda: concat!(
                "#line 1 \"common.cuh\"\n",
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/common.cuh")),
                "#line 1 \"ptx.cuh\"\n",
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/ptx.cuh")),
                "#line 1 \"stored.cuh\"\n",
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/stored.cuh")),
                $(
                    concat!("#line 1 \"", $header, "\"\n"),
                    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/", $header)),
                )*
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
    view.together(room)?;
    ensure!(view.dtype() == dtype, "{room}: wanted {dtype}, got {}", view.dtype());
    Ok(Arg::Ptr(view.ptr()))
}

/// The same for rows that may lie apart, whose [`pitch`] the kernel takes too; a null pointer if there are none.
pub(crate) fn rows_of(room: &str, view: View<'_>, dtype: DType) -> Result<Arg<'static>> {
    ensure!(view.is_empty() || view.dtype() == dtype, "{room}: wanted {dtype}, got {}", view.dtype());
    Ok(Arg::Ptr(if view.is_empty() { Ptr(0) } else { view.ptr() }))
}

/// Elements from row to row of an operand in rows of `width`.
pub(crate) fn pitch(room: &str, view: View<'_>, width: usize) -> Result<Arg<'static>> {
    size(room, view.pitch(width)?)
}

/// The same for an operand that may be absent: then a null pointer.
pub(crate) fn optional(room: &str, view: View<'_>, dtype: DType) -> Result<Arg<'static>> {
    if view.is_empty() { Ok(Arg::Ptr(Ptr(0))) } else { operand(room, view, dtype) }
}

/// Storage of activations and of the weights beside them: f32 or bf16.
pub(crate) fn stored(room: &str, view: View<'_>) -> Result<DType> {
    ensure!(matches!(view.dtype(), DType::F32 | DType::Bf16), "{room}: wanted activations in f32 or bf16, got {}", view.dtype());
    Ok(view.dtype())
}

/// The variant for this storage.
pub(crate) fn variant(stored: DType) -> Defines {
    Defines(if stored == DType::Bf16 { vec![("BF16", 1)] } else { Vec::new() })
}

/// A size that a kernel takes as 32 bits.
pub(crate) fn size(room: &str, n: usize) -> Result<Arg<'static>> {
    ensure!(u32::try_from(n).is_ok(), "{room}: a size of {n}, wanted at most {}", u32::MAX);
    Ok(Arg::U32(n as u32))
}

/// Every kernel and variant that a launcher here may ask for, room by room. The gates compile them all, and a case of
/// [`crate::selftest::ROOMS`] launches each (the conformance probes are dumped instead): a room that registers here and has no case fails.
pub fn kernels() -> Vec<(Kernel, Defines)> {
    let one = [
        &crate::adamw::KERNELS[..],
        &crate::attention::KERNELS,
        &crate::decode_attention::KERNELS,
        &crate::kv_store::KERNELS,
        &crate::embedding::ADD,
        &crate::linear::KERNELS,
        &crate::linear::library::STRIP,
        &crate::conformance::KERNELS,
    ];
    let both = [
        &crate::embedding::KERNELS[..],
        &crate::gelu::KERNELS,
        &crate::head_norm::KERNELS,
        &crate::layer_norm::KERNELS,
        &crate::rms_norm::KERNELS,
        &crate::rope::KERNELS,
        &crate::score::KERNELS,
        &crate::swiglu::KERNELS,
    ];
    let plain = one.into_iter().flatten().map(|k| (*k, variant(DType::F32)));
    let stored = both.into_iter().flatten().flat_map(|k| [DType::F32, DType::Bf16].map(|stored| (*k, variant(stored))));
    let own = crate::linear::mma::variants().chain(crate::attention::variants()).chain(crate::logprob::variants());
    plain.chain(stored).chain(own).collect()
}
