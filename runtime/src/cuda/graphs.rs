//! Recorded sequences of launches. A [`crate::Graph`] is a plain number; what it stands for lives as long as the device.

use super::driver::check;
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUgraphExec, CUstream};

/// Every graph of a device, by number counted from 1.
#[derive(Default)]
pub struct Graphs(Vec<CUgraphExec>);

// SAFETY: the driver's handles may be used from any thread that has made the context current.
unsafe impl Send for Graphs {}

/// Records what `f` queues on the stream, which runs nothing of it. Inside, waits, allocations and copies from or to memory that is
/// not pinned are refused by the driver.
pub fn capture(stream: CUstream, f: &mut dyn FnMut() -> Result<()>) -> Result<CUgraphExec> {
    // Relaxed: kernels may be compiled and loaded meanwhile.
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    let (mut graph, mut ready) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the stream lives; the capture is ended whatever `f` answers; handles outlive the calls and the graph, once made into an
    // executable one, is given back.
    unsafe {
        check("cuStreamBeginCapture", sys::cuStreamBeginCapture_v2(stream, mode))?;
        let queued = f();
        let ended = check("cuStreamEndCapture", sys::cuStreamEndCapture(stream, &mut graph));
        let made = queued
            .and(ended)
            .and_then(|()| check("cuGraphInstantiateWithFlags", sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0)));
        if !graph.is_null() {
            sys::cuGraphDestroy(graph);
        }
        made.map(|()| ready)
    }
}

impl Graphs {
    /// Keeps it and returns its number.
    pub fn keep(&mut self, graph: CUgraphExec) -> u64 {
        self.0.push(graph);
        self.0.len() as u64
    }

    /// Queues it.
    pub fn launch(&self, number: u64, stream: CUstream) -> Result<()> {
        let graph = usize::try_from(number).ok().and_then(|n| self.0.get(n.wrapping_sub(1)));
        let graph = graph.ok_or_else(|| Error::Shape(format!("graph {number}: this device has recorded {}", self.0.len())))?;
        // SAFETY: both handles live.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(*graph, stream) })
    }

    /// Gives them back.
    pub fn clear(&mut self) {
        for graph in self.0.drain(..) {
            // SAFETY: made by cuGraphInstantiateWithFlags, destroyed once.
            unsafe { sys::cuGraphExecDestroy(graph) };
        }
    }
}
