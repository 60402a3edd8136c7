//! The threads of a CPU stream. Work is cut into tasks whose results do not depend on which thread runs them.

use crate::Isa;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker watches for the next job before it sleeps.
const WATCH: Duration = Duration::from_micros(60);

/// A task body: index of the task, and scratch memory of the thread that runs it.
type Body<'a> = dyn Fn(usize, &mut [f32]) + Sync + 'a;

/// A body over rows: index of the first row, the rows, and scratch memory.
pub type RowBody<'a, T> = dyn Fn(usize, &mut [T], &mut [f32]) + Sync + 'a;

#[derive(Clone, Copy)]
struct Job {
    body: *const Body<'static>,
    tasks: usize,
    scratch: usize,
}

struct Common {
    /// Counts jobs; a change tells the workers that `job` is new.
    generation: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    running: AtomicUsize,
    panicked: AtomicBool,
    quit: AtomicBool,
}

// SAFETY: `job` is written only while no worker runs (between `running == 0` and the generation's release store), and read
// only after that store was seen.
unsafe impl Sync for Common {}
// SAFETY: the body pointer is used only while `Pool::run` keeps the body alive.
unsafe impl Send for Common {}

impl Common {
    /// Takes tasks until none is left.
    fn work(&self, job: Job, scratch: &mut Vec<f32>) {
        if scratch.len() < job.scratch {
            scratch.resize(job.scratch, 0.0);
        }
        // SAFETY: `Pool::run` does not return before every worker has left this function.
        let body = unsafe { &*job.body };
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= job.tasks {
                return;
            }
            body(task, &mut scratch[..job.scratch]);
        }
    }

    fn worker(&self) {
        let (mut seen, mut scratch) = (0, Vec::new());
        loop {
            let start = Instant::now();
            while self.generation.load(Ordering::Acquire) == seen {
                if self.quit.load(Ordering::Acquire) {
                    return;
                }
                if start.elapsed() < WATCH {
                    std::hint::spin_loop();
                } else {
                    std::thread::park();
                }
            }
            seen = self.generation.load(Ordering::Acquire);
            // SAFETY: the generation was read with acquire after the job was written.
            if let Some(job) = unsafe { *self.job.get() }
                && catch_unwind(AssertUnwindSafe(|| self.work(job, &mut scratch))).is_err()
            {
                self.panicked.store(true, Ordering::Release);
            }
            self.running.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Threads that live as long as their stream; the caller's thread is one of them.
pub struct Pool {
    common: Arc<Common>,
    workers: Vec<(JoinHandle<()>, Thread)>,
    /// Scratch of the caller's thread; the lock also makes one job run at a time.
    caller: Mutex<Vec<f32>>,
    /// What the tasks of one call share.
    shared: Mutex<Vec<f32>>,
    isa: Isa,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads, {})", self.threads(), self.isa)
    }
}

impl Pool {
    /// A pool of `threads` threads in all (at least one).
    pub fn new(threads: usize, isa: Isa) -> Pool {
        let common = Arc::new(Common {
            generation: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            quit: AtomicBool::new(false),
        });
        let workers = (1..threads)
            .map_while(|i| {
                let common = common.clone();
                let spawn = std::thread::Builder::new().name(format!("ple-{i}")).spawn(move || common.worker());
                spawn.ok().map(|handle| {
                    let thread = handle.thread().clone();
                    (handle, thread)
                })
            })
            .collect();
        Pool { common, workers, caller: Mutex::new(Vec::new()), shared: Mutex::new(Vec::new()), isa }
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The instruction set that `cpu.rs` files use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// At least `len` f32, with whatever the last user left in them, for what all tasks of a call read: held while its jobs run.
    pub fn shared(&self, len: usize) -> MutexGuard<'_, Vec<f32>> {
        let mut room = self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if room.len() < len {
            room.resize(len, 0.0);
        }
        room
    }

