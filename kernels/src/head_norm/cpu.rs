//! The CPU form. Loops without a reduction are plain: each element's operations are IEEE and vectorise without changing them.

use super::Shape;
use crate::cpu::Lanes;
use crate::cpu::rows::{self, factor, grain};
use runtime::{Pool, Shared};
use std::ops::Range;

/// The weight of a head.
#[inline(always)]
fn of(w: [&[f32]; 2], shape: Shape, head: usize) -> &[f32] {
    if head < shape.queries { w[0] } else { w[1] }
}

#[inline(always)]
fn forward_rows<S: Lanes>(y: &mut [f32], rstd: &mut [f32], x: &[f32], w: [&[f32]; 2], shape: Shape, eps: f32, offset: f32) {
    let Shape { d, stride, .. } = shape;
    let heads = shape.heads();
    for ((y, x), rstd) in y.chunks_exact_mut(stride).zip(x.chunks_exact(stride)).zip(rstd.chunks_exact_mut(heads)) {
        for (head, rstd) in rstd.iter_mut().enumerate() {
            let part = head * d..(head + 1) * d;
            let x = &x[part.clone()];
            *rstd = 1.0 / (rows::dot::<S>(x, x) / d as f32 + eps).sqrt();
            for ((y, x), w) in y[part].iter_mut().zip(x).zip(of(w, shape, head)) {
                *y = (x * *rstd) * factor(offset, *w);
            }
        }
        y[heads * d..].copy_from_slice(&x[heads * d..]);
    }
}
per_isa! {
    fn forward_on(
        y: &mut [f32], rstd: &mut [f32], x: &[f32], w: [&[f32]; 2], shape: Shape, eps: f32, offset: f32,
    ) = forward_rows
}

pub fn forward(pool: &Pool, y: &mut [f32], rstd: &mut [f32], x: &[f32], w: [&[f32]; 2], shape: Shape, eps: f32, offset: f32) {
    let (stride, heads, rstd) = (shape.stride, shape.heads(), Shared::new(rstd));
    pool.rows(y, stride, grain(stride), 0, &|first, y, _| {
        let last = first + y.len() / stride;
        // SAFETY: tasks have disjoint rows.
        let rstd = unsafe { rstd.slice(first * heads..last * heads) };
        forward_on(pool.isa(), y, rstd, &x[first * stride..last * stride], w, shape, eps, offset);
    });
}

/// `scratch` holds g `[D]` and x̂ `[D]` of one head; x and rstd start at the first row.
#[inline(always)]
fn backward_rows<S: Lanes>(
    rows_of_d: &mut [f32],
    x: &[f32],
    rstd: &[f32],
    w: [&[f32]; 2],
    shape: Shape,
    offset: f32,
    scratch: &mut [f32],
) {
    let Shape { d, stride, .. } = shape;
    let (g, xhat) = scratch.split_at_mut(d);
    for ((row, x), rstd) in rows_of_d.chunks_exact_mut(stride).zip(x.chunks_exact(stride)).zip(rstd.chunks_exact(shape.heads())) {
        for ((head, rstd), (out, x)) in rstd.iter().enumerate().zip(row.chunks_exact_mut(d).zip(x.chunks_exact(d))) {
            for ((g, d), w) in g.iter_mut().zip(out.iter()).zip(of(w, shape, head)) {
                *g = d * factor(offset, *w);
            }
            for (xhat, x) in xhat.iter_mut().zip(x) {
                *xhat = x * rstd;
            }
            let mean = rows::dot::<S>(g, xhat) / d as f32;
            for ((out, g), xhat) in out.iter_mut().zip(g.iter()).zip(xhat.iter()) {
                *out = rstd * (g - xhat * mean);
            }
        }
    }
}
per_isa! {
    fn backward_on(
        rows_of_d: &mut [f32], x: &[f32], rstd: &[f32], w: [&[f32]; 2], shape: Shape, offset: f32, scratch: &mut [f32],
    ) = backward_rows
}

pub fn backward(pool: &Pool, d: &mut [f32], x: &[f32], rstd: &[f32], w: [&[f32]; 2], shape: Shape, offset: f32) {
    let stride = shape.stride;
    pool.rows(d, stride, grain(stride), 2 * shape.d, &|first, rows, scratch| {
        backward_on(pool.isa(), rows, &x[first * stride..], &rstd[first * shape.heads()..], w, shape, offset, scratch);
    });
}

/// Columns `first..` of one weight's gradient, as many as `dw` has; `partial` is as long.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters)]
fn weight_columns<S: Lanes>(
    dw: &mut [f32],
    first: usize,
    d: &[f32],
    x: &[f32],
    rstd: &[f32],
    examples: &[u32],
    shape: Shape,
    heads: Range<usize>,
    partial: &mut [f32],
) {
    for span in examples.chunks_exact(2) {
        partial.fill(0.0);
        for n in span[0] as usize..span[1] as usize {
            for head in heads.clone() {
                let (start, rstd) = (n * shape.stride + head * shape.d + first, rstd[n * shape.heads() + head]);
                let part = start..start + partial.len();
                for ((p, d), x) in partial.iter_mut().zip(&d[part.clone()]).zip(&x[part]) {
                    *p = d.mul_add(x * rstd, *p);
                }
            }
        }
        dw.iter_mut().zip(partial.iter()).for_each(|(dw, p)| *dw += p);
    }
}
per_isa! {
    #[allow(clippy::extra_unused_type_parameters)]
    fn weight_on(
        dw: &mut [f32], first: usize, d: &[f32], x: &[f32], rstd: &[f32], examples: &[u32], shape: Shape, heads: Range<usize>,
        partial: &mut [f32],
    ) = weight_columns
}

pub fn backward_weight(
    pool: &Pool,
    dw: &mut [f32],
    d: &[f32],
    x: &[f32],
    rstd: &[f32],
    examples: &[u32],
    shape: Shape,
    heads: Range<usize>,
) {
    pool.rows(dw, 1, 64, shape.d, &|first, dw, scratch| {
        let partial = &mut scratch[..dw.len()];
        weight_on(pool.isa(), dw, first, d, x, rstd, examples, shape, heads.clone(), partial);
    });
}
