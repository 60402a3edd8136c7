//! What each instruction wrapper of `ptx.cuh` does, bit by bit, on whatever device it is asked of: hardware's answers are the goldens
//! that the emulated twins are held to.

use crate::cuda::kernel;
use crate::sample::{Tag, key, philox};
use runtime::{Arg, Kernel, Launch, Result, Stream};

#[cfg(test)]
mod tests;

pub(crate) const KERNELS: [Kernel; 6] = [
    kernel!("dump_shuffle", "conformance.cu"),
    kernel!("dump_cvt", "conformance.cu"),
    kernel!("dump_mma", "conformance.cu"),
    kernel!("dump_ldmatrix", "conformance.cu"),
    kernel!("dump_cp_async", "conformance.cu"),
    kernel!("dump_bar_sync", "conformance.cu"),
];

/// One micro-kernel's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of the micro-kernel, and of the case where it has several.
    pub name: String,
    /// The inputs are a function of it.
    pub seed: u64,
    /// The words that it wrote, floats by their bits.
    pub bits: Vec<u32>,
}

/// Random words.
fn words(seed: u64, n: usize) -> Vec<u32> {
    (0..n.div_ceil(4)).flat_map(|i| philox(key(seed, Tag::Init), [i as u32, 0, 0, 0])).take(n).collect()
}

/// The bf16 values that two halves of a word hold: normal numbers of moderate size and every sign.
fn bf16_pair(x: u32) -> u32 {
    let one = |x: u32| (x & 0x807f) | (120 + (x >> 8 & 15)) << 7;
    one(x & 0xffff) | one(x >> 16) << 16
}

/// Every micro-kernel's answer on the stream's device.
pub fn dump(s: &Stream) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    let mut record = |name: &str, seed, bits| records.push(Record { name: name.into(), seed, bits });
    record("dump_shuffle", 1, run(s, "dump_shuffle", 32, 0, &words(1, 64), 96, &[])?);
    record("dump_cvt", 2, run(s, "dump_cvt", 32, 0, &words(2, 512), 1024, &[Arg::U32(512)])?);
    record("dump_ldmatrix", 3, run(s, "dump_ldmatrix", 32, 0, &words(3, 128), 448, &[])?);
    record("dump_cp_async", 4, run(s, "dump_cp_async", 32, 1024, &words(4, 128), 256, &[])?);
    record("dump_bar_sync", 5, run(s, "dump_bar_sync", 96, 0, &words(5, 96), 96, &[])?);
    let fragments: Vec<u32> = words(6, 192).into_iter().map(bf16_pair).collect();
    let sums = words(7, 128).into_iter().map(|x| (x & 0x807f_ffff) | 0x3f80_0000);
    record("dump_mma", 6, run(s, "dump_mma", 32, 0, &sums.chain(fragments).collect::<Vec<_>>(), 128, &[])?);
    Ok(records)
}

fn run(s: &Stream, name: &str, block: u32, shared: u32, input: &[u32], out: usize, sizes: &[Arg<'_>]) -> Result<Vec<u32>> {
    let kernel =
        KERNELS.iter().find(|k| k.name == name).ok_or_else(|| runtime::Error::Shape(format!("{name}: no such probe")))?;
    let (input, out) = (s.upload(input)?, s.upload(&vec![u32::MAX; out])?);
    let launch = Launch { grid: [1; 3], block, shared, ..Launch::default() };
    let args = [&[Arg::Ptr(out.view().ptr()), Arg::Ptr(input.view().ptr())], sizes].concat();
    // SAFETY: the probe's arguments, with the lengths that its comment in conformance.cu gives.
    unsafe { s.launch(kernel, &launch, &args)? };
    out.to_vec()
}
