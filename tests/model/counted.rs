//! A device that counts what is taken of it: memory, and waits for what it computed.

use runtime::{
    Arg, Backend, DeviceInfo, Event, Gemm, Gemmed, Graph, Kernel, Launch, Memory, Pinned, Pool, Ptr, Queue, Result, Stream,
};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What was counted so far.
#[derive(Clone, Default)]
pub struct Counts(Arc<[AtomicUsize; 2]>);

impl Counts {
    fn add(&self, which: usize) {
        self.0[which].fetch_add(1, Ordering::Relaxed);
    }

    /// Allocations, of the device and of pinned memory.
    pub fn allocations(&self) -> usize {
        self.0[0].load(Ordering::Relaxed)
    }

    /// Copies to the host and other waits for a queue.
    pub fn waits(&self) -> usize {
        self.0[1].load(Ordering::Relaxed)
    }
}

/// A queue on the device, counted.
pub fn counted<D: Deref<Target = dyn Backend> + Send + Sync + 'static>(device: D) -> (Counts, Stream) {
    let counts = Counts::default();
    (counts.clone(), Stream::on(Arc::new(Counted { device, counts })))
}

struct Counted<D> {
    device: D,
    counts: Counts,
}

impl<D: Deref<Target = dyn Backend> + Send + Sync> Backend for Counted<D> {
    fn name(&self) -> &str {
        self.device.name()
    }
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }
    fn memory(&self) -> Memory {
        self.device.memory()
    }
    fn host(&self) -> Option<&Pool> {
        self.device.host()
    }
    fn deadline(&self) -> Duration {
        self.device.deadline()
    }
    fn alloc(&self, q: Queue, bytes: usize) -> Result<Ptr> {
        self.counts.add(0);
        self.device.alloc(q, bytes)
    }
    fn free(&self, q: Queue, p: Ptr, bytes: usize) {
        self.device.free(q, p, bytes);
    }
    fn pinned(&self, bytes: usize) -> Result<Pinned> {
        self.counts.add(0);
        self.device.pinned(bytes)
    }
    fn htod(&self, q: Queue, dst: Ptr, src: &[u8]) -> Result<()> {
        self.device.htod(q, dst, src)
    }
    fn dtoh(&self, q: Queue, dst: &mut [u8], src: Ptr) -> Result<()> {
        self.counts.add(1);
        self.device.dtoh(q, dst, src)
    }
    fn dtoh_later(&self, q: Queue, dst: &mut Pinned, src: Ptr, n: usize) -> Result<Event> {
        self.device.dtoh_later(q, dst, src, n)
    }
    fn dtod(&self, q: Queue, dst: Ptr, src: Ptr, n: usize) -> Result<()> {
        self.device.dtod(q, dst, src, n)
    }
    fn fill(&self, q: Queue, dst: Ptr, byte: u8, n: usize) -> Result<()> {
        self.device.fill(q, dst, byte, n)
    }
    fn record(&self, q: Queue) -> Result<Event> {
        self.device.record(q)
    }
    fn wait(&self, q: Queue, e: &Event) -> Result<()> {
        self.device.wait(q, e)
    }
    fn elapsed(&self, a: &Event, b: &Event) -> Result<Duration> {
        self.counts.add(1);
        self.device.elapsed(a, b)
    }
    unsafe fn launch(&self, q: Queue, k: &Kernel, l: &Launch, args: &[Arg<'_>]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.device.launch(q, k, l, args) }
    }
    unsafe fn gemm(&self, q: Queue, g: &Gemm) -> Result<Gemmed> {
        // SAFETY: the caller's promise.
        unsafe { self.device.gemm(q, g) }
    }
    fn capture(&self, q: Queue, f: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>> {
        self.device.capture(q, f)
    }
    fn replay(&self, q: Queue, g: &Graph) -> Result<()> {
        self.device.replay(q, g)
    }
    fn synchronize(&self, q: Queue) -> Result<()> {
        self.counts.add(1);
        self.device.synchronize(q)
    }
}
