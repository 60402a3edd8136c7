//! The memory that a run plans before its first step: that is what the device hands out, and what does not fit is refused with what would.

use super::{DEVICE, Stage};
use crate::e2e::program::Ple;
use anyhow::{Context, Result, ensure};
use ple_tests::data::say;
use serde_json::Value;

/// At most so much of what was planned is not used.
const SLACK: f64 = 0.05;
/// A micro-batch so small that activations do not drown the other parts.
const SMALL: &str = "--max_steps 2 --learning_rate 0.01 --max_tokens_per_micro_batch 64";

/// Planned and seen bytes of a run that succeeds.
fn held(stage: &Stage, what: &str, call: Ple) -> Result<(u64, u64)> {
    let said = call.succeed()?;
    let run: Value = serde_json::from_slice(&stage.read("out/run.json")?)?;
    let bytes = |value: &Value| value.as_u64().with_context(|| format!("{what}: {}", run["memory"]));
    let (planned, peak) = (bytes(&run["memory"]["planned"]["total"])?, bytes(&run["memory"]["peak"])?);
    say(&format!("  {what}: {peak} bytes of {planned} planned"));
    ensure!(peak <= planned && peak as f64 >= (1.0 - SLACK) * planned as f64, "{what}: {peak} bytes of {planned} planned");
    let lines = |text: &str| said.out.lines().filter(|line| line.starts_with("memory ") && line.contains(text)).count();
    ensure!(lines("activations") == 1 && lines("at most were in use") == 1, "{what}: {}", said.out);
    Ok((planned, peak))
}

#[test]
fn a_run_uses_the_memory_that_it_planned() -> Result<()> {
    let stage = Stage::new()?;
    let adapter = || stage.read("out/adapter_model.safetensors");
    let (whole, _) = held(&stage, "cpu", stage.sft().and(SMALL))?;
    let want = adapter()?;
    let (less, _) = held(&stage, "cpu, checkpointing", stage.sft().and(SMALL).and("--gradient_checkpointing"))?;
    ensure!(adapter()? == want && less < whole, "checkpointing plans {less} bytes of {whole}, or trains another adapter");
    held(&stage, "cpu, full", stage.sft().and(SMALL).and("--tune full"))?;
    held(&stage, "cpu, train", stage.train().and("--max_tokens_per_micro_batch 64"))?;
    held(&stage, "cpu, train checkpointing", stage.train().and("--max_tokens_per_micro_batch 64 --gradient_checkpointing true"))?;
    let staged = stage.train().key("sft_dataset_name", stage.path("rows.jsonl")).and("--max_tokens_per_micro_batch 64");
    held(&stage, "cpu, train after sft", staged).map(drop)
}

#[test]
fn on_cuda_a_run_uses_the_memory_that_it_planned() -> Result<()> {
    let (stage, Some(made)) = (Stage::new()?, emulator::libraries()) else { return Ok(()) };
    stage.sft().and(SMALL).succeed()?;
    let adapter = || stage.read("out/adapter_model.safetensors");
    let (want, call) = (adapter()?, || stage.sft().and(SMALL).and("--device cuda:0").libraries(made));
    let (whole, _) = held(&stage, "cuda:0 (emulated)", call())?;
    let (less, _) = held(&stage, "cuda:0 (emulated), checkpointing", call().and("--gradient_checkpointing"))?;
    ensure!(adapter()? == want && less < whole, "checkpointing plans {less} bytes of {whole}, or trains another adapter");
    held(&stage, "cuda:0 (emulated), bf16", call().and("--dtype bfloat16"))?;
    held(&stage, "cuda:0 (emulated), full", call().and("--tune full")).map(drop)
}

/// The emulated device has 4 GiB: 600,000 tokens fit with inputs alone, 900,000 do not fit.
#[test]
fn on_cuda_checkpointing_is_chosen_where_nothing_else_fits() -> Result<()> {
    let (stage, Some(made)) = (Stage::new()?, emulator::libraries()) else { return Ok(()) };
    let call = |more: &str| stage.sft().and("--dry_run --device cuda:0 --max_tokens_per_micro_batch").and(more).libraries(made);
    let again = "made again";
    let plain = |more: &str| -> Result<bool> { Ok(!call(more).succeed()?.out.contains(again)) };
    ensure!(plain("4096")? && !plain("600000")? && !plain("4096 --gradient_checkpointing")?, "another choice");
    let words = ["out of memory", "training on cuda:0", "bytes are free", "weights", "max_tokens_per_micro_batch", "lora_r"];
    call("600000 --gradient_checkpointing false").refuse(DEVICE, &[&words[..], &["gradient_checkpointing true"]].concat())?;
    call("900000").refuse(DEVICE, &[&words[..], &[again]].concat())
}

#[test]
fn what_the_machine_cannot_hold_is_refused_before_the_run() -> Result<()> {
    let stage = Stage::new()?;
    if !std::path::Path::new("/proc/meminfo").exists() {
        eprintln!("skip: no meminfo: the machine's memory is not known");
        return Ok(());
    }
    let words = ["out of memory", "training on cpu", "bytes are free", "max_tokens_per_micro_batch", "tune lora"];
    stage.sft().and("--max_tokens_per_micro_batch 4294967295 --tune full").refuse(DEVICE, &words)?;
    stage.left_clean()
}
