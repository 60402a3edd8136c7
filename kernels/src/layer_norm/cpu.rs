//! The CPU form. Loops without a reduction are plain: each element's operations are IEEE and vectorise without changing them.
// A body of plain loops meets its instruction set only as compiler features.
#![allow(clippy::extra_unused_type_parameters)]

use crate::cpu::Lanes;
use crate::cpu::rows::{self, grain};
use runtime::{Pool, Shared};

#[inline(always)]
fn scale_row(y: &mut [f32], v: &[f32], mean: f32, rstd: f32, w: &[f32], b: &[f32]) {
    for (((y, v), w), b) in y.iter_mut().zip(v).zip(w).zip(b) {
        *y = ((v - mean) * rstd) * w + b;
    }
}

/// `scratch` holds z `[C]` of one row.
#[inline(always)]
fn forward_rows<S: Lanes>(
    out: (&mut [f32], &mut [f32], &mut [f32]),
    x: &[f32],
    delta: &[f32],
    [w, b]: [&[f32]; 2],
    eps: f32,
    scratch: &mut [f32],
) {
    let (y, stats, sum) = out;
    let c = w.len();
    for (n, stats) in stats.chunks_exact_mut(2).enumerate() {
        let row = n * c..(n + 1) * c;
        let own = if delta.is_empty() { 0..0 } else { row.clone() };
        let v = rows::residual(&mut sum[own.clone()], &x[row.clone()], &delta[own]);
        let mean = rows::sum::<S>(v) / c as f32;
        scratch.iter_mut().zip(v).for_each(|(z, v)| *z = v - mean);
        let rstd = 1.0 / (rows::dot::<S>(scratch, scratch) / c as f32 + eps).sqrt();
        scale_row(&mut y[row], v, mean, rstd, w, b);
        stats.copy_from_slice(&[mean, rstd]);
    }
}
per_isa! {
    fn forward_on(
        out: (&mut [f32], &mut [f32], &mut [f32]), x: &[f32], delta: &[f32], vectors: [&[f32]; 2], eps: f32, scratch: &mut [f32],
    ) = forward_rows
}

pub fn forward(pool: &Pool, out: (&mut [f32], &mut [f32], &mut [f32]), x: &[f32], delta: &[f32], vectors: [&[f32]; 2], eps: f32) {
    let c = vectors[0].len();
    let (stats, sum) = (Shared::new(out.1), Shared::new(out.2));
    pool.rows(out.0, c, grain(c), c, &|first, y, scratch| {
        let last = first + y.len() / c;
        let part = first * c..last * c;
        let kept = if delta.is_empty() { 0..0 } else { part.clone() };
        // SAFETY: tasks have disjoint rows.
        let (stats, sum) = unsafe { (stats.slice(2 * first..2 * last), sum.slice(kept.clone())) };
        forward_on(pool.isa(), (y, stats, sum), &x[part], &delta[kept], vectors, eps, scratch);
    });
}

#[inline(always)]
fn apply_rows<S: Lanes>(y: &mut [f32], x: &[f32], stats: &[f32], [w, b]: [&[f32]; 2]) {
    let c = w.len();
    for ((y, x), stats) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(stats.chunks_exact(2)) {
        scale_row(y, x, stats[0], stats[1], w, b);
    }
}
per_isa! { fn apply_on(y: &mut [f32], x: &[f32], stats: &[f32], vectors: [&[f32]; 2]) = apply_rows }

pub fn apply(pool: &Pool, y: &mut [f32], x: &[f32], stats: &[f32], vectors: [&[f32]; 2]) {
    let c = vectors[0].len();
    pool.rows(y, c, grain(c), 0, &|first, y, _| apply_on(pool.isa(), y, &x[first * c..], &stats[2 * first..], vectors));
}

