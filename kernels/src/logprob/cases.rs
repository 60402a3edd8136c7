//! The room's cases for [`crate::selftest`].

use super::{Kept, Scaling, backward, backward_weight, forward, of_logits};
use crate::selftest::inputs::{Kind, below, normal, rows as batch};
use crate::selftest::{Case, Operand};
use crate::weight::{self, Layout, Weight};
use half::{bf16, f16};
use runtime::{DType, Element, Result, Stream, View};

/// Ids, columns, storage of the head, softcap, 1 / temperature.
const HEADS: [(usize, usize, DType, f32, f32); 4] = [
    (33, 7, DType::F32, 0.0, 1.0),
    (300, 40, DType::Bf16, 0.0, 1.25),
    (257, 24, DType::F16, 5.0, 1.0),
    (70, 129, DType::F32, 30.0, 0.5),
];

/// Forward, backward to the rows and to the head, and the same of stored logits.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    rows.iter().enumerate().flat_map(|(i, &n)| shape(i, seed + 8 * i as u64, n)).collect()
}

/// Calls `f` with the head [V, C] on the device.
fn with_head(
    s: &Stream,
    (v, c, dtype): (usize, usize, DType),
    values: &[f32],
    f: impl FnOnce(Weight<'_>) -> Result<()>,
) -> Result<()> {
    fn typed<T: Element>(
        s: &Stream,
        [v, c]: [usize; 2],
        values: &[f32],
        narrow: fn(f32) -> T,
        f: impl FnOnce(Weight<'_>) -> Result<()>,
    ) -> Result<()> {
        let layout = Layout::of(s, &[]);
        let held = s.zeros::<T>(layout.len(&[v], c))?;
        let laid = layout.weight(held.view(), &[v], c, 0)?;
        weight::load(s, laid, bytemuck::cast_slice(&values.iter().map(|v| narrow(*v)).collect::<Vec<T>>()))?;
        f(laid)
    }
    match dtype {
        DType::Bf16 => typed(s, [v, c], values, bf16::from_f32, f),
        DType::F16 => typed(s, [v, c], values, f16::from_f32, f),
        _ => typed(s, [v, c], values, |v| v, f),
    }
}

fn shape(i: usize, seed: u64, n: usize) -> Vec<Case> {
    let (v, c, dtype, softcap, inv_temperature) = HEADS[i % HEADS.len()];
    let (kind, scaling, m) = (Kind::nth(i), Scaling { softcap, inv_temperature }, n + 2);
    let head: Vec<f32> = normal(seed, v * c).iter().map(|v| 0.3 * v).collect();
    // Entries name rows out of order and some twice.
    let entries = Operand::input("rows", &below(seed + 1, m, n as u32)).per_row(1);
    let targets = Operand::input("targets", &below(seed + 2, m, v as u32)).per_row(1);
    let output = |name, width| Operand::output::<f32>(name, m * width).per_row(width);
    let there = vec![
        output("logp", 1),
        output("z_target", 1),
        output("sum", 1),
        output("max", 1),
        output("way", c),
        Operand::input("x", &batch(kind, seed + 3, n, c)),
        entries,
        targets.clone(),
    ];
    let dlogp = Operand::input("dlogp", &normal(seed + 4, m));
    let dx = Operand::output::<f32>("dx", n * c);
    let back = [&there[..], &[dlogp.clone(), dx]].concat();
    let to_head = [&there[..], &[dlogp, Operand::output::<f32>("dhead", v * c)]].concat();
    let logits = Operand::input("logits", &batch(kind, seed + 5, m, v)).per_row(v);
    let stored = vec![output("logp", 1), logits, targets];
    let named = |what: &str| format!("logprob::{what} {m} of {n}x{c}x{v} {dtype} {kind:?}");
    let run = move |s: &Stream, o: &[View<'_>], weight: bool| -> Result<()> {
        let kept = Kept { z_target: o[1], sum: o[2], max: o[3], way: o[4] };
        with_head(s, (v, c, dtype), &head, |laid| {
            forward(s, o[0], kept, o[5], o[6], o[7], laid, scaling)?;
            let [dlogp, out] = o[8..] else { return Ok(()) };
            if !weight {
                return backward(s, out, dlogp, kept, o[6], scaling);
            }
            let layout = Layout::of(s, &[]);
            let held = s.zeros::<f32>(layout.len(&[v], c))?;
            backward_weight(s, held.view(), dlogp, kept, o[5], o[6], o[7], laid, scaling)?;
            out.write(s, &weight::read(s, layout.weight(held.view(), &[v], c, 0)?)?)
        })
    };
    let (again, once_more) = (run.clone(), run.clone());
    vec![
        Case::new(named("forward"), there, move |s, o| run(s, o, false)).cut(m),
        Case::new(named("backward"), back, move |s, o| again(s, o, false)),
        Case::new(named("backward_weight"), to_head, move |s, o| once_more(s, o, true)),
        Case::new(named("of_logits"), stored, move |s, o| of_logits(s, o[0], o[1], o[2], scaling)).cut(m),
    ]
}
