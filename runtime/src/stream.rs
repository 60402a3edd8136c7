//! An in-order queue on one device: the first argument of every op.

use crate::{Arg, Backend, Buffer, Element, Error, Event, Isa, Kernel, Launch, Pool, Queue, Result, cpu::Cpu, cuda};
use std::sync::Arc;

/// An in-order queue on one device. Cloning gives another handle to the same queue.
#[derive(Clone)]
pub struct Stream {
    backend: Arc<dyn Backend>,
    queue: Queue,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({}, {})", self.backend.name(), self.queue.0)
    }
}

impl Stream {
    /// More threads than this are a mistake.
    pub const MOST_THREADS: usize = 1024;

    /// A queue on a device named as on the command line: `cpu`, `cuda:N`. Anything else, and more than [`Stream::MOST_THREADS`] threads, is
    /// [`Error::NoDevice`].
    pub fn open(device: &str, threads: Option<usize>) -> Result<Stream> {
        match device {
            "cpu" | "auto" => {
                if let Some(threads) = threads.filter(|threads| *threads > Stream::MOST_THREADS) {
                    let most = Stream::MOST_THREADS;
                    return Err(Error::NoDevice(format!("{device}: threads: wanted at most {most}, got {threads}")));
                }
                let threads = threads
                    .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from).min(Stream::MOST_THREADS));
                Ok(Stream::cpu(threads, Isa::from_env()?))
            }
            other => match cuda::index(other) {
                Some(index) => Ok(Stream::on(cuda::open(index?)?)),
                None => Err(Error::NoDevice(format!(
                    "{other}: this build drives cpu and cuda:N; devices are named cpu, cuda:N, ascend:N"
                ))),
            },
        }
    }

    /// A CPU queue with its own pool of threads and a chosen instruction set.
    pub fn cpu(threads: usize, isa: Isa) -> Stream {
        Stream::on(Arc::new(Cpu::new(threads, isa)))
    }

    /// The first queue of a device.
    pub fn on(backend: Arc<dyn Backend>) -> Stream {
        Stream { backend, queue: Queue(0) }
    }

    /// Another queue of the same device; it waits for none but as [`Stream::wait`] asks. On the CPU all queues run in the caller.
    pub fn beside(&self, queue: Queue) -> Stream {
        Stream { backend: self.backend.clone(), queue }
    }

    /// The device.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The queue on it.
    pub fn queue(&self) -> Queue {
        self.queue
    }

    /// The thread pool if the device is the CPU.
    pub fn host(&self) -> Option<&Pool> {
        self.backend.host()
    }

    /// The thread pool, or [`Error::Unsupported`] naming the room that has no kernel for this device.
    pub fn pool(&self, room: &'static str) -> Result<&Pool> {
        self.host().ok_or_else(|| Error::Unsupported { call: room, device: self.backend.name().to_string() })
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// As of [`Backend::launch`].
    pub unsafe fn launch(&self, k: &Kernel, l: &Launch, args: &[Arg<'_>]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.backend.launch(self.queue, k, l, args) }
    }

    /// A zeroed buffer of `len` elements.
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        Buffer::zeros(self, len)
    }

    /// A buffer holding a copy of `data`.
    pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
        let mut buffer = Buffer::zeros(self, data.len())?;
        buffer.write(data)?;
        Ok(buffer)
    }

    /// Marks the present end of the queue.
    pub fn record(&self) -> Result<Event> {
        self.backend.record(self.queue)
    }

    /// What is queued from here on comes after the event, which may be of another queue.
    pub fn wait(&self, e: &Event) -> Result<()> {
        self.backend.wait(self.queue, e)
    }

    /// Waits for the queue to run empty, at most for the device's deadline. On the CPU it always is.
    pub fn synchronize(&self) -> Result<()> {
        self.backend.synchronize(self.queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_threads_are_refused() {
        for threads in [1025, usize::MAX] {
            let text = Stream::open("cpu", Some(threads)).unwrap_err().to_string();
            assert!(text.contains("threads: wanted at most 1024") && text.contains(&threads.to_string()), "{text}");
        }
        assert_eq!(Stream::open("cpu", Some(2)).unwrap().host().map(Pool::threads), Some(2));
    }
}
