//! Whole training steps on the emulated CUDA device: in f32 the CPU's bits, in every order of its threads, copies and queues.

use super::counted::counted;
use anyhow::{Context, Result, ensure};
use model::weights::Checkpoint;
use model::{Adapter, Keep, Transformer, Tune};
use ple::config::{Command, Config};
use ple::method::{Example, Heads, sft::Sft};
use ple::optim::Optimizer;
use ple::pack;
use ple::trainer::{Trainer, Workspace};
use ple_tests::data::say;
use ple_tests::tiny::{self, Random};
use runtime::comm::Single;
use runtime::{Backend, DType, Isa, Stream};
use std::path::Path;

/// Optimizer steps of a run that is to learn something.
pub(super) const STEPS: usize = 10;

/// What a run leaves: losses and what was trained by their bits (full: every tensor of its file), gradient norms.
#[derive(PartialEq)]
pub(super) struct Run {
    pub losses: Vec<u64>,
    pub trained: Vec<u32>,
    pub norms: Vec<f64>,
}

/// Prompts with two answers each, so that rows share a prefix; one of them longer than a block of keys.
pub(super) fn examples() -> Vec<Example> {
    let mut random = Random(21);
    let mut one = |row: u32, prompt: usize, answers: [usize; 2]| {
        let (prompt, answers) = (random.ids(prompt), answers.map(|n| random.ids(n)).to_vec());
        Example { row, prompt, answers, weights: vec![1.0, 1.0], ..Default::default() }
    };
    vec![one(0, 5, [4, 1]), one(1, 66, [3, 5]), one(2, 3, [6, 2])]
}

/// Trains for so many steps of several micro-batches. From the second step on nothing is allocated, and the host waits once for each
/// micro-batch and once for the norm.
pub(super) fn run(device: &'static dyn Backend, folder: &Path, tune: Tune, dtype: DType, steps: usize) -> Result<Run> {
    run_keeping(Keep::Backward, device, folder, tune, dtype, steps)
}

/// The same, where forwards keep what is said.
pub(super) fn run_keeping(
    keep: Keep,
    device: &'static dyn Backend,
    folder: &Path,
    tune: Tune,
    dtype: DType,
    steps: usize,
) -> Result<Run> {
    let load = |s: &Stream| match tune {
        Tune::Lora(_) => Ok(tiny::load_as(s, folder, Some(dtype))?.0),
        Tune::Full => Ok(Transformer::load_full(s, folder, dtype)?),
    };
    run_of(keep, device, load, tune, steps)
}

/// The same of a model that `load` makes.
pub(super) fn run_of(
    keep: Keep,
    device: &'static dyn Backend,
    load: impl FnOnce(&Stream) -> Result<Transformer>,
    tune: Tune,
    steps: usize,
) -> Result<Run> {
    let (counts, s) = counted(device);
    let model = load(&s)?;
    let words = model.trained(tune)?.0.flat().len();
    let mut config = Config::defaults(Command::Sft);
    (config.learning_rate, config.max_grad_norm) = (1e-2, 0.5);
    let optimizer = Optimizer::new(&s, words, &config, steps as u64)?;
    let mut trainer = Trainer::new(s.clone(), model, tune, optimizer, Box::new(Single))?;
    let examples = examples();
    let all: Vec<&Example> = examples.iter().collect();
    let limits = pack::limits(pack::longest(&examples));
    ensure!(pack::next(&all, Heads::LogProb, limits)? == 1, "the first micro-batch holds more than an example");
    let mut w = Workspace::keeping(&s, &trainer.model, limits, keep, None)?;
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for i in 0..steps {
        let (allocations, waits) = (counts.allocations(), counts.waits());
        let step = trainer.step(&mut w, &Sft, &all)?;
        let (allocated, waited) = (counts.allocations() - allocations, counts.waits() - waits);
        ensure!(i == 0 || allocated == 0, "step {i}: {allocated} allocations");
        ensure!(s.host().is_some() || waited == 4, "step {i}: {waited} waits for 3 micro-batches and a norm");
        losses.push(step.loss.to_bits());
        norms.push(step.grad_norm);
    }
    let mut bits = Vec::new();
    match tune {
        Tune::Lora(slot) => {
            let adapter = trainer.model.slot(Adapter::Slot(slot))?.context("an adapter")?.download(&s)?;
            adapter.modules.iter().for_each(|m| bits.extend(m.a.iter().chain(&m.b).map(|v| v.to_bits())));
        }
        Tune::Full => {
            let kept = tempfile::tempdir()?;
            trainer.model.base().save(&s, kept.path())?;
            let file = Checkpoint::open(kept.path())?;
            for name in file.names() {
                bits.extend(file.tensor(name)?.to_f32().iter().map(|v| v.to_bits()));
            }
        }
    }
    Ok(Run { losses, norms, trained: bits })
}

