//! The CPU form: tasks over outputs, never over the reduction.

use super::PARTS;
use super::gradient::{Columns, Outer, Packed};
use super::pack::Left;
use super::parts::{Backward, Forward, Group};
use super::product::{self, Out};
use super::tile::strip_rows;
use crate::panels::PANEL;
use runtime::Pool;

/// Panels of one task of a gradient.
const PANELS: usize = 8;
/// Panels of one task of a weight gradient at most.
const OUTPUTS: usize = 8;
/// Columns of the left operand of one task of a weight gradient at most.
const INPUTS: usize = 384;
/// Floats of operands of a weight gradient that are packed once for all tasks, at most; larger ones are packed task by task.
const SHARED: usize = 16 << 20;

/// y [M, ΣN] = (if there is one), S [M, ΣR] =.
pub(crate) fn forward(pool: &Pool, y: &mut [f32], s: &mut [f32], x: &[f32], group: Group<'_>) {
    let (m, k, n) = (x.len() / group.k, group.k, group.n);
    let out = if y.is_empty() { None } else { Some(Out { at: y.as_mut_ptr(), ld: n }) };
    product::run(pool, out, s, Left::new(x, k), m, &Forward(group));
}

/// dx [M, K] = (if there is one), dS [M, ΣR] =.
pub(crate) fn backward(pool: &Pool, dx: &mut [f32], ds: &mut [f32], dy: &[f32], group: Group<'_>) {
    let (m, k, n) = (dy.len() / group.n, group.k, group.n);
    let out = if dx.is_empty() { None } else { Some(Out { at: dx.as_mut_ptr(), ld: k }) };
    product::run(pool, out, ds, Left::new(dy, n), m, &Backward(group));
}

/// Runs `body(part, job, scratch)` for every job of every part; `jobs` counts them.
fn each(pool: &Pool, jobs: [usize; PARTS], scratch: usize, body: &(dyn Fn(usize, usize, &mut [f32]) + Sync)) {
    pool.run(jobs.iter().sum(), scratch, &|mut task, scratch| {
        for (part, &count) in jobs.iter().enumerate() {
            if task < count {
                return body(part, task, scratch);
            }
            task -= count;
        }
    });
}

/// dA [R, K] +=, dB [N, R] += of each part.
pub(crate) fn backward_lora(
    pool: &Pool,
    (da, db): ([Out; PARTS], [Out; PARTS]),
    (x, s, ds, dy): (&[f32], &[f32], &[f32], &[f32]),
    group: &Group<'_>,
    examples: &[u32],
) {
    let (isa, width) = (pool.isa(), PANELS * PANEL);
    let tasks = |columns: usize| columns.div_ceil(width);
    let mut jobs = [0; PARTS];
    for (jobs, module) in jobs.iter_mut().zip(group.modules()) {
        *jobs = if module.rank > 0 { tasks(group.k) + tasks(module.n) } else { 0 };
    }
    let scratch = group.modules().map(|m| Outer::size(isa, m.rank, width, false)).max().unwrap_or(0);
    each(pool, jobs, scratch, &|part, job, scratch| {
        let module = group.module(part);
        if job < tasks(group.k) {
            let first = job * width;
            let left = Columns::new(ds, group.ranks, module.slot, module.rank);
            let right = Columns::new(x, group.k, first, width.min(group.k - first));
            let columns = right.count;
            Outer { isa, left, right, packed: None }.run(examples, scratch, &mut |mut t, j, panel| {
                t.cols = PANEL.min(columns - panel * PANEL);
                // SAFETY: rows j.. and these columns of dA exist and are this task's alone; the rest is `Outer`'s promise.
                unsafe {
                    (t.out, t.ld, t.add) = (da[part].at.add(j * group.k + first + panel * PANEL), group.k, true);
                    t.run(isa);
                }
            });
        } else {
            let first = (job - tasks(group.k)) * width;
            let left = Columns::new(s, group.ranks, module.slot, module.rank);
            let right = Columns::new(dy, group.n, module.first + first, width.min(module.n - first));
            let columns = right.count;
            Outer { isa, left, right, packed: None }.run(examples, scratch, &mut |mut t, j, panel| {
                let mut block = [[0f32; PANEL]; 16];
                (t.out, t.ld) = (block.as_mut_ptr().cast(), PANEL);
                // SAFETY: a strip has at most 16 rows; the rest is `Outer`'s promise.
                unsafe { t.run(isa) };
                for (i, row) in block.iter().enumerate().take(t.rows) {
                    let n = first + panel * PANEL;
                    for (lane, &partial) in row.iter().enumerate().take(columns - panel * PANEL) {
                        // SAFETY: rows n.. of dB exist and are this task's alone.
                        unsafe { *db[part].at.add((n + lane) * module.rank + j + i) += partial * module.scale };
                    }
                }
            });
        }
    });
}

