//! The room's cases for [`crate::selftest`].

use super::{apply, backward, backward_weight, forward};
use crate::selftest::inputs::{Kind, normal, rounded, rows as batch};
use crate::selftest::{Case, Operand, in_bf16};
use runtime::{DType::F32, Result, Stream, View};

const EPS: f32 = 1e-5;
const WIDTHS: [usize; 5] = [1, 45, 288, 1000, 2049];

/// Forward with and without a residual, apply, backward with and without what is added, the gradients of weight and bias.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    of(rows, seed, |s, v| forward(s, v[0], v[1], v[2], v[3], Some(v[4]), [v[5], v[6]], EPS))
}

/// The same in bf16.
pub fn cases_in_bf16(rows: &[usize], seed: u64) -> Vec<Case> {
    in_bf16(of(rows, seed, |s, v| {
        forward(s, v[0], v[1], v[2], v[3], Some(v[4]), [v[5], v[6]], EPS)?;
        if s.host().is_none() {
            return Ok(());
        }
        // What is normed is what was stored of the sum.
        let mut sum = vec![0f32; v[2].len()];
        v[2].read(s, &mut sum)?;
        v[2].write(s, &rounded(&sum))?;
        forward(s, v[0], v[1], View::none(F32), v[2], None, [v[5], v[6]], EPS)
    }))
}

/// Forward with a residual.
type Residual = fn(&Stream, &[View<'_>]) -> Result<()>;

fn of(rows: &[usize], seed: u64, residual: Residual) -> Vec<Case> {
    let one = |(i, &n): (usize, &usize)| shape(Kind::nth(i), seed + 8 * i as u64, n, WIDTHS[i % WIDTHS.len()], residual);
    rows.iter().enumerate().flat_map(one).collect()
}

fn shape(kind: Kind, seed: u64, n: usize, c: usize, with_residual: Residual) -> Vec<Case> {
    let (x, delta, dy) = (batch(kind, seed, n, c), batch(kind, seed + 1, n, c), batch(kind, seed + 2, n, c));
    let [w, b] = [("w", 3), ("b", 4)].map(|(name, i)| Operand::input(name, &normal(seed + i, c)));
    let of_row = |v: f32, i: usize| if i.is_multiple_of(2) { v } else { v * v + 0.1 };
    let stats: Vec<f32> = normal(seed + 5, 2 * n).into_iter().enumerate().map(|(i, v)| of_row(v, i)).collect();
    let input = |name, values: &[f32]| Operand::input(name, values).per_row(c).acts();
    let output = |name| Operand::output::<f32>(name, n * c).per_row(c).acts();
    let y = || output("y").apart(c);
    let stats_out = || Operand::output::<f32>("stats", 2 * n).per_row(2);
    let stats = Operand::input("stats", &stats).per_row(2);
    let named = |what: &str| format!("layer_norm::{what} {n}x{c} {kind:?}");
    let ends = Operand::input("examples", &[0, n as u32 / 3, n as u32 / 3, n as u32]);
    let residual = vec![y(), stats_out(), output("sum"), input("x", &x), input("delta", &delta), w.clone(), b.clone()];
    let norm = vec![y(), stats_out(), input("x", &x), w.clone(), b.clone()];
    let again = vec![y(), input("x", &x), stats.clone(), w.clone(), b];
    let back =
        vec![output("dx").apart(c), input("dy", &dy).apart(c), input("x", &x), stats.clone(), w, input("add", &delta).apart(c)];
    let plain = back[..5].to_vec();
    let [dw, db] = [("dw", 6), ("db", 7)].map(|(name, i)| Operand::both(name, &normal(seed + i, c)));
    let weight = vec![dw, db, input("dy", &dy), input("x", &x), stats, ends];
    vec![
        Case::new(named("forward + residual"), residual, with_residual).cut(n),
        Case::new(named("forward"), norm, |s, v| forward(s, v[0], v[1], View::none(v[2].dtype()), v[2], None, [v[3], v[4]], EPS))
            .cut(n),
        Case::new(named("apply"), again, |s, v| apply(s, v[0], v[1], v[2], [v[3], v[4]])).cut(n),
        Case::new(named("backward + add"), back, |s, v| backward(s, v[0], v[1], v[2], v[3], v[4], Some(v[5]))).cut(n),
        Case::new(named("backward"), plain, |s, v| backward(s, v[0], v[1], v[2], v[3], v[4], None)).cut(n),
        Case::new(named("backward_weight"), weight, |s, v| backward_weight(s, v[0], v[1], v[2], v[3], v[4], v[5])),
    ]
}
