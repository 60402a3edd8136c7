//! Norms, rotary positions, activations and embeddings.

use super::super::{number, numbers};
use super::Op;
use anyhow::{Context, Result};
use kernels::gelu::{self, Curve};
use kernels::panels::Panels;
use kernels::{embedding, layer_norm, rms_norm, rope, swiglu};
use runtime::{DType, Stream, View};

/// Whichever of two spellings the case has.
fn spelt<'a>(op: &Op, names: [&'a str; 2]) -> &'a str {
    if op.golden.has(names[0]) { names[0] } else { names[1] }
}

pub fn rms_norm(op: &mut Op) -> Result<()> {
    let (n, c) = op.size("x")?;
    let eps = number(&op.case.entry["eps"], "eps")? as f32;
    let offset = if op.case.name.contains("plus_one") { 1.0 } else { 0.0 };
    let (dy, dx, dw) = (spelt(op, ["g", "dy"]), spelt(op, ["d_x", "dx"]), spelt(op, ["d_w", "dw"]));
    let (x, w, g) = (op.upload("x")?, op.upload("w")?, op.upload(dy)?);
    let (y, rstd, d) = (op.output(n * c)?, op.output(n)?, op.output(n * c)?);
    let none = View::none(DType::F32);
    rms_norm::forward(&op.s, y.view(), rstd.view(), none, x.view(), None, w.view(), eps, offset)?;
    op.close("y", &y.to_vec()?)?;
    rms_norm::backward(&op.s, d.view(), g.view(), x.view(), rstd.view(), w.view(), None, offset)?;
    op.close(dx, &d.to_vec()?)?;
    // One example of all rows.
    let (sum, trees) = (op.s.zeros::<f32>(c)?, op.s.upload(&[0u32, n as u32])?);
    rms_norm::backward_weight(&op.s, sum.view(), g.view(), x.view(), rstd.view(), trees.view())?;
    op.close(dw, &sum.to_vec()?)
}

pub fn rope(op: &mut Op) -> Result<()> {
    let shape = op.golden.shape("x")?;
    let [_, heads, d] = shape[..] else { anyhow::bail!("x is {shape:?}, not [N, H, D]") };
    let theta = number(&op.case.entry["theta"], "theta")?;
    let scaling = match numbers(&op.case.entry["llama3"], "llama3") {
        Ok(v) => {
            let [factor, low_freq_factor, high_freq_factor, original_max_position_embeddings] = v[..] else {
                anyhow::bail!("llama3 is {v:?}")
            };
            Some(rope::Scaling { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings })
        }
        Err(_) => None,
    };
    let positions = op.golden.input_ids("positions")?;
    let table = rope::table(*positions.iter().max().context("no positions")? as usize + 1, d, theta, scaling.as_ref());
    // At position 1 the angle is the frequency, which never exceeds 1.
    let frequencies: Vec<f32> = table[d..2 * d].chunks(2).map(|cs| f64::from(cs[1]).atan2(f64::from(cs[0])) as f32).collect();
    op.close("inv_freq", &frequencies)?;
    let (pos, table) = (op.s.upload(&positions)?, op.s.upload(&table)?);
    let (x, g) = (op.upload("x")?, op.upload("g")?);
    rope::forward(&op.s, x.view(), pos.view(), table.view(), heads, d, heads * d)?;
    op.close("y", &x.to_vec()?)?;
    rope::backward(&op.s, g.view(), pos.view(), table.view(), heads, d, heads * d)?;
    op.close("d_x", &g.to_vec()?)
}

