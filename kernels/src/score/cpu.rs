//! The CPU form: a chain per entry, several chains side by side; plain loops over columns.
// A body of plain loops meets its instruction set only as compiler features.
#![allow(clippy::extra_unused_type_parameters)]

use crate::cpu::Lanes;
use runtime::Pool;

/// Chains that run side by side, to hide the latency of one.
const CHAINS: usize = 8;

#[inline(always)]
fn forward_entries<S: Lanes>(out: &mut [f32], x: &[f32], rows: &[u32], w: &[f32]) {
    let c = w.len();
    for (out, rows) in out.chunks_mut(CHAINS).zip(rows.chunks(CHAINS)) {
        // A short group repeats its first row.
        let row = |i: usize| &x[rows[if i < rows.len() { i } else { 0 }] as usize * c..][..c];
        let from: [&[f32]; CHAINS] = std::array::from_fn(row);
        let mut acc = [0f32; CHAINS];
        for (i, w) in w.iter().enumerate() {
            for (acc, x) in acc.iter_mut().zip(from) {
                *acc = x[i].mul_add(*w, *acc);
            }
        }
        out.copy_from_slice(&acc[..out.len()]);
    }
}
per_isa! { fn forward_on(out: &mut [f32], x: &[f32], rows: &[u32], w: &[f32]) = forward_entries }

pub fn forward(pool: &Pool, out: &mut [f32], x: &[f32], rows: &[u32], w: &[f32]) {
    pool.rows(out, 1, CHAINS, 0, &|first, out, _| forward_on(pool.isa(), out, x, &rows[first..], w));
}

/// Rows `first..` of dx, as many as `dx` has.
#[inline(always)]
fn backward_rows<S: Lanes>(dx: &mut [f32], first: usize, dout: &[f32], rows: &[u32], w: &[f32]) {
    let c = w.len();
    let own = first..first + dx.len() / c;
    dx.fill(0.0);
    for (dout, row) in dout.iter().zip(rows).filter(|(_, row)| own.contains(&(**row as usize))) {
        let at = (*row as usize - first) * c;
        dx[at..at + c].iter_mut().zip(w).for_each(|(dx, w)| *dx += dout * w);
    }
}
per_isa! { fn backward_on(dx: &mut [f32], first: usize, dout: &[f32], rows: &[u32], w: &[f32]) = backward_rows }

pub fn backward(pool: &Pool, dx: &mut [f32], dout: &[f32], rows: &[u32], w: &[f32]) {
    pool.rows(dx, w.len(), 4096usize.div_ceil(w.len()), 0, &|first, dx, _| backward_on(pool.isa(), dx, first, dout, rows, w));
}

/// Columns `first..` of dw, as many as `dw` has; `partial` is as long.
#[inline(always)]
fn weight_columns<S: Lanes>(
    dw: &mut [f32],
    first: usize,
    c: usize,
    dout: &[f32],
    x: &[f32],
    rows: &[u32],
    examples: &[u32],
    partial: &mut [f32],
) {
    for span in examples.chunks_exact(2) {
        partial.fill(0.0);
        for m in span[0] as usize..span[1] as usize {
            let x = &x[rows[m] as usize * c + first..][..partial.len()];
            partial.iter_mut().zip(x).for_each(|(p, x)| *p = dout[m].mul_add(*x, *p));
        }
        dw.iter_mut().zip(partial.iter()).for_each(|(dw, p)| *dw += p);
    }
}
per_isa! {
    fn weight_on(
        dw: &mut [f32], first: usize, c: usize, dout: &[f32], x: &[f32], rows: &[u32], examples: &[u32], partial: &mut [f32],
    ) = weight_columns
}

pub fn backward_weight(pool: &Pool, dw: &mut [f32], dout: &[f32], x: &[f32], rows: &[u32], examples: &[u32]) {
    let c = dw.len();
    pool.rows(dw, 1, 64, c, &|first, dw, scratch| {
        let partial = &mut scratch[..dw.len()];
        weight_on(pool.isa(), dw, first, c, dout, x, rows, examples, partial);
    });
}
