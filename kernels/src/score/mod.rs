//! Scalar head: one number per listed row, for rewards and values.
//!
//! ```text
//! out[m]      = acc,  acc = fma(x[rows[m], c], w[c], acc),  c ascending from +0          (LAW A1)
//! dx[r, c]    = Σ over m with rows[m] = r, in list order, of dout[m]·w[c]; product and sum round; +0 where no entry is
//! dw[c]      += p,  p = fma(dout[m], x[rows[m], c], p)       entries of an example ascending from +0, examples in order (A7)
//! ```
//! x, dx: [N, C] f32. rows: `[M]` u32 into N. w, dw: `[C]` f32. out, dout: `[M]` f32. `=` everywhere but in dw.
//! A bias is the caller's. Bytes: forward 4 MC, backward 4 NC + 4 MC, dw 4 MC. FLOPs: 2 MC each. order: law

use runtime::{Error, Result, Stream, View, disjoint, ensure};

mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

fn within(room: &str, rows: &[u32], x: View<'_>, c: usize) -> Result<()> {
    ensure!(c > 0 && x.len().is_multiple_of(c), "{room}: x has {} elements, wanted [N, {c}]", x.len());
    let n = x.len() / c;
    match rows.iter().enumerate().find(|(_, row)| **row as usize >= n) {
        Some((m, row)) => Err(Error::Shape(format!("{room}: entry {m} is row {row} of {n}"))),
        None => Ok(()),
    }
}

/// out `[M]` of the listed rows of x [N, C].
pub fn forward(s: &Stream, out: View<'_>, x: View<'_>, rows: View<'_>, w: View<'_>) -> Result<()> {
    let pool = s.pool("score::forward")?;
    ensure!(out.len() == rows.len(), "score::forward: out has {} elements, wanted {}", out.len(), rows.len());
    disjoint("score::forward", &[out], &[x, rows, w])?;
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    let (out, data, rows, weight) = unsafe { (out.host_mut()?, x.host()?, rows.host()?, w.host()?) };
    within("score::forward", rows, x, w.len())?;
    cpu::forward(pool, out, data, rows, weight);
    Ok(())
}

/// dx [N, C], every row of it, of dout `[M]`.
pub fn backward(s: &Stream, dx: View<'_>, dout: View<'_>, rows: View<'_>, w: View<'_>) -> Result<()> {
    let pool = s.pool("score::backward")?;
    ensure!(dout.len() == rows.len(), "score::backward: dout has {} elements, wanted {}", dout.len(), rows.len());
    disjoint("score::backward", &[dx], &[dout, rows, w])?;
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    let (out, dout, rows, weight) = unsafe { (dx.host_mut()?, dout.host()?, rows.host()?, w.host()?) };
    within("score::backward", rows, dx, w.len())?;
    cpu::backward(pool, out, dout, rows, weight);
    Ok(())
}

/// dw `[C]` += one partial per example; `examples` is u32 [E, 2], the {start, end} of each example's entries.
pub fn backward_weight(s: &Stream, dw: View<'_>, dout: View<'_>, x: View<'_>, rows: View<'_>, examples: View<'_>) -> Result<()> {
    let pool = s.pool("score::backward_weight")?;
    ensure!(dout.len() == rows.len(), "score::backward_weight: dout has {} elements, wanted {}", dout.len(), rows.len());
    disjoint("score::backward_weight", &[dw], &[dout, x, rows, examples])?;
    // SAFETY: the device is the CPU and `disjoint` keeps the output apart from everything else.
    let (out, dout, data) = unsafe { (dw.host_mut()?, dout.host()?, x.host()?) };
    // SAFETY: as above.
    let (rows, examples) = unsafe { (rows.host()?, examples.host()?) };
    within("score::backward_weight", rows, x, dw.len())?;
    crate::spans("score::backward_weight", examples, rows.len())?;
    cpu::backward_weight(pool, out, dout, data, rows, examples);
    Ok(())
}