pub fn layer_norm(op: &mut Op) -> Result<()> {
    let (n, c) = op.size("x")?;
    let eps = number(&op.case.entry["eps"], "eps")? as f32;
    let (x, w, b, g) = (op.upload("x")?, op.upload("w")?, op.upload("b")?, op.upload("g")?);
    let (y, stats, d) = (op.output(n * c)?, op.output(2 * n)?, op.output(n * c)?);
    let none = View::none(DType::F32);
    layer_norm::forward(&op.s, y.view(), stats.view(), none, x.view(), None, [w.view(), b.view()], eps)?;
    op.close("y", &y.to_vec()?)?;
    layer_norm::backward(&op.s, d.view(), g.view(), x.view(), stats.view(), w.view(), None)?;
    op.close("d_x", &d.to_vec()?)?;
    // One example of all rows.
    let (dw, db, trees) = (op.s.zeros::<f32>(c)?, op.s.zeros::<f32>(c)?, op.s.upload(&[0u32, n as u32])?);
    layer_norm::backward_weight(&op.s, dw.view(), db.view(), g.view(), x.view(), stats.view(), trees.view())?;
    op.close("d_w", &dw.to_vec()?)?;
    op.close("d_b", &db.to_vec()?)
}

type Forward = fn(&Stream, View<'_>, View<'_>, usize) -> runtime::Result<()>;
type Backward = fn(&Stream, View<'_>, View<'_>, View<'_>, usize) -> runtime::Result<()>;

pub fn swiglu(op: &mut Op) -> Result<()> {
    gated(op, swiglu::forward, swiglu::backward)
}

pub fn geglu(op: &mut Op) -> Result<()> {
    gated(op, |s, y, x, f| gelu::forward(s, y, x, f, Curve::Tanh), |s, d, g, x, f| gelu::backward(s, d, g, x, f, Curve::Tanh))
}

fn gated(op: &mut Op, forward: Forward, backward: Backward) -> Result<()> {
    let (n, f) = op.size("gate")?;
    let (gate, up) = (op.golden.input("gate")?, op.golden.input("up")?);
    let side_by_side: Vec<f32> = gate.chunks(f).zip(up.chunks(f)).flat_map(|(g, u)| [g, u].concat()).collect();
    let (gate_up, g) = (op.s.upload(&side_by_side)?, op.upload("g")?);
    let (y, d) = (op.output(n * f)?, op.output(2 * n * f)?);
    forward(&op.s, y.view(), gate_up.view(), f)?;
    op.close("y", &y.to_vec()?)?;
    backward(&op.s, d.view(), g.view(), gate_up.view(), f)?;
    let d = d.to_vec()?;
    op.close("d_gate", &d.chunks(2 * f).flat_map(|row| row[..f].to_vec()).collect::<Vec<_>>())?;
    op.close("d_up", &d.chunks(2 * f).flat_map(|row| row[f..].to_vec()).collect::<Vec<_>>())
}

pub fn gelu(op: &mut Op) -> Result<()> {
    let curve = if op.case.name.contains("erf") { Curve::Erf } else { Curve::Tanh };
    let (n, f) = op.size("x")?;
    let (x, g, y, d) = (op.upload("x")?, op.upload("g")?, op.output(n * f)?, op.output(n * f)?);
    gelu::forward(&op.s, y.view(), x.view(), f, curve)?;
    op.close("y", &y.to_vec()?)?;
    gelu::backward(&op.s, d.view(), g.view(), x.view(), f, curve)?;
    op.close("d_x", &d.to_vec()?)
}

pub fn embedding(op: &mut Op) -> Result<()> {
    let (v, c) = op.size("table")?;
    let ids = op.golden.input_ids("ids")?;
    let table = op.pack(&op.golden.floats("table")?, v, c)?;
    op.golden.input("table")?;
    let (ids, dy) = (op.s.upload(&ids)?, op.upload("dy")?);
    let x = op.output(ids.len() * c)?;
    embedding::forward(&op.s, x.view(), ids.view(), Panels::new(table.view(), v, c)?, 1.0)?;
    op.close("out", &x.to_vec()?)?;
    let d = op.s.zeros::<f32>(table.len())?;
    embedding::backward(&op.s, d.view(), dy.view(), ids.view(), v, 1.0)?;
    op.close("dtable", &op.unpack(&d, v, c)?)
}
