//! What each instruction wrapper of `ptx.cuh` does, bit by bit, on whatever device it is asked of: hardware's answers are the goldens
//! (`kernels/conformance/*.json`) that the emulated twins are held to.
//!
//! Some records answer what no manual does and the law's device grain rests on: how a tensor core adds inside one step of 16 (`mma
//! crafted`, `step ..`), whether `wgmma` and a chain of `mma` write the same bits (`wgmma n=..` against `chain n=..`), whether
//! the elementary functions have the CPU's bits there. [`answers`] puts them in words.

use crate::cuda::kernel;
use crate::sample::{Tag, key, philox};
use runtime::{Arg, DType, Error, Kernel, Launch, Result, Stream, TensorMap};

mod answers;
mod file;
mod steps;
#[cfg(test)]
mod tests;

pub use answers::{Answer, answers};
pub use file::{differences, read, write};

pub(crate) static KERNELS: [Kernel; 11] = [
    kernel!("dump_shuffle", "conformance.cu"),
    kernel!("dump_cvt", "conformance.cu"),
    kernel!("dump_mma", "conformance.cu"),
    kernel!("dump_ldmatrix", "conformance.cu"),
    kernel!("dump_cp_async", "conformance.cu"),
    kernel!("dump_bar_sync", "conformance.cu"),
    kernel!("dump_stmatrix", "conformance.cu"),
    kernel!("dump_tensor_load", "conformance.cu"),
    kernel!("dump_wgmma", "conformance.cu"),
    kernel!("dump_chain", "conformance.cu"),
    kernel!("dump_elementary", "conformance.cu"),
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

/// The bf16 values of exponents far apart: an order of adding shows in them.
fn wide_pair(x: u32) -> u32 {
    let one = |x: u32| (x & 0x807f) | (115 + (x >> 8 & 31) % 25) << 7;
    one(x & 0xffff) | one(x >> 16) << 16
}

/// Sums and fragments of one mma in which every row of D meets the same row of sixteen products: c, then a_k with b_k = 1. Rows tell apart
/// truncation from rounding, the bits kept below the largest term, and the order inside the step.
fn crafted() -> Vec<u32> {
    let (one, tiny, big) = (1.0f32, 2f32.powi(-24), 2f32.powi(24));
    let row = |c: f32, f: &dyn Fn(usize) -> f32| (c, std::array::from_fn::<f32, 16, _>(f));
    let alone = |at: usize, v: f32| move |k: usize| if k == at { v } else { 0.0 };
    let pair = |i: usize, j: usize| {
        move |k: usize| {
            if k == i {
                1e30
            } else if k == j {
                -1e30
            } else {
                1.0
            }
        }
    };
    let rows = [
        row(one, &alone(0, tiny)),
        row(one, &alone(0, tiny * 1.5)),
        row(-one, &alone(0, -tiny * 1.5)),
        row(one, &|_| tiny),
        row(big, &|_| 1.0),
        row(big, &|k| if k % 2 == 0 { 1.0 } else { -1.0 }),
        row(0.0, &|k| if k == 0 { big } else { 1.0 }),
        row(0.0, &|k| if k == 15 { big } else { 1.0 }),
        row(0.0, &pair(0, 1)),
        row(0.0, &pair(0, 8)),
        row(0.0, &pair(7, 8)),
        row(0.0, &pair(0, 15)),
        row(1e30, &|k| if k == 0 { -1e30 } else { 1.0 }),
        row(1e30, &|k| if k == 15 { -1e30 } else { 1.0 }),
        row(0.0, &|k| 2f32.powi(-130 - k as i32 % 3)),
        row(-0.0, &|_| -0.0),
    ];
    let bits = |v: f32| half::bf16::from_f32(v).to_bits() as u32;
    let (mut d, mut a) = (vec![], vec![]);
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4 * 2);
        d.extend([g, g, g + 8, g + 8].map(|r| rows[r].0.to_bits()));
        a.extend(
            [(g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8)].map(|(r, k)| bits(rows[r].1[k]) | bits(rows[r].1[k + 1]) << 16),
        );
    }
    let ones = bits(1.0) | bits(1.0) << 16;
    d.into_iter().chain(a).chain([ones; 64]).collect()
}

