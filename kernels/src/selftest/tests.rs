use super::*;
use emulator::{Cuda, Mode};
use runtime::{Arg, Backend, Defines, DeviceInfo, Event, Gemm, Gemmed, Kernel, Launch, Memory, Pinned, Pool, Ptr, Queue, View};
use std::cell::Cell;
use std::collections::HashSet;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A kernel's name, its variant, and in which of [`Mode::PAIRS`] it ran.
type Tried = (&'static str, Defines, usize);

/// The emulated device, which knows which kernels were launched on it and how.
struct Recorder {
    inner: &'static dyn Backend,
    mode: Arc<AtomicUsize>,
    tried: Arc<Mutex<HashSet<Tried>>>,
}

impl Backend for Recorder {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn memory(&self) -> Memory {
        self.inner.memory()
    }
    fn host(&self) -> Option<&Pool> {
        self.inner.host()
    }
    fn alloc(&self, q: Queue, bytes: usize) -> Result<Ptr> {
        self.inner.alloc(q, bytes)
    }
    fn free(&self, q: Queue, p: Ptr, bytes: usize) {
        self.inner.free(q, p, bytes)
    }
    fn pinned(&self, bytes: usize) -> Result<Pinned> {
        self.inner.pinned(bytes)
    }
    fn htod(&self, q: Queue, dst: Ptr, src: &[u8]) -> Result<()> {
        self.inner.htod(q, dst, src)
    }
    fn dtoh(&self, q: Queue, dst: &mut [u8], src: Ptr) -> Result<()> {
        self.inner.dtoh(q, dst, src)
    }
    fn dtoh_later(&self, q: Queue, dst: &mut Pinned, src: Ptr, n: usize) -> Result<Event> {
        self.inner.dtoh_later(q, dst, src, n)
    }
    fn dtod(&self, q: Queue, dst: Ptr, src: Ptr, n: usize) -> Result<()> {
        self.inner.dtod(q, dst, src, n)
    }
    fn fill(&self, q: Queue, dst: Ptr, byte: u8, n: usize) -> Result<()> {
        self.inner.fill(q, dst, byte, n)
    }
    fn record(&self, q: Queue) -> Result<Event> {
        self.inner.record(q)
    }
    fn wait(&self, q: Queue, e: &Event) -> Result<()> {
        self.inner.wait(q, e)
    }
    fn elapsed(&self, a: &Event, b: &Event) -> Result<Duration> {
        self.inner.elapsed(a, b)
    }
    unsafe fn launch(&self, q: Queue, k: &Kernel, l: &Launch, args: &[Arg<'_>]) -> Result<()> {
        self.tried.lock().unwrap().insert((k.name, l.defines.clone(), self.mode.load(Ordering::Relaxed)));
        // SAFETY: the caller's promise.
        unsafe { self.inner.launch(q, k, l, args) }
    }
    unsafe fn gemm(&self, q: Queue, g: &Gemm) -> Result<Gemmed> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.gemm(q, g) }
    }
    fn synchronize(&self, q: Queue) -> Result<()> {
        self.inner.synchronize(q)
    }
}

/// What [`crate::cuda::kernels`] lists and none of these launched in every mode; the probes are dumped.
fn untried(tried: &[(&str, HashSet<Tried>)]) -> Vec<String> {
    let probe = |name: &str| crate::conformance::KERNELS.iter().any(|k| k.name == name);
    let known = |of: &Tried| tried.iter().any(|(_, set)| set.contains(of));
    let modes =
        |(kernel, defines): (Kernel, Defines)| (0..Mode::PAIRS.len()).map(move |mode| (kernel.name, defines.clone(), mode));
    let all = crate::cuda::kernels().into_iter().flat_map(modes);
    let told = |(name, defines, mode): Tried| format!("{name} {:?} {}", defines.0, Mode::PAIRS[mode]);
    all.filter(|of| !probe(of.0) && !known(of)).map(told).collect()
}

