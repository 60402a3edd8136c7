//! The devices that tests run on.
//!
//! Today these are real ones only: the CPU, once for each instruction set of the machine and each of three pool sizes
//! ([`streams`]). Nothing is emulated yet.
//!
//! This package is where host stand-ins for the vendors' libraries will live: the CUDA driver with cuBLASLt and NCCL, and AscendCL
//! with HCCL. They will sit behind the vendors' C interfaces and run the very `.cu` and `.asc` sources of the rooms, compiled
//! for the host, through the production path. They will show wrong numbers, races, overruns and unhandled vendor codes. They
//! will not show speed, rounding of hardware functions, or faults of drivers; that takes hardware. Their devices will then
//! appear in [`streams`] with `(emulated)` in their name, and every test that goes through it runs on them.
#![forbid(unsafe_code)]

use runtime::{Isa, Stream};

/// Pool sizes that results must not depend on.
pub const THREADS: [usize; 3] = [1, 2, 4];

/// Every stream that tests run on, with a name to print: the CPU for each [`Isa`] of this machine, portable (the law) first, and
/// each of [`THREADS`]. Every stream has a pool of its own.
pub fn streams() -> Vec<(String, Stream)> {
    let cpu = |isa: Isa, threads| (format!("cpu {isa} threads={threads}"), Stream::cpu(threads, isa));
    Isa::all().into_iter().flat_map(|isa| THREADS.map(|threads| cpu(isa, threads))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_stream_is_what_its_name_says_and_holds_data() {
        let all = streams();
        assert_eq!(all.len(), Isa::all().len() * THREADS.len());
        assert_eq!(all.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len(), all.len());
        assert!(all[0].0.ends_with("cpu portable threads=1"), "{}", all[0].0);
        for (name, stream) in &all {
            let pool = stream.pool("test").unwrap();
            assert_eq!(*name, format!("cpu {} threads={}", pool.isa(), pool.threads()));
            let buffer = stream.upload(&[1.0f32, -0.0, f32::INFINITY]).unwrap();
            let mut back = [0.0f32; 3];
            buffer.view().read(stream, &mut back).unwrap();
            assert_eq!(back.map(f32::to_bits), [1.0f32, -0.0, f32::INFINITY].map(f32::to_bits), "{name}");
        }
    }
}
