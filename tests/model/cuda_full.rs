//! Full tuning with bf16 activations on the emulated CUDA device: an f32 master, and the bf16 weights that the rooms read.

use super::cuda::{STEPS, examples};
use super::cuda_bf16::{COSINE, TAME, TIMES, apart, near};
use anyhow::{Context, Result, ensure};
use model::weights::Checkpoint;
use model::{Adapter, Keep, Transformer, Tune};
use ple_tests::data::say;
use ple_tests::pass::{self, Example};
use ple_tests::tiny;
use runtime::{DType, Stream};
use std::path::Path;

fn forest() -> Vec<Example> {
    examples().into_iter().map(|e| (e.prompt, e.answers)).collect()
}

/// Ten steps of every weight, a head of its own among them, in two modes that differ in everything; and of a tied one beside learned
/// positions, LayerNorm and biases. `PLE_LONG` asks for all modes and for the sharp model too.
#[test]
fn on_cuda_full_tuning_in_bf16_is_the_cpu_s_within_tolerance() -> Result<()> {
    let (ten, all, long) = ((Tune::Full, STEPS), &emulator::Mode::PAIRS, std::env::var_os("PLE_LONG").is_some());
    near(&tiny::config(false), TAME, ten, if long { all } else { &all[1..3] })?;
    if long {
        near(&tiny::config(false), 1.0, ten, &emulator::Mode::PAIRS[..1])?;
    }
    near(&tiny::family("gpt2")?, TAME, ten, &emulator::Mode::PAIRS[..1])
}

/// The gradient of every weight, flat, and its tensors, of a batch cut so.
fn gradient(s: &Stream, folder: &Path, dtype: DType, cuts: &[&[Example]]) -> Result<(Vec<f32>, Transformer)> {
    let model = Transformer::load_full(s, folder, dtype)?;
    let mut grads = model.grads(s, Tune::Full)?;
    for cut in cuts {
        pass::backward(s, &model, &pass::batch(cut)?, Tune::Full, &mut grads, |out| vec![-0.1; out.len()])?;
    }
    let mut all = vec![0.0; grads.flat().len()];
    grads.flat().read(s, &mut all)?;
    Ok((all, model))
}

/// Beside the device's own f32, which is the CPU's to the bit and lies alike. What example comes with which changes no bit (LAW A7). Where heads
/// have norms attention is sharp whatever the scale: there rounded weights are the measure, as in a sharp model.
#[test]
fn on_cuda_a_gradient_in_bf16_is_that_in_f32_within_tolerance() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    cuda.mode(emulator::Mode::PAIRS[0]);
    let (s, forest) = (&cuda.stream, forest());
    let mut failed = Vec::new();
    for (config, sharp) in [(tiny::config(true), false), (tiny::family("gpt2")?, false), (tiny::family("gemma3_text")?, true)] {
        let family = config["model_type"].as_str().context("no model_type")?;
        let (exact, rounded) = (tiny::scaled(&config, DType::F32, TAME)?, tiny::scaled(&config, DType::Bf16, TAME)?);
        let (want, _) = gradient(s, rounded.path(), DType::F32, &[&forest])?;
        let (other, _) = gradient(s, exact.path(), DType::F32, &[&forest])?;
        let (got, model) = gradient(s, rounded.path(), DType::Bf16, &[&forest])?;
        let ((far, cosine), (own, _)) = (apart(&got, &want), apart(&other, &want));
        let of = |t: &model::lora::Tensor| apart(&got[t.region.words()], &want[t.region.words()]);
        let worst = model.base().tensors().iter().map(|t| (of(t).1, &t.name)).min_by(|a, b| a.0.total_cmp(&b.0));
        let worst = worst.context("no tensors")?;
        let text = format!(
            "{family}: gradient off by {far:.1e} of its norm, by rounded weights {own:.1e}; cosine {cosine:.6}; of a tensor at least {:.6} ({})",
            worst.0, worst.1
        );
        say(&format!("  cuda:0 (emulated) {text}"));
        if far > TIMES * own || (!sharp && cosine <= COSINE) {
            failed.push(text);
        }
        let cuts: Vec<&[Example]> = forest.chunks(1).collect();
        let (apart, _) = gradient(s, rounded.path(), DType::Bf16, &cuts)?;
        ensure!(apart.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()), "{family}: one example at a time");
    }
    ensure!(failed.is_empty(), "beyond the limits: {failed:#?}");
    Ok(())
}

/// What is saved is the master, which a model of bf16 weights rounds to the bits that were trained; what is read anew counts.
#[test]
fn on_cuda_the_master_is_saved_and_read_anew() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    cuda.mode(emulator::Mode::PAIRS[0]);
    let (s, kept) = (&cuda.stream, tempfile::tempdir()?);
    let (b, folder) = (pass::batch(&forest()[..1])?, tiny::folder(false, DType::F32)?);
    let logps = |model: &Transformer| pass::logps(s, model, &b, Adapter::Off, Keep::Nothing);
    let model = Transformer::load_full(s, folder.path(), DType::Bf16)?;
    let frozen = Transformer::load(s, folder.path(), Some(DType::Bf16))?;
    let before = logps(&model)?;
    ensure!(before == logps(&frozen)?, "the copies are not the rounded weights");
    model.base().save(s, kept.path())?;
    let (given, saved) = (Checkpoint::open(folder.path())?, Checkpoint::open(kept.path())?);
    for name in given.names() {
        ensure!(given.tensor(name)?.bytes == saved.tensor(name)?.bytes, "{name}: not the f32 that was read");
    }
    let other = tiny::scaled(&tiny::config(false), DType::F32, 0.9)?;
    model.base().reload(s, &model.config, &Checkpoint::open(other.path())?)?;
    let after = logps(&model)?;
    ensure!(
        after != before && after == logps(&Transformer::load(s, other.path(), Some(DType::Bf16))?)?,
        "not what was read anew"
    );
    let (master, half) = (model.base().arena().bytes(), model.base().bytes() - model.base().arena().bytes());
    ensure!(master > 2 * half - 4096 && half > 0 && frozen.base().bytes() == frozen.base().arena().bytes(), "{master} {half}");
    let beside = model::Lora::upload(s, model.base(), tiny::adapter(&model, 8, 1)).map(drop).map_err(|e| e.to_string());
    ensure!(beside.as_ref().is_err_and(|e| e.contains("laid out for rank 0")), "{beside:?}");
    Ok(())
}
