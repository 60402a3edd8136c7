//! How fast rooms are on a device: what `ple bench` measures and how.
//!
//! A [`Work`] is one call of a room at a size we train, with its FLOPs and the bytes that it must move. It is prepared several times
//! over, on operands of their own that together exceed every cache ([`ROTATING`]), and the calls take turns; on devices that record
//! graphs a pass over all of them is replayed as one. Reported is the median of passes. Two [`Ceilings`] are measured in the same run:
//! a copy, and the vendor's matrix product in bf16 (on the CPU: fused multiply-adds in registers).

mod ceilings;
mod work;

pub use ceilings::{Ceilings, multiply_adds};
pub use work::{Call, Work, noise, works};

use runtime::{Event, Result, Stream};
use std::time::Duration;

/// Bytes that the operands of all prepared calls hold at least: twice the largest cache of an H200.
pub const ROTATING: f64 = 120e6;
/// Passes whose median is reported, at least; and how long they take together, at least.
const PASSES: usize = 11;
const LEAST: Duration = Duration::from_millis(300);
/// A pass is made of so many rounds that it takes this long: events are not exact below.
const PASS: Duration = Duration::from_millis(1);

/// What was measured of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Median over passes, in seconds.
    pub median: f64,
    /// Of the fastest pass.
    pub best: f64,
    /// Of the slowest.
    pub worst: f64,
    /// Passes.
    pub passes: usize,
    /// Sets of operands that take turns.
    pub sets: usize,
    /// Whether passes were replayed from a graph.
    pub graph: bool,
}

/// Sets of operands that together hold at least [`ROTATING`] bytes; a call moves no byte of its operands more than twice.
fn sets(work: &Work) -> usize {
    ((2.0 * ROTATING / work.bytes).ceil() as usize).clamp(2, 256)
}

/// Measures one call.
pub fn measure(s: &Stream, work: &Work) -> Result<Timing> {
    let calls = (0..sets(work)).map(|_| (work.prepare)(s)).collect::<Result<Vec<_>>>()?;
    rotate(s, &calls, work.waits)
}

/// Times passes over the calls; `waits` says that a call waits for the device by itself, which no graph can hold.
fn rotate(s: &Stream, calls: &[Call], waits: bool) -> Result<Timing> {
    let (backend, queue) = (s.backend(), s.queue());
    let mut all = || calls.iter().try_for_each(|call| call(s));
    all()?;
    s.synchronize()?;
    let graph = if waits { None } else { backend.capture(queue, &mut all)? };
    let mut round = || graph.as_ref().map_or_else(&mut all, |graph| backend.replay(queue, graph));
    let mut pass = |rounds: usize| -> Result<Duration> {
        let start: Event = s.record()?;
        (0..rounds).try_for_each(|_| round())?;
        let end = s.record()?;
        s.synchronize()?;
        backend.elapsed(&start, &end)
    };
    let first = pass(1)?.max(Duration::from_nanos(100));
    let rounds = (PASS.as_secs_f64() / first.as_secs_f64()).ceil().clamp(1.0, 1000.0) as usize;
    let (mut times, mut spent) = (Vec::new(), Duration::ZERO);
    while times.len() < PASSES || (spent < LEAST && times.len() < 1000) {
        let time = pass(rounds)?;
        spent += time;
        times.push(time.as_secs_f64() / (rounds * calls.len()) as f64);
    }
    times.sort_by(f64::total_cmp);
    let (best, worst) = (times[0], times[times.len() - 1]);
    let (passes, sets) = (times.len(), calls.len());
    Ok(Timing { median: times[passes / 2], best, worst, passes, sets, graph: graph.is_some() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn calls_take_turns_and_the_median_is_theirs() -> Result<()> {
        let (s, order) = (crate::check::stream(), Rc::new(RefCell::new(Vec::new())));
        let calls: Vec<Call> = (0..3)
            .map(|i| {
                let order = order.clone();
                let call = move |_: &Stream| {
                    order.borrow_mut().push(i);
                    std::thread::sleep(Duration::from_millis(1));
                    Ok(())
                };
                Box::new(call) as Call
            })
            .collect();
        let timing = rotate(&s, &calls, false)?;
        assert!(order.borrow().iter().enumerate().all(|(n, i)| n % 3 == *i), "{:?}", order.borrow());
        assert!(timing.sets == 3 && timing.passes >= PASSES && !timing.graph, "{timing:?}");
        assert!((1e-3..0.1).contains(&timing.median), "{timing:?}");
        assert!(timing.best <= timing.median && timing.median <= timing.worst, "{timing:?}");
        Ok(())
    }

    #[test]
    fn on_cuda_passes_are_replayed_from_a_graph() -> Result<()> {
        let Some(cuda) = emulator::cuda() else { return Ok(()) };
        // A queue of its own: what other tests queue has no place in the graph.
        let s = cuda.stream.beside(runtime::Queue(6));
        let x = s.upload(&[0.5f32; 8])?;
        let call = move |s: &Stream| {
            let (y, gate_up) = (x.view().slice(0..2)?, x.view().slice(4..8)?);
            crate::swiglu::forward(s, y, gate_up, 2)
        };
        let timing = rotate(&s, &[Box::new(call)], false)?;
        assert!(timing.graph && timing.passes >= PASSES && timing.median > 0.0, "{timing:?}");
        Ok(())
    }

    #[test]
    fn every_work_runs_and_its_sets_exceed_the_caches() -> Result<()> {
        let s = crate::check::stream();
        let mut rooms = std::collections::BTreeSet::new();
        for work in works(&s) {
            assert!(sets(&work) as f64 * work.bytes >= 2.0 * ROTATING, "{}", work.name);
            (work.prepare)(&s)?(&s)?;
            rooms.insert(work.room);
        }
        let folder = |room: &crate::selftest::Room| room.name.split('/').next().unwrap();
        assert!(crate::selftest::ROOMS.iter().all(|room| rooms.contains(folder(room))), "{rooms:?}");
        Ok(())
    }

    /// What is measured on hardware, at sizes that the emulated device bears: every call runs, in bf16 too, and a call with an adapter
    /// names the one without. A room is left out only if it has no kernel at all.
    #[test]
    fn on_cuda_every_work_runs_at_small_sizes() -> Result<()> {
        let Some(cuda) = emulator::cuda() else { return Ok(()) };
        let (s, works) = (&cuda.stream, work::of(&cuda.stream, &work::TINY));
        let written = |room: &str| crate::cuda::kernels().iter().any(|(k, _)| k.name.starts_with(room));
        for work in &works {
            match (work.prepare)(s).and_then(|call| call(s)) {
                Err(runtime::Error::Unsupported { .. }) => assert!(!written(work.room), "{}: no kernel", work.name),
                other => other?,
            }
            let base = |name: &String| works.iter().any(|other| other.room == work.room && other.name == *name);
            assert!(work.base.as_ref().is_none_or(base), "{:?}", work.base);
        }
        s.synchronize()?;
        let named = |part: &str| works.iter().any(|work| work.name.contains(part));
        for room in ["own bf16", "library bf16", "LoRA 8 own bf16", "LoRA 8 library bf16", "residual bf16", "of 100"] {
            assert!(named(room), "{room}");
        }
        Ok(())
    }
}
