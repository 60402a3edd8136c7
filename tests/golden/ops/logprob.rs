//! Log-probabilities of targets: from hidden rows through the head, and of given logits. Rows without a target (-100) are no
//! loss rows; the goldens hold 0 for them.

use super::Op;
use anyhow::Result;
use kernels::linear::{self, Part};
use kernels::logprob::{self, Kept, Scaling};
use kernels::panels::Panels;
use runtime::{Buffer, DType, View};

const PLAIN: Scaling = Scaling { softcap: 0.0, inv_temperature: 1.0 };

/// The rows that have a target, and the targets.
fn targets(op: &mut Op) -> Result<(Vec<u32>, Vec<u32>)> {
    let targets = op.golden.ints("targets")?;
    op.golden.expect("targets", true, String::new);
    Ok(targets.iter().enumerate().filter(|(_, t)| **t >= 0).map(|(i, t)| (i as u32, *t as u32)).unzip())
}

/// Values of the loss rows at their places among `n` rows.
fn spread(rows: &[u32], values: &[f32], n: usize) -> Vec<f32> {
    let mut out = vec![0.0; n];
    rows.iter().zip(values).for_each(|(row, v)| out[*row as usize] = *v);
    out
}

/// Forward and backward of the room: logp, dx, and what forward kept.
struct Passed {
    logp: Vec<f32>,
    dx: Vec<f32>,
    rows: Buffer<u32>,
    targets: Buffer<u32>,
    kept: [Buffer<f32>; 4],
}

fn kept(kept: &[Buffer<f32>; 4]) -> Kept<'_> {
    let [z_target, sum, max, way] = kept.each_ref().map(Buffer::view);
    Kept { z_target, sum, max, way }
}

fn pass(op: &Op, h: &Buffer<f32>, head: Panels<'_>, rows: &[u32], targets: &[u32], dlogp: &[f32]) -> Result<Passed> {
    let m = rows.len();
    let (out, dx) = (op.output(m)?, op.output(h.len())?);
    let (rows, targets) = (op.s.upload(rows)?, op.s.upload(targets)?);
    let saved = [op.output(m)?, op.output(m)?, op.output(m)?, op.output(m * head.k)?];
    logprob::forward(&op.s, out.view(), kept(&saved), h.view(), rows.view(), targets.view(), head.into(), PLAIN)?;
    let dout = op.s.upload(dlogp)?;
    logprob::backward(&op.s, dx.view(), dout.view(), kept(&saved), rows.view(), PLAIN)?;
    Ok(Passed { logp: out.to_vec()?, dx: dx.to_vec()?, rows, targets, kept: saved })
}

pub fn linear_logprob(op: &mut Op) -> Result<()> {
    let ((n, k), (v, _)) = (op.size("h")?, op.size("w")?);
    let packed = op.pack(&op.golden.floats("w")?, v, k)?;
    op.golden.input("w")?;
    let (h, g) = (op.upload("h")?, op.golden.input("g")?);
    let (rows, ids) = targets(op)?;
    let head = Panels::new(packed.view(), v, k)?;
    let dlogp: Vec<f32> = rows.iter().map(|r| g[*r as usize]).collect();
    let p = pass(op, &h, head, &rows, &ids, &dlogp)?;
    op.close("logp", &spread(&rows, &p.logp, n))?;
    op.close("d_h", &p.dx)?;
    let (dw, dout) = (op.s.zeros::<f32>(packed.len())?, op.s.upload(&dlogp)?);
    let (r, t) = (p.rows.view(), p.targets.view());
    logprob::backward_weight(&op.s, dw.view(), dout.view(), kept(&p.kept), h.view(), r, t, head.into(), PLAIN)?;
    op.close("d_w", &op.unpack(&dw, v, k)?)?;
    // The entropy has no room: f64 over the linear room's logits.
    let z = op.output(n * v)?;
    linear::forward(&op.s, z.view(), View::none(DType::F32), h.view(), &[Part { weight: head.into(), bias: None, lora: None }])?;
    let entropy = |z: &[f32]| {
        let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let p: Vec<f64> = z.iter().map(|z| f64::from(z - max).exp()).collect();
        let (sum, weighted): (f64, f64) = (p.iter().sum(), p.iter().zip(z).map(|(p, z)| p * f64::from(z - max)).sum());
        (sum.ln() - weighted / sum) as f32
    };
    let all: Vec<f32> = z.to_vec()?.chunks(v).map(entropy).collect();
    op.close("entropy", &all)
}

/// `dx` through an identity head is the gradient on logits itself.
pub fn cross_entropy(op: &mut Op) -> Result<()> {
    let (n, v) = op.size("logits")?;
    let logits = op.upload("logits")?;
    let (rows, ids) = targets(op)?;
    let identity: Vec<f32> = (0..v * v).map(|i| if i / v == i % v { 1.0 } else { 0.0 }).collect();
    let packed = op.pack(&identity, v, v)?;
    let head = Panels::new(packed.view(), v, v)?;
    let p = pass(op, &logits, head, &rows, &ids, &vec![-1.0 / rows.len() as f32; rows.len()])?;
    op.close("d_logits", &p.dx)?;
    let mean = p.logp.iter().map(|l| f64::from(*l)).sum::<f64>() / rows.len() as f64;
    op.close("loss", &[-mean as f32])?;
    // log Σ exp z = z_t - logp of any target, through the sampler's function too.
    let (logp, id) = (op.output(n)?, op.s.upload(&vec![0u32; n])?);
    logprob::of_logits(&op.s, logp.view(), logits.view(), id.view(), PLAIN)?;
    let z = logits.to_vec()?;
    let lse: Vec<f32> = logp.to_vec()?.iter().enumerate().map(|(i, l)| z[i * v] - l).collect();
    op.close("lse", &lse)
}