    /// Runs `body(task, scratch)` once for every task below `tasks` and returns when all are done. `scratch` is that many
    /// f32 of the running thread, with whatever the last user left in it. A body must not call `run` of the same pool.
    pub fn run(&self, tasks: usize, scratch: usize, body: &Body<'_>) {
        let mut own = self.caller.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // SAFETY: only the lifetime changes; the pointer is not used after this function returns.
        let body: *const Body<'static> = unsafe { std::mem::transmute(body as *const Body<'_>) };
        let job = Job { body, tasks, scratch };
        let common = &*self.common;
        common.next.store(0, Ordering::Relaxed);
        let helpers = if tasks > 1 { self.workers.len() } else { 0 };
        if helpers > 0 {
            // SAFETY: `running` is 0, so no worker reads the job.
            unsafe { *common.job.get() = Some(job) };
            common.running.store(helpers, Ordering::Relaxed);
            common.generation.fetch_add(1, Ordering::Release);
            self.workers.iter().for_each(|(_, thread)| thread.unpark());
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| common.work(job, &mut own)));
        let mut spins = 0u32;
        while helpers > 0 && common.running.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < 20_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        // Under the lock and whatever the caller's own part did: the next job begins without this one's panics.
        let panicked = common.panicked.swap(false, Ordering::AcqRel);
        drop(own);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        if panicked {
            resume_unwind(Box::new("a worker thread panicked"));
        }
    }

    /// Cuts `out` into rows of `width` and gives `body(first_row, rows, scratch)` at least `grain` rows at a time.
    pub fn rows<T: Send>(&self, out: &mut [T], width: usize, grain: usize, scratch: usize, body: &RowBody<'_, T>) {
        if out.is_empty() || width == 0 {
            return;
        }
        let rows = out.len() / width;
        let grain = grain.max(rows.div_ceil(4 * self.threads())).max(1);
        let shared = Shared::new(out);
        self.run(rows.div_ceil(grain), scratch, &|task, scratch| {
            let (first, last) = (task * grain, (task * grain + grain).min(rows));
            // SAFETY: tasks take disjoint row ranges.
            body(first, unsafe { shared.slice(first * width..last * width) }, scratch);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.common.quit.store(true, Ordering::Release);
        for (handle, thread) in self.workers.drain(..) {
            thread.unpark();
            let _ = handle.join();
        }
    }
}

/// A slice whose disjoint parts the tasks of a pool write.
#[derive(Debug)]
pub struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    _owner: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out parts of an exclusive slice; that they are disjoint is the caller's promise in `slice`.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Takes the slice for the time of the job.
    pub fn new(slice: &'a mut [T]) -> Shared<'a, T> {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), _owner: std::marker::PhantomData }
    }

    /// A part for one task. Panics if it is out of range.
    ///
    /// # Safety
    /// Parts that are alive at the same time do not overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, range: std::ops::Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: inside the slice; disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_and_a_panic_comes_back() {
        let pool = Pool::new(3, Isa::portable());
        for round in 0..200 {
            let mut seen = vec![0u32; 37 + round];
            pool.rows(&mut seen, 1, 1, 8, &|_, rows, scratch| {
                assert_eq!(scratch.len(), 8);
                rows.iter_mut().for_each(|r| *r += 1);
            });
            assert!(seen.iter().all(|&s| s == 1));
        }
        let panic = catch_unwind(AssertUnwindSafe(|| pool.run(64, 0, &|task, _| assert!(task != 40, "task 40"))));
        assert!(panic.is_err());
        let mut again = [0u8; 5];
        pool.rows(&mut again, 1, 1, 0, &|_, r, _| r.fill(1));
        assert_eq!(again, [1; 5]);
    }

    #[test]
    fn panics_of_all_threads_end_with_their_job() {
        let pool = Pool::new(3, Isa::portable());
        for _ in 0..20 {
            let panic = catch_unwind(AssertUnwindSafe(|| pool.run(64, 0, &|task, _| panic!("task {task}"))));
            assert!(panic.is_err());
            let done = AtomicUsize::new(0);
            pool.run(64, 0, &|_, _| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 64);
        }
    }
}
