//! One query over its pieces in plain loops and f64: the truth that the tests compare with.

use super::Piece;
use crate::attention::{Heads, Params};

/// `[h·d]` of one row of qkv at position `pos`; pages as in the room.
pub fn forward(row: &[f64], k: &[f64], v: &[f64], pieces: &[Piece], pos: usize, heads: Heads, params: Params) -> Vec<f64> {
    let d = heads.d;
    let mut out = vec![0.0; heads.h * d];
    for head in 0..heads.h {
        let (mut max, mut sum, mut o) = (f64::NEG_INFINITY, 0.0, vec![0.0; d]);
        for &[page, block, from, to] in pieces {
            for slot in from as usize..to as usize {
                let position = block as usize * 64 + slot;
                if position > pos || (params.window > 0 && position + params.window as usize <= pos) {
                    continue;
                }
                let at = (page as usize * heads.k + head / heads.group()) * d * 64;
                let mut t: f64 = (0..d).map(|i| row[head * d + i] * k[at + i * 64 + slot]).sum::<f64>() * params.scale as f64;
                if params.softcap > 0.0 {
                    t = params.softcap as f64 * (t / params.softcap as f64).tanh();
                }
                let above = f64::max(max, t);
                let (old, new) = ((max - above).exp(), (t - above).exp());
                (max, sum) = (above, sum * old + new);
                o.iter_mut().enumerate().for_each(|(i, o)| *o = *o * old + new * v[at + slot * d + i]);
            }
        }
        out[head * d..(head + 1) * d].iter_mut().zip(o).for_each(|(out, o)| *out = o / sum);
    }
    out
}
