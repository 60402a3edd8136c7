//! Gradients and adapters: any cut into micro-batches, any number of threads, any instruction set give the same bits.

use super::{Setup, examples, is_portable, reference, setups};
use anyhow::{Context, Result, ensure};
use model::{Grads, Transformer, Tune};
use ple::config::{Command, Config};
use ple::method::{Method, ple::Ple, sft::Sft};
use ple::optim::Optimizer;
use ple::pack;
use ple::trainer::{Trainer, Workspace};
use ple_tests::pass::{self, Example};
use ple_tests::tensors::same_bits;
use ple_tests::tiny;
use runtime::{DType, Stream, comm::Single};
use std::path::Path;

/// How many examples each micro-batch takes; the cuts of an optimizer batch of 8.
const CUTS: [&[usize]; 3] = [&[8], &[1; 8], &[3, 1, 4]];

/// d loss / d logp that differs by token.
fn dlogp(out: &[f32]) -> Vec<f32> {
    out.iter().enumerate().map(|(i, l)| -0.01 - 0.001 * (i % 7) as f32 + 0.002 * l).collect()
}

/// Gradients of the examples, accumulated over these micro-batches. The method's dlogp of an example does not see the cut.
fn accumulate(
    s: &Stream,
    model: &Transformer,
    tune: Tune,
    examples: &[Example],
    cuts: &[usize],
    grads: &mut Grads,
) -> Result<()> {
    let mut rest = examples;
    for count in cuts {
        let (now, later) = rest.split_at(*count);
        rest = later;
        let b = pass::batch(now)?;
        pass::backward(s, model, &b, tune, grads, |out| {
            let rows = b.examples.iter().map(|e| {
                let spans = &b.sequences[e.range()];
                spans[0].start as usize..spans[spans.len() - 1].end as usize
            });
            rows.flat_map(|rows| dlogp(&out[rows])).collect()
        })?;
    }
    ensure!(rest.is_empty(), "the cuts leave {} examples", rest.len());
    Ok(())
}

fn gradients(setup: Setup, folder: &Path, tune: Tune, examples: &[Example], cuts: &[usize]) -> Result<Vec<f32>> {
    let (s, model, _) = setup.load(folder)?;
    let mut grads = model.grads(&s, tune)?;
    accumulate(&s, &model, tune, examples, cuts, &mut grads)?;
    let mut flat = vec![0.0; grads.flat().len()];
    grads.flat().read(&s, &mut flat)?;
    ensure!(flat.iter().all(|g| g.is_finite()) && flat.iter().any(|g| *g != 0.0), "gradients are not finite, or all zero");
    Ok(flat)
}

fn law_of(folder: &Path, tune: Tune) -> Result<()> {
    let all = examples(8, 2);
    let wanted = gradients(reference(), folder, tune, &all, CUTS[0])?;
    for cuts in &CUTS[1..] {
        same_bits(&format!("micro-batches of {cuts:?}"), &gradients(reference(), folder, tune, &all, cuts)?, &wanted)?;
    }
    // Few short examples for the portable path.
    let few: Vec<Example> = all[..3].to_vec();
    let wanted_few = gradients(reference(), folder, tune, &few, &[3])?;
    for setup in setups() {
        let (examples, cuts, wanted): (_, &[usize], _) =
            if is_portable(setup) { (&few, &[1, 2], &wanted_few) } else { (&all, CUTS[2], &wanted) };
        same_bits(&format!("{setup:?}"), &gradients(setup, folder, tune, examples, cuts)?, wanted)?;
    }
    Ok(())
}

#[test]
fn adapter_gradients_do_not_see_the_cut() -> Result<()> {
    law_of(tiny::folder(true, DType::F32)?.path(), Tune::Lora(0))?;
    law_of(tiny::folder(false, DType::Bf16)?.path(), Tune::Lora(0))
}

#[test]
fn gradients_of_every_family_do_not_see_the_cut() -> Result<()> {
    for config in tiny::families() {
        let folder = tiny::of(&config, DType::F32)?;
        for tune in [Tune::Lora(0), Tune::Full] {
            law_of(folder.path(), tune).with_context(|| format!("{} {tune:?}", config["model_type"]))?;
        }
    }
    Ok(())
}

#[test]
fn full_gradients_do_not_see_the_cut() -> Result<()> {
    law_of(tiny::folder(true, DType::F32)?.path(), Tune::Full)?;
    law_of(tiny::folder(false, DType::F32)?.path(), Tune::Full)
}

