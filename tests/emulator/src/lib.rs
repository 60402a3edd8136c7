//! The devices that tests run on.
//!
//! The CPU, once for each instruction set of the machine and each of three pool sizes ([`streams`]), and a CUDA device that is
//! emulated ([`cuda`]): stand-ins for the driver and its compiler behind NVIDIA's C interface (`host/`), which run the very `.cu`
//! sources of the rooms, compiled for the host, through the production path. A block's threads are fibers, run in one of three
//! [`Order`]s; fresh and shared memory is poisoned, allocations are guarded, a deadlock is reported.
//!
//! It shows wrong numbers, missing barriers, overruns and unhandled codes. It does not show speed, races between blocks, rounding of
//! hardware functions, or faults of drivers; that takes hardware. Queues run at once, in the caller. cuBLASLt, NCCL, tensor cores,
//! asynchronous copies and AscendCL have no stand-ins.

use libloading::Library;
use runtime::{Isa, Stream};
use std::path::Path;
use std::sync::OnceLock;

/// Pool sizes that results must not depend on.
pub const THREADS: [usize; 3] = [1, 2, 4];

/// Every stream that tests run on, with a name to print: the CPU for each [`Isa`] of this machine, portable (the law) first, and
/// each of [`THREADS`]. Every stream has a pool of its own.
pub fn streams() -> Vec<(String, Stream)> {
    let cpu = |isa: Isa, threads| (format!("cpu {isa} threads={threads}"), Stream::cpu(threads, isa));
    Isa::all().into_iter().flat_map(|isa| THREADS.map(|threads| cpu(isa, threads))).collect()
}

/// In which order the emulated device runs blocks and warps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the first, each as far as it can go.
    Forward,
    /// From the last, each as far as it can go.
    Reverse,
    /// At random, blocks from the last.
    Shuffle,
}

impl Order {
    /// All of them.
    pub const ALL: [Order; 3] = [Order::Forward, Order::Reverse, Order::Shuffle];
}

/// The emulated device of this process.
pub struct Cuda {
    driver: Library,
    /// Its queue.
    pub stream: Stream,
}

impl Cuda {
    /// Chooses the order in which launches of this thread run from now on.
    pub fn order(&self, order: Order) {
        // SAFETY: the stand-in's own declaration.
        unsafe { (self.call("emulator_order"))(order as i32) };
    }

    /// Whether, in launches of this thread, asynchronous copies and products complete as late as their waits allow, or at once.
    pub fn lazy(&self, on: bool) {
        // SAFETY: the stand-in's own declaration.
        unsafe { (self.call("emulator_lazy"))(on.into()) };
    }

    /// Whether, in launches of this thread, tensor cores add in another order than the law's.
    pub fn hostile(&self, on: bool) {
        // SAFETY: the stand-in's own declaration.
        unsafe { (self.call("emulator_hostile"))(on.into()) };
    }

    /// Whether what this thread queues from now on runs when somebody waits for it, or at once.
    pub fn lazy_queues(&self, on: bool) {
        // SAFETY: the stand-in's own declaration.
        unsafe { (self.call("emulator_lazy_queues"))(on.into()) };
    }

    /// Forgets a fault, which otherwise answers every later call.
    pub fn clear(&self) {
        // SAFETY: the stand-in ignores the argument.
        unsafe { (self.call("emulator_clear"))(0) };
    }

    fn call(&self, name: &str) -> libloading::Symbol<'_, unsafe extern "C" fn(i32) -> i32> {
        // SAFETY: all of these functions have this type, or take nothing.
        unsafe { self.driver.get(name) }.expect("the stand-in has its own functions")
    }
}

/// The emulated CUDA device, the same for every caller; None, said aloud, where the stand-ins could not be built (a failure if
/// `PLE_REQUIRE` names `cuda`). The stand-ins are loaded first and bear the vendor's names, so the runtime meets them.
pub fn cuda() -> Option<&'static Cuda> {
    static DEVICE: OnceLock<Option<Cuda>> = OnceLock::new();
    DEVICE.get_or_init(open).as_ref()
}

/// The folder with the stand-ins, for the `LD_LIBRARY_PATH` of another process; None as of [`cuda`].
pub fn libraries() -> Option<&'static Path> {
    let absent = env!("EMULATOR_ABSENT");
    if absent.is_empty() {
        return Some(Path::new(env!("EMULATOR_FOLDER")));
    }
    let required = std::env::var("PLE_REQUIRE").is_ok_and(|names| names.split(',').any(|name| name == "cuda"));
    assert!(!required, "PLE_REQUIRE names cuda: {absent}");
    eprintln!("skip: emulated cuda: {absent}");
    None
}

fn open() -> Option<Cuda> {
    let folder = libraries()?;
    let load = |name: &str| {
        let path = folder.join(name);
        // SAFETY: built by this package; its initialisers do nothing but construct.
        unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let driver = load("libcuda.so");
    std::mem::forget(load("libnvrtc.so"));
    let stream = Stream::open("cuda:0", None).expect("the emulated device opens");
    let info = stream.backend().info();
    assert!(info.name.contains("(emulated)"), "another driver was loaded first: {}", info.name);
    println!("device: {} {}, {}", stream.backend().name(), info.name, info.arch);
    Some(Cuda { driver, stream })
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
