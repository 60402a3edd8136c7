//! SwiGLU over rows that hold gate and up side by side.
//!
//! ```text
//! σ = sigmoid(g) (LAW A5)      a = g·σ      y = a·u
//! backward:  dg = (dy·u)·(σ·(1 + g·(1 − σ)))      du = dy·a
//! ```
//! Every operation rounds, in the order of the brackets. gate_up, dgate_up: [N, 2F] f32, g the first F of a row, u the last F.
//! y, dy: [N, F] f32. `=` everywhere. On CUDA also all of them in bf16: widened, computed in f32, rounded once; rows of y and dgate_up may
//! lie apart there ([`View::apart`]). Bytes in f32: forward 12 NF, backward 20 NF. FLOPs: about 20 NF and 26 NF. order: law

use crate::cuda::{elements, kernel, operand, pitch, rows_of, size, stored, variant};
use runtime::{Arg, Kernel, Launch, Result, Stream, View, disjoint, ensure};

mod cases;
mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cases::cases;

/// The room on a CUDA device: the same operations, one thread per element, the same bits as on the CPU.
pub(crate) const KERNELS: [Kernel; 2] = [kernel!("swiglu_forward", "swiglu.cu"), kernel!("swiglu_backward", "swiglu.cu")];

fn sizes(room: &str, y: View<'_>, gate_up: View<'_>, f: usize) -> Result<()> {
    let fits = f > 0 && y.len().is_multiple_of(f) && gate_up.len() == 2 * y.len();
    ensure!(fits, "{room}: {} and {} elements, wanted [N, {f}] and [N, 2·{f}]", y.len(), gate_up.len());
    Ok(())
}

/// y [N, F] of gate_up [N, 2F].
pub fn forward(s: &Stream, y: View<'_>, gate_up: View<'_>, f: usize) -> Result<()> {
    sizes("swiglu::forward", y, gate_up, f)?;
    disjoint("swiglu::forward", &[y], &[gate_up])?;
    match s.host() {
        // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
        Some(pool) => unsafe { cpu::forward(pool, y.host_mut()?, gate_up.host()?, f) },
        None => {
            let room = "swiglu::forward";
            let stored = stored(room, y)?;
            let views = [rows_of(room, y, stored)?, operand(room, gate_up, stored)?];
            let launch = Launch { defines: variant(stored), ..elements(y.len())? };
            let args = [views[0], views[1], Arg::U64(y.len() as u64), size(room, f)?, pitch(room, y, f)?];
            // SAFETY: the kernel's arguments; `sizes` checked what they cover.
            unsafe { s.launch(&KERNELS[0], &launch, &args)? };
        }
    }
    Ok(())
}

/// dgate_up [N, 2F] of dy [N, F] and gate_up [N, 2F].
pub fn backward(s: &Stream, dgate_up: View<'_>, dy: View<'_>, gate_up: View<'_>, f: usize) -> Result<()> {
    sizes("swiglu::backward", dy, gate_up, f)?;
    sizes("swiglu::backward", dy, dgate_up, f)?;
    disjoint("swiglu::backward", &[dgate_up], &[dy, gate_up])?;
    match s.host() {
        // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
        Some(pool) => unsafe { cpu::backward(pool, dgate_up.host_mut()?, dy.host()?, gate_up.host()?, f) },
        None => {
            let room = "swiglu::backward";
            let stored = stored(room, dy)?;
            let views = [rows_of(room, dgate_up, stored)?, operand(room, dy, stored)?, operand(room, gate_up, stored)?];
            let launch = Launch { defines: variant(stored), ..elements(dy.len())? };
            let sizes = [Arg::U64(dy.len() as u64), size(room, f)?, pitch(room, dgate_up, 2 * f)?];
            let args = [views, sizes].concat();
            // SAFETY: the kernel's arguments; `sizes` checked what they cover.
            unsafe { s.launch(&KERNELS[1], &launch, &args)? };
        }
    }
    Ok(())
}
