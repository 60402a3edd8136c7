//! Numbers that stop a training step: an error that names the rows, and parameters that stay as they were.

use super::refused;
use anyhow::{Result, ensure};
use model::{Lora, Transformer, Tune};
use ple::config::{Command, Config};
use ple::method::{Example, sft::Sft};
use ple::optim::Optimizer;
use ple::pack;
use ple::trainer::{Trainer, Workspace};
use ple_tests::tiny::{self, Random};
use runtime::{DType, Isa, Stream, comm::Single};

fn examples() -> Vec<Example> {
    let mut random = Random(6);
    (0..3).map(|i| Example { row: 70 + i, prompt: random.ids(4), answers: vec![random.ids(5)], ..Default::default() }).collect()
}

/// A trainer whose adapter has `value` as its first number.
fn trainer(s: &Stream, folder: &std::path::Path, value: f32) -> Result<Trainer> {
    let mut model = Transformer::load(s, folder, None)?;
    let mut adapter = tiny::adapter(&model, 4, 1);
    adapter.modules[0].b[0] = value;
    let lora = Lora::upload(s, model.base(), adapter)?;
    let words = lora.arena().flat().len();
    model.add_slot(lora)?;
    let optimizer = Optimizer::new(s, words, &Config::defaults(Command::Sft), 10)?;
    Ok(Trainer::new(s.clone(), model, Tune::Lora(0), optimizer, Box::new(Single))?)
}

#[test]
fn a_loss_that_is_not_finite_stops_the_step() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let s = Stream::cpu(1, Isa::detect());
    let examples = examples();
    let all: Vec<&Example> = examples.iter().collect();
    for value in [f32::NAN, f32::INFINITY] {
        let mut trainer = trainer(&s, folder.path(), value)?;
        let mut w = Workspace::new(&s, &trainer.model, pack::limits(64), None)?;
        let before = trainer.model.slot(trainer.policy)?.map(|l| l.download(&s)).transpose()?;
        let outcome = trainer.step(&mut w, &Sft, &all);
        ensure!(outcome.as_ref().is_err_and(|e| e.exit_code() == 5), "{value}: not a numeric stop: {outcome:?}");
        refused("a loss that is not finite", outcome, &["of 15 log-probabilities are not finite", "step 1", "70, 71, 72"])?;
        let after = trainer.model.slot(trainer.policy)?.map(|l| l.download(&s)).transpose()?;
        let numbers = |a: Option<model::adapter::Adapter>| -> Vec<u32> {
            a.iter().flat_map(|a| &a.modules).flat_map(|m| m.a.iter().chain(&m.b)).map(|v| v.to_bits()).collect()
        };
        ensure!(numbers(before) == numbers(after), "{value}: the step changed the adapter");
    }
    Ok(())
}

#[test]
fn an_example_larger_than_a_micro_batch_is_named() -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let s = Stream::cpu(1, Isa::detect());
    let mut trainer = trainer(&s, folder.path(), 0.1)?;
    let mut w = Workspace::new(&s, &trainer.model, pack::limits(7), None)?;
    let examples = examples();
    let all: Vec<&Example> = examples.iter().collect();
    refused("an example of 8 tokens", trainer.step(&mut w, &Sft, &all), &["row 70", "8 tokens", "max_tokens_per_micro_batch 7"])
}