/// Another sharing is another tree: the last bits may differ, no more.
#[test]
fn a_shared_prompt_gives_the_same_gradient() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let shared = examples(8, 2);
    let whole: Vec<Example> =
        shared.iter().flat_map(|(prompt, answers)| answers.iter().map(|a| (prompt.clone(), vec![a.clone()]))).collect();
    let of = |examples: &[Example]| -> Result<Vec<f32>> {
        let (s, model, _) = reference().load(folder.path())?;
        let mut grads = model.grads(&s, Tune::Lora(0))?;
        let b = pass::batch(examples)?;
        pass::backward(&s, &model, &b, Tune::Lora(0), &mut grads, |out| out.iter().map(|l| -0.01 + 0.002 * l).collect())?;
        let mut flat = vec![0.0; grads.flat().len()];
        grads.flat().read(&s, &mut flat)?;
        Ok(flat)
    };
    let (a, b) = (of(&shared)?, of(&whole)?);
    let largest = a.iter().map(|g| g.abs()).fold(0.0, f32::max);
    let limit = 1e-6 * largest.max(1.0);
    ensure!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= limit), "shared and whole prompts differ by more than {limit}");
    Ok(())
}

/// Three steps of the trainer in micro-batches of this many tokens, then the folder that would be written.
fn trained(setup: Setup, folder: &Path, method: &dyn Method, tokens: usize, out: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let (s, model, slot) = setup.load(folder)?;
    let words = model.trained(Tune::Lora(0))?.0.flat().len();
    let config = Config { max_grad_norm: 0.5, learning_rate: 1e-3, weight_decay: 0.01, ..Config::defaults(Command::Train) };
    let optimizer = Optimizer::new(&s, words, &config, 10)?;
    let mut trainer = Trainer::new(s.clone(), model, Tune::Lora(0), optimizer, Box::new(Single))?;
    let examples: Vec<ple::method::Example> = examples(8, 2)
        .into_iter()
        .enumerate()
        .map(|(i, (prompt, answers))| ple::method::Example {
            row: i as u32,
            prompt,
            answers,
            weights: vec![0.25, 0.75],
            tag: i as u32 % 3,
            ..Default::default()
        })
        .collect();
    let all: Vec<&ple::method::Example> = examples.iter().collect();
    let limits = pack::limits(tokens.max(pack::longest(&examples)));
    let mut w = Workspace::new(&s, &trainer.model, limits, None)?;
    for _ in 0..3 {
        trainer.step(&mut w, method, &all)?;
    }
    let model = &trainer.model;
    let Some(lora) = model.slot(slot)? else { anyhow::bail!("no adapter in the slot") };
    lora.download(&s)?.save(out)?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(out)? {
        let path = entry?.path();
        files.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), std::fs::read(&path)?));
    }
    files.sort();
    Ok(files)
}

/// Adapters after training with one method, whatever the micro-batches and threads.
fn same_bytes(method: &dyn Method) -> Result<()> {
    let (folder, out) = (tiny::folder(true, DType::F32)?, tempfile::tempdir()?);
    let wanted = trained(reference(), folder.path(), method, 1 << 14, &out.path().join("0"))?;
    ensure!(wanted.iter().any(|(name, _)| name == "adapter_model.safetensors"), "no adapter among {}", wanted.len());
    let (s, model, slot) = reference().load(folder.path())?;
    let before = model.slot(slot)?.map(|l| l.download(&s)).transpose()?;
    let after = model::adapter::Adapter::load(&out.path().join("0"), &model.modules())?;
    ensure!(before.is_some_and(|b| b.modules != after.modules), "three steps changed nothing");
    let others = setups().into_iter().filter(|setup| !is_portable(*setup)).chain([reference()]);
    for (i, setup) in others.enumerate() {
        // 1 token: every example is a micro-batch of its own.
        let tokens = [1, 500][i % 2];
        let got = trained(setup, folder.path(), method, tokens, &out.path().join((i + 1).to_string()))?;
        ensure!(got == wanted, "the adapter differs with micro-batches of {tokens} tokens and {setup:?}");
    }
    Ok(())
}

#[test]
fn adapters_of_sft_are_the_same_bytes() -> Result<()> {
    same_bytes(&Sft)
}

#[test]
fn adapters_of_ple_are_the_same_bytes() -> Result<()> {
    same_bytes(&Ple::new(&Config::defaults(Command::Train), true))
}
