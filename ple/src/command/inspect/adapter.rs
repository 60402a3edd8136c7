//! An adapter's folder: what it sits on, how strongly, and whether it fits a base.

use super::report::{Facts, Report};
use crate::Result;
use crate::command::required;
use crate::config::Config;
use crate::identity;
use model::adapter::Adapter;
use model::merge::whole;
use model::weights::Checkpoint;
use model::{AdapterConfig, Targets};
use serde_json::{Value, json};
use std::path::Path;

pub(super) fn report(c: &Config) -> Result<Report> {
    let folder = required(&c.adapter, "adapter")?;
    let mut facts = Facts::default();
    facts.put("folder", folder.display().to_string());
    let config = facts.refuse(AdapterConfig::from_folder(folder));
    if let Some(config) = &config {
        said(config, &mut facts);
    }
    kept(folder, &mut facts);
    let fitted = match (&c.model_name_or_path, &config) {
        (Some(base), Some(_)) => on(base, folder, &mut facts),
        _ => None,
    };
    let modules = match (&fitted, &config) {
        (Some(adapter), _) => {
            adapter.modules.iter().map(|m| module(&m.path, f64::from(m.scale), m.r, &m.a, &m.b, m.magnitude.as_deref())).collect()
        }
        // What is wrong with its tensors was said by the base, if there is one.
        (None, Some(config)) => match (stored(folder, config), &c.model_name_or_path) {
            (modules, None) => facts.refuse(modules).unwrap_or_default(),
            (modules, Some(_)) => modules.unwrap_or_default(),
        },
        (None, None) => Vec::new(),
    };
    let saved = config.as_ref().and_then(|config| saved(folder, config).ok()).unwrap_or_default();
    let parameters = |list: &[Value]| list.iter().filter_map(|m| m["parameters"].as_u64()).sum::<u64>();
    facts.put("parameters", parameters(&modules) + parameters(&saved));
    facts.put("modules", modules);
    facts.put("saved_whole", if saved.is_empty() { Value::Null } else { saved.into() });
    if let (Some(config), true) = (&config, facts.fine()) {
        facts.put("taken_by", taken_by(config));
    }
    Ok(facts.report())
}

/// Which commands take it, if it fits their base.
fn taken_by(config: &AdapterConfig) -> String {
    let own = config.modules_to_save.iter().find(|name| !matches!(name.as_str(), "score" | "classifier"));
    match own {
        Some(name) => format!("ple merge alone: {name} is saved whole, and beside a base it would be a second copy"),
        None if config.use_dora => "all but training: DoRA is run and merged".into(),
        None if config.lora_dropout > 0.0 => format!("all but training: lora_dropout is {}", config.lora_dropout),
        None => "all".into(),
    }
}

fn said(config: &AdapterConfig, facts: &mut Facts) {
    let targets = |targets: &Targets| match targets {
        Targets::AllLinear => json!("all-linear"),
        Targets::Regex(text) => json!({ "regex": text }),
        Targets::List(list) => json!(list),
    };
    facts.put("targets", targets(&config.target_modules));
    facts.put("excluded", config.exclude_modules.as_ref().map_or(Value::Null, targets));
    facts.put("r", config.r);
    facts.put("lora_alpha", config.lora_alpha);
    facts.put("use_rslora", config.use_rslora);
    facts.put("use_dora", config.use_dora);
    facts.put("scale", scale(config, config.r));
    let pattern = |list: Vec<(String, Value)>| if list.is_empty() { Value::Null } else { list.into_iter().collect() };
    facts.put("rank_pattern", pattern(config.rank_pattern.iter().map(|(k, r)| (k.clone(), json!(r))).collect()));
    facts.put("alpha_pattern", pattern(config.alpha_pattern.iter().map(|(k, x)| (k.clone(), json!(x))).collect()));
    let whole = &config.modules_to_save;
    facts.put("modules_to_save", if whole.is_empty() { Value::Null } else { json!(whole) });
    facts.put("task_type", json!(config.task_type));
    facts.put("base", json!(config.base_model_name_or_path));
    facts.put("warnings", if config.warnings.is_empty() { Value::Null } else { json!(config.warnings) });
}

fn scale(config: &AdapterConfig, r: usize) -> f64 {
    config.lora_alpha / if config.use_rslora { (r as f64).sqrt() } else { r as f64 }
}

/// What `base.json` keeps of the tokenizer, template and end ids that it was trained with.
fn kept(folder: &Path, facts: &mut Facts) {
    match facts.refuse(identity::kept(folder)) {
        Some(Some(kept)) => {
            ["tokenizer_sha256", "chat_template_sha256", "stop_ids"].iter().for_each(|name| facts.put(name, kept[*name].clone()));
        }
        Some(None) => facts.put("trained_with", "unknown: no base.json, so tokenizer and template are not checked"),
        None => {}
    }
}

/// The adapter on its base: another tokenizer or template, or modules that are not there, are refused.
fn on(base: &Path, folder: &Path, facts: &mut Facts) -> Option<Adapter> {
    facts.refuse(identity::check(base, folder));
    let config = facts.refuse(model::Config::from_folder(base))?;
    facts.refuse(Adapter::load_with(folder, &config.modules(), &whole(&config)))
}

