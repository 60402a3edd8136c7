//! The fuzzed functions over their seeds and mutations of them, with their memory where it is bounded.

use super::functions::{ALL, Function};
use super::{Tally, jinja, json, rounds, seeds};
use anyhow::{Context, Result, ensure};
use ple_tests::tiny::Random;
use serde_json::Value;

/// Of the function with that name.
fn function(name: &str) -> Result<&'static Function> {
    ALL.iter().find(|f| f.name == name).with_context(|| name.to_string())
}

/// Every seed passes the outer parse; then rounds over what `mutate` makes of a seed.
fn campaign(name: &str, small: usize, bounded: bool, mut mutate: impl FnMut(&[u8], &mut Random) -> Vec<u8>) -> Result<()> {
    let (function, seeds, mut random, mut tally) = (function(name)?, seeds(name)?, Random(name.len() as u64), Tally::default());
    for (path, seed) in &seeds {
        ensure!((function.run)(seed), "{} is not past the outer parse", path.display());
    }
    for _ in 0..rounds(small) {
        let (path, seed) = &seeds[random.below(seeds.len() as u32) as usize];
        let bytes = mutate(seed, &mut random);
        let len = bounded.then_some(bytes.len());
        tally.counted(len, || (function.run)(&bytes)).with_context(|| format!("a mutation of {}", path.display()))?;
    }
    tally.end(name)
}

/// The seeds of a function as JSON.
fn values(name: &str) -> Result<Vec<Value>> {
    seeds(name)?.iter().map(|(path, bytes)| serde_json::from_slice(bytes).with_context(|| path.display().to_string())).collect()
}

fn json_campaign(name: &str, small: usize, bounded: bool) -> Result<()> {
    let others = values(name)?;
    campaign(name, small, bounded, |seed, random| {
        let seed = serde_json::from_slice(seed).unwrap_or_default();
        let value = json::mutated(&seed, &others, random);
        json::text(&value, random)
    })
}

#[test]
fn configs() -> Result<()> {
    json_campaign("config", 6000, true)
}

#[test]
fn adapter_configs() -> Result<()> {
    json_campaign("adapter", 4000, true)
}

#[test]
fn tokenizer_configs() -> Result<()> {
    json_campaign("tokenizer", 1000, false)
}

#[test]
fn safetensors() -> Result<()> {
    let others = super::adapters::headers(&seeds("safetensors")?)?;
    campaign("safetensors", 4000, true, |seed, random| super::adapters::damaged(seed, &others, random))
}

#[test]
fn rows() -> Result<()> {
    campaign("rows", 1000, false, |seed, random| {
        let text = String::from_utf8_lossy(seed).into_owned();
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let one = |line: &Value, random: &mut Random| {
            let value = json::mutated(line, &lines, random);
            // A row is a line.
            let damage = random.below(8) == 0;
            let text = value.to_string().into_bytes();
            if damage { json::bytes(&text, random) } else { text }
        };
        lines.iter().flat_map(|line| [one(line, random), b"\n".to_vec()].concat()).collect()
    })
}

#[test]
fn templates() -> Result<()> {
    let others: Vec<String> = seeds("template")?.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).collect();
    campaign("template", 600, false, |seed, random| jinja::mutated(&String::from_utf8_lossy(seed), &others, random).into_bytes())
}

#[test]
fn yaml() -> Result<()> {
    campaign("yaml", 2000, false, |seed, random| {
        let mut lines: Vec<&[u8]> = seed.split(|byte| *byte == b'\n').collect();
        let at = random.below(lines.len() as u32) as usize;
        match random.below(4) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[random.below(lines.len() as u32) as usize]),
            2 => return json::bytes(seed, random),
            _ => lines.swap(at, 0),
        }
        lines.join(&b'\n')
    })
}
