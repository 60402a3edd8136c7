//! Every family as a whole: gradients of all weights against differences, and checkpoints that come back.

use anyhow::{Context, Result, ensure};
use model::{Adapter, Keep, Transformer, Tune, weights::Checkpoint};
use ple_tests::pass::{self, Example};
use ple_tests::tensors::same_bits;
use ple_tests::tiny::{self, Random};
use runtime::{DType, Isa, Stream};
use std::path::Path;

/// Two trees, one with a shared prompt, longer than any window.
fn examples() -> Vec<Example> {
    let mut random = Random(5);
    let (prompt, answers) = (random.ids(75), vec![random.ids(9), random.ids(5)]);
    vec![(prompt, answers), (random.ids(4), vec![random.ids(30)])]
}

/// Minus the mean log-probability.
fn loss(s: &Stream, model: &Transformer, b: &model::Batch) -> Result<f64> {
    let out = pass::logps(s, model, b, Adapter::Off, Keep::Nothing)?;
    Ok(-out.iter().map(|l| f64::from(*l)).sum::<f64>() / out.len() as f64)
}

/// Along the gradient of each tensor the loss rises by the gradient's length.
fn differentiates(folder: &Path) -> Result<()> {
    const STEP: f32 = 5e-3;
    let s = Stream::cpu(2, Isa::detect());
    let model = Transformer::load(&s, folder, Some(DType::F32))?;
    let (b, mut grads) = (pass::batch(&examples())?, model.grads(&s, Tune::Full)?);
    pass::backward(&s, &model, &b, Tune::Full, &mut grads, |out| vec![-1.0 / out.len() as f32; out.len()])?;
    let (arena, _) = model.trained(Tune::Full)?;
    for tensor in grads.tensors() {
        let gradient = grads.of(&s, tensor)?;
        let length = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        ensure!(length > 0.0, "{}: no gradient", tensor.name);
        let view = arena.view(tensor.region)?;
        let mut held = vec![0.0f32; tensor.region.len()];
        view.read(&s, &mut held)?;
        let mut sides = [0.0; 2];
        for (side, sign) in sides.iter_mut().zip([STEP, -STEP]) {
            let moved: Vec<f32> = held.iter().zip(&gradient).map(|(w, g)| w + sign * (f64::from(*g) / length) as f32).collect();
            view.write(&s, &moved)?;
            *side = loss(&s, &model, &b)?;
        }
        view.write(&s, &held)?;
        let slope = (sides[0] - sides[1]) / f64::from(2.0 * STEP);
        let off = (slope - length).abs();
        // The second term is the noise of an f32 loss over the step.
        ensure!(off <= 0.02 * length + 1e-4, "{}: gradient {length:.6}, difference {slope:.6}", tensor.name);
    }
    Ok(())
}

#[test]
fn every_weight_of_every_family_differentiates() -> Result<()> {
    for config in tiny::families() {
        differentiates(tiny::of(&config, DType::F32)?.path()).with_context(|| config["model_type"].to_string())?;
    }
    Ok(())
}

/// Name, shape and bytes.
type Stored = (String, Vec<usize>, Vec<u8>);

/// The bytes of every tensor, by name.
fn stored(folder: &Path) -> Result<Vec<Stored>> {
    let checkpoint = Checkpoint::open(folder)?;
    let names: Vec<String> = checkpoint.names().map(str::to_string).collect();
    let tensor = |name: String| {
        let t = checkpoint.tensor(&name)?;
        Ok((name.clone(), t.shape.to_vec(), t.bytes.to_vec()))
    };
    names.into_iter().map(tensor).collect()
}

#[test]
fn a_checkpoint_is_written_as_it_was_read() -> Result<()> {
    let s = Stream::cpu(2, Isa::detect());
    for config in tiny::families() {
        let (from, to) = (tiny::of(&config, DType::F32)?, tempfile::tempdir()?);
        Transformer::load(&s, from.path(), None)?.base().save(&s, to.path())?;
        ensure!(stored(from.path())? == stored(to.path())?, "{}: not the same tensors", config["model_type"]);
    }
    Ok(())
}

/// GPT-2's first files leave `transformer.` out and carry masks along.
#[test]
fn a_gpt2_without_its_prefix_is_the_same_model() -> Result<()> {
    let s = Stream::cpu(2, Isa::detect());
    let config = tiny::families().into_iter().find(|c| c["model_type"] == "gpt2").context("no gpt2")?;
    let (long, short) = (tiny::of(&config, DType::F32)?, tempfile::tempdir()?);
    std::fs::copy(long.path().join("config.json"), short.path().join("config.json"))?;
    let mut rows = stored(long.path())?;
    rows.iter_mut().for_each(|(name, ..)| *name = name.trim_start_matches("transformer.").to_string());
    rows.push(("h.0.attn.bias".into(), vec![1, 1, 4, 4], vec![0; 64]));
    rows.push(("h.0.attn.masked_bias".into(), vec![], vec![0; 4]));
    let write = |rows: &[_]| tiny::write(&short.path().join("model.safetensors"), safetensors::Dtype::F32, rows);
    write(&rows)?;
    let b = pass::batch(&examples())?;
    let logps = |folder: &Path| pass::logps(&s, &Transformer::load(&s, folder, None)?, &b, Adapter::Off, Keep::Nothing);
    same_bits("log-probabilities", &logps(long.path())?, &logps(short.path())?)?;
    rows.push(("transformer.wpe.weight".into(), vec![1], vec![0; 4]));
    write(&rows)?;
    let said = Transformer::load(&s, short.path(), None).map(drop);
    ensure!(said.as_ref().is_err_and(|e| e.to_string().contains("transformer.wpe.weight")), "both names: {said:?}");
    Ok(())
}

/// A language model tuned as a reward model is written as what its family calls one.
#[test]
fn a_new_scalar_head_is_written_and_read_again() -> Result<()> {
    let s = Stream::cpu(2, Isa::detect());
    for config in tiny::families() {
        let (from, to) = (tiny::of(&config, DType::F32)?, tempfile::tempdir()?);
        let model = Transformer::load_scalar(&s, from.path(), DType::F32, 3, kernels::sample::philox)?;
        ple::checkpoint::save(&s, &model, Tune::Full, from.path(), to.path())?;
        let again = Transformer::load(&s, to.path(), None)?;
        let heads = [&model, &again].map(|m| m.scalar_head(&s).and_then(|h| Ok(h.weight.to_vec()?)));
        let [Ok(wanted), Ok(got)] = heads else { anyhow::bail!("{}: no scalar head", config["model_type"]) };
        ensure!(wanted.iter().any(|w| *w != 0.0), "{}: a head of zeros", config["model_type"]);
        same_bits("scalar head", &wanted, &got)?;
        let flat = |m: &Transformer| -> Result<Vec<f32>> {
            let mut all = vec![0.0; m.base().arena().flat().len()];
            m.base().arena().flat().read(&s, &mut all)?;
            Ok(all)
        };
        same_bits("base", &flat(&model)?, &flat(&again)?)?;
    }
    Ok(())
}
