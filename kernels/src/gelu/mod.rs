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
//! [N, F] f32. Gated: x, dx [N, 2F] f32, g the first F of a row, u the last F; y, dy [N, F]. `=` everywhere. On CUDA
//! also all of them in bf16: widened, computed in f32, rounded once; rows of y and dx may lie apart there ([`View::apart`]).
//! Bytes: plain 8 NF and 12 NF, gated 12 NF and 20 NF. FLOPs: about 25 NF and 50 NF. order: law

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
pub(crate) const KERNELS: [Kernel; 2] = [kernel!("gelu_forward", "gelu.cu"), kernel!("gelu_backward", "gelu.cu")];

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

/// What both kernels take after their rows: elements of y, F, where u begins in a row (0 without), the pitch of what is written, the
/// curve.
fn scalars(room: &str, n: usize, f: usize, gated: bool, pitch: Arg<'static>, curve: Curve) -> Result<[Arg<'static>; 5]> {
    let up = if gated { f } else { 0 };
    ensure!(f <= (u32::MAX / 2) as usize, "{room}: rows of {f}, wanted at most {}", u32::MAX / 2);
    Ok([Arg::U64(n as u64), size(room, f)?, size(room, up)?, pitch, Arg::U32((curve == Curve::Erf).into())])
}

/// y [N, F] of x, plain [N, F] or gated [N, 2F].
pub fn forward(s: &Stream, y: View<'_>, x: View<'_>, f: usize, curve: Curve) -> Result<()> {
    let room = "gelu::forward";
    let gated = gated(room, y, x, f)?;
    disjoint(room, &[y], &[x])?;
    let Some(pool) = s.host() else {
        let stored = stored(room, x)?;
        let views = [rows_of(room, y, stored)?, operand(room, x, stored)?];
        let launch = Launch { defines: variant(stored), ..elements(y.len())? };
        let args = [&views[..], &scalars(room, y.len(), f, gated, pitch(room, y, f)?, curve)?].concat();
        // SAFETY: the kernel's arguments; `gated` checked what they cover.
        return unsafe { s.launch(&KERNELS[0], &launch, &args) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    unsafe { cpu::forward(pool, y.host_mut()?, x.host()?, f, gated, curve) };
    Ok(())
}

/// dx of dy [N, F], plain [N, F] or gated [N, 2F] as x.
pub fn backward(s: &Stream, dx: View<'_>, dy: View<'_>, x: View<'_>, f: usize, curve: Curve) -> Result<()> {
    let room = "gelu::backward";
    let gated = gated(room, dy, x, f)?;
    ensure!(dx.len() == x.len(), "{room}: dx has {} elements, wanted {}", dx.len(), x.len());
    disjoint(room, &[dx], &[dy, x])?;
    let Some(pool) = s.host() else {
        let stored = stored(room, x)?;
        let views = [rows_of(room, dx, stored)?, operand(room, dy, stored)?, operand(room, x, stored)?];
        let launch = Launch { defines: variant(stored), ..elements(dy.len())? };
        let wide = if gated { 2 * f } else { f };
        let args = [&views[..], &scalars(room, dy.len(), f, gated, pitch(room, dx, wide)?, curve)?].concat();
        // SAFETY: the kernel's arguments; `gated` checked what they cover.
        return unsafe { s.launch(&KERNELS[1], &launch, &args) };
    };
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    unsafe { cpu::backward(pool, dx.host_mut()?, dy.host()?, x.host()?, f, gated, curve) };
    Ok(())
}