/// Every micro-kernel's answer on the stream's CUDA device, in a fixed order; what its architecture lacks is left out. Write them with
/// [`write`], compare them with [`differences`].
pub fn dump(s: &Stream) -> Result<Vec<Record>> {
    let arch = s.backend().info().arch.clone();
    let mut records = Vec::new();
    let mut record = |name: &str, seed, bits| records.push(Record { name: name.into(), seed, bits });
    record("shuffle", 1, run(s, "dump_shuffle", 32, 0, &words(1, 64), 96, &[])?);
    record("cvt", 2, run(s, "dump_cvt", 32, 0, &words(2, 512), 1024, &[Arg::U32(512)])?);
    record("ldmatrix", 3, run(s, "dump_ldmatrix", 32, 0, &words(3, 128), 448, &[])?);
    record("cp_async", 4, run(s, "dump_cp_async", 32, 1024, &words(4, 128), 256, &[])?);
    record("bar_sync", 5, run(s, "dump_bar_sync", 96, 0, &words(5, 96), 96, &[])?);
    for (name, seed, pair) in [("mma", 6, bf16_pair as fn(u32) -> u32), ("mma wide", 7, wide_pair)] {
        let sums = words(seed + 100, 128).into_iter().map(|x| (x & 0x807f_ffff) | 0x3f80_0000);
        let input: Vec<u32> = sums.chain(words(seed, 192).into_iter().map(pair)).collect();
        record(name, seed, steps::run(s, &input, false)?);
    }
    record("mma crafted", 0, steps::run(s, &crafted(), false)?);
    for (name, bits) in steps::all(s)? {
        record(name, steps::SEED, bits);
    }
    record("elementary", 8, run(s, "dump_elementary", 32, 0, &elementary(), 12 * 512, &[Arg::U32(512)])?);
    for n in WIDTHS {
        // The same A for all, and the first rows of the widest B.
        let seed = 20;
        let input: Vec<u32> = words(seed, (64 + n) * 32).into_iter().map(wide_pair).collect();
        let size = [Arg::U32(n as u32)];
        record(&format!("chain n={n}"), seed, run(s, "dump_chain", 128, 0, &input, 64 * n, &size)?);
        if arch == "sm_90a" {
            record(&format!("wgmma n={n}"), seed, wgmma(s, &input, n)?);
        }
    }
    record("chain in memory n=8", 20, steps::chain(s, &words(20, 72 * 32).into_iter().map(wide_pair).collect::<Vec<_>>())?);
    if arch.starts_with("sm_9") || arch.starts_with("sm_1") {
        record("stmatrix", 9, run(s, "dump_stmatrix", 32, 0, &words(9, 128), 256, &[])?);
        for (x, y) in [(0, 0), (40, 7), (90, 12)] {
            record(&format!("tensor_load x={x} y={y}"), 10, tensor_load(s, &words(10, 20 * 64), x, y)?);
        }
    }
    Ok(records)
}

/// Arguments of the elementary functions: 512 x, then 512 y.
fn elementary() -> Vec<u32> {
    words(8, 1024).into_iter().map(|x| (x & 0x807f_ffff) | (112 + (x >> 23 & 31)) << 23).collect()
}

/// Columns of the products of wgmma.
const WIDTHS: [usize; 4] = [8, 64, 128, 256];

/// D of A `[64, 64]` and B `[n, 64]`: by A from shared memory, from registers, step by step from +0, and for n = 64 transposed.
fn wgmma(s: &Stream, input: &[u32], n: usize) -> Result<Vec<u32>> {
    let ways = if n == 64 { 4 } else { 3 };
    run(s, "dump_wgmma", 128, ((64 + n) * 128) as u32, input, ways * 64 * n, &[Arg::U32(n as u32)])
}

/// Boxes of a bf16 tensor `[20, 128]`, by the flat map and by the deep one.
fn tensor_load(s: &Stream, memory: &[u32], x: u32, y: u32) -> Result<Vec<u32>> {
    let (input, out) = (s.upload(memory)?, s.upload(&[u32::MAX; 1024])?);
    let (base, dtype, swizzle) = (input.view().ptr(), DType::Bf16, true);
    let flat = TensorMap { dtype, base, dims: vec![128, 20], strides: vec![256], tile: vec![64, 16], swizzle };
    let deep = TensorMap { dtype, base, dims: vec![64, 20, 2], strides: vec![256, 128], tile: vec![64, 8, 2], swizzle };
    let args = [Arg::Ptr(out.view().ptr()), Arg::TensorMap(&flat), Arg::TensorMap(&deep), Arg::U32(x), Arg::U32(y)];
    let launch = Launch { grid: [1; 3], block: 32, shared: 2048, ..Launch::default() };
    // SAFETY: the probe's arguments; the maps cover the tensor and the output holds two boxes.
    unsafe { s.launch(probe("dump_tensor_load")?, &launch, &args)? };
    out.to_vec()
}

fn probe(name: &str) -> Result<&'static Kernel> {
    KERNELS.iter().find(|k| k.name == name).ok_or_else(|| Error::Shape(format!("{name}: no such probe")))
}

fn run(s: &Stream, name: &str, block: u32, shared: u32, input: &[u32], out: usize, sizes: &[Arg<'_>]) -> Result<Vec<u32>> {
    let (input, out) = (s.upload(input)?, s.upload(&vec![u32::MAX; out])?);
    let launch = Launch { grid: [1; 3], block, shared, ..Launch::default() };
    let args = [&[Arg::Ptr(out.view().ptr()), Arg::Ptr(input.view().ptr())], sizes].concat();
    // SAFETY: the probe's arguments, with the lengths that its comment in conformance.cu gives.
    unsafe { s.launch(probe(name)?, &launch, &args)? };
    out.to_vec()
}
