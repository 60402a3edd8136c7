//! What was tuned, as a folder: an adapter that PEFT loads, or a model that transformers loads; written and taken back.

use crate::digest::Hasher;
use crate::identity;
use crate::{Error, Result};
use model::{Adapter, Transformer, Tune, adapter, weights};
use runtime::{Stream, host};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Files of a model folder that belong to its tokenizer or are copied as they are.
const COMPANIONS: [&str; 9] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

const CONFIG: &str = "config.json";

/// Makes a folder and what leads to it.
pub fn create_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path)
        .map_err(|source| runtime::Error::File { path: path.to_path_buf(), action: "create", source }.into())
}

/// Writes what was tuned into `folder`; a parameter that is not finite is an error and nothing is written. Under full tuning `base` is the folder whose configuration and tokenizer go along.
pub fn save(s: &Stream, model: &Transformer, tune: Tune, base: &Path, folder: &Path) -> Result<()> {
    finite(s, model, tune)?;
    create_folder(folder)?;
    match tune {
        Tune::Lora(slot) => {
            let lora = model.slot(Adapter::Slot(slot))?.ok_or_else(|| Error::Usage("no adapter to save".into()))?;
            lora.download(s)?.save(folder)?;
            identity::write(base, folder)
        }
        Tune::Full => {
            model.base().save(s, folder)?;
            write_config(&base.join(CONFIG), &folder.join(CONFIG), model.config.classifier())?;
            COMPANIONS.iter().try_for_each(|name| copy(&base.join(name), &folder.join(name)))
        }
    }
}

/// The reverse of [`save`], in place: the model keeps its arenas, and its tuned numbers become those of the folder.
pub fn restore_tuned(s: &Stream, model: &Transformer, tune: Tune, folder: &Path) -> Result<()> {
    match tune {
        Tune::Lora(slot) => {
            let lora = model.slot(Adapter::Slot(slot))?.ok_or_else(|| Error::Usage("no adapter to restore".into()))?;
            Ok(lora.reload(s, &adapter::Adapter::load(folder, &model.modules())?)?)
        }
        Tune::Full => Ok(model.base().reload(s, &model.config, &weights::Checkpoint::open(folder)?)?),
    }
}

/// Puts the policy of `folder`, whose [`fingerprint`] is `wanted`, into a slot, and returns what was there, for [`give_back`]. An
/// error changes nothing.
pub fn borrow(s: &Stream, model: &Transformer, slot: u8, folder: &Path, wanted: &str) -> Result<adapter::Adapter> {
    let lora = model.slot(Adapter::Slot(slot))?.ok_or_else(|| Error::Usage("no adapter to exchange".into()))?;
    let (own, other) = (lora.download(s)?, adapter::Adapter::load(folder, &model.modules())?);
    lora.reload(s, &other)?;
    let got = fingerprint(s, model, Tune::Lora(slot))?;
    if got != wanted {
        give_back(s, model, slot, &own)?;
        return Err(Error::file(folder, format!("wanted the policy {wanted}, got {got}")));
    }
    Ok(own)
}

/// The reverse of [`borrow`].
pub fn give_back(s: &Stream, model: &Transformer, slot: u8, own: &adapter::Adapter) -> Result<()> {
    let lora = model.slot(Adapter::Slot(slot))?.ok_or_else(|| Error::Usage("no adapter to exchange".into()))?;
    Ok(lora.reload(s, own)?)
}

