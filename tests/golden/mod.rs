//! Agreement with golden numbers. The manifest of `$PLE_SHARED/fixtures` alone decides which cases exist; each prints
//! `case NAME ok CHECKED/TOTAL` (tensors of its golden files) or `case NAME skip REASON`.

mod decoding;
mod lm;
mod losses;
mod methods;
mod ops;
mod reward;
mod stories;
mod tokens;
mod training;

use anyhow::{Context, Result};
use ple_tests::data::{say, shared};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A case of the manifest.
pub struct Case {
    name: String,
    /// Its folder, or an op's file.
    path: PathBuf,
    /// Its entry of the manifest.
    entry: Value,
}

/// What became of a case.
enum Outcome {
    Held(bool),
    Skip(&'static str),
}

pub fn json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
}

/// A number of a golden file.
pub fn number(v: &Value, what: &str) -> Result<f64> {
    v.as_f64().with_context(|| format!("{what} is {v}, not a number"))
}

/// Numbers of a golden file.
pub fn numbers(v: &Value, what: &str) -> Result<Vec<f64>> {
    v.as_array().with_context(|| format!("{what} is not a list"))?.iter().map(|v| number(v, what)).collect()
}

/// Ids of a golden file.
pub fn ids(v: &Value, what: &str) -> Result<Vec<u32>> {
    Ok(numbers(v, what)?.into_iter().map(|id| id as u32).collect())
}

/// The manifest's cases of one list and kind, and whether the set is the public one, of which every tensor is known.
fn cases(list: &str, kind: &str) -> Result<(Vec<Case>, bool)> {
    let Some(manifest) = shared("fixtures/manifest.json") else { return Ok((Vec::new(), false)) };
    let fixtures = manifest.parent().unwrap_or(Path::new(".")).to_path_buf();
    let manifest = json(&manifest)?;
    let entries = manifest[list].as_array().with_context(|| format!("manifest.json: {list}"))?;
    let of_kind = entries.iter().filter(|e| e["kind"].as_str().is_some_and(|k| k.starts_with(kind)));
    let case = |e: &Value| {
        let text = |field: &str| e[field].as_str().unwrap_or_default().to_string();
        let path = fixtures.join(if list == "ops" { text("file") } else { text("dir") });
        Case { name: text("name"), path, entry: e.clone() }
    };
    Ok((of_kind.map(case).collect(), manifest["set"] == "public"))
}

/// Runs every case of a kind; a case that cannot run at all has failed.
fn run(list: &str, kind: &str, one: impl Fn(&Case, bool) -> Result<Outcome>) -> Result<()> {
    let (cases, public) = cases(list, kind)?;
    let mut failed = Vec::new();
    for case in &cases {
        match one(case, public) {
            Ok(Outcome::Held(true)) => {}
            Ok(Outcome::Skip(reason)) => say(&format!("case {} skip {reason}", case.name)),
            Ok(Outcome::Held(false)) => failed.push(case.name.clone()),
            Err(e) => {
                say(&format!("case {} FAILED {e:#}", case.name));
                failed.push(case.name.clone());
            }
        }
    }
    anyhow::ensure!(failed.is_empty(), "golden cases failed: {failed:?}");
    Ok(())
}

/// Every case of every kind, for the program `tests golden`; the test binary runs the same functions one by one.
#[cfg_attr(test, allow(dead_code))]
pub fn all() -> Result<()> {
    let parts = [
        language_models,
        reward_models,
        operators,
        methods::methods,
        stories::stories_f32,
        stories::stories_bf16,
        stories::stories_adapter,
    ];
    let failed: Vec<String> = parts.iter().filter_map(|part| part().err()).map(|e| format!("{e:#}")).collect();
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

#[cfg_attr(test, test)]
pub fn language_models() -> Result<()> {
    run("cases", "causal_lm", |case, public| Ok(Outcome::Held(lm::run(case, public)?)))
}

#[cfg_attr(test, test)]
pub fn reward_models() -> Result<()> {
    run("cases", "reward", |case, public| match case.entry["kind"].as_str() {
        Some("reward_decoder") => Ok(Outcome::Held(reward::run(case, public)?)),
        _ => Ok(Outcome::Skip("encoders are not built yet")),
    })
}

#[cfg_attr(test, test)]
pub fn operators() -> Result<()> {
    run("ops", "op", ops::run)
}
