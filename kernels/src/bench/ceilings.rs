//! What the device can do at most, measured in the same run as everything that is compared with it.

use super::{Call, rotate};
use crate::cpu::Lanes;
use runtime::{Buffer, DType, Gemm, Gemmed, Pool, Result, Stream};
use std::time::Instant;

/// Bytes of the buffer that is copied.
const COPIED: usize = 256 << 20;
/// Bytes of one that a large cache holds, with its copy.
const CACHED: usize = 8 << 20;
/// Rows, columns and depth of the product.
const SQUARE: u32 = 8192;

/// The ceilings; None where the device has nothing to measure it with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes read and written per second by a copy.
    pub copy: f64,
    /// The same of a copy that the caches hold.
    pub cached: f64,
    /// Seconds of a launch that does next to nothing, in a graph where there are graphs; None on the CPU, which has no launches.
    pub launch: Option<f64>,
    /// FLOPs per second of the vendor's bf16 product of 8192³ on random numbers; on the CPU of f32 multiply-adds in registers.
    pub products: Option<f64>,
}

impl Ceilings {
    /// Measures both.
    pub fn measure(s: &Stream) -> Result<Ceilings> {
        let products = match s.host() {
            Some(pool) => Some(multiply_adds(pool)),
            None => product(s)?,
        };
        Ok(Ceilings { copy: copy(s, COPIED)?, cached: copy(s, CACHED)?, launch: launch(s)?, products })
    }
}

fn copy(s: &Stream, bytes: usize) -> Result<f64> {
    let call = || -> Result<Call> {
        let (from, to): (Buffer<u32>, Buffer<u32>) = (s.zeros(bytes / 4)?, s.zeros(bytes / 4)?);
        Ok(Box::new(move |s| to.view().copy(s, from.view())))
    };
    Ok(2.0 * bytes as f64 / rotate(s, &[call()?], false)?.median)
}

/// One element through a kernel, a hundred times.
fn launch(s: &Stream) -> Result<Option<f64>> {
    if s.host().is_some() {
        return Ok(None);
    }
    let call = || -> Result<Call> {
        let (y, x): (Buffer<f32>, Buffer<f32>) = (s.zeros(1)?, s.zeros(2)?);
        Ok(Box::new(move |s| crate::swiglu::forward(s, y.view(), x.view(), 1)))
    };
    let calls = (0..100).map(|_| call()).collect::<Result<Vec<_>>>()?;
    Ok(Some(rotate(s, &calls, false)?.median))
}

/// None without a library for it.
fn product(s: &Stream) -> Result<Option<f64>> {
    let n = SQUARE as usize;
    let noise = super::work::noise(n * n, 1).iter().map(|v| half::bf16::from_f32(*v)).collect::<Vec<_>>();
    let (a, b, c) = (s.upload(&noise)?, s.upload(&noise)?, s.zeros::<half::bf16>(n * n)?);
    let [c_at, a_at, b_at] = [c.view().ptr(), a.view().ptr(), b.view().ptr()];
    let gemm =
        Gemm { c: c_at, a: a_at, b: b_at, size: [SQUARE; 3], ld: [SQUARE; 3], down: false, dtype: DType::Bf16, bias: None };
    // SAFETY: three matrices of SQUARE² elements each, alive until the last synchronisation.
    if unsafe { s.backend().gemm(s.queue(), &gemm)? } == Gemmed::Unsupported {
        return Ok(None);
    }
    let keep = (a, b, c);
    let call: Call = Box::new(move |s| {
        let _ = &keep;
        // SAFETY: as above; the call owns the matrices.
        unsafe { s.backend().gemm(s.queue(), &gemm) }.map(|_| ())
    });
    Ok(Some(2.0 * (n as f64).powi(3) / rotate(s, &[call], false)?.median))
}

/// 24 independent chains of vector fma on each thread.
#[inline(always)]
fn chains<S: Lanes>(rounds: usize, sink: &mut [f32]) {
    let mut acc = [S::splat(1.0); 24];
    let x = S::splat(0.999);
    for _ in 0..rounds {
        acc.iter_mut().for_each(|a| *a = S::fma(*a, x, x));
    }
    for (a, out) in acc.iter().zip(sink.chunks_exact_mut(16)) {
        // SAFETY: chunks of 16.
        unsafe { S::store(out.as_mut_ptr(), *a) };
    }
}
crate::per_isa! { fn fma_chains(rounds: usize, sink: &mut [f32]) = chains }

/// FLOP/s of fused multiply-adds on every thread, the best of several measurements: the machine may be shared.
pub fn multiply_adds(pool: &Pool) -> f64 {
    let rounds = 400_000;
    let flops = (rounds * 24 * 16 * 2 * pool.threads()) as f64;
    let times = (0..7).map(|_| {
        let start = Instant::now();
        pool.run(pool.threads(), 24 * 16, &|_, scratch| fma_chains(pool.isa(), rounds, scratch));
        start.elapsed().as_secs_f64()
    });
    flops / times.fold(f64::MAX, f64::min)
}
