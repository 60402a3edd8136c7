//! The CPU form: copies and adds, the same on every instruction set.

use crate::cpu::Stored;
use crate::panels::{PANEL, index};
use runtime::Pool;

pub fn forward<T: Stored>(pool: &Pool, x: &mut [f32], tokens: &[u32], table: &[T], c: usize, scale: f32) {
    pool.rows(x, c, 2048usize.div_ceil(c), 0, &|first, x, _| {
        for (row, &id) in x.chunks_exact_mut(c).zip(&tokens[first..]) {
            let column = table[index(id as usize, 0, c)..].iter().step_by(PANEL);
            row.iter_mut().zip(column).for_each(|(x, w)| *x = w.widen());
            if scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= scale);
            }
        }
    });
}

/// Tasks own whole panels and look through all tokens for theirs, so rows add in ascending order.
pub fn backward(pool: &Pool, dtable: &mut [f32], dx: &[f32], tokens: &[u32], c: usize, scale: f32) {
    pool.rows(dtable, PANEL * c, 1, 0, &|first, panels, _| {
        let ids = first * PANEL..first * PANEL + panels.len() / c;
        for (row, &id) in dx.chunks_exact(c).zip(tokens).filter(|(_, id)| ids.contains(&(**id as usize))) {
            let column = panels[index(id as usize - ids.start, 0, c)..].iter_mut().step_by(PANEL);
            if scale == 1.0 {
                column.zip(row).for_each(|(d, dx)| *d += dx);
            } else {
                column.zip(row).for_each(|(d, dx)| *d += dx * scale);
            }
        }
    });
}
