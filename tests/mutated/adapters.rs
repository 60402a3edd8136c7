//! Safetensors by their headers, and whole adapter folders.

use super::functions::modules;
use super::{Tally, json, rounds, seeds};
use anyhow::{Context, Result, ensure};
use model::adapter::Adapter;
use ple_tests::tiny::Random;
use runtime::DType;
use serde_json::Value;
use std::path::PathBuf;

/// Header and data of a file.
fn parts(file: &[u8]) -> Option<(Value, &[u8])> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    let (header, data) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    Some((serde_json::from_slice(header).ok()?, data))
}

pub fn headers(seeds: &[(PathBuf, Vec<u8>)]) -> Result<Vec<Value>> {
    let of =
        |(path, bytes): &(PathBuf, Vec<u8>)| parts(bytes).map(|(header, _)| header).with_context(|| path.display().to_string());
    seeds.iter().map(of).collect()
}

/// Another header before the same data, which may be longer or shorter; its length is right but once in eight.
pub fn damaged(file: &[u8], others: &[Value], random: &mut Random) -> Vec<u8> {
    let Some((header, data)) = parts(file) else { return json::bytes(file, random) };
    let header = json::mutated(&header, others, random);
    let text = json::text(&header, random);
    let length = match random.below(8) {
        0 => 1u64 << random.below(64),
        _ => text.len() as u64,
    };
    let mut out = [&length.to_le_bytes()[..], &text, data].concat();
    match random.below(8) {
        0 => out.truncate(random.below(out.len() as u32 + 1) as usize),
        1 => out.extend([0; 4]),
        2 if !data.is_empty() => {
            let at = out.len() - 1 - random.below(data.len() as u32) as usize;
            out[at] = random.below(256) as u8;
        }
        _ => {}
    }
    out
}

/// The tensors of a whole adapter of rank 2 on the modules of the seeds' configuration.
fn tensors(folder: &std::path::Path) -> Result<Vec<u8>> {
    let values: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let mut list = Vec::new();
    for module in modules().iter().filter(|m| m.path.ends_with("q_proj") || m.path.ends_with("v_proj")) {
        for (name, shape) in [("lora_A", vec![2, 4]), ("lora_B", vec![4, 2])] {
            list.push((format!("base_model.model.{}.{name}.weight", module.path), DType::F32, shape, &values[..]));
        }
    }
    let path = folder.join("adapter_model.safetensors");
    model::weights::write_safetensors(&path, &list)?;
    Ok(std::fs::read(path)?)
}

#[test]
fn folders() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path();
    let configs: Vec<Value> =
        seeds("adapter")?.iter().map(|(_, bytes)| serde_json::from_slice(bytes)).collect::<Result<_, _>>()?;
    let config = configs
        .iter()
        .find(|c| c["r"] == 2 && c["target_modules"].is_array() && c["use_dora"] == false)
        .context("a plain seed")?
        .clone();
    let whole = tensors(folder)?;
    let headers = vec![parts(&whole).context("a header")?.0];
    let expected = modules();
    std::fs::write(folder.join("adapter_config.json"), config.to_string())?;
    ensure!(Adapter::load(folder, &expected).is_ok(), "{:?}", Adapter::load(folder, &expected));
    let (mut random, mut tally, mut loaded) = (Random(3), Tally::default(), 0);
    for _ in 0..rounds(2000) {
        // The configuration, the tensors, or both.
        let which = random.below(3);
        let text = if which == 1 {
            config.to_string().into_bytes()
        } else {
            json::text(&json::mutated(&config, &configs, &mut random), &mut random)
        };
        let file = if which == 0 { whole.clone() } else { damaged(&whole, &headers, &mut random) };
        std::fs::write(folder.join("adapter_config.json"), &text)?;
        std::fs::write(folder.join("adapter_model.safetensors"), &file)?;
        let past = parts(&file).is_some_and(|(header, _)| header.is_object())
            && serde_json::from_slice::<Value>(&text).is_ok_and(|v| v.is_object());
        tally.counted(Some(text.len() + file.len()), || {
            if let Ok(adapter) = Adapter::load(folder, &expected) {
                assert!(adapter.modules.iter().all(|m| m.a.len() == m.r * m.in_features && m.b.len() == m.r * m.out_features));
                loaded += 1;
            }
            past
        })?;
    }
    ple_tests::data::say(&format!("adapter folders: {loaded} of {} load", tally.rounds));
    ensure!(loaded * 100 > tally.rounds && loaded < tally.rounds, "{loaded} of {} load", tally.rounds);
    tally.end("adapter folders")
}
