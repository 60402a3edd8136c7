//! What a device must do: bytes, queues, launches. About a dozen verbs, the same for CPU, CUDA and Ascend.

use crate::{Error, Memory, Pinned, Pool, Result};
use std::time::{Duration, Instant};

/// An address in the memory of one device. On the CPU it is a host address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ptr(pub u64);

/// Index of an in-order queue of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Queue(pub u32);

/// What `ple doctor` and the memory plan need to know of a device.
#[derive(Clone, Debug, Default)]
pub struct DeviceInfo {
    /// Marketing name, with `(emulated)` where it is.
    pub name: String,
    /// Architecture: `avx512`, `sm_90a`, a SoC name.
    pub arch: String,
    /// Total memory in bytes.
    pub memory: u64,
    /// Cores, multiprocessors or AI cores.
    pub cores: u32,
    /// Library versions and the paths they were found at.
    pub found: Vec<(String, String)>,
}

/// One entry point: the same name and argument order in both device languages.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Name of the entry point.
    pub name: &'static str,
    /// CUDA C++ source.
    pub cuda: &'static str,
    /// Ascend C source.
    pub ascend: &'static str,
}

/// The variant of a kernel: dtypes, head_dim, rank groups, as preprocessor names and values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Defines(pub Vec<(&'static str, i64)>);

/// Shape of a launch.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Blocks of a cluster; 0 or 1 for none.
    pub cluster: u32,
    /// Dynamic shared memory in bytes.
    pub shared: u32,
    /// All blocks resident at once.
    pub cooperative: bool,
    /// Which variant.
    pub defines: Defines,
}

/// A tensor descriptor for hardware copies of two or three dimensions.
#[derive(Clone, Debug)]
pub struct TensorMap {
    /// What the elements are.
    pub dtype: crate::DType,
    /// Base address.
    pub base: Ptr,
    /// Extents, innermost first.
    pub dims: Vec<u64>,
    /// Strides in bytes of all but the innermost dimension.
    pub strides: Vec<u64>,
    /// Box of one copy.
    pub tile: Vec<u32>,
    /// In shared memory the 16-byte units of every 128-byte row are exchanged by the row's number; else they lie as they are.
    pub swizzle: bool,
}

/// One argument of a launch; scalars travel as 32-bit patterns.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// Device address.
    Ptr(Ptr),
    /// Unsigned integer.
    U32(u32),
    /// Unsigned 64-bit integer.
    U64(u64),
    /// A float by its bits.
    Bits(f32),
    /// A plain struct by its bytes.
    Struct(&'a [u8]),
    /// A tensor descriptor.
    TensorMap(&'a TensorMap),
}

/// A matrix product for the vendor's library: `c[m, n] = sum_k a[m, k] b[n, k]`, row-major, accumulated in f32 and rounded once.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// `[m, n]`
    pub c: Ptr,
    /// `[m, k]`
    pub a: Ptr,
    /// `[n, k]`, or `[k, n]` with `down`.
    pub b: Ptr,
    /// Sizes m, n, k.
    pub size: [u32; 3],
    /// Elements from row to row of c, a and b.
    pub ld: [u32; 3],
    /// Whether the sum runs down the rows of b.
    pub down: bool,
    /// Storage of a, b, c and the bias.
    pub dtype: crate::DType,
    /// `[n]`, added to every row before the rounding.
    pub bias: Option<Ptr>,
}

/// Whether the vendor's library took the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gemmed {
    /// It is queued.
    Done,
    /// There is no library, or not for these operands.
    Unsupported,
}

/// A point in a queue. On the CPU, where queues run in the caller, it is the moment it was recorded.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Vendor handle; 0 on the CPU.
    pub handle: u64,
    /// Host time of the recording.
    pub at: Instant,
}

/// A recorded sequence of launches.
#[derive(Debug)]
pub struct Graph {
    /// Vendor handle.
    pub handle: u64,
}

/// A device. Waits for it have a deadline ([`Backend::deadline`]); the CPU is never waited for.
pub trait Backend: Send + Sync {
    /// `cpu`, `cuda:0`, `ascend:0`.
    fn name(&self) -> &str;
    /// Memory, cores, architecture, versions and paths found.
    fn info(&self) -> &DeviceInfo;
    /// What is handed out, was at most, and is left.
    fn memory(&self) -> Memory;
    /// The thread pool, on the CPU only: launchers then call `cpu.rs` with slices.
    fn host(&self) -> Option<&Pool>;
    /// Limit of every wait for a device; [`Error::Deadline`] past it. Queues of the CPU run in the caller: its verbs return when
    /// the work is done, wait for nothing outside the process, and have no use for this.
    fn deadline(&self) -> Duration {
        Duration::from_secs(300)
    }
    /// Zeroed memory, 64-byte aligned, in queue order.
    fn alloc(&self, q: Queue, bytes: usize) -> Result<Ptr>;
    /// Gives memory of [`Backend::alloc`] back, in queue order.
    fn free(&self, q: Queue, p: Ptr, bytes: usize);
    /// Page-locked host memory.
    fn pinned(&self, bytes: usize) -> Result<Pinned>;
    /// Host to device.
    fn htod(&self, q: Queue, dst: Ptr, src: &[u8]) -> Result<()>;
    /// Device to host; waits.
    fn dtoh(&self, q: Queue, dst: &mut [u8], src: Ptr) -> Result<()>;
    /// Device to pinned host memory; `dst` may be read after the event.
    fn dtoh_later(&self, q: Queue, dst: &mut Pinned, src: Ptr, n: usize) -> Result<Event>;
    /// Device to device.
    fn dtod(&self, q: Queue, dst: Ptr, src: Ptr, n: usize) -> Result<()>;
    /// Sets `n` bytes.
    fn fill(&self, q: Queue, dst: Ptr, byte: u8, n: usize) -> Result<()>;
    /// Marks the present end of the queue.
    fn record(&self, q: Queue) -> Result<Event>;
    /// Makes the queue wait for the event.
    fn wait(&self, q: Queue, e: &Event) -> Result<()>;
    /// Device time between two events.
    fn elapsed(&self, a: &Event, b: &Event) -> Result<Duration>;
    /// Queues a kernel; a grid without blocks is nothing to do.
    ///
    /// # Safety
    /// `args` are those of the entry point, in order, and every address covers what the kernel touches for this grid.
    unsafe fn launch(&self, q: Queue, k: &Kernel, l: &Launch, args: &[Arg<'_>]) -> Result<()> {
        let _ = (q, l, args);
        Err(Error::Unsupported { call: k.name, device: self.name().to_string() })
    }
    /// The vendor's matrix product, where there is one.
    ///
    /// # Safety
    /// The addresses cover the matrices.
    unsafe fn gemm(&self, q: Queue, g: &Gemm) -> Result<Gemmed> {
        let _ = (q, g);
        Ok(Gemmed::Unsupported)
    }
    /// Records what `f` queues as a graph, if the device can; otherwise runs it and returns None.
    fn capture(&self, q: Queue, f: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>> {
        let _ = q;
        f().map(|()| None)
    }
    /// Queues a recorded graph.
    fn replay(&self, q: Queue, g: &Graph) -> Result<()> {
        let _ = (q, g);
        Err(Error::Unsupported { call: "replay", device: self.name().to_string() })
    }
    /// Waits for the queue to run empty.
    fn synchronize(&self, q: Queue) -> Result<()>;
}
