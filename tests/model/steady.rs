//! A steady training step allocates nothing on the device and next to nothing on the host.

use super::counted::{Counts, counted};
use crate::allocations;
use anyhow::{Result, ensure};
use model::Tune;
use ple::config::{Command, Config};
use ple::method::{Example, Method, ple::Ple, sft::Sft};
use ple::optim::Optimizer;
use ple::pack;
use ple::trainer::{Trainer, Workspace};
use ple_tests::data::say;
use ple_tests::tiny::{self, Random};
use runtime::comm::Single;
use runtime::{Backend, DType, Isa, Stream, cpu::Cpu};
use std::path::Path;

/// One thread, so that every allocation is the counting thread's own.
fn device() -> (Counts, Stream) {
    counted(Box::new(Cpu::new(1, Isa::detect())) as Box<dyn Backend>)
}

/// Pairs as PLE trains them, of both branches; SFT takes them as two answers.
fn examples() -> Vec<Example> {
    let mut random = Random(8);
    let one = |i: usize| {
        let (prompt, answers) = (random.ids(5 * i), vec![random.ids(3 * i), random.ids(40 - 2 * i)]);
        Example { row: i as u32, prompt, answers, weights: vec![0.4, 0.6], tag: i as u32 % 3, ..Default::default() }
    };
    (1..9).map(one).collect()
}

/// Five optimizer steps over several micro-batches each; returns device and host allocations of the last.
fn steps(method: &dyn Method, tune: Tune, folder: &Path) -> Result<(usize, allocations::Count)> {
    let (counted, s) = device();
    let (model, _) = tiny::load(&s, folder)?;
    let words = model.trained(tune)?.0.flat().len();
    let optimizer = Optimizer::new(&s, words, &Config::defaults(Command::Train), 100)?;
    let mut trainer = Trainer::new(s.clone(), model, tune, optimizer, Box::new(Single))?;
    let examples = examples();
    let all: Vec<&Example> = examples.iter().collect();
    let limits = pack::limits(2 * pack::longest(&examples));
    ensure!(pack::next(&all, ple::method::Heads::LogProb, limits)? < all.len(), "one micro-batch holds all examples");
    let mut w = Workspace::new(&s, &trainer.model, limits, None)?;
    for _ in 0..4 {
        trainer.step(&mut w, method, &all)?;
    }
    let before = counted.allocations();
    let (outcome, host) = allocations::of(|| trainer.step(&mut w, method, &all));
    let step = outcome?;
    ensure!(step.loss.is_finite() && step.grad_norm > 0.0, "the counted step did nothing: {step:?}");
    Ok((counted.allocations() - before, host))
}

#[test]
fn a_steady_step_allocates_next_to_nothing() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let ple = Ple::new(&Config::defaults(Command::Train), true);
    let methods: [(&str, &dyn Method); 2] = [("sft", &Sft), ("ple", &ple)];
    for (name, method) in methods {
        for tune in [Tune::Lora(0), Tune::Full] {
            let (device, host) = steps(method, tune, folder.path())?;
            say(&format!(
                "  a steady step of {name}, {tune:?}: {device} device, {} host allocations, largest {} bytes",
                host.calls, host.largest
            ));
            ensure!(device == 0, "{name}, {tune:?}: {device} device allocations in a steady step");
            ensure!(
                host.calls <= 64 && host.largest <= 1024,
                "{name}, {tune:?}: {host:?} on the host, wanted at most 64 small ones"
            );
        }
    }
    Ok(())
}
