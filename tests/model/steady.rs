//! A steady training step allocates nothing on the device and next to nothing on the host.

use crate::allocations;
use anyhow::{Result, ensure};
use kernels::adamw;
use model::{Adapter, Batch, Keep, Transformer, Tune};
use ple_tests::pass::{self, Example, LOGPROB};
use ple_tests::tiny::{self, Random};
use runtime::{Backend, DType, DeviceInfo, Event, Isa, Pinned, Pool, Ptr, Queue, Stream, cpu::Cpu};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The CPU, counting what is allocated on it.
struct Counted {
    cpu: Cpu,
    allocations: AtomicUsize,
}

impl Backend for Counted {
    fn name(&self) -> &str {
        self.cpu.name()
    }
    fn info(&self) -> &DeviceInfo {
        self.cpu.info()
    }
    fn host(&self) -> Option<&Pool> {
        self.cpu.host()
    }
    fn alloc(&self, q: Queue, bytes: usize) -> runtime::Result<Ptr> {
        self.allocations.fetch_add(1, Ordering::Relaxed);
        self.cpu.alloc(q, bytes)
    }
    fn free(&self, q: Queue, p: Ptr, bytes: usize) {
        self.cpu.free(q, p, bytes);
    }
    fn pinned(&self, bytes: usize) -> runtime::Result<Pinned> {
        self.allocations.fetch_add(1, Ordering::Relaxed);
        self.cpu.pinned(bytes)
    }
    fn htod(&self, q: Queue, dst: Ptr, src: &[u8]) -> runtime::Result<()> {
        self.cpu.htod(q, dst, src)
    }
    fn dtoh(&self, q: Queue, dst: &mut [u8], src: Ptr) -> runtime::Result<()> {
        self.cpu.dtoh(q, dst, src)
    }
    fn dtoh_later(&self, q: Queue, dst: &mut Pinned, src: Ptr, n: usize) -> runtime::Result<Event> {
        self.cpu.dtoh_later(q, dst, src, n)
    }
    fn dtod(&self, q: Queue, dst: Ptr, src: Ptr, n: usize) -> runtime::Result<()> {
        self.cpu.dtod(q, dst, src, n)
    }
    fn fill(&self, q: Queue, dst: Ptr, byte: u8, n: usize) -> runtime::Result<()> {
        self.cpu.fill(q, dst, byte, n)
    }
    fn record(&self, q: Queue) -> runtime::Result<Event> {
        self.cpu.record(q)
    }
    fn wait(&self, q: Queue, e: &Event) -> runtime::Result<()> {
        self.cpu.wait(q, e)
    }
    fn elapsed(&self, a: &Event, b: &Event) -> runtime::Result<Duration> {
        self.cpu.elapsed(a, b)
    }
    fn synchronize(&self, q: Queue) -> runtime::Result<()> {
        self.cpu.synchronize(q)
    }
}

/// One thread, so that every allocation is the counting thread's own.
fn device() -> (Arc<Counted>, Stream) {
    let device = Arc::new(Counted { cpu: Cpu::new(1, Isa::detect()), allocations: AtomicUsize::new(0) });
    (device.clone(), Stream::on(device))
}

fn examples() -> Vec<Example> {
    let mut random = Random(8);
    (1..9).map(|i| (random.ids(5 * i), vec![random.ids(3 * i), random.ids(40 - 2 * i)])).collect()
}

/// Five optimizer steps over two micro-batches each; returns device and host allocations of the last.
fn steps(tune: Tune, folder: &Path) -> Result<(usize, allocations::Count)> {
    let (counted, s) = device();
    let (model, _): (Transformer, Adapter) = tiny::load(&s, folder)?;
    let mut grads = model.grads(&s, tune)?;
    let ranges = grads.ranges();
    let (parameters, _) = model.trained(tune)?;
    let words = parameters.flat().len();
    let (m, v) = (s.zeros::<f32>(words)?, s.zeros::<f32>(words)?);
    let (all, mut b, mut out, mut dlogp) = (examples(), Batch::default(), Vec::new(), Vec::new());
    let whole = pass::limits(&pass::batch(&all)?);
    let mut acts = model.acts(&s, whole, Keep::Backward, None)?;
    let mut dout = s.zeros::<f32>(whole.loss_rows)?;
    let adapter = pass::adapter_of(tune);
    let mut step = |number: u64| -> Result<()> {
        grads.zero()?;
        for half in all.chunks(4) {
            b.clear();
            for (prompt, answers) in half {
                b.example(prompt, &[&answers[0], &answers[1]], 0)?;
            }
            model.forward(&s, &mut acts, &b, adapter, LOGPROB, Keep::Backward)?;
            acts.out(&s, &mut out)?;
            dlogp.clear();
            dlogp.extend(out.iter().map(|l: &f32| -0.01 + 0.001 * l));
            dout.write(&dlogp)?;
            model.backward(&s, &mut acts, &b, adapter, LOGPROB, &dout, &mut grads)?;
        }
        let norm = adamw::grad_norm(&s, grads.flat(), &ranges)?;
        let grad_scale = adamw::clip_scale(norm, 1.0);
        let params = adamw::Params { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: number, grad_scale };
        Ok(adamw::step(&s, parameters.flat(), m.view(), v.view(), grads.flat(), &params)?)
    };
    for number in 1..5 {
        step(number)?;
    }
    let before = counted.allocations.load(Ordering::Relaxed);
    let (outcome, host) = allocations::of(|| step(5));
    outcome?;
    Ok((counted.allocations.load(Ordering::Relaxed) - before, host))
}

#[test]
fn a_steady_step_allocates_next_to_nothing() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    for tune in [Tune::Lora(0), Tune::Full] {
        let (device, host) = steps(tune, folder.path())?;
        ple_tests::data::say(&format!(
            "  steady step, {tune:?}: {device} device, {} host allocations, largest {} bytes",
            host.calls, host.largest
        ));
        ensure!(device == 0, "{tune:?}: {device} device allocations in a steady step");
        ensure!(
            host.calls <= 64 && host.largest <= 4096,
            "{tune:?}: {host:?} on the host in a steady step, wanted at most 64 small ones"
        );
    }
    Ok(())
}
