//! bf16 activations in the whole model on the emulated CUDA device, beside the CPU in f32 on the same weights.

use super::cuda::{Run, STEPS, examples, run};
use anyhow::{Context, Result, ensure};
use model::adapter::Adapter as HostAdapter;
use model::{Adapter, Batch, Keep, Lora, Transformer, Tune};
use ple_tests::data::say;
use ple_tests::pass::{self, Example};
use ple_tests::tiny;
use runtime::{DType, Isa, Stream};
use std::path::Path;

/// Matrices of a model whose log-probabilities are held to CUDA.md's absolute limit are this much smaller than the other's.
pub(super) const TAME: f32 = 0.3;
/// Of a token's log-probability, and so of a mean of them: CUDA.md's limit for a whole model in bf16 against f32.
pub(super) const LOGP: f64 = 5e-2;
/// Of an adapter's gradient with the f32 one: the same table's.
pub(super) const COSINE: f64 = 0.9999;
/// How much farther from the CPU's than the CPU is from itself after its weights are rounded once: a layer rounds seven matrices then, and
/// some eleven activations here.
pub(super) const TIMES: f64 = 3.0;

pub(super) fn cpu() -> &'static Stream {
    Box::leak(Box::new(Stream::cpu(1, Isa::portable())))
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// ‖got − want‖ / ‖want‖, and the cosine.
pub(super) fn apart(got: &[f32], want: &[f32]) -> (f64, f64) {
    let pairs = || got.iter().zip(want).map(|(g, w)| (f64::from(*g), f64::from(*w)));
    let [g, w] = [norm(pairs().map(|p| p.0)), norm(pairs().map(|p| p.1))];
    (norm(pairs().map(|(g, w)| g - w)) / w, pairs().map(|(g, w)| g * w).sum::<f64>() / (g * w))
}

pub(super) fn losses(run: &Run) -> Vec<f64> {
    run.losses.iter().map(|l| f64::from_bits(*l)).collect()
}

pub(super) fn values(run: &Run) -> Vec<f32> {
    run.trained.iter().map(|v| f32::from_bits(*v)).collect()
}

pub(super) fn farthest(got: &[f64], want: &[f64]) -> f64 {
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max)
}

/// The run of `cuda.rs` from a base in bf16, which the CPU widens: near the CPU's, and the same bits in every mode. Allocations and waits
/// are counted there.
pub(super) fn near(config: &serde_json::Value, scale: f32, (tune, steps): (Tune, usize), modes: &[emulator::Mode]) -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let family = config["model_type"].as_str().context("no model_type")?;
    let (exact, rounded) = (tiny::scaled(config, DType::F32, scale)?, tiny::scaled(config, DType::Bf16, scale)?);
    let cpu_run = |folder: &Path| run(cpu().backend(), folder, tune, DType::F32, steps);
    let (want, other) = (cpu_run(rounded.path())?, cpu_run(exact.path())?);
    let (own_loss, own) = (farthest(&losses(&other), &losses(&want)), apart(&values(&other), &values(&want)));
    say(&format!(
        "  cpu, {family} {tune:?}, scale {scale}: weights rounded, loss off by {own_loss:.1e}, trained by {:.1e} (cosine {:.6})",
        own.0, own.1
    ));
    let (begun, ended) = (losses(&want)[0], losses(&want)[steps - 1]);
    // A gpt2 of every weight gets to 0.85 in ten steps.
    let most = if tune == Tune::Full { 0.9 } else { 0.8 } * begun;
    ensure!(ended < if steps < STEPS { begun - 1e-3 } else { most }, "the CPU learns nothing: {:?}", losses(&want));
    let mut first: Option<Run> = None;
    for mode in modes {
        cuda.mode(*mode);
        let start = std::time::Instant::now();
        let got = run(cuda.stream.backend(), rounded.path(), tune, DType::Bf16, steps)?;
        let (worst, (far, cosine)) = (farthest(&losses(&got), &losses(&want)), apart(&values(&got), &values(&want)));
        let took = start.elapsed().as_secs_f64();
        say(&format!(
            "  cuda:0 (emulated) {mode}: {family} {tune:?} bf16, {steps} steps in {took:.1} s, loss off by {worst:.1e}, trained by {far:.1e} (cosine {cosine:.6})"
        ));
        // Ten steps over every weight of a sharp model move what rounding moves: there that is the measure, as it is of a pass.
        let limit = if tune == Tune::Full && scale == 1.0 { TIMES * own_loss } else { LOGP };
        ensure!(worst <= limit, "{mode}: losses {:?}, the CPU's {:?}", losses(&got), losses(&want));
        ensure!(far <= TIMES * own.0, "{mode}: what is trained is off by {far} of its norm, by rounded weights {}", own.0);
        ensure!(first.as_ref().is_none_or(|first| *first == got), "{mode}: another run than the first mode's");
        first = first.or(Some(got));
    }
    Ok(())
}

#[test]
fn on_cuda_ten_steps_in_bf16_are_the_cpu_s_within_tolerance() -> Result<()> {
    let (config, ten) = (tiny::config(false), (Tune::Lora(0), STEPS));
    near(&config, 1.0, ten, &emulator::Mode::PAIRS)?;
    near(&config, TAME, ten, &emulator::Mode::PAIRS[3..])
}

/// A scaled embedding, norms after a layer's halves, windows, GeGLU and both softcaps.
#[test]
fn on_cuda_another_family_s_steps_in_bf16_are_the_cpu_s_within_tolerance() -> Result<()> {
    near(&tiny::family("gemma2")?, TAME, (Tune::Lora(0), 2), &emulator::Mode::PAIRS[1..2])
}