/// SHA-256 of the names and numbers of what is tuned: two policies on one base are the same if and only if these are.
pub fn fingerprint(s: &Stream, model: &Transformer, tune: Tune) -> Result<String> {
    let mut hasher = Hasher::default();
    each(s, model, tune, |name, values| {
        hasher.update(name.as_bytes());
        hasher.update(&(values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| hasher.update(&v.to_le_bytes()));
        Ok(())
    })?;
    Ok(hasher.hex())
}

/// Stops where a tuned tensor is not finite: what a step has broken replaces nothing that was saved before.
fn finite(s: &Stream, model: &Transformer, tune: Tune) -> Result<()> {
    each(s, model, tune, |name, values| match values.iter().find(|v| !v.is_finite()) {
        Some(bad) => Err(Error::Numeric(format!("{name}: wanted finite parameters, got {bad}; nothing was saved"))),
        None => Ok(()),
    })
}

/// Every tuned tensor, in arena order.
fn each(s: &Stream, model: &Transformer, tune: Tune, mut look: impl FnMut(&str, &[f32]) -> Result<()>) -> Result<()> {
    let (arena, tensors) = model.trained(tune)?;
    let mut values = Vec::new();
    for tensor in tensors {
        values.resize(tensor.region.len(), 0.0f32);
        arena.view(tensor.region)?.read(s, &mut values)?;
        look(&tensor.name, &values)?;
    }
    Ok(())
}

fn read(from: &Path) -> Result<Vec<u8>> {
    Ok(std::fs::read(from).map_err(|source| runtime::Error::File { path: from.to_path_buf(), action: "read", source })?)
}

/// The configuration beside f32 weights: as it is, but for the element type it names, and for its architecture where the head is now
/// scalar.
fn write_config(from: &Path, to: &Path, classifier: Option<&str>) -> Result<()> {
    let bytes = read(from)?;
    let mut config: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|e| Error::file(from, e.to_string()))?;
    let mut changed = false;
    for name in ["torch_dtype", "dtype"] {
        if let Some(value) = config.get_mut(name).filter(|value| **value != "float32") {
            (*value, changed) = ("float32".into(), true);
        }
    }
    if let Some(classifier) = classifier.filter(|name| config.get("architectures") != Some(&json!([name]))) {
        config.insert("architectures".into(), json!([classifier]));
        config.insert("id2label".into(), json!({ "0": "LABEL_0" }));
        config.insert("label2id".into(), json!({ "LABEL_0": 0 }));
        changed = true;
    }
    let text = if changed { format!("{:#}\n", Value::Object(config)).into_bytes() } else { bytes };
    Ok(host::write_file(to, |out| out.write_all(&text))?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_file() {
        return Ok(());
    }
    let bytes = read(from)?;
    Ok(host::write_file(to, |out| out.write_all(&bytes))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{AdapterConfig, Lora, Targets};

    const MODEL: &str = r#"{"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_act": "silu", "eos_token_id": 2,
        "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "torch_dtype": "float32"}"#;

    #[test]
    fn what_is_not_finite_is_not_saved() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::Usage(e.to_string()))?;
        host::write_file(&folder.path().join(CONFIG), |out| out.write_all(MODEL.as_bytes()))?;
        let s = Stream::cpu(1, runtime::Isa::from_env()?);
        for (bad, saved) in [(None, true), (Some(f32::NAN), false), (Some(f32::NEG_INFINITY), false)] {
            let mut model = Transformer::fresh(&s, folder.path(), runtime::DType::F32, 0)?;
            let config = AdapterConfig::new(2, 4.0, Targets::AllLinear);
            let mut disk = adapter::Adapter::fresh(config, &model.modules(), 0, kernels::sample::philox)?;
            if let (Some(bad), Some(last)) = (bad, disk.modules.last_mut().and_then(|m| m.b.last_mut())) {
                *last = bad;
            }
            model.add_slot(Lora::upload(&s, model.base(), disk)?)?;
            let target = folder.path().join(format!("{saved}"));
            let outcome = save(&s, &model, Tune::Lora(0), folder.path(), &target);
            assert_eq!((outcome.is_ok(), target.exists()), (saved, saved), "{bad:?}");
            if let Err(error) = outcome {
                assert_eq!(error.exit_code(), 5);
                assert!(error.to_string().contains("lora_B.weight"), "{error}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_configuration_says_what_the_weights_are() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::Usage(e.to_string()))?;
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let cases = [
            (
                "{\"z\": 1,\"torch_dtype\": \"bfloat16\", \"a\": 0.5}",
                "{\n  \"z\": 1,\n  \"torch_dtype\": \"float32\",\n  \"a\": 0.5\n}\n",
            ),
            ("{\"dtype\":\"float16\"}", "{\n  \"dtype\": \"float32\"\n}\n"),
            ("{\"dtype\":\"float32\"}", "{\"dtype\":\"float32\"}"),
            ("{\"z\":  1}", "{\"z\":  1}"),
        ];
        for (given, want) in cases {
            host::write_file(&from, |out| out.write_all(given.as_bytes()))?;
            write_config(&from, &to, None)?;
            assert_eq!(String::from_utf8_lossy(&read(&to)?), want);
        }
        for given in ["{\"architectures\": [\"GPT2LMHeadModel\"]}", "{}"] {
            host::write_file(&from, |out| out.write_all(given.as_bytes()))?;
            write_config(&from, &to, Some("GPT2ForSequenceClassification"))?;
            let written: Value = serde_json::from_slice(&read(&to)?).map_err(|e| Error::file(&to, e.to_string()))?;
            let want = json!({"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}});
            assert_eq!(written, want);
            write_config(&to, &from, Some("GPT2ForSequenceClassification"))?;
            assert_eq!(read(&from)?, read(&to)?, "a scalar head's own configuration stays as it is");
        }
        Ok(())
    }
}