#[test]
fn on_cuda_ten_steps_in_f32_have_the_cpu_s_bits() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let folder = tiny::folder(false, DType::F32)?;
    let cpu: &'static Stream = Box::leak(Box::new(Stream::cpu(1, Isa::portable())));
    let want = run(cpu.backend(), folder.path(), Tune::Lora(0), DType::F32, STEPS)?;
    let loss = |run: &Run, i: usize| f64::from_bits(run.losses[i]);
    ensure!(loss(&want, STEPS - 1) < 0.8 * loss(&want, 0), "the CPU's run learns nothing");
    let mut first: Option<Run> = None;
    for mode in emulator::Mode::PAIRS {
        cuda.mode(mode);
        let start = std::time::Instant::now();
        let got = run(cuda.stream.backend(), folder.path(), Tune::Lora(0), DType::F32, STEPS)?;
        ensure!(got.losses == want.losses, "{mode}: losses {:?}, the CPU's {:?}", got.losses, want.losses);
        let other = got.trained.iter().zip(&want.trained).filter(|(a, b)| a != b).count();
        ensure!(other == 0, "{mode}: {other} of {} parameters have other bits than the CPU's", want.trained.len());
        let near = got.norms.iter().zip(&want.norms).all(|(a, b)| (a - b).abs() <= 1e-12 * b);
        ensure!(near, "{mode}: norms {:?}, the CPU's {:?}", got.norms, want.norms);
        say(&format!("  cuda:0 (emulated) {mode}: {STEPS} steps in {:.1} s", start.elapsed().as_secs_f64()));
        ensure!(first.as_ref().is_none_or(|first| *first == got), "{mode}: another run than the first mode's");
        first = first.or(Some(got));
    }
    Ok(())
}

/// Every weight, tied embedding and head among them.
#[test]
fn on_cuda_full_tuning_in_f32_has_the_cpu_s_bits() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let cpu: &'static Stream = Box::leak(Box::new(Stream::cpu(1, Isa::portable())));
    for (tied, mode) in [(true, emulator::Mode::PAIRS[3]), (false, emulator::Mode::PAIRS[1])] {
        let folder = tiny::folder(tied, DType::F32)?;
        let want = run(cpu.backend(), folder.path(), Tune::Full, DType::F32, 3)?;
        cuda.mode(mode);
        let got = run(cuda.stream.backend(), folder.path(), Tune::Full, DType::F32, 3)?;
        ensure!(got.losses == want.losses && got.trained == want.trained, "tied {tied}: {mode}: other bits than the CPU's");
    }
    Ok(())
}

/// Every other family: biases, windows, norms of heads, LayerNorm, learned positions, both GELUs, softcaps, norms after a layer's halves.
#[test]
fn on_cuda_every_family_s_steps_in_f32_have_the_cpu_s_bits() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let cpu: &'static Stream = Box::leak(Box::new(Stream::cpu(1, Isa::portable())));
    for (i, config) in tiny::families().iter().enumerate() {
        let (family, mode) = (config["model_type"].as_str().context("no model_type")?, emulator::Mode::PAIRS[i % 4]);
        let folder = tiny::of(config, DType::F32)?;
        // Of every weight: LayerNorm with biases and positions, norms of heads, a scaled embedding.
        let full = ["gpt2", "gemma3_text"].contains(&family);
        for tune in [Some(Tune::Lora(0)), full.then_some(Tune::Full)].into_iter().flatten() {
            let want = run(cpu.backend(), folder.path(), tune, DType::F32, 2)
                .with_context(|| format!("{family} {tune:?} on the CPU"))?;
            let loss = |i: usize| f64::from_bits(want.losses[i]);
            ensure!((loss(1) - loss(0)).abs() > 1e-3, "{family} {tune:?}: the CPU's first step changes nothing of {}", loss(0));
            cuda.mode(mode);
            let start = std::time::Instant::now();
            let got =
                run(cuda.stream.backend(), folder.path(), tune, DType::F32, 2).with_context(|| format!("{family} {tune:?}"))?;
            say(&format!("  cuda:0 (emulated) {mode}: {family} {tune:?} 2 steps in {:.1} s", start.elapsed().as_secs_f64()));
            ensure!(got.losses == want.losses, "{family} {tune:?} {mode}: losses {:?}, the CPU's {:?}", got.losses, want.losses);
            let other = got.trained.iter().zip(&want.trained).filter(|(a, b)| a != b).count();
            ensure!(other == 0, "{family} {tune:?} {mode}: {other} of {} have other bits than the CPU's", want.trained.len());
        }
    }
    Ok(())
}
