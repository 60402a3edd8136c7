//! Frozen matrix with LoRA, and the weight gradient of full tuning.

use super::super::number;
use super::Op;
use anyhow::Result;
use kernels::linear::{self, Lora, Part};
use kernels::panels::Panels;
use runtime::{DType, View};

pub fn lora(op: &mut Op) -> Result<()> {
    let (m, k) = op.size("x")?;
    let ((n, _), (r, _)) = (op.size("w")?, op.size("a")?);
    let scale = number(&op.case.entry["scaling"], "scaling")? as f32;
    let packed = op.pack(&op.golden.floats("w")?, n, k)?;
    op.golden.input("w")?;
    let bias = if op.golden.has("bias") { Some(op.upload("bias")?) } else { None };
    let (x, a, b, g) = (op.upload("x")?, op.upload("a")?, op.upload("b")?, op.upload("g")?);
    let parts = [Part {
        weight: Panels::new(packed.view(), n, k)?.into(),
        bias: bias.as_ref().map(|b| b.view()),
        lora: Some(Lora { rank: r, scale, a: a.view(), b: b.view() }),
    }];
    let (y, s) = (op.output(m * n)?, op.output(m * r)?);
    linear::forward(&op.s, y.view(), s.view(), x.view(), &parts)?;
    op.close("y", &y.to_vec()?)?;
    let (dx, ds) = (op.output(m * k)?, op.output(m * r)?);
    linear::backward(&op.s, dx.view(), ds.view(), g.view(), &parts)?;
    op.close("d_x", &dx.to_vec()?)?;
    let (da, db) = (op.s.zeros::<f32>(r * k)?, op.s.zeros::<f32>(n * r)?);
    let trees = op.s.upload(&[0u32, m as u32])?;
    linear::backward_lora(&op.s, &[da.view()], &[db.view()], x.view(), s.view(), ds.view(), g.view(), &parts, trees.view())?;
    op.close("d_a", &da.to_vec()?)?;
    op.close("d_b", &db.to_vec()?)
}

pub fn weight(op: &mut Op) -> Result<()> {
    let (m, k) = op.size("x")?;
    let (n, _) = op.size("w")?;
    let packed = op.pack(&op.golden.floats("w")?, n, k)?;
    op.golden.input("w")?;
    let (x, dy) = (op.upload("x")?, op.upload("dy")?);
    let parts = [Part { weight: Panels::new(packed.view(), n, k)?.into(), bias: None, lora: None }];
    let dx = op.output(m * k)?;
    linear::backward(&op.s, dx.view(), View::none(DType::F32), dy.view(), &parts)?;
    op.close("dx", &dx.to_vec()?)?;
    let (dw, trees) = (op.s.zeros::<f32>(packed.len())?, op.s.upload(&[0u32, m as u32])?);
    linear::backward_weight(&op.s, &[dw.view()], &[None], x.view(), dy.view(), &[n], trees.view())?;
    op.close("dw", &op.unpack(&dw, n, k)?)
}
