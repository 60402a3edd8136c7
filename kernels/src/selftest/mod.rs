//! What every room proves of itself on a device, as a table: `ple selftest` prints it, and so do the tests.
//!
//! A room registers cases ([`Room::cases`]): operands on the host and one call of the room. The frame does the rest, the same for all:
//!
//! - **shapes**: the outputs are those of the portable CPU, bit for bit (in bf16: rounded once) or within a limit, or those of an f64 truth;
//! - **law**: the same call on a cut of the rows writes the bits that the whole wrote for them; a room that claims no more than
//!   repeatability says so instead;
//! - **repeat**: the call again writes the same bits, as often as [`Effort::repeats`];
//! - **poison**: outputs hold other bytes before, NaN among them, and come out the same;
//! - **canaries**: 4 KiB on either side of every operand, and every input, are as they were.

mod case;
mod compare;
mod frame;
pub mod inputs;
#[cfg(test)]
mod tests;

pub use case::{Case, Limit, Operand, Truth};

use runtime::DType::{self, Bf16, F32};
use runtime::{Error, Isa, Result, Stream};
use std::fmt;

/// A room with its cases, in one storage and one way.
#[derive(Clone, Copy)]
pub struct Room {
    /// As its folder, then `/bf16` for activations in bf16 or another way through it.
    pub name: &'static str,
    /// Whether it claims the law on every device; otherwise repeatability.
    pub law: bool,
    /// Storage of activations. The CPU has f32 only.
    pub stored: DType,
    /// Cases for batches of so many rows, of inputs that the seed decides.
    pub cases: Cases,
}

/// Makes a room's cases.
pub type Cases = fn(rows: &[usize], seed: u64) -> Vec<Case>;

const fn room(name: &'static str, stored: DType, law: bool, cases: Cases) -> Room {
    Room { name, law, stored, cases }
}

/// Every room that is registered, a line for each storage and way. A kernel that [`crate::cuda::kernels`] lists and that no case here
/// launches fails the tests.
pub const ROOMS: [Room; 26] = [
    room("rms_norm", F32, true, crate::rms_norm::cases),
    room("rms_norm/bf16", Bf16, true, crate::rms_norm::cases_in_bf16),
    room("rope", F32, true, crate::rope::cases),
    room("rope/bf16", Bf16, true, |rows, seed| in_bf16(crate::rope::cases(rows, seed))),
    room("swiglu", F32, true, crate::swiglu::cases),
    room("swiglu/bf16", Bf16, true, |rows, seed| in_bf16(crate::swiglu::cases(rows, seed))),
    room("layer_norm", F32, true, crate::layer_norm::cases),
    room("layer_norm/bf16", Bf16, true, crate::layer_norm::cases_in_bf16),
    room("head_norm", F32, true, crate::head_norm::cases),
    room("head_norm/bf16", Bf16, true, |rows, seed| in_bf16(crate::head_norm::cases(rows, seed))),
    room("gelu", F32, true, crate::gelu::cases),
    room("gelu/bf16", Bf16, true, |rows, seed| in_bf16(crate::gelu::cases(rows, seed))),
    room("embedding", F32, true, crate::embedding::cases),
    room("embedding/bf16", Bf16, true, crate::embedding::cases_in_bf16),
    room("adamw", F32, true, crate::adamw::cases),
    room("adamw/bf16", Bf16, true, crate::adamw::cases_in_bf16),
    room("linear", F32, true, crate::linear::cases),
    room("linear/bf16", Bf16, true, crate::linear::cases_in_bf16),
    room("attention", F32, true, crate::attention::cases),
    room("logprob", F32, true, crate::logprob::cases),
    room("score", F32, true, crate::score::cases),
    room("score/bf16", Bf16, true, |rows, seed| in_bf16(crate::score::cases(rows, seed))),
    room("linear/library", Bf16, false, crate::linear::cases_by_library),
    room("attention/bf16", Bf16, true, crate::attention::cases_in_bf16),
    room("decode_attention", F32, true, crate::decode_attention::cases),
    room("logprob/bf16", Bf16, true, crate::logprob::cases_in_bf16),
];

