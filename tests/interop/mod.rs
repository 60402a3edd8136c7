//! Adapters between here and PEFT, both ways. Runs where `PLE_PYTHON` (default `python3`) has peft and transformers; elsewhere it says so.

use anyhow::{Context, Result, ensure};
use model::adapter::Adapter as HostAdapter;
use model::merge::{merge, whole};
use model::weights::{Checkpoint, write_safetensors};
use model::{Adapter, AdapterConfig, Config, Lora, Targets, Transformer};
use ple_tests::data::say;
use ple_tests::{pass, tiny};
use runtime::{DType, Isa, Stream};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Python that has what is needed.
fn python() -> Option<String> {
    let python = std::env::var("PLE_PYTHON").unwrap_or_else(|_| "python3".into());
    let found = Command::new(&python).args(["-c", "import peft, transformers, torch, safetensors"]).output();
    if found.is_ok_and(|out| out.status.success()) {
        return Some(python);
    }
    let required = std::env::var("PLE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item.trim() == "peft"));
    assert!(!required, "PLE_REQUIRE=peft, but {python} has no peft");
    say(&format!("skip: {python} has no peft, transformers and torch (PLE_PYTHON names another)"));
    None
}

/// A tiny model as transformers reads it: with the metadata of PyTorch's tensors.
fn base(folder: &Path, config: &Value) -> Result<()> {
    let tiny = tiny::of(config, DType::F32)?;
    std::fs::create_dir_all(folder)?;
    std::fs::copy(tiny.path().join("config.json"), folder.join("config.json"))?;
    let checkpoint = Checkpoint::open(tiny.path())?;
    let tensors: Vec<_> = checkpoint.names().map(|name| checkpoint.tensor(name)).collect::<model::Result<_>>()?;
    let rows: Vec<_> = tensors.iter().map(|t| (t.name.to_string(), t.dtype, t.shape.to_vec(), t.bytes)).collect();
    Ok(write_safetensors(&folder.join("model.safetensors"), &rows)?)
}

fn names(list: &[&str]) -> Targets {
    Targets::List(list.iter().map(|n| n.to_string()).collect())
}

fn plain(targets: Targets) -> AdapterConfig {
    AdapterConfig::new(6, 9.0, targets)
}

/// What is tried on a Llama.
fn llama() -> Vec<(&'static str, AdapterConfig)> {
    let mut patterns = AdapterConfig { use_rslora: true, ..plain(Targets::AllLinear) };
    patterns.rank_pattern = vec![("self_attn.q_proj".into(), 3), (r".*\.1\.mlp\..*".into(), 10)];
    patterns.alpha_pattern = vec![("up_proj".into(), 2.5)];
    let layers = AdapterConfig { layers_to_transform: vec![1], ..plain(names(&["v_proj", "gate_proj"])) };
    vec![
        ("plain", plain(names(&["q_proj", "down_proj"]))),
        ("everything", plain(Targets::AllLinear)),
        ("patterns", patterns),
        ("regex", plain(Targets::Regex(r".*\.0\..*_proj".into()))),
        ("layers", layers),
        ("dora", AdapterConfig { use_dora: true, ..plain(names(&["k_proj", "up_proj"])) }),
    ]
}

/// The same on a GPT-2, whose Conv1D lie transposed: `fan_in_fan_out` as a run of ours writes it.
fn gpt2() -> Vec<(&'static str, AdapterConfig)> {
    let plain = |targets| AdapterConfig { fan_in_fan_out: true, ..plain(targets) };
    let mut patterns = AdapterConfig { use_rslora: true, ..plain(Targets::AllLinear) };
    patterns.rank_pattern = vec![("attn.c_proj".into(), 3), (r".*\.1\.mlp\..*".into(), 10)];
    patterns.alpha_pattern = vec![("c_fc".into(), 2.5)];
    vec![
        ("plain", plain(names(&["c_attn"]))),
        ("everything", plain(Targets::AllLinear)),
        ("patterns", patterns),
        ("paths", plain(names(&["transformer.h.1.mlp.c_proj", "c_fc"]))),
        ("dora", AdapterConfig { use_dora: true, ..plain(names(&["c_attn", "c_proj"])) }),
    ]
}

/// Adapters of ours with random numbers, by name.
fn ours(model: &Transformer, all: Vec<(&'static str, AdapterConfig)>) -> Result<Vec<(&'static str, HostAdapter)>> {
    let mut list = Vec::new();
    for (name, config) in all {
        let dora = config.use_dora;
        let mut adapter = HostAdapter::fresh(config, &model.modules(), 11, kernels::sample::philox)?;
        let mut random = tiny::Random(name.len() as u64);
        for m in &mut adapter.modules {
            m.b.iter_mut().for_each(|b| *b = 0.1 * random.symmetric());
            m.magnitude = dora.then(|| (0..m.out_features).map(|_| 1.0 + 0.5 * random.symmetric()).collect());
        }
        list.push((name, adapter));
    }
    Ok(list)
}

/// Logits of all rows with a slot of its own.
fn beside(s: &Stream, base: &Path, adapter: HostAdapter, rows: &[Vec<u32>]) -> Result<Vec<f32>> {
    let mut model = Transformer::load(s, base, None)?;
    let lora = Lora::upload(s, model.base(), adapter)?;
    let slot = model.add_slot(lora)?;
    pass::logits(s, &model, rows, slot)
}

/// Largest difference of two logits over the largest logit.
fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    let largest = theirs.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
    let most = ours.iter().zip(theirs).fold(0f64, |m, (a, b)| m.max(f64::from((a - b).abs())));
    if ours.len() == theirs.len() { most / largest } else { f64::INFINITY }
}

/// The adapter's folder against what PEFT computed with it.
fn compare(s: &Stream, base: &Path, folder: &Path, rows: &[Vec<u32>]) -> Result<f64> {
    let (config, checkpoint) = (Config::from_folder(base)?, Checkpoint::open(base)?);
    let golden = Checkpoint::open_file(&folder.join("logits.safetensors"))?;
    let mut worst = 0f64;
    if let Ok(adapter) = HostAdapter::load(folder, &config.modules()) {
        worst = worst.max(distance(&beside(s, base, adapter, rows)?, &golden.tensor("logits")?.to_f32()));
    } else {
        ensure!(["head", "embedding"].iter().any(|n| folder.ends_with(n)), "{} does not load", folder.display());
    }
    let adapter = HostAdapter::load_with(folder, &config.modules(), &whole(&config))?;
    let merged = tempfile::tempdir()?;
    std::fs::copy(base.join("config.json"), merged.path().join("config.json"))?;
    merge(&checkpoint, &config, &adapter, None, merged.path(), &mut |_| ControlFlow::Continue(()))?;
    let model = Transformer::load(s, merged.path(), None)?;
    let theirs = golden.tensor("merged").or_else(|_| golden.tensor("logits"))?.to_f32();
    Ok(worst.max(distance(&pass::logits(s, &model, rows, Adapter::Off)?, &theirs)))
}

/// Adapters of ours as PEFT reads them, and PEFT's as they are read here, on a model of this configuration; how many there are.
fn compared(python: &str, config: &Value, all: Vec<(&'static str, AdapterConfig)>) -> Result<usize> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    base(&at("base"), config)?;
    let s = Stream::cpu(2, Isa::detect());
    let model = Transformer::load(&s, &at("base"), None)?;
    let mut random = tiny::Random(3);
    let rows: Vec<Vec<u32>> = [1, 17, 70].map(|n| random.ids(n)).to_vec();
    std::fs::write(at("ids.json"), json!(rows).to_string())?;
    for (name, adapter) in ours(&model, all)? {
        adapter.save(&at("ours").join(name))?;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/peft_cases.py");
    let out = Command::new(python).arg(script).arg(dir.path()).env("HF_HUB_OFFLINE", "1").output()?;
    let (said, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ensure!(out.status.success(), "PEFT: {error}");
    say(said.trim());
    // f32 here, float64 there: what that alone makes of the base is the noise, and the limit is that of the golden cases.
    let alone = Checkpoint::open_file(&at("base_logits.safetensors"))?.tensor("logits")?.to_f32();
    let noise = distance(&pass::logits(&s, &model, &rows, Adapter::Off)?, &alone);
    let limit = f64::max(8.0 * noise, 2e-6);
    let family = &config["model_type"];
    say(&format!("interop {family} alone: logits within {noise:.1e} of PEFT's, limit {limit:.1e}"));
    let mut count = 0;
    for side in ["ours", "theirs"] {
        let entries = std::fs::read_dir(at(side))?.map(|e| Ok(e?.path())).collect::<Result<Vec<PathBuf>>>()?;
        for folder in entries {
            let name = folder.file_name().context("a name")?.to_string_lossy().into_owned();
            let far = compare(&s, &at("base"), &folder, &rows).with_context(|| format!("{side}/{name}"))?;
            // An adapter that did nothing would agree whatever was read of it.
            let theirs = Checkpoint::open_file(&folder.join("logits.safetensors"))?.tensor("logits")?.to_f32();
            ensure!(distance(&theirs, &alone) > 100.0 * limit, "{side}/{name} does nothing");
            say(&format!("interop {family} {side}/{name}: logits within {far:.1e} of PEFT's"));
            ensure!(noise < 1e-5 && far < limit, "{side}/{name}: {far:e}");
            count += 1;
        }
    }
    Ok(count)
}

#[test]
fn adapters_mean_the_same_to_peft() -> Result<()> {
    let Some(python) = python() else { return Ok(()) };
    let count = compared(&python, &tiny::config(false), llama())?;
    ensure!(count == 19, "{count} adapters of a Llama");
    let config = tiny::families().into_iter().find(|c| c["model_type"] == "gpt2").context("gpt2")?;
    let count = compared(&python, &config, gpt2())?;
    ensure!(count == 11, "{count} adapters of a GPT-2");
    Ok(())
}
