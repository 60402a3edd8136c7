//! A checkpoint's folder: what it says, what it holds, and what a run would refuse of it.

use super::report::{Facts, Report};
use crate::Result;
use crate::command::required;
use crate::config::Config;
use crate::digest::sha256;
use crate::open::fits;
use model::weights::Checkpoint;
use model::{Template, Tokenizer};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What config.json says of sizes and kinds, in the spellings of all families.
const SHAPES: [&str; 26] = [
    "hidden_size",
    "n_embd",
    "intermediate_size",
    "n_inner",
    "num_hidden_layers",
    "n_layer",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "n_positions",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "attention_bias",
    "mlp_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "num_labels",
];

pub(super) fn report(c: &Config) -> Result<Report> {
    let folder = required(&c.model_name_or_path, "model_name_or_path")?;
    let mut facts = Facts::default();
    facts.put("folder", folder.display().to_string());
    said(folder, &mut facts);
    let config = facts.refuse(model::Config::from_folder(folder));
    weights(folder, config.as_ref(), &mut facts);
    let tokenizer = facts.refuse(Tokenizer::open(folder));
    if let Some(tokenizer) = &tokenizer {
        let named = |id: Option<u32>| id.map(|id| token(tokenizer, id)).unwrap_or_default();
        facts.put("tokens", tokenizer.vocab_size());
        facts.put("bos", named(tokenizer.bos));
        facts.put("eos", named(tokenizer.eos));
        facts.put("adds_bos", tokenizer.bos.is_some() && tokenizer.encode("", true)?.first().copied() == tokenizer.bos);
        let own = config.iter().flat_map(|config| config.eos_token_ids.iter().copied());
        let mut stop: Vec<u32> = own.chain(tokenizer.eos).collect();
        stop.sort_unstable();
        stop.dedup();
        facts.put("ends_an_answer", stop.into_iter().map(|id| token(tokenizer, id)).collect::<Vec<_>>());
    }
    if let (Some(config), Some(tokenizer)) = (&config, &tokenizer) {
        facts.refuse(fits(folder, tokenizer.vocab_size(), config.vocab_size));
    }
    if let Some(found) = facts.refuse(Template::open(folder, 0)) {
        template(found.as_ref(), folder, &mut facts);
    }
    facts.put("warnings", config.map_or(Value::Null, |config| config.warnings.into()));
    Ok(facts.report())
}

/// An id with its token.
fn token(tokenizer: &Tokenizer, id: u32) -> Value {
    format!("{id} {}", tokenizer.token(id).unwrap_or_else(|| "(no token)".into())).into()
}

/// config.json as it is, whether or not the family is known.
fn said(folder: &Path, facts: &mut Facts) {
    let text = std::fs::read(folder.join("config.json")).unwrap_or_default();
    // What is wrong with it is what the model floor says of it.
    let Ok(Value::Object(map)) = serde_json::from_slice(&text) else { return };
    let get = |name: &str| map.get(name).cloned().unwrap_or_default();
    facts.put("family", get("model_type"));
    facts.put("architectures", get("architectures"));
    let shapes: Map<String, Value> =
        SHAPES.iter().map(|name| (name.to_string(), get(name))).filter(|(_, value)| !value.is_null()).collect();
    facts.put("shapes", shapes);
    facts.put("tied", get("tie_word_embeddings"));
    let dtype = get("dtype");
    facts.put("dtype", if dtype.is_null() { get("torch_dtype") } else { dtype });
}

/// Headers of the weights: what lies where, in which types.
fn weights(folder: &Path, config: Option<&model::Config>, facts: &mut Facts) {
    let Some(checkpoint) = facts.refuse(Checkpoint::open(folder)) else { return };
    let (mut types, mut files): (Map<String, Value>, Vec<&Path>) = (Map::new(), Vec::new());
    let (mut parameters, mut tensors) = (0u64, 0u64);
    let mut other = None;
    for name in checkpoint.names() {
        match checkpoint.tensor(name) {
            Ok(tensor) => {
                let n = tensor.shape.iter().map(|d| *d as u64).product::<u64>();
                (parameters, tensors) = (parameters + n, tensors + 1);
                let count = types.entry(tensor.dtype.to_string()).or_insert(json!(0));
                *count = json!(count.as_u64().unwrap_or(0) + n);
                if !files.contains(&tensor.path) {
                    files.push(tensor.path);
                }
            }
            Err(error) => other = other.or(Some(error)),
        }
    }
    facts.put("files", files.iter().filter_map(|path| path.file_name()?.to_str()).collect::<Vec<_>>());
    let bytes: u64 = files.iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum();
    facts.put("bytes", bytes);
    facts.put("tensors", tensors);
    facts.put("parameters", parameters);
    facts.put("parameters_by_type", types);
    facts.refuse(other.map_or(Ok(()), Err));
    if let Some(config) = config {
        facts.refuse(checkpoint.check(&config.tensors()));
        facts.put("adaptable_modules", config.modules().len());
    }
}

/// Where a template is, what it knows, and the hash that an adapter keeps of it.
fn template(template: Option<&Template>, folder: &Path, facts: &mut Facts) {
    let Some(template) = template else { return facts.put("chat_template", "none") };
    let path = template.path();
    facts.put("chat_template", path.strip_prefix(folder).unwrap_or(path).display().to_string());
    let names: Vec<&str> = template.sources().iter().map(|(name, _)| name.as_str()).collect();
    facts.put("templates", names);
    facts.put("marks_assistant", template.marks_assistant());
    facts.put("writes_date", template.writes_date());
    facts.put("template_sha256", sha256(crate::identity::template(folder).as_bytes()));
}
