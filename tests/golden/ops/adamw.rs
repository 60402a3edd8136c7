//! One AdamW step.

use super::super::{number, numbers};
use super::Op;
use anyhow::Result;
use kernels::adamw;

pub fn step(op: &mut Op) -> Result<()> {
    let entry = &op.case.entry;
    let betas = numbers(&entry["betas"], "betas")?;
    let params = adamw::Params {
        lr: number(&entry["lr"], "lr")?,
        beta1: betas[0],
        beta2: betas[1],
        eps: number(&entry["eps"], "eps")?,
        weight_decay: number(&entry["weight_decay"], "weight_decay")?,
        step: number(&entry["step"], "step")? as u64,
        grad_scale: 1.0,
    };
    let (p, m, v, g) = (op.upload("p")?, op.upload("m")?, op.upload("v")?, op.upload("g")?);
    adamw::step(&op.s, p.view(), m.view(), v.view(), g.view(), &params)?;
    op.close("p_new", &p.to_vec()?)?;
    op.close("m_new", &m.to_vec()?)?;
    op.close("v_new", &v.to_vec()?)
}
