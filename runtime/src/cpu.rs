//! The CPU as a device: host memory, queues that run in the caller, a pool of threads, and what instructions there are.

use crate::memory::{self, Meter};
use crate::{Backend, DeviceInfo, Error, Event, Memory, Pinned, Pool, Ptr, Queue, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::time::{Duration, Instant};

/// Bytes from which a buffer is a mapping of its own: a few large pages.
#[cfg(target_os = "linux")]
const MAPPED: usize = 8 << 20;

/// An instruction set that this machine has. Values exist only for what was detected, so holding one is a licence to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

/// The three paths of every `cpu.rs`; their results are the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Plain Rust: the law.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, with what AVX2 has.
    Avx512,
}

impl Isa {
    /// Plain Rust.
    pub fn portable() -> Isa {
        Isa(Level::Portable)
    }

    /// The best this machine has.
    pub fn detect() -> Isa {
        Isa::all().pop().unwrap_or(Isa(Level::Portable))
    }

    /// Everything this machine has, from portable upwards.
    pub fn all() -> Vec<Isa> {
        let mut found = vec![Isa(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 {
                found.push(Isa(Level::Avx2));
            }
            if avx2 && avx512 {
                found.push(Isa(Level::Avx512));
            }
        }
        found
    }

    /// What `PLE_SIMD=portable|avx2|avx512` forces, or the best there is.
    pub fn from_env() -> Result<Isa> {
        let Ok(name) = std::env::var("PLE_SIMD") else { return Ok(Isa::detect()) };
        Isa::all().into_iter().find(|isa| isa.to_string() == name).ok_or_else(|| {
            let found: Vec<String> = Isa::all().iter().map(ToString::to_string).collect();
            Error::NoDevice(format!("PLE_SIMD={name}: this machine has {}", found.join(", ")))
        })
    }

    /// Which of the three.
    pub fn level(self) -> Level {
        self.0
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        })
    }
}

/// The CPU device. Every verb runs in the caller, who waits only for the pool's threads: there is no deadline to pass.
#[derive(Debug)]
pub struct Cpu {
    info: DeviceInfo,
    pool: Pool,
    meter: Meter,
}

/// The byte count of `MemTotal` in `/proc/meminfo`; 0 where there is no such file.
fn total_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The processor's own name; `cpu` where the system does not tell.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, v)| v.trim().to_string()));
    name.unwrap_or_else(|| "cpu".to_string())
}

impl Cpu {
    /// A CPU device with its own pool.
    pub fn new(threads: usize, isa: Isa) -> Cpu {
        let pool = Pool::new(threads, isa);
        let info = DeviceInfo {
            name: processor(),
            arch: isa.to_string(),
            memory: total_memory(),
            cores: pool.threads() as u32,
            found: Vec::new(),
        };
        Cpu { info, pool, meter: Meter::default() }
    }

    /// Zeroed memory of its own mapping, in large pages where the system gives them on request: weights and activations are read in
    /// strides that would otherwise wait for page tables.
    #[cfg(target_os = "linux")]
    fn map(bytes: usize) -> Option<*mut u8> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, wherever the system puts it; advice changes no contents, and a refused one changes nothing.
        unsafe {
            let p = mmap_anonymous(std::ptr::null_mut(), bytes, access, MapFlags::PRIVATE).ok()?;
            let _ = madvise(p, bytes, Advice::LinuxHugepage);
            Some(p.cast())
        }
    }

    /// Zeroed memory, 64-byte aligned.
    fn take(bytes: usize) -> Result<Ptr> {
        let out_of_memory = || Error::OutOfMemory { wanted: bytes, what: "a buffer".into() };
        #[cfg(target_os = "linux")]
        if bytes >= MAPPED {
            return Cpu::map(bytes).map(|p| Ptr(p as u64)).ok_or_else(out_of_memory);
        }
        // SAFETY: the layout is at least 64 bytes.
        let p = unsafe { alloc_zeroed(Cpu::layout(bytes)?) };
        if p.is_null() { Err(out_of_memory()) } else { Ok(Ptr(p as u64)) }
    }

    fn layout(bytes: usize) -> Result<Layout> {
        Layout::from_size_align(bytes.max(64), 64).map_err(|_| Error::OutOfMemory { wanted: bytes, what: "a buffer".into() })
    }
}

impl Backend for Cpu {
    fn name(&self) -> &str {
        "cpu"
    }
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn memory(&self) -> Memory {
        let total = Some(self.info.memory).filter(|total| *total > 0);
        self.meter.memory(|used| Some(total.into_iter().chain(memory::limit()).min()?.saturating_sub(used)))
    }
    fn host(&self) -> Option<&Pool> {
        Some(&self.pool)
    }
    fn alloc(&self, _: Queue, bytes: usize) -> Result<Ptr> {
        let p = Cpu::take(bytes)?;
        self.meter.take(bytes);
        Ok(p)
    }
    fn free(&self, _: Queue, p: Ptr, bytes: usize) {
        self.meter.give(bytes);
        #[cfg(target_os = "linux")]
        if bytes >= MAPPED {
            // SAFETY: `p` came from `alloc` with the same byte count, hence from `map`. A mapping that cannot be ended stays.
            let _ = unsafe { rustix::mm::munmap(p.0 as *mut std::ffi::c_void, bytes) };
            return;
        }
        if let Ok(layout) = Cpu::layout(bytes) {
            // SAFETY: `p` came from `alloc` with the same byte count, hence the same layout.
            unsafe { dealloc(p.0 as *mut u8, layout) }
        }
    }
    fn pinned(&self, bytes: usize) -> Result<Pinned> {
        Ok(Pinned::plain(bytes))
    }
    fn htod(&self, _: Queue, dst: Ptr, src: &[u8]) -> Result<()> {
        // SAFETY: callers are Buffer and View, which checked that `dst` has that many bytes; a host slice never lies in a buffer.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), dst.0 as *mut u8, src.len()) };
        Ok(())
    }
    fn dtoh(&self, _: Queue, dst: &mut [u8], src: Ptr) -> Result<()> {
        // SAFETY: as in `htod`.
        unsafe { std::ptr::copy_nonoverlapping(src.0 as *const u8, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }
    fn dtoh_later(&self, q: Queue, dst: &mut Pinned, src: Ptr, n: usize) -> Result<Event> {
        let dst = dst
            .bytes_mut()
            .get_mut(..n)
            .ok_or_else(|| Error::Shape(format!("dtoh_later: {n} bytes into a smaller pinned block")))?;
        self.dtoh(q, dst, src)?;
        self.record(q)
    }
    fn dtod(&self, _: Queue, dst: Ptr, src: Ptr, n: usize) -> Result<()> {
        // SAFETY: both views cover `n` bytes.
        unsafe { std::ptr::copy(src.0 as *const u8, dst.0 as *mut u8, n) };
        Ok(())
    }
    fn fill(&self, _: Queue, dst: Ptr, byte: u8, n: usize) -> Result<()> {
        // SAFETY: the view covers `n` bytes.
        unsafe { std::ptr::write_bytes(dst.0 as *mut u8, byte, n) };
        Ok(())
    }
    fn record(&self, _: Queue) -> Result<Event> {
        Ok(Event { handle: 0, at: Instant::now() })
    }
    fn wait(&self, _: Queue, _: &Event) -> Result<()> {
        Ok(())
    }
    fn elapsed(&self, a: &Event, b: &Event) -> Result<Duration> {
        Ok(b.at.saturating_duration_since(a.at))
    }
    fn synchronize(&self, _: Queue) -> Result<()> {
        Ok(())
    }
}
