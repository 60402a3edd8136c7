//! Marks in a queue. An [`crate::Event`] is a plain number, so the newest [`HELD`] are kept and an older one is refused by name.

use super::driver::check;
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUevent, CUstream};

/// Events held at once.
pub const HELD: u64 = 1024;

/// A ring of the driver's events; number n lies at n mod [`HELD`].
#[derive(Default)]
pub struct Events {
    ring: Vec<CUevent>,
    recorded: u64,
}

// SAFETY: the driver's handles may be used from any thread that has made the context current.
unsafe impl Send for Events {}

impl Events {
    /// Records the present end of the stream and returns the event's number, counted from 1.
    pub fn record(&mut self, stream: CUstream) -> Result<u64> {
        let slot = (self.recorded % HELD) as usize;
        if slot == self.ring.len() {
            let mut event = std::ptr::null_mut();
            // SAFETY: a handle that outlives the call; 0 asks for timing.
            check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, 0) })?;
            self.ring.push(event);
        }
        // SAFETY: both handles live.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.ring[slot], stream) })?;
        self.recorded += 1;
        Ok(self.recorded)
    }

    /// The driver's handle of an event that is still held.
    pub fn get(&self, number: u64) -> Result<CUevent> {
        let held = number > 0 && number <= self.recorded && number + HELD > self.recorded;
        let slot = number.wrapping_sub(1) % HELD;
        self.ring
            .get(slot as usize)
            .copied()
            .filter(|_| held)
            .ok_or_else(|| Error::Shape(format!("event {number}: wanted one of the newest {HELD} of {} recorded", self.recorded)))
    }

    /// Gives the driver's events back.
    pub fn clear(&mut self) {
        for event in self.ring.drain(..) {
            // SAFETY: made by cuEventCreate, destroyed once.
            unsafe { sys::cuEventDestroy_v2(event) };
        }
    }
}