/// `scratch` holds g `[C]` and x̂ `[C]` of one row; `add` is empty or starts at the first row.
#[inline(always)]
fn backward_rows<S: Lanes>(dx: &mut [f32], dy: &[f32], x: &[f32], stats: &[f32], w: &[f32], add: &[f32], scratch: &mut [f32]) {
    let c = w.len();
    let (g, xhat) = scratch.split_at_mut(c);
    for (n, (dx, stats)) in dx.chunks_exact_mut(c).zip(stats.chunks_exact(2)).enumerate() {
        let (row, mean, rstd) = (n * c..(n + 1) * c, stats[0], stats[1]);
        for ((g, dy), w) in g.iter_mut().zip(&dy[row.clone()]).zip(w) {
            *g = dy * w;
        }
        for (xhat, x) in xhat.iter_mut().zip(&x[row.clone()]) {
            *xhat = (x - mean) * rstd;
        }
        let (m, k) = (rows::sum::<S>(g) / c as f32, rows::dot::<S>(g, xhat) / c as f32);
        for ((dx, g), xhat) in dx.iter_mut().zip(g.iter()).zip(xhat.iter()) {
            *dx = rstd * ((g - m) - xhat * k);
        }
        if !add.is_empty() {
            dx.iter_mut().zip(&add[row]).for_each(|(dx, add)| *dx += add);
        }
    }
}
per_isa! {
    fn backward_on(
        dx: &mut [f32], dy: &[f32], x: &[f32], stats: &[f32], w: &[f32], add: &[f32], scratch: &mut [f32],
    ) = backward_rows
}

pub fn backward(pool: &Pool, dx: &mut [f32], dy: &[f32], x: &[f32], stats: &[f32], w: &[f32], add: &[f32]) {
    let c = w.len();
    pool.rows(dx, c, grain(c), 2 * c, &|first, dx, scratch| {
        let add = if add.is_empty() { add } else { &add[first * c..] };
        backward_on(pool.isa(), dx, &dy[first * c..], &x[first * c..], &stats[2 * first..], w, add, scratch);
    });
}

/// Columns `first..` of dw, as many as `dw` has; `partial` is as long.
#[inline(always)]
fn weight_columns<S: Lanes>(
    dw: &mut [f32],
    first: usize,
    c: usize,
    dy: &[f32],
    x: &[f32],
    stats: &[f32],
    examples: &[u32],
    partial: &mut [f32],
) {
    for span in examples.chunks_exact(2) {
        partial.fill(0.0);
        for n in span[0] as usize..span[1] as usize {
            let (row, mean, rstd) = (n * c + first..n * c + first + partial.len(), stats[2 * n], stats[2 * n + 1]);
            for ((p, dy), x) in partial.iter_mut().zip(&dy[row.clone()]).zip(&x[row]) {
                *p = dy.mul_add((x - mean) * rstd, *p);
            }
        }
        dw.iter_mut().zip(partial.iter()).for_each(|(dw, p)| *dw += p);
    }
}
per_isa! {
    fn weight_on(
        dw: &mut [f32], first: usize, c: usize, dy: &[f32], x: &[f32], stats: &[f32], examples: &[u32], partial: &mut [f32],
    ) = weight_columns
}

pub fn backward_weight(pool: &Pool, dw: &mut [f32], dy: &[f32], x: &[f32], stats: &[f32], examples: &[u32]) {
    let c = dw.len();
    pool.rows(dw, 1, 64, c, &|first, dw, scratch| {
        let partial = &mut scratch[..dw.len()];
        weight_on(pool.isa(), dw, first, c, dy, x, stats, examples, partial);
    });
}

/// The same of db.
#[inline(always)]
fn bias_columns<S: Lanes>(db: &mut [f32], first: usize, c: usize, dy: &[f32], examples: &[u32], partial: &mut [f32]) {
    for span in examples.chunks_exact(2) {
        partial.fill(0.0);
        for n in span[0] as usize..span[1] as usize {
            let row = n * c + first..n * c + first + partial.len();
            partial.iter_mut().zip(&dy[row]).for_each(|(p, dy)| *p += dy);
        }
        db.iter_mut().zip(partial.iter()).for_each(|(db, p)| *db += p);
    }
}
per_isa! {
    fn bias_on(db: &mut [f32], first: usize, c: usize, dy: &[f32], examples: &[u32], partial: &mut [f32]) = bias_columns
}

pub fn backward_bias(pool: &Pool, db: &mut [f32], dy: &[f32], examples: &[u32]) {
    let c = db.len();
    pool.rows(db, 1, 64, c, &|first, db, scratch| {
        let partial = &mut scratch[..db.len()];
        bias_on(pool.isa(), db, first, c, dy, examples, partial);
    });
}
