//! The real pretrained checkpoint `stories260k`, in f32, in bf16 and under a real adapter. Each case skips by itself where its
//! folder is absent.

use super::decoding::greedy;
use super::{ids, json, number};
use anyhow::{Context, Result, ensure};
use model::adapter::Adapter as HostAdapter;
use model::{Adapter, Keep, Lora, Tokenizer, Transformer};
use ple_tests::data::{say, shared};
use ple_tests::pass;
use ple_tests::tensors::Golden;
use runtime::{Isa, Stream};
use std::path::Path;

/// The limit of f32 logits against the f64 forward.
const LOGITS: f64 = 5e-5;

/// Logits, greedy ids, texts and log-likelihoods of a golden folder, for this model and adapter.
fn compare(case: &str, folder: &Path, model_folder: &Path, adapter: Option<&Path>) -> Result<()> {
    let s = Stream::cpu(2, Isa::detect());
    let mut model = Transformer::load(&s, model_folder, None)?;
    let mut slot = Adapter::Off;
    if let Some(path) = adapter {
        let lora = Lora::upload(&s, model.base(), HostAdapter::load(path, &model.modules())?)?;
        slot = model.add_slot(lora)?;
    }
    let tokenizer = Tokenizer::open(model_folder)?;
    let mut golden = Golden::open(&folder.join("golden.safetensors"))?;
    let said = json(&folder.join("golden.json"))?;
    let cases = said["cases"].as_array().context("golden.json: cases")?;
    ensure!(!cases.is_empty(), "golden.json has no cases");
    for (i, case) in cases.iter().enumerate() {
        let prompt = ids(&case["input_ids"], "input_ids")?;
        golden.same(&format!("case{i}.input_ids"), &prompt)?;
        golden.close(&format!("case{i}.logits"), &pass::logits(&s, &model, std::slice::from_ref(&prompt), slot)?, LOGITS)?;
        let given = case["prompt"].as_str().context("golden.json: prompt")?;
        ensure!(tokenizer.encode(given, true)? == prompt, "case {i}: ids of {given:?}");
        let wanted = ids(&case["greedy_ids"], "greedy_ids")?;
        let ours = greedy(&s, &model, &[prompt], wanted.len(), &[], slot)?;
        golden.expect(&format!("case{i}.greedy_ids"), ours[0] == wanted, || format!("got {:?}, wanted {wanted:?}", ours[0]));
        let text = tokenizer.decode(&ours[0], true)?;
        let told = case["greedy_text"].as_str().unwrap_or_default();
        golden.expect(&format!("case{i}.greedy_text"), text.trim() == told.trim(), || format!("got {text:?}, wanted {told:?}"));
    }
    for text in said["loglik"].as_array().context("golden.json: loglik")? {
        let (name, ids) = (text["id"].as_str().unwrap_or_default().to_string(), ids(&text["input_ids"], "input_ids")?);
        let b = pass::batch(&[(Vec::new(), vec![ids.clone()])])?;
        let ours: f64 = pass::logps(&s, &model, &b, slot, Keep::Nothing)?.iter().map(|l| f64::from(*l)).sum();
        let wanted = number(&text["sum_logprob"], "sum_logprob")?;
        // The manifest's rule, with the deviation that the golden measured in f32.
        let atol = (8.0 * number(&text["f32_abs_diff"], "f32_abs_diff")?).max(2e-6 * wanted.abs());
        golden.expect(&name, (ours - wanted).abs() <= atol, || format!("log-likelihood {ours}, wanted {wanted} within {atol}"));
    }
    ensure!(golden.report(case, true), "{case} is off its golden");
    Ok(())
}

/// Both paths, or None after saying which is absent.
fn both(case: &str, paths: [&str; 2]) -> Option<[std::path::PathBuf; 2]> {
    let found = paths.map(shared);
    match found {
        [Some(a), Some(b)] => Some([a, b]),
        _ => {
            say(&format!("case {case} skip its folder is not there"));
            None
        }
    }
}

#[cfg_attr(test, test)]
pub fn stories_f32() -> Result<()> {
    let path = "data/models/stories260k";
    both("stories260k", [path, path]).map_or(Ok(()), |[p, _]| compare("stories260k", &p, &p, None))
}

#[cfg_attr(test, test)]
pub fn stories_bf16() -> Result<()> {
    let path = "data/models/stories260k-bf16";
    both("stories260k-bf16", [path, path]).map_or(Ok(()), |[p, _]| compare("stories260k-bf16", &p, &p, None))
}

#[cfg_attr(test, test)]
pub fn stories_adapter() -> Result<()> {
    let (name, paths) = ("stories260k-imdb-pos-r8", ["data/adapters/stories260k-imdb-pos-r8", "data/models/stories260k"]);
    both(name, paths).map_or(Ok(()), |[adapter, base]| compare(name, &adapter, &base, Some(&adapter)))
}