/// The case with each of its calls on the emulated device in the next mode, so that a repetition has the bits of another schedule.
fn in_turn(case: Case, cuda: &'static Cuda, mode: Arc<AtomicUsize>) -> Case {
    let (call, calls) = (case.call, Cell::new(0));
    let call = move |s: &Stream, v: &[View<'_>]| {
        if s.host().is_none() {
            let next = calls.replace(calls.get() + 1) % Mode::PAIRS.len();
            mode.store(next, Ordering::Relaxed);
            cuda.mode(Mode::PAIRS[next]);
        }
        call(s, v)
    };
    Case { call: Box::new(call), ..case }
}

/// The table of CI: every registered room on the emulated device. A room with kernels has every cell; a kernel or variant that is
/// registered and that no room's cases launch in each pair of schedules is named, as it is when a room is taken away.
#[test]
fn on_cuda_every_cell_of_the_table_is_filled() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    // Each mode twice: the device repeats itself but for its shuffles, so more would be the same again.
    let repeats = 2 * Mode::PAIRS.len() - 1;
    // A sanitizer looks at what a launch touches, which a repetition touches again.
    let repeats = if std::env::var_os("EMULATOR_SANITIZE").is_some() { Mode::PAIRS.len() - 1 } else { repeats };
    let mut tried: Vec<(&str, HashSet<Tried>)> = Vec::new();
    for room in ROOMS {
        let recorder = Recorder { inner: cuda.stream.backend(), mode: Arc::default(), tried: Arc::default() };
        let (seen, mode) = (recorder.tried.clone(), recorder.mode.clone());
        let s = Stream::on(Arc::new(recorder));
        let cases = (room.cases)(Effort::EMULATED.rows, 42).into_iter().map(|case| in_turn(case, cuda, mode.clone()));
        let row = check(&room, cases.collect(), &s, repeats)?;
        tried.push((room.name, std::mem::take(&mut seen.lock().unwrap())));
        // Past the capture of passing tests: the table belongs to the log.
        let _ = writeln!(std::io::stdout(), "{row}");
        assert!(row.passed(), "{row}\n{}", row.failures.join("\n"));
    }
    assert_eq!(untried(&tried), Vec::<String>::new(), "registered kernels without a case in selftest::ROOMS");
    for room in ROOMS.iter().filter_map(|room| room.name.split('/').next()) {
        let of = |name: &str| name.split('/').next() == Some(room);
        let rest: Vec<_> = tried.iter().filter(|(name, _)| !of(name)).cloned().collect();
        let missed = untried(&rest);
        // Copies are the optimizer's, and only linear's cases read those of an adapter; pages are the store's, and only decoding's cases fill them.
        let own = |name: &String| [room, "adamw_copies", "kv_store"].iter().any(|of| name.starts_with(of));
        assert!(!missed.is_empty() && missed.iter().all(own), "without {room}: {missed:?}");
    }
    Ok(())
}

#[test]
fn every_cell_of_the_table_is_filled_on_the_cpu() -> Result<()> {
    // The longest batches go no other way than one of 257 rows.
    let long = std::env::var_os("PLE_LONG").is_some();
    let rows = if long { Effort::FULL.rows } else { &[1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257] };
    for room in ROOMS {
        let row = run(&room, &crate::check::stream(), Effort { rows, repeats: 2 }, 7)?;
        println!("{row}");
        let right = if room.stored == DType::F32 { row.passed() && row.worst == 0.0 } else { row.is_absent() };
        assert!(right, "{row}\n{}", row.failures.join("\n"));
    }
    Ok(())
}

