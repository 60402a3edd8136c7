//! The verbs of [`Backend`] on one CUDA device.

use super::compiler::{Compiler, cache_folder};
use super::driver::{self, check, failure};
use super::events::Events;
use super::graphs::{self, Graphs};
use super::launch::{attributes, config, described};
use super::library::{Library, WORKSPACE};
use super::modules::Modules;
use crate::memory::Meter;
use crate::{
    Arg, Backend, DeviceInfo, Error, Event, Gemm, Gemmed, Graph, Kernel, Launch, Memory, Pinned, Pool, Ptr, Queue, Result,
};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUevent, CUresult, CUstream};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Without asking, a kernel gets this much dynamic shared memory.
const SHARED_UNASKED: u32 = 48 << 10;

/// A buffer has at least so many bytes.
const LEAST: usize = 64;

/// Queues of a device; streams are made when they are first used.
const QUEUES: usize = 8;

/// The driver's streams by queue. They wait for nothing but what [`Backend::wait`] asks for.
#[derive(Default)]
struct Streams([Option<CUstream>; QUEUES]);

// SAFETY: the driver's handles may be used from any thread that has made the context current.
unsafe impl Send for Streams {}

/// One device, its primary context and its streams.
pub struct Cuda {
    name: String,
    info: DeviceInfo,
    device: sys::CUdevice,
    context: sys::CUcontext,
    streams: Mutex<Streams>,
    compiler: Compiler,
    /// Launches are waited for, where they run at once.
    blocking: bool,
    /// Queues whose launches are being recorded, a bit each.
    capturing: AtomicU32,
    modules: Mutex<Modules>,
    events: Mutex<Events>,
    graphs: Mutex<Graphs>,
    /// By queue, each with memory of its own; None where it was looked for and is not.
    libraries: Mutex<HashMap<u32, Option<Library>>>,
    meter: Meter,
}

// SAFETY: the driver's handles may be used from any thread; every verb makes the context current first.
unsafe impl Send for Cuda {}
// SAFETY: as above; what is changed lies behind locks.
unsafe impl Sync for Cuda {}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attribute(device: sys::CUdevice, which: Attribute) -> Result<i32> {
    let mut value = 0;
    // SAFETY: an integer that outlives the call.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })?;
    Ok(value)
}

/// Name, memory, cores, architecture and versions; the compiler's is added by the caller.
fn describe(device: sys::CUdevice) -> Result<DeviceInfo> {
    let (mut name, mut memory, mut version) = ([0u8; 256], 0, 0);
    // SAFETY: the buffers outlive the calls and have the lengths given.
    unsafe {
        check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device))?;
        check("cuDeviceTotalMem", sys::cuDeviceTotalMem_v2(&mut memory, device))?;
        check("cuDriverGetVersion", sys::cuDriverGetVersion(&mut version))?;
    }
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let name = CStr::from_bytes_until_nul(&name).map_or_else(|_| "unnamed".into(), |n| n.to_string_lossy().into_owned());
    Ok(DeviceInfo {
        name,
        // 9.0 has instructions that only its own architecture name unlocks.
        arch: format!("sm_{major}{minor}{}", if (major, minor) == (9, 0) { "a" } else { "" }),
        memory: memory as u64,
        cores: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        found: vec![("libcuda".into(), format!("{}.{}", version / 1000, version % 1000 / 10))],
    })
}

