//! AdamW trajectories of the adapter, and the gradient of every base weight.

use super::lm::{Lm, Rows, mean_loss, widened};
use super::{number, numbers};
use anyhow::{Context, Result};
use kernels::{adamw, panels};
use model::{Adapter, Keep, Lora, Transformer, Tune};
use ple_tests::pass;
use runtime::{Buffer, DType};

/// What a trajectory differs in.
struct Course {
    name: &'static str,
    rates: Vec<f64>,
    /// max_norm as a share of the first step's norm; 0 does not clip.
    clip: f64,
}

/// One optimizer over one adapter.
struct Run<'a> {
    case: &'a Lm,
    model: Transformer,
    grads: model::Grads,
    moments: [Buffer<f32>; 2],
}

impl Run<'_> {
    fn new(case: &Lm) -> Result<Run<'_>> {
        let (host, _) = case.adapter.as_ref().context("a trajectory without an adapter")?;
        let mut model = Transformer::load(&case.s, &case.folder.join("model"), None)?;
        let lora = Lora::upload(&case.s, model.base(), host.clone())?;
        let words = lora.arena().flat().len();
        model.add_slot(lora)?;
        let grads = model.grads(&case.s, Tune::Lora(0))?;
        Ok(Run { case, model, grads, moments: [case.s.zeros(words)?, case.s.zeros(words)?] })
    }

    /// Loss and gradient norm before the step, then the step.
    fn step(&mut self, b: &model::Batch, step: u64, lr: f64, max_norm: impl Fn(f64) -> f64) -> Result<(f32, f64)> {
        let (s, hyper) = (&self.case.s, &self.case.json["adamw"]);
        let betas = numbers(&hyper["betas"], "case.json: adamw.betas")?;
        self.grads.zero()?;
        let out =
            pass::backward(s, &self.model, b, Tune::Lora(0), &mut self.grads, |out| vec![-1.0 / out.len() as f32; out.len()])?;
        let g = self.grads.flat();
        let norm = adamw::grad_norm(s, g, &self.grads.ranges())?;
        let params = adamw::Params {
            lr,
            beta1: betas[0],
            beta2: betas[1],
            eps: number(&hyper["eps"], "case.json: adamw.eps")?,
            weight_decay: number(&hyper["weight_decay"], "case.json: adamw.weight_decay")?,
            step,
            grad_scale: adamw::clip_scale(norm, max_norm(norm)),
        };
        let (parameters, _) = self.model.trained(Tune::Lora(0))?;
        adamw::step(s, parameters.flat(), self.moments[0].view(), self.moments[1].view(), g, &params)?;
        Ok((mean_loss(&out), norm))
    }

    /// Every tensor as it stands, by its name on disk.
    fn tensors(&self) -> Result<Vec<(String, Vec<f32>)>> {
        let (arena, tensors) = self.model.trained(Tune::Lora(0))?;
        let read = |t: &model::lora::Tensor| {
            let mut values = vec![f32::NAN; t.region.len()];
            arena.view(t.region)?.read(&self.case.s, &mut values)?;
            Ok((format!("base_model.model.{}", t.name), values))
        };
        tensors.iter().map(read).collect()
    }
}

/// Every trajectory of the case: parameters after the stored steps, losses before and after, norms before clipping.
pub fn trajectories(case: &mut Lm, sft: &Rows) -> Result<()> {
    let lr = number(&case.json["adamw"]["lr"], "case.json: adamw.lr")?;
    let plain = Course { name: "adamw", rates: vec![lr; 3], clip: 0.0 };
    // The manifest's conventions: half of the first norm, and these rates.
    let clipped = Course { name: "adamw_clip_sched", rates: vec![1e-3, 5e-3, 2.5e-3], clip: 0.5 };
    for course in [plain, clipped] {
        if case.golden.has(&format!("{}/losses", course.name)) {
            trajectory(case, sft, &course)?;
        }
    }
    Ok(())
}

fn trajectory(case: &mut Lm, sft: &Rows, course: &Course) -> Result<()> {
    let b = pass::batch(&sft.examples())?;
    let (mut losses, mut norms, mut after) = (Vec::new(), Vec::new(), Vec::new());
    let mut run = Run::new(case)?;
    for (i, rate) in course.rates.iter().enumerate() {
        let first = norms.first().copied();
        let (loss, norm) = run.step(&b, i as u64 + 1, *rate, |norm| course.clip * first.unwrap_or(norm))?;
        losses.push(loss);
        norms.push(norm);
        after.push(run.tensors()?);
    }
    losses.push(mean_loss(&pass::logps(&case.s, &run.model, &b, Adapter::Slot(0), Keep::Nothing)?));
    case.close(&format!("{}/losses", course.name), &losses)?;
    case.close(&format!("{}/grad_norms", course.name), &norms.iter().map(|n| *n as f32).collect::<Vec<_>>())?;
    for (i, tensors) in after.into_iter().enumerate() {
        let family = format!("{}/step{}", course.name, i + 1);
        if case.golden.under(&format!("{family}/")).is_empty() {
            continue;
        }
        let atol = case.atol(&family)?;
        for (name, values) in tensors {
            case.golden.close(&format!("{family}/{name}"), &values, atol)?;
        }
    }
    Ok(())
}

/// Row-major elements of what is stored in panels.
fn unpacked(packed: &[f32], n: usize, k: usize) -> Vec<f32> {
    (0..n * k).map(|i| packed[panels::index(i / k, i % k, k)]).collect()
}

/// The tolerance of `full_grads`, which case.json does not name: the manifest's rule, with the noise that the case measured on the
/// other gradients of the same loss, both as shares of the family's largest magnitude.
fn full_atol(case: &Lm) -> Result<f64> {
    let mut unit: f64 = 0.0;
    for name in case.golden.under("full_grads/") {
        unit = unit.max(case.golden.unit(&format!("full_grads/{name}"))?);
    }
    let measured = &case.json["tolerances"]["grad/sft"];
    let share = match measured["noise"].as_f64() {
        Some(noise) => 8.0 * noise / number(&measured["max_abs"], "case.json: tolerances.grad/sft.max_abs")?,
        None => 0.0,
    };
    Ok(unit.max(unit / 2e-6 * share))
}

/// d sft_loss / d weight of every base tensor.
pub fn full_gradients(case: &mut Lm, sft: &Rows) -> Result<()> {
    let model = match case.model.config.dtype {
        Some(DType::F32) => None,
        _ => Some(widened(case)?),
    };
    let model = model.as_ref().unwrap_or(&case.model);
    let mut grads = model.grads(&case.s, Tune::Full)?;
    let b = pass::batch(&sft.examples())?;
    pass::backward(&case.s, model, &b, Tune::Full, &mut grads, |out| vec![-1.0 / out.len() as f32; out.len()])?;
    let atol = full_atol(case)?;
    for tensor in grads.tensors() {
        let [n, k] = tensor.shape;
        let stored = grads.of(&case.s, tensor)?;
        let values = if n > 1 { unpacked(&stored, n, k) } else { stored };
        case.golden.close(&format!("full_grads/{}", tensor.name), &values, atol)?;
    }
    Ok(())
}
