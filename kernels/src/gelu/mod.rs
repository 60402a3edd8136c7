//! GELU, and GeGLU over rows that hold gate and up side by side.
//!
//! ```text
//! tanh:  z = (k·x)·(1 + a·(x·x))       a = 0.044715, k = 2√(2/π): 0.5·(1 + tanh(z/2)) is sigmoid(z), without its cancellation
//!        h = sigmoid(z)                slope = h + x·((h·sigmoid(0 − z))·(k·(1 + 3a·(x·x)))): 1 − h would lose its digits near 1
//! erf:   h = 0.5·(1 + erf(x·√½))       slope = h + x·(exp((−0.5)·(x·x))·(1/√(2π)))
//! plain: y = x·h               dx = dy·slope
//! gated: y = (g·h(g))·u        dg = (dy·u)·slope(g)       du = dy·(g·h(g))
//! ```
//! Every operation rounds, in the order of the brackets; sigmoid, erf and exp are LAW A5's; constants are rounded once. Plain: x, dx, y, dy
//! [N, F] f32. Gated: x, dx [N, 2F] f32, g the first F of a row, u the last F; y, dy [N, F]. `=` everywhere.
//! Bytes: plain 8 NF and 12 NF, gated 12 NF and 20 NF. FLOPs: about 25 NF and 35 NF. order: law

use runtime::{Result, Stream, View, disjoint, ensure};

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

/// Which of the two curves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// By tanh: `gelu_new`, `gelu_pytorch_tanh`.
    Tanh,
    /// By erf: `gelu`.
    Erf,
}

/// Whether half of a row gates the other.
fn gated(room: &str, y: View<'_>, x: View<'_>, f: usize) -> Result<bool> {
    let n = y.len().checked_div(f).unwrap_or(0);
    let fits = f > 0 && y.len() == n * f && (x.len() == n * f || x.len() == 2 * n * f);
    ensure!(fits, "{room}: rows of {} and {} elements, wanted [N, {f}] and [N, {f}] or [N, {}]", y.len(), x.len(), 2 * f);
    Ok(x.len() != y.len())
}

/// y [N, F] of x, plain [N, F] or gated [N, 2F].
pub fn forward(s: &Stream, y: View<'_>, x: View<'_>, f: usize, curve: Curve) -> Result<()> {
    let pool = s.pool("gelu::forward")?;
    let gated = gated("gelu::forward", y, x, f)?;
    disjoint("gelu::forward", &[y], &[x])?;
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    unsafe { cpu::forward(pool, y.host_mut()?, x.host()?, f, gated, curve) };
    Ok(())
}

/// dx of dy [N, F], plain [N, F] or gated [N, 2F] as x.
pub fn backward(s: &Stream, dx: View<'_>, dy: View<'_>, x: View<'_>, f: usize, curve: Curve) -> Result<()> {
    let pool = s.pool("gelu::backward")?;
    let gated = gated("gelu::backward", dy, x, f)?;
    ensure!(dx.len() == x.len(), "gelu::backward: dx has {} elements, wanted {}", dx.len(), x.len());
    disjoint("gelu::backward", &[dx], &[dy, x])?;
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    unsafe { cpu::backward(pool, dx.host_mut()?, dy.host()?, x.host()?, f, gated, curve) };
    Ok(())
}