/// Packed dW [⌈N/32⌉][K][32] +=, dbias [N] += of each part; `n[part]` outputs each.
pub(crate) fn backward_weight(
    pool: &Pool,
    (dw, dbias): ([Out; PARTS], [Option<Out>; PARTS]),
    (x, dy): (&[f32], &[f32]),
    (k, n): (usize, [usize; PARTS]),
    examples: &[u32],
) {
    let (isa, all) = (pool.isa(), n.iter().sum::<usize>());
    // Equal tasks, as many for each thread.
    let stretch = k.div_ceil(k.div_ceil(INPUTS)).next_multiple_of(strip_rows(isa));
    let stretches = k.div_ceil(stretch);
    let width = |n: usize| {
        let panels = n.div_ceil(PANEL).max(1);
        panels.div_ceil(panels.div_ceil(OUTPUTS).next_multiple_of(pool.threads())) * PANEL
    };
    let jobs = n.map(|n| n.div_ceil(width(n)) * stretches);
    let floats = Packed::size(isa, x.len() / k, k, &n);
    // Spans that share rows would be packed twice to the same place.
    let fits = floats <= SHARED && examples.is_sorted();
    let mut room = pool.shared(if fits { floats } else { 0 });
    let packed = fits
        .then(|| Packed::new(pool, &mut room[..floats], (Columns::new(x, k, 0, k), Columns::new(dy, all, 0, all)), &n, examples));
    each(pool, jobs, Outer::size(isa, stretch.min(k), OUTPUTS * PANEL, packed.is_some()), &|part, job, scratch| {
        let width = width(n[part]);
        let (inputs, first) = (job % stretches * stretch, job / stretches * width);
        let left = Columns::new(x, k, inputs, stretch.min(k - inputs));
        let column = n[..part].iter().sum::<usize>() + first;
        let right = Columns::new(dy, all, column, width.min(n[part] - first));
        let panels = n[..part].iter().map(|n| n.div_ceil(PANEL)).sum::<usize>() + first / PANEL;
        let packed = packed.map(|p| (p, panels));
        Outer { isa, left, right, packed }.run(examples, scratch, &mut |mut t, i, panel| {
            // SAFETY: this panel's rows inputs + i.. exist and are this task's alone; lanes beyond N add zero.
            unsafe {
                (t.out, t.add) = (dw[part].at.add(((first / PANEL + panel) * k + inputs + i) * PANEL), true);
                t.run(isa);
            }
        });
        if let (Some(out), 0) = (dbias[part], inputs) {
            for example in examples.chunks_exact(2) {
                let mut partial = [0f32; OUTPUTS * PANEL];
                let partial = &mut partial[..right.count];
                for m in example[0] as usize..example[1] as usize {
                    partial.iter_mut().zip(&dy[m * all + column..]).for_each(|(p, d)| *p += d);
                }
                for (i, p) in partial.iter().enumerate() {
                    // SAFETY: these values of dbias are this task's alone.
                    unsafe { *out.at.add(first + i) += p };
                }
            }
        }
    });
}