/// The same cases with activations in bf16, whose bits are the CPU's rounded once.
pub(crate) fn in_bf16(cases: Vec<Case>) -> Vec<Case> {
    cases.into_iter().map(Case::in_bf16).collect()
}

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// Rows of the batches.
    pub rows: &'static [usize],
    /// Repetitions of each case.
    pub repeats: usize,
}

impl Effort {
    /// For hardware: rows around every tile's edges, and many.
    pub const FULL: Effort = Effort { rows: &[1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257, 1000, 4097], repeats: 20 };
    /// For an emulated device, which is slow.
    pub const EMULATED: Effort = Effort { rows: &[1, 7, 17, 19, 33], repeats: 20 };

    /// What suits the device.
    pub fn of(s: &Stream) -> Effort {
        if is_emulated(s) { Effort::EMULATED } else { Effort::FULL }
    }
}

/// Whether the device is a stand-in, whose name says so.
pub fn is_emulated(s: &Stream) -> bool {
    s.backend().info().name.contains("(emulated)")
}

/// The device as tables name it: `cpu`, `cuda:0`, `cuda:0 (emulated)`.
pub fn device(s: &Stream) -> String {
    format!("{}{}", s.backend().name(), if is_emulated(s) { " (emulated)" } else { "" })
}

/// A room's row of the table: how often each thing was shown, and what failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The room.
    pub room: &'static str,
    /// As of [`device`].
    pub device: String,
    /// Cases whose outputs are right.
    pub shapes: usize,
    /// Cuts that have the bits of the whole; None of a room that claims repeatability only.
    pub law: Option<usize>,
    /// Repetitions with the same bits.
    pub repeat: usize,
    /// Outputs that other bytes beforehand do not change.
    pub poison: usize,
    /// Operands with nothing touched around them.
    pub canaries: usize,
    /// The largest share of a limit that was used; 0 where all is bitwise.
    pub worst: f64,
    /// Cases that the device has no kernel for.
    pub absent: usize,
    /// Case, operand, wanted and got.
    pub failures: Vec<String>,
}

impl Row {
    /// Nothing failed and every column has a count.
    pub fn passed(&self) -> bool {
        let counts = [self.shapes, self.law.unwrap_or(1), self.repeat, self.poison, self.canaries];
        self.failures.is_empty() && counts.iter().all(|n| *n > 0)
    }

    /// The device has no kernel of this room.
    pub fn is_absent(&self) -> bool {
        self.failures.is_empty() && self.shapes == 0 && self.absent > 0
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { room, device, shapes, repeat, poison, .. } = self;
        if self.is_absent() {
            return write!(f, "room {room} {device} absent");
        }
        let law = self.law.map_or("repeat-only".to_string(), |n| n.to_string());
        write!(f, "room {room} {device} shapes {shapes} law {law} repeat {repeat} poison {poison}")?;
        if self.failures.is_empty() { Ok(()) } else { write!(f, " FAILED {}", self.failures.len()) }
    }
}

/// Runs a room's cases on the device. Errors are the device's own; what is wrong with a result stands in the row.
pub fn run(room: &Room, s: &Stream, effort: Effort, seed: u64) -> Result<Row> {
    check(room, (room.cases)(effort.rows, seed), s, effort.repeats)
}

fn check(room: &Room, cases: Vec<Case>, s: &Stream, repeats: usize) -> Result<Row> {
    let mut row = Row {
        room: room.name,
        device: device(s),
        shapes: 0,
        law: room.law.then_some(0),
        repeat: 0,
        poison: 0,
        canaries: 0,
        worst: 0.0,
        absent: 0,
        failures: Vec::new(),
    };
    let portable = Stream::cpu(1, Isa::portable());
    for case in cases {
        if room.stored != F32 && s.host().is_some() {
            row.absent += 1;
            continue;
        }
        match frame::check(&case, s, &portable, repeats, &mut row) {
            Err(Error::Unsupported { .. }) => row.absent += 1,
            other => other?,
        }
    }
    Ok(row)
}
