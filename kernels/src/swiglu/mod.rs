//! SwiGLU over rows that hold gate and up side by side.
//!
//! ```text
//! σ = sigmoid(g) (LAW A5)      a = g·σ      y = a·u
//! backward:  dg = (dy·u)·(σ·(1 + g·(1 − σ)))      du = dy·a
//! ```
//! Every operation rounds, in the order of the brackets. gate_up, dgate_up: [N, 2F] f32, g the first F of a row, u the last F.
//! y, dy: [N, F] f32. `=` everywhere. Bytes: forward 12 NF, backward 20 NF. FLOPs: about 20 NF and 26 NF. order: law

use runtime::{Result, Stream, View, disjoint, ensure};

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

fn sizes(room: &str, y: View<'_>, gate_up: View<'_>, f: usize) -> Result<()> {
    let fits = f > 0 && y.len().is_multiple_of(f) && gate_up.len() == 2 * y.len();
    ensure!(fits, "{room}: {} and {} elements, wanted [N, {f}] and [N, 2·{f}]", y.len(), gate_up.len());
    Ok(())
}

/// y [N, F] of gate_up [N, 2F].
pub fn forward(s: &Stream, y: View<'_>, gate_up: View<'_>, f: usize) -> Result<()> {
    let pool = s.pool("swiglu::forward")?;
    sizes("swiglu::forward", y, gate_up, f)?;
    disjoint("swiglu::forward", &[y], &[gate_up])?;
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    unsafe { cpu::forward(pool, y.host_mut()?, gate_up.host()?, f) };
    Ok(())
}

/// dgate_up [N, 2F] of dy [N, F] and gate_up [N, 2F].
pub fn backward(s: &Stream, dgate_up: View<'_>, dy: View<'_>, gate_up: View<'_>, f: usize) -> Result<()> {
    let pool = s.pool("swiglu::backward")?;
    sizes("swiglu::backward", dy, gate_up, f)?;
    sizes("swiglu::backward", dy, dgate_up, f)?;
    disjoint("swiglu::backward", &[dgate_up], &[dy, gate_up])?;
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    unsafe { cpu::backward(pool, dgate_up.host_mut()?, dy.host()?, gate_up.host()?, f) };
    Ok(())
}
