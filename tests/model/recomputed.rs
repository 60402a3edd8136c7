//! Activations that the backward makes again: the bits of those that were kept, with nothing allocated in a steady step.

use super::cuda::{Run, examples, run, run_keeping, run_of};
use super::cuda_library::loaded;
use anyhow::{Context, Result, ensure};
use model::{Adapter, Keep, Transformer, Tune};
use ple_tests::data::say;
use ple_tests::pass::{self, Example, LOGPROB};
use ple_tests::tiny;
use runtime::{Backend, DType, Isa, Stream};
use std::path::Path;

/// Steps of a run: the second one allocates nothing.
const STEPS: usize = 2;

fn cpu() -> &'static Stream {
    Box::leak(Box::new(Stream::cpu(1, Isa::portable())))
}

fn again(device: &'static dyn Backend, folder: &Path, tune: Tune, dtype: DType) -> Result<Run> {
    run_keeping(Keep::Inputs, device, folder, tune, dtype, STEPS)
}

fn same(what: &str, got: &Run, want: &Run) -> Result<()> {
    ensure!(got.losses == want.losses, "{what}: losses {:?}, wanted {:?}", got.losses, want.losses);
    let other = got.trained.iter().zip(&want.trained).filter(|(a, b)| a != b).count();
    ensure!(other == 0 && got.trained.len() == want.trained.len(), "{what}: {other} of {} are other bits", want.trained.len());
    Ok(())
}

/// Every family, over shared prompts and several micro-batches: biases, windows, norms of heads and after a layer's halves, LayerNorm,
/// learned positions, tied and untied heads.
#[test]
fn steps_that_make_activations_again_have_the_same_bits() -> Result<()> {
    let configs: Vec<_> = tiny::families().into_iter().chain([tiny::config(true), tiny::config(false)]).collect();
    for config in &configs {
        let folder = tiny::of(config, DType::F32)?;
        for tune in [Tune::Lora(0), Tune::Full] {
            let what = format!("{} {tune:?}", config["model_type"]);
            let want = run(cpu().backend(), folder.path(), tune, DType::F32, STEPS)?;
            let got = again(cpu().backend(), folder.path(), tune, DType::F32)?;
            ensure!(
                want.losses[0] != want.losses[1] && got.norms == want.norms,
                "{what}: norms {:?}, {:?}",
                got.norms,
                want.norms
            );
            same(&what, &got, &want)?;
        }
    }
    Ok(())
}

/// Gradients of one forward, after each of two backwards of it.
fn gradients(model: &Transformer, keep: Keep, tune: Tune) -> Result<[Vec<u32>; 2]> {
    let forest: Vec<Example> = examples().into_iter().map(|e| (e.prompt, e.answers)).collect();
    let (s, b, adapter) = (cpu(), pass::batch(&forest)?, pass::adapter_of(tune));
    let (mut grads, mut acts) = (model.grads(s, tune)?, model.acts(s, pass::limits(&b), keep, None)?);
    let dout = s.upload(&vec![-0.25f32; b.loss_rows()])?;
    model.forward(s, &mut acts, &b, adapter, LOGPROB, keep)?;
    let mut pass = || -> Result<Vec<u32>> {
        model.backward(s, &mut acts, &b, adapter, LOGPROB, &dout, &mut grads)?;
        let mut all = vec![0f32; grads.flat().len()];
        grads.flat().read(s, &mut all)?;
        Ok(all.iter().map(|v| v.to_bits()).collect())
    };
    Ok([pass()?, pass()?])
}

#[test]
fn every_gradient_is_the_same_and_so_is_that_of_a_second_backward() -> Result<()> {
    let config = tiny::families().into_iter().find(|c| c["model_type"] == "gemma3_text").context("no gemma3_text")?;
    let folder = tiny::of(&config, DType::F32)?;
    let (model, _) = tiny::load(cpu(), folder.path())?;
    for tune in [Tune::Lora(0), Tune::Full] {
        let (want, got) = (gradients(&model, Keep::Backward, tune)?, gradients(&model, Keep::Inputs, tune)?);
        ensure!(want[0].iter().any(|v| *v != 0) && want[0] != want[1], "{tune:?}: no gradients");
        for pass in 0..2 {
            let other = want[pass].iter().zip(&got[pass]).filter(|(w, g)| w != g).count();
            ensure!(other == 0, "{tune:?}, backward {pass}: {other} of {} gradients are other bits", want[pass].len());
        }
    }
    Ok(())
}

/// Inputs take the room of one layer's activations and of every layer's input, and a forward says what it keeps.
#[test]
fn the_plan_is_of_what_is_kept() -> Result<()> {
    let (folder, s) = (tiny::folder(true, DType::F32)?, cpu());
    let (model, slot) = tiny::load(s, folder.path())?;
    let b = pass::batch(&[(vec![1, 2, 3], vec![vec![4, 5]])])?;
    let all = model::Limits { tokens: 512, loss_rows: 512, segments: 8, examples: 8 };
    let bytes = |keep| model.plan(all, keep);
    let (layers, input) = (model.config.num_hidden_layers, 4 * all.tokens * model.config.hidden_size);
    let (whole, inputs) = (bytes(Keep::Backward), bytes(Keep::Inputs));
    say(&format!("  512 tokens of {layers} layers: {whole} bytes of activations, {inputs} with inputs alone"));
    // A layer's is what is missing, but for its input.
    let each = (whole - inputs) / (layers - 1) + input;
    ensure!(layers > 1 && each > 4 * input && inputs > layers * input, "{whole} bytes, {inputs} with inputs alone");
    let mut acts = model.acts(s, pass::limits(&b), Keep::Inputs, None)?;
    let other = model.forward(s, &mut acts, &b, slot, LOGPROB, Keep::Backward).map_err(|e| e.to_string());
    ensure!(other.as_ref().is_err_and(|e| e.contains("planned with Inputs, got Backward")), "{other:?}");
    let kept = model.forward(s, &mut acts, &b, Adapter::Off, LOGPROB, Keep::Nothing);
    Ok(kept?)
}

/// f32 against the CPU that keeps everything, in a family with norms everywhere; bf16 against the same device, every
/// weight and rows that lie apart among it.
#[test]
fn on_cuda_steps_that_make_activations_again_have_the_same_bits() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let device = cuda.stream.backend();
    cuda.mode(emulator::Mode::PAIRS[3]);
    let configs = tiny::families().into_iter().filter(|c| ["gemma3_text", "gpt2"].iter().any(|name| c["model_type"] == *name));
    for config in configs {
        let folder = tiny::of(&config, DType::F32)?;
        let want = run(cpu().backend(), folder.path(), Tune::Lora(0), DType::F32, STEPS)?;
        same(&config["model_type"].to_string(), &again(device, folder.path(), Tune::Lora(0), DType::F32)?, &want)?;
    }
    let folder = tiny::folder(false, DType::Bf16)?;
    for tune in [Tune::Lora(0), Tune::Full] {
        let want = run(device, folder.path(), tune, DType::Bf16, STEPS)?;
        let got = again(device, folder.path(), tune, DType::Bf16)?;
        ensure!(got.norms == want.norms, "bf16 {tune:?}: norms {:?}, wanted {:?}", got.norms, want.norms);
        same(&format!("bf16 {tune:?}"), &got, &want)?;
    }
    let library = |keep| run_of(keep, device, |s| loaded(s, folder.path(), DType::Bf16, 8, true), Tune::Lora(0), STEPS);
    same("through the library", &library(Keep::Inputs)?, &library(Keep::Backward)?)
}