/// Log-probabilities without an adapter and with one, and its gradient, of one pass.
fn passed(s: &Stream, folder: &Path, dtype: DType, disk: &HostAdapter, b: &Batch) -> Result<[Vec<f32>; 3]> {
    let mut model = Transformer::load_for(s, folder, Some(dtype), disk)?;
    let off = pass::logps(s, &model, b, Adapter::Off, Keep::Nothing)?;
    let lora = Lora::upload(s, model.base(), disk.clone())?;
    model.add_slot(lora)?;
    let mut grads = model.grads(s, Tune::Lora(0))?;
    let logps = pass::backward(s, &model, b, Tune::Lora(0), &mut grads, |out| vec![-1.0 / out.len() as f32; out.len()])?;
    let mut all = vec![0.0; grads.flat().len()];
    grads.flat().read(s, &mut all)?;
    Ok([off, logps, all])
}

/// Adapters of several ranks, one on some modules alone, with biases, and none. In a sharp model what rounded weights do is the measure, in
/// a tame one the limits are CUDA.md's.
#[test]
fn on_cuda_a_pass_in_bf16_is_the_cpu_s_within_tolerance() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    cuda.mode(emulator::Mode::PAIRS[0]);
    let forest: Vec<Example> = examples().into_iter().map(|e| (e.prompt, e.answers)).collect();
    let b = pass::batch(&forest)?;
    let biased = &tiny::families()[0];
    let mut failed = Vec::new();
    for (config, r, some) in [(&tiny::config(true), 8, false), (biased, 20, true), (&tiny::config(false), 70, false)] {
        for scale in [1.0, TAME] {
            let (exact, rounded) = (tiny::scaled(config, DType::F32, scale)?, tiny::scaled(config, DType::Bf16, scale)?);
            let mut disk = tiny::adapter_on(&model::Config::from_folder(rounded.path())?.modules(), r, 5);
            disk.modules.retain(|m| !some || ["k_proj", "up_proj", "down_proj"].iter().any(|name| m.path.ends_with(name)));
            let want = passed(cpu(), rounded.path(), DType::F32, &disk, &b)?;
            let other = passed(cpu(), exact.path(), DType::F32, &disk, &b)?;
            let got = passed(&cuda.stream, rounded.path(), DType::Bf16, &disk, &b)?;
            for (i, what) in ["log-probabilities without an adapter", "log-probabilities with it", "gradients"].iter().enumerate()
            {
                let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
                let worst = farthest(&wide(&got[i]), &wide(&want[i]));
                let ((far, cosine), (own, _)) = (apart(&got[i], &want[i]), apart(&other[i], &want[i]));
                let text = format!(
                    "rank {r}, scale {scale}: {what} off by {far:.1e} of their norm, by rounded weights {own:.1e}; at most {worst:.1e}; cosine {cosine:.6}"
                );
                say(&format!("  cuda:0 (emulated) {text}"));
                let absolute = scale == 1.0 || if i < 2 { worst <= LOGP } else { cosine > COSINE };
                if far > TIMES * own || !absolute {
                    failed.push(text);
                }
            }
        }
    }
    ensure!(failed.is_empty(), "beyond the limits: {failed:#?}");
    Ok(())
}

/// The strips hold one adapter: passes that take turns give the bits that each gives alone, and numbers that are read anew count.
#[test]
fn on_cuda_slots_take_turns_in_bf16() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    cuda.mode(emulator::Mode::PAIRS[0]);
    let (s, folder) = (&cuda.stream, tiny::folder(true, DType::Bf16)?);
    let modules = model::Config::from_folder(folder.path())?.modules();
    let disks = [1, 2].map(|seed| tiny::adapter_on(&modules, 8, seed));
    let b = pass::batch(&[(vec![5, 6, 7], vec![vec![8, 9], vec![10]])])?;
    let mut model = Transformer::load_for(s, folder.path(), Some(DType::Bf16), &disks[0])?;
    let bits = |model: &Transformer, adapter: Adapter| -> Result<Vec<u32>> {
        Ok(pass::logps(s, model, &b, adapter, Keep::Nothing)?.iter().map(|v| v.to_bits()).collect())
    };
    let mut alone = vec![bits(&model, Adapter::Off)?];
    for (i, disk) in disks.iter().enumerate() {
        let lora = Lora::upload(s, model.base(), disk.clone())?;
        if i == 0 {
            model.add_slot(lora).map(drop)?
        } else {
            model.replace_slot(Adapter::Slot(0), lora)?
        }
        alone.push(bits(&model, Adapter::Slot(0))?);
    }
    ensure!(alone[0] != alone[1] && alone[1] != alone[2], "adapters change nothing");
    let second = Lora::upload(s, model.base(), disks[0].clone())?;
    model.add_slot(second)?;
    for (adapter, wanted) in
        [(Adapter::Slot(0), 2), (Adapter::Slot(1), 1), (Adapter::Off, 0), (Adapter::Slot(1), 1), (Adapter::Slot(0), 2)]
    {
        ensure!(bits(&model, adapter)? == alone[wanted], "{adapter:?} after others");
    }
    model.slot(Adapter::Slot(0))?.context("a slot")?.reload(s, &disks[0])?;
    ensure!(bits(&model, Adapter::Slot(0))? == alone[1], "what was reloaded is not what runs");
    let other = tiny::adapter_on(&modules, 4, 1);
    let refused = Lora::upload(s, model.base(), other).map(drop).map_err(|e| e.to_string());
    ensure!(refused.as_ref().is_err_and(|e| e.contains("laid out for rank 8") && e.contains("has 4")), "{refused:?}");
    let full = model.grads(s, Tune::Full).map(drop).map_err(|e| e.to_string());
    ensure!(full.as_ref().is_err_and(|e| e.contains("dtype float32")), "{full:?}");
    Ok(())
}