/// The name of a tensor in the base.
fn base_name(name: &str) -> &str {
    name.strip_prefix("base_model.model.").unwrap_or(name)
}

fn tensors(folder: &Path) -> model::Result<Checkpoint> {
    Checkpoint::open_file(&folder.join("adapter_model.safetensors"))
}

/// Modules by the tensors' names, without a base to compare with. Where a pattern gives modules their own alpha, the scale is not known.
fn stored(folder: &Path, config: &AdapterConfig) -> model::Result<Vec<Value>> {
    let checkpoint = tensors(folder)?;
    let mut modules = Vec::new();
    for name in checkpoint.names() {
        let Some(path) = name.strip_suffix(".lora_A.weight") else { continue };
        let (a, b) = (checkpoint.tensor(name)?, checkpoint.tensor(&format!("{path}.lora_B.weight"))?);
        let magnitude = config.use_dora.then(|| checkpoint.tensor(&format!("{path}.lora_magnitude_vector"))).transpose()?;
        let magnitude = magnitude.map(|tensor| tensor.to_f32());
        let r = a.shape.first().copied().unwrap_or(0);
        let scale = if config.alpha_pattern.is_empty() { scale(config, r) } else { f64::NAN };
        modules.push(module(base_name(path), scale, r, &a.to_f32(), &b.to_f32(), magnitude.as_deref()));
    }
    Ok(modules)
}

/// Tensors that `modules_to_save` names and that stand in the place of the base's.
fn saved(folder: &Path, config: &AdapterConfig) -> model::Result<Vec<Value>> {
    let checkpoint = tensors(folder)?;
    let mut list = Vec::new();
    for name in checkpoint.names() {
        let path = base_name(name).strip_suffix(".weight").unwrap_or_default();
        if config.modules_to_save.iter().any(|own| path == own || path.ends_with(&format!(".{own}"))) {
            let tensor = checkpoint.tensor(name)?;
            list.push(json!({ "tensor": base_name(name), "shape": tensor.shape, "type": tensor.dtype.to_string(),
                "parameters": tensor.shape.iter().product::<usize>() }));
        }
    }
    Ok(list)
}

/// Frobenius norms of A `[R, I]`, B `[O, R]` and scale · B A, the last from the R x R products: tr(BᵀB · AAᵀ); of DoRA's lengths `[O]` too.
fn module(path: &str, scale: f64, r: usize, a: &[f32], b: &[f32], magnitude: Option<&[f32]>) -> Value {
    let width = a.len().checked_div(r).unwrap_or(0);
    let dot = |x: &mut dyn Iterator<Item = (f32, f32)>| x.map(|(x, y)| f64::from(x) * f64::from(y)).sum::<f64>();
    let row = |i: usize| a[i * width..(i + 1) * width].iter().copied();
    let column = |i: usize| b.iter().skip(i).step_by(r).copied();
    let (mut squares, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for i in 0..r {
        for j in 0..r {
            let (aa, bb) = (dot(&mut row(i).zip(row(j))), dot(&mut column(i).zip(column(j))));
            squares += aa * bb;
            if i == j {
                (of_a, of_b) = (of_a + aa, of_b + bb);
            }
        }
    }
    let number = |x: f64| crate::log::number((x * 1e6).round() / 1e6);
    let lengths = magnitude.unwrap_or_default();
    let mut facts = json!({ "module": path, "r": r, "scale": number(scale), "norm_a": number(of_a.sqrt()),
        "norm_b": number(of_b.sqrt()), "norm_change": number(scale * squares.max(0.0).sqrt()),
        "parameters": a.len() + b.len() + lengths.len() });
    if magnitude.is_some() {
        facts["norm_magnitude"] = number(lengths.iter().map(|m| f64::from(*m).powi(2)).sum::<f64>().sqrt());
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_are_those_of_the_product() {
        // A = [[1, 2], [0, 1]], B = [[1, 0], [3, 1], [0, 2]]: B A = [[1, 2], [3, 7], [0, 2]].
        let got = module("m", 0.5, 2, &[1.0, 2.0, 0.0, 1.0], &[1.0, 0.0, 3.0, 1.0, 0.0, 2.0], None);
        let near = |name: &str, wanted: f64| (got[name].as_f64().unwrap_or(f64::NAN) - wanted).abs() < 1e-6;
        assert!(near("norm_a", 6f64.sqrt()) && near("norm_b", 15f64.sqrt()) && near("norm_change", 0.5 * 67f64.sqrt()), "{got}");
        assert_eq!((&got["r"], &got["parameters"]), (&json!(2), &json!(10)));
        assert_eq!(module("m", 1.0, 0, &[], &[], None)["norm_change"], json!(0.0));
        let dora = module("m", 1.0, 1, &[1.0], &[2.0, 0.0], Some(&[3.0, 4.0]));
        assert_eq!((&dora["norm_magnitude"], &dora["parameters"]), (&json!(5.0), &json!(5)));
    }
}
