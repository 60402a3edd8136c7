//! Queues, events, pinned memory and graphs of the runtime on the emulated device, with work at once and as late as may be.

use ple_emulator as emulator;

use emulator::Cuda;
use runtime::{Arg, Error, Kernel, Launch, Queue, Result, Stream, View};

const ADD: Kernel = Kernel { name: "add", cuda: include_str!("queues.cu"), ascend: "" };
const N: usize = 100;

fn add(s: &Stream, x: View<'_>, by: f32) -> Result<()> {
    let launch = Launch { grid: [4, 1, 1], block: 32, ..Launch::default() };
    // SAFETY: the kernel's arguments; it stays below n.
    unsafe { s.launch(&ADD, &launch, &[Arg::Ptr(x.ptr()), Arg::Bits(by), Arg::U32(N as u32)]) }
}

/// In both modes; the tests of this file take turns, because a fault is everybody's.
fn each(f: impl Fn(&Cuda, bool) -> Result<()>) -> Result<()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let _turn = TURN.lock();
    for lazy in [false, true] {
        cuda.lazy_queues(lazy);
        f(cuda, lazy)?;
    }
    cuda.lazy_queues(false);
    Ok(())
}

#[test]
fn on_cuda_a_queue_waits_for_another_by_an_event_alone() -> Result<()> {
    each(|cuda, lazy| {
        let (first, second) = (&cuda.stream, cuda.stream.beside(Queue(1)));
        let x = first.upload(&[1f32; N])?;
        first.synchronize()?;
        let read = |s: &Stream| x.view().read(s, &mut [0f32; N]).map(|()| ());
        // Without the event the second queue sees what was there before, where work is late.
        add(first, x.view(), 1.0)?;
        let mut seen = [0f32; N];
        x.view().read(&second, &mut seen)?;
        assert_eq!(seen, [if lazy { 1.0 } else { 2.0 }; N]);
        read(first)?;
        add(first, x.view(), 1.0)?;
        let done = first.record()?;
        second.wait(&done)?;
        add(&second, x.view(), 1.0)?;
        x.view().read(&second, &mut seen)?;
        assert_eq!(seen, [4.0; N]);
        let text = first.beside(Queue(8)).synchronize().unwrap_err().to_string();
        assert!(text.contains("queue 8, wanted one below 8"), "{text}");
        Ok(())
    })
}

#[test]
fn on_cuda_pinned_memory_is_filled_later() -> Result<()> {
    each(|cuda, lazy| {
        let (s, b) = (&cuda.stream, cuda.stream.backend());
        let x = s.upload(&[3f32; N])?;
        let mut pinned = b.pinned(4 * N)?;
        assert!(pinned.bytes().iter().all(|&b| b == 0));
        let event = b.dtoh_later(s.queue(), &mut pinned, x.view().ptr(), 4 * N)?;
        assert_eq!(pinned.bytes()[..4], if lazy { [0; 4] } else { 3f32.to_ne_bytes() });
        b.elapsed(&event, &event)?;
        assert!(pinned.bytes().chunks(4).all(|v| v == 3f32.to_ne_bytes()));
        // Pinned memory is read when the queue comes to it, other memory at once.
        pinned.bytes_mut().fill(0);
        b.htod(s.queue(), x.view().ptr(), pinned.bytes())?;
        pinned.bytes_mut().fill(1);
        let late = f32::from_ne_bytes([1; 4]);
        assert_eq!(x.to_vec()?, [if lazy { late } else { 0.0 }; N]);
        let text = b.dtoh_later(s.queue(), &mut pinned, x.view().ptr(), 4 * N + 1).unwrap_err().to_string();
        assert!(text.contains("401 bytes into a smaller pinned block"), "{text}");
        // Dropped with a copy still queued: the copy comes first.
        b.dtoh_later(s.queue(), &mut pinned, x.view().ptr(), 4 * N)?;
        drop(pinned);
        s.synchronize()
    })
}

#[test]
fn on_cuda_a_graph_does_again_what_was_captured() -> Result<()> {
    each(|cuda, _| {
        let (s, b) = (&cuda.stream, cuda.stream.backend());
        let x = s.upload(&[0f32; N])?;
        let y = s.zeros::<f32>(N)?;
        let mut queue = || {
            add(s, x.view(), 1.0)?;
            b.dtod(s.queue(), y.view().ptr(), x.view().ptr(), 4 * N)?;
            add(s, y.view(), 0.5)
        };
        let graph = b.capture(s.queue(), &mut queue)?.expect("the device records");
        assert_eq!(x.to_vec()?, [0.0; N], "a capture runs nothing");
        for times in 1..4 {
            b.replay(s.queue(), &graph)?;
            assert_eq!(y.to_vec()?, [times as f32 + 0.5; N]);
        }
        // A wait, an allocation, a copy from pageable memory and an event from outside have no place in a graph.
        let outside = s.beside(Queue(1)).record()?;
        let wrong: [(&str, &mut dyn FnMut() -> Result<()>); 4] = [
            ("900", &mut || s.synchronize()),
            ("900", &mut || s.zeros::<f32>(4).map(drop)),
            ("900", &mut || b.htod(s.queue(), x.view().ptr(), &[0; 8])),
            ("905", &mut || s.wait(&outside)),
        ];
        for (code, f) in wrong {
            let text = b.capture(s.queue(), f).unwrap_err().to_string();
            assert!(text.contains(&format!("code {code}")), "{text}");
        }
        let text = b.capture(s.queue(), &mut || Err(Error::Shape("of my own".into()))).unwrap_err().to_string();
        assert_eq!(text, "of my own");
        let text = b.replay(s.queue(), &runtime::Graph { handle: 99 }).unwrap_err().to_string();
        assert!(text.starts_with("graph 99: this device has recorded"), "{text}");
        add(s, x.view(), 1.0)?;
        assert_eq!(x.to_vec()?, [4.0; N], "the queue goes on after a broken capture");
        Ok(())
    })
}

#[test]
fn on_cuda_what_goes_wrong_late_is_told_at_the_wait() -> Result<()> {
    each(|cuda, _| {
        let s = &cuda.stream;
        let launch = Launch { grid: [4, 1, 1], block: 32, ..Launch::default() };
        // SAFETY: the address is wrong, which the emulated device notices.
        unsafe { s.launch(&ADD, &launch, &[Arg::U64(64), Arg::Bits(0.0), Arg::U32(1)])? };
        let text = s.synchronize().unwrap_err().to_string();
        assert!(text.contains("illegal address") && text.contains("add block"), "{text}");
        cuda.clear();
        Ok(())
    })
}