/// y = 2·x, wrong in the way that `fault` says.
fn doubled(fault: &'static str) -> Vec<Case> {
    let x = inputs::normal(1, 40);
    let operands = vec![Operand::output::<f32>("y", 40).per_row(4), Operand::input("x", &x).per_row(4)];
    let calls = std::cell::Cell::new(0);
    let call = move |s: &Stream, v: &[View<'_>]| {
        calls.set(calls.get() + 1);
        let (mut x, mut y) = (vec![0f32; v[1].len()], vec![0f32; v[0].len()]);
        v[1].read(s, &mut x)?;
        v[0].read(s, &mut y)?;
        for (y, x) in y.iter_mut().zip(&x) {
            *y = if fault == "reads" && *y > 0.0 { *y } else { 2.0 * x };
        }
        match fault {
            "wrong" if s.host().is_some_and(|pool| pool.threads() > 1) => y[3] += 1.0,
            "batch" if x.len() < 40 => y[0] += 1.0,
            "wavers" => y[2] += calls.get() as f32,
            "input" => v[1].write(s, &vec![0f32; x.len()])?,
            "skips" => return v[0].slice(1..v[0].len())?.write(s, &y[1..]),
            _ => {}
        }
        v[0].write(s, &y)
    };
    vec![Case::new(format!("doubled {fault}"), operands, call).cut(10)]
}

#[test]
fn each_kind_of_fault_is_found() -> Result<()> {
    let s = Stream::cpu(2, Isa::detect());
    let row = |cases: fn(&[usize], u64) -> Vec<Case>, law| {
        run(&Room { name: "doubled", law, stored: F32, cases }, &s, Effort { rows: &[1], repeats: 3 }, 1)
    };
    let good = row(|_, _| doubled("not"), true)?;
    assert_eq!(good.to_string(), "room doubled cpu shapes 1 law 4 repeat 3 poison 1");
    assert!(good.passed() && good.canaries == 2 && row(|_, _| doubled("not"), false)?.to_string().contains("law repeat-only"));
    type Cases = fn(&[usize], u64) -> Vec<Case>;
    let faults: [(Cases, &str); 6] = [
        (|_, _| doubled("wrong"), "y[3]: wanted the bits of"),
        (|_, _| doubled("reads"), "filled with 0x5a beforehand: y[0]"),
        (|_, _| doubled("batch"), "rows 0..1 alone: y[0]"),
        (|_, _| doubled("wavers"), "repetition 1: y[2]"),
        (|_, _| doubled("input"), "x: byte 0 of it or its surroundings was written"),
        (|_, _| doubled("skips"), "filled with 0x5a beforehand: y[0]"),
    ];
    for (cases, part) in faults {
        let row = row(cases, true)?;
        assert!(!row.passed() && row.failures.iter().any(|text| text.contains(part)), "{part}: {:?}", row.failures);
        assert!(row.to_string().contains(" FAILED "), "{row}");
    }
    Ok(())
}

/// y is off by 0.01 where it is a thousand and where it is one.
fn near(row: f64) -> Vec<Case> {
    let truth: Vec<f64> = (0..8).map(|i| if i < 4 { 1000.0 } else { 1.0 }).collect();
    let got: Vec<f32> = truth.iter().map(|v| (v + 0.01) as f32).collect();
    let operands = vec![Operand::output::<f32>("y", 8).per_row(4)];
    let case = Case::new("near".into(), operands, move |s, v| v[0].write(s, &got));
    vec![case.within(Limit::Norm { tensor: 1e-4, row }).against(Truth::Values(vec![truth]))]
}

#[test]
fn norms_judge_the_tensor_and_its_worst_row() -> Result<()> {
    let s = crate::check::stream();
    let row = |cases: fn(&[usize], u64) -> Vec<Case>| {
        run(&Room { name: "near", law: false, stored: F32, cases }, &s, Effort { rows: &[1], repeats: 2 }, 1)
    };
    let good = row(|_, _| near(2e-2))?;
    assert!(good.passed() && good.worst > 0.49 && good.worst < 0.51, "{good:?}");
    let text = row(|_, _| near(1e-3))?.failures.join(" ");
    assert!(text.contains("y: worst row deviates by 1.00e-2, limit 1e-3"), "{text}");
    Ok(())
}