impl Cuda {
    /// Opens device `index` of the driver; needs memory pools and compute capability 8.0.
    pub fn open(index: u32) -> Result<Cuda> {
        let name = format!("cuda:{index}");
        let refused = |why: String| Error::NoDevice(format!("{name}: {why}"));
        driver::start(&name)?;
        let (mut count, mut device) = (0, 0);
        // SAFETY: integers that outlive the calls.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        if i64::from(index) >= i64::from(count) {
            return Err(refused(format!("the driver has {count} devices, counted from 0")));
        }
        // SAFETY: as above.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, index as i32) })?;
        let mut info = describe(device)?;
        let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        if major < 8 || attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
            return Err(refused(format!("{} is {}: wanted sm_80 or newer with memory pools", info.name, info.arch)));
        }
        let compiler = Compiler::find(&info.arch, cache_folder()).map_err(|e| match e {
            Error::NoDevice(text) => refused(text),
            other => other,
        })?;
        info.found.push(("libnvrtc".into(), compiler.version()));
        driver::serves(compiler.major()).map_err(refused)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: handles that outlive the calls; the pool is the device's own and keeps what is freed (no threshold).
        unsafe {
            check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
            check("cuCtxSetCurrent", sys::cuCtxSetCurrent(context))?;
            let (mut pool, mut threshold) = (std::ptr::null_mut(), u64::MAX);
            check("cuDeviceGetDefaultMemPool", sys::cuDeviceGetDefaultMemPool(&mut pool, device))?;
            let release = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            let threshold = (&raw mut threshold).cast();
            check("cuMemPoolSetAttribute", sys::cuMemPoolSetAttribute(pool, release, threshold))?;
        }
        let (streams, modules, events, graphs, libraries) = Default::default();
        let (blocking, capturing, meter) = (driver::blocking(), AtomicU32::default(), Meter::default());
        Ok(Cuda {
            name,
            info,
            device,
            context,
            streams,
            compiler,
            blocking,
            capturing,
            modules,
            events,
            graphs,
            libraries,
            meter,
        })
    }

    /// Makes the context current in this thread and gives the queue's stream.
    fn stream(&self, q: Queue) -> Result<CUstream> {
        // SAFETY: the context lives as long as the device.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })?;
        let mut streams = lock(&self.streams);
        let Some(place) = streams.0.get_mut(q.0 as usize) else {
            return Err(Error::Shape(format!("{}: queue {}, wanted one below {QUEUES}", self.name, q.0)));
        };
        if let Some(stream) = place {
            return Ok(*stream);
        }
        let (mut stream, apart) = (std::ptr::null_mut(), sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32);
        // SAFETY: a handle that outlives the call.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, apart) })?;
        Ok(*place.insert(stream))
    }

    /// Whether the queue's launches are being recorded.
    fn records(&self, q: Queue) -> bool {
        self.capturing.load(Ordering::Relaxed) >> q.0 & 1 == 1
    }

    /// Asks until the answer is no longer "not ready", or the deadline is past.
    fn poll(&self, what: &str, call: &'static str, ask: impl Fn() -> CUresult) -> Result<()> {
        let start = Instant::now();
        loop {
            match ask() {
                CUresult::CUDA_SUCCESS => return Ok(()),
                CUresult::CUDA_ERROR_NOT_READY if start.elapsed() > self.deadline() => {
                    return Err(Error::Deadline { what: format!("{}: {what}", self.name), seconds: self.deadline().as_secs() });
                }
                CUresult::CUDA_ERROR_NOT_READY if start.elapsed() < Duration::from_millis(1) => std::hint::spin_loop(),
                CUresult::CUDA_ERROR_NOT_READY => std::thread::sleep(Duration::from_micros(50)),
                code => return Err(failure(call, code)),
            }
        }
    }

    /// Waits for an event that was recorded.
    fn reach(&self, event: CUevent) -> Result<()> {
        // SAFETY: the event lives.
        self.poll("an event", "cuEventQuery", || unsafe { sys::cuEventQuery(event) })
    }

    /// Bytes that are free, and all; None if the driver does not tell. The context is current.
    fn room(&self) -> Option<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: integers that outlive the call.
        let known = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) } == CUresult::CUDA_SUCCESS;
        known.then_some((free, total))
    }

    fn out_of_memory(&self, wanted: usize) -> Error {
        let rest = self.room().map_or(String::new(), |(free, total)| format!(", {free} of {total} bytes are free"));
        Error::OutOfMemory { wanted, what: format!("a buffer on {}{rest}", self.name) }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let used = lock(&self.streams).0;
        if (0..QUEUES).filter(|q| used[*q].is_some()).all(|q| self.synchronize(Queue(q as u32)).is_ok()) {
            lock(&self.graphs).clear();
            lock(&self.modules).clear();
        }
        lock(&self.events).clear();
        lock(&self.libraries).clear();
        // SAFETY: handles of this value, given back once. Errors have nowhere to go.
        unsafe {
            for stream in used.into_iter().flatten() {
                sys::cuStreamDestroy_v2(stream);
            }
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

impl Backend for Cuda {
    fn name(&self) -> &str {
        &self.name
    }
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn memory(&self) -> Memory {
        self.meter.memory(|_| self.stream(Queue(0)).ok().and_then(|_| Some(self.room()?.0 as u64)))
    }
    fn host(&self) -> Option<&Pool> {
        None
    }
    fn alloc(&self, q: Queue, bytes: usize) -> Result<Ptr> {
        let stream = self.stream(q)?;
        let (mut p, bytes) = (0, bytes.max(LEAST));
        // SAFETY: an address that outlives the call.
        match unsafe { sys::cuMemAllocAsync(&mut p, bytes, stream) } {
            CUresult::CUDA_SUCCESS => {}
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Err(self.out_of_memory(bytes)),
            code => return Err(failure("cuMemAllocAsync", code)),
        }
        self.meter.take(bytes);
        self.fill(q, Ptr(p), 0, bytes)?;
        Ok(Ptr(p))
    }
    fn free(&self, q: Queue, p: Ptr, bytes: usize) {
        self.meter.give(bytes.max(LEAST));
        if let Ok(stream) = self.stream(q) {
            // SAFETY: `p` came from `alloc`. After a fault the driver refuses, and the memory goes with the context.
            unsafe { sys::cuMemFreeAsync(p.0, stream) };
        }
    }
    fn pinned(&self, bytes: usize) -> Result<Pinned> {
        self.stream(Queue(0))?;
        let (mut start, context) = (std::ptr::null_mut(), self.context as usize);
        // SAFETY: an address that outlives the call; the context is current.
        match unsafe { sys::cuMemHostAlloc(&mut start, bytes.max(1), 0) } {
            CUresult::CUDA_SUCCESS => {}
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                return Err(Error::OutOfMemory { wanted: bytes, what: format!("page-locked memory of {}", self.name) });
            }
            code => return Err(failure("cuMemHostAlloc", code)),
        }
        // SAFETY: the memory is given back once, after all work of the context. Errors have nowhere to go.
        let release = move |start: *mut u8| unsafe {
            sys::cuCtxSetCurrent(context as sys::CUcontext);
            sys::cuCtxSynchronize();
            sys::cuMemFreeHost(start.cast());
        };
        // SAFETY: the driver's memory of `bytes`, until the release.
        Ok(unsafe { Pinned::locked(start.cast(), bytes, Box::new(release)) })
    }
    fn htod(&self, q: Queue, dst: Ptr, src: &[u8]) -> Result<()> {
        if src.is_empty() {
            return Ok(());
        }
        let stream = self.stream(q)?;
        // SAFETY: callers are Buffer and View, which checked the length; the driver has read pageable memory when it returns.
        check("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(dst.0, src.as_ptr().cast(), src.len(), stream) })
    }
    fn dtoh(&self, q: Queue, dst: &mut [u8], src: Ptr) -> Result<()> {
        self.synchronize(q)?;
        if dst.is_empty() {
            return Ok(());
        }
        let stream = self.stream(q)?;
        // SAFETY: as in `htod`; a copy to pageable memory is complete when the call returns, and `synchronize` makes sure.
        check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(dst.as_mut_ptr().cast(), src.0, dst.len(), stream) })?;
        self.synchronize(q)
    }
    fn dtoh_later(&self, q: Queue, dst: &mut Pinned, src: Ptr, n: usize) -> Result<Event> {
        let dst = dst
            .bytes_mut()
            .get_mut(..n)
            .ok_or_else(|| Error::Shape(format!("dtoh_later: {n} bytes into a smaller pinned block")))?;
        if n > 0 {
            let stream = self.stream(q)?;
            // SAFETY: `dst` lives until all work of the context is over; callers checked `src`.
            check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(dst.as_mut_ptr().cast(), src.0, n, stream) })?;
        }
        self.record(q)
    }
    fn dtod(&self, q: Queue, dst: Ptr, src: Ptr, n: usize) -> Result<()> {
        if n == 0 {
            return Ok(());
        }
        let stream = self.stream(q)?;
        // SAFETY: both views cover `n` bytes.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(dst.0, src.0, n, stream) })
    }
    fn fill(&self, q: Queue, dst: Ptr, byte: u8, n: usize) -> Result<()> {
        if n == 0 {
            return Ok(());
        }
        let stream = self.stream(q)?;
        // SAFETY: the view covers `n` bytes.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(dst.0, byte, n, stream) })
    }
    fn record(&self, q: Queue) -> Result<Event> {
        let stream = self.stream(q)?;
        Ok(Event { handle: lock(&self.events).record(stream)?, at: Instant::now() })
    }
    fn wait(&self, q: Queue, e: &Event) -> Result<()> {
        let (stream, events) = (self.stream(q)?, lock(&self.events));
        // SAFETY: both handles live.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream, events.get(e.handle)?, 0) })
    }
    fn elapsed(&self, a: &Event, b: &Event) -> Result<Duration> {
        self.stream(Queue(0))?;
        let (events, mut ms) = (lock(&self.events), 0f32);
        let (a, b) = (events.get(a.handle)?, events.get(b.handle)?);
        self.reach(a)?;
        self.reach(b)?;
        // SAFETY: both events live and have happened.
        check("cuEventElapsedTime", unsafe { sys::cuEventElapsedTime_v2(&mut ms, a, b) })?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
    unsafe fn launch(&self, q: Queue, k: &Kernel, l: &Launch, args: &[Arg<'_>]) -> Result<()> {
        let stream = self.stream(q)?;
        if l.grid.contains(&0) {
            return Ok(());
        }
        let f = lock(&self.modules).function(&self.compiler, k, &l.defines)?;
        let mut words = f.pack(args)?;
        let mut params: Vec<_> = words.iter_mut().map(|w| w.as_mut_ptr().cast()).collect();
        let mut attributes = attributes(l);
        let config = config(l, stream, &mut attributes);
        // SAFETY: the arguments have the sizes that the entry point takes; what they point to is the caller's promise.
        unsafe {
            if l.shared > SHARED_UNASKED {
                let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                check("cuFuncSetAttribute", sys::cuFuncSetAttribute(f.handle, most, l.shared as i32))?;
            }
            let code = sys::cuLaunchKernelEx(&config, f.handle, params.as_mut_ptr(), std::ptr::null_mut());
            check("cuLaunchKernelEx", code).map_err(|e| driver::said(e, described(k, l, args)))?;
        }
        if self.blocking && !self.records(q) {
            return self.synchronize(q).map_err(|e| driver::said(e, described(k, l, args)));
        }
        Ok(())
    }
    unsafe fn gemm(&self, q: Queue, g: &Gemm) -> Result<Gemmed> {
        let stream = self.stream(q)?;
        if g.size[0] == 0 || g.size[1] == 0 {
            return Ok(Gemmed::Done);
        }
        let mut held = lock(&self.libraries);
        if self.records(q) && !held.contains_key(&q.0) {
            let text = "gemm: the first product of a queue takes memory, which no graph can hold: make one before the capture";
            return Err(Error::Shape(format!("{}: {text}", self.name)));
        }
        let library = match held.entry(q.0) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => place.insert(Library::find(|| self.alloc(q, WORKSPACE))?),
        };
        let Some(library) = library else { return Ok(Gemmed::Unsupported) };
        // SAFETY: the caller's promise.
        let taken = unsafe { library.run(stream, g)? };
        Ok(if taken { Gemmed::Done } else { Gemmed::Unsupported })
    }
    fn capture(&self, q: Queue, f: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>> {
        let stream = self.stream(q)?;
        self.capturing.fetch_or(1 << q.0, Ordering::Relaxed);
        let graph = graphs::capture(stream, f);
        self.capturing.fetch_and(!(1 << q.0), Ordering::Relaxed);
        let graph = graph?;
        Ok(Some(Graph { handle: lock(&self.graphs).keep(graph) }))
    }
    fn replay(&self, q: Queue, g: &Graph) -> Result<()> {
        let stream = self.stream(q)?;
        lock(&self.graphs).launch(g.handle, stream)
    }
    fn synchronize(&self, q: Queue) -> Result<()> {
        let stream = self.stream(q)?;
        // SAFETY: the stream lives.
        self.poll("its queue", "cuStreamQuery", || unsafe { sys::cuStreamQuery(stream) })
    }
}
