//! The room's cases for [`crate::selftest`] in bf16.

use super::{Kept, Scaling, backward, backward_weight, forward};
use crate::selftest::inputs::{below, normal, rounded};
use crate::selftest::{Case, Limit, Operand};
use crate::weight::{self, Layout, Weight};
use half::bf16;
use runtime::{Result, Stream, View};

/// Ids, columns, softcap, 1 / temperature.
const HEADS: [(usize, usize, f32, f32); 4] =
    [(33, 8, 0.0, 1.0), (300, 40, 0.0, 1.25), (257, 24, 5.0, 1.0), (600, 136, 30.0, 0.5)];
/// Logits are the CPU's but for the order of their sums.
const LOGP: Limit = Limit::Norm { tensor: 1e-5, row: 1e-4 };
/// The weights are rounded for their product.
const WAY: Limit = Limit::Norm { tensor: 2e-3, row: 5e-3 };
const GRADIENT: Limit = Limit::Norm { tensor: 5e-3, row: 5e-3 };

/// Forward with backward to the rows, and backward to the head.
pub fn cases_in_bf16(rows: &[usize], seed: u64) -> Vec<Case> {
    rows.iter().enumerate().flat_map(|(i, &n)| shape(i, seed + 8 * i as u64, n)).collect()
}

/// Calls `f` with the head [V, C] in bf16 on the device, in f32 on the CPU: the same values.
fn with_head(s: &Stream, [v, c]: [usize; 2], values: &[f32], f: impl FnOnce(Weight<'_>) -> Result<()>) -> Result<()> {
    let (layout, wide) = (Layout::of(s, &[]), s.host().is_some());
    let len = layout.len(&[v], c);
    let (in_f32, in_bf16) = (s.zeros::<f32>(if wide { len } else { 0 })?, s.zeros::<bf16>(if wide { 0 } else { len })?);
    let laid = layout.weight(if wide { in_f32.view() } else { in_bf16.view() }, &[v], c, 0)?;
    let stored: Vec<bf16> = values.iter().map(|w| bf16::from_f32(*w)).collect();
    weight::load(s, laid, if wide { bytemuck::cast_slice(values) } else { bytemuck::cast_slice(&stored) })?;
    f(laid)
}

fn shape(i: usize, seed: u64, n: usize) -> Vec<Case> {
    let (v, c, softcap, inv_temperature) = HEADS[i % HEADS.len()];
    let scaling = Scaling { softcap, inv_temperature };
    let head = rounded(&normal(seed, v * c));
    let x: Vec<f32> = normal(seed + 1, n * c).iter().map(|x| 2.0 * x / (c as f32).sqrt()).collect();
    let output = |name, width: usize, limit| Operand::output::<f32>(name, n * width).per_row(width).within(limit);
    let inputs = [
        Operand::input("x", &x).per_row(c).acts(),
        Operand::input("targets", &below(seed + 2, n, v as u32)).per_row(1),
        Operand::input("dlogp", &normal(seed + 3, n)).per_row(1),
    ];
    let there = [output("logp", 1, LOGP), output("way", c, WAY), output("dx", c, GRADIENT).acts()];
    let dhead = Operand::output::<f32>("dhead", v * c).within(GRADIENT);
    let named = |what: &str| format!("logprob::{what} {n}x{c}x{v}");
    let run = move |s: &Stream, o: &[View<'_>]| -> Result<()> {
        // One entry for each row.
        let [outputs @ .., x, targets, dlogp] = o else { return Ok(()) };
        let m = targets.len();
        let rows = s.upload(&(0..m as u32).collect::<Vec<_>>())?;
        let held = [1, 1, 1, 1, c].map(|width| s.zeros::<f32>(m * width)).into_iter().collect::<Result<Vec<_>>>()?;
        let view = |i: usize| held[i].view();
        with_head(s, [v, c], &head, |laid| {
            let (logp, way) = if let [logp, way, _] = outputs { (*logp, *way) } else { (view(3), view(4)) };
            let kept = Kept { z_target: view(0), sum: view(1), max: view(2), way };
            forward(s, logp, kept, *x, rows.view(), *targets, laid, scaling)?;
            if let [_, _, dx] = outputs {
                return backward(s, *dx, *dlogp, kept, rows.view(), scaling);
            }
            let layout = Layout::of(s, &[]);
            let sums = s.zeros::<f32>(layout.len(&[v], c))?;
            backward_weight(s, sums.view(), *dlogp, kept, *x, rows.view(), *targets, laid, scaling)?;
            outputs[0].write(s, &weight::read(s, layout.weight(sums.view(), &[v], c, 0)?)?)
        })
    };
    let again = run.clone();
    vec![
        Case::new(named("forward and backward"), [&there[..], &inputs].concat(), run).cut(n).in_bf16(),
        Case::new(named("backward_weight"), [&[dhead][..], &inputs].concat(), again).in_bf16(),
    ]
}
