//! What an adapter was trained with beside its base's weights: `base.json` in its folder names tokenizer, chat template and the ids that end an
//! answer, and whoever uses the adapter on a folder with others is refused. Of the base's weights it has a fingerprint, which only a merge asks for: what is
//! merged cannot be taken apart again. Adapters of other tools have no such file and are taken as they are.

use crate::digest::{Hasher, sha256, sha256_file};
use crate::{Error, Result};
use model::weights::{Checkpoint, PREFIX, TensorData};
use model::{Template, Tokenizer};
use runtime::host;
use serde_json::{Value, json};
use std::path::Path;

const NAME: &str = "base.json";

/// The sources of a folder's chat template as one text; empty where it has none. One that cannot be parsed counts as none: it cannot
/// have been used.
pub(crate) fn template(base: &Path) -> String {
    let found = Template::open(base, 0).ok().flatten();
    let all = found.iter().flat_map(|t| t.sources()).map(|(name, source)| format!("{name}\n{source}"));
    all.collect::<Vec<_>>().join("\n")
}

fn tokenizer(base: &Path) -> Result<Option<String>> {
    let path = base.join("tokenizer.json");
    path.is_file().then(|| sha256_file(&path)).transpose()
}

/// Every id that configuration or tokenizer call an end, ascending. None where the folder has not both.
fn stop(base: &Path) -> Option<Vec<u32>> {
    let mut stop = model::Config::from_folder(base).ok()?.eos_token_ids;
    stop.extend(Tokenizer::open(base).ok()?.eos);
    stop.sort_unstable();
    stop.dedup();
    Some(stop)
}

/// Values of a tensor that the fingerprint takes.
const FIRST: usize = 1024;

/// SHA-256 over every tensor's name, shape and first values, rounded to bf16: the same for a checkpoint in f32 and in bf16, another for
/// one that was trained further. A GPT-2 is the same with and without the prefix of its names. None of a folder without weights.
fn weights(base: &Path) -> Option<String> {
    let checkpoint = Checkpoint::open(base).ok()?;
    let mut hasher = Hasher::default();
    let mut names: Vec<&str> = checkpoint.names().map(|name| name.strip_prefix(PREFIX).unwrap_or(name)).collect();
    names.sort_unstable();
    for name in names {
        let tensor = checkpoint.tensor(&format!("{PREFIX}{name}")).ok()?;
        let bytes = tensor.bytes.get(..FIRST * tensor.dtype.size()).unwrap_or(tensor.bytes);
        hasher.update(format!("{name}\n{:?}\n", tensor.shape).as_bytes());
        let values = TensorData { bytes, ..tensor }.to_f32();
        hasher.update(&values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>());
    }
    Some(hasher.hex())
}

/// Writes what `base` has beside an adapter in `folder`.
pub fn write(base: &Path, folder: &Path) -> Result<()> {
    let template = template(base);
    let value = json!({ "tokenizer_sha256": tokenizer(base)?, "chat_template_sha256": sha256(template.as_bytes()),
        "chat_template": template, "stop_ids": stop(base), "weights_sha256": weights(base) });
    Ok(host::write_file(&folder.join(NAME), |out| writeln!(out, "{value:#}"))?)
}

/// What the folder of an adapter says that it was trained with; None where it does not say.
pub fn kept(folder: &Path) -> Result<Option<Value>> {
    let path = folder.join(NAME);
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(&path).map_err(|e| Error::file(&path, format!("cannot read: {e}")))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::file(&path, format!("wanted JSON, got {e}")))
}

/// Whether `base` has the weights that the adapter in `folder` was trained on, as far as their fingerprint goes.
pub fn check_weights(base: &Path, folder: &Path) -> Result<()> {
    let path = folder.join(NAME);
    let value = kept(folder)?.unwrap_or_default();
    let (Some(wanted), Some(got)) = (value["weights_sha256"].as_str(), weights(base)) else { return Ok(()) };
    if wanted == got {
        return Ok(());
    }
    let text =
        format!("weights_sha256: wanted the base that the adapter was trained on, {wanted}, got {got} (in {})", base.display());
    Err(Error::file(&path, text))
}

/// Whether `base` has what the adapter in `folder` was trained with; the error says where they part.
pub fn check(base: &Path, folder: &Path) -> Result<()> {
    let path = folder.join(NAME);
    let Some(value) = kept(folder)? else { return Ok(()) };
    let text = |name: &str| value[name].as_str();
    let wrong = |what: &str| Err(Error::file(&path, format!("{what} (in {})", base.display())));
    if let (Some(wanted), Some(got)) = (text("tokenizer_sha256"), tokenizer(base)?)
        && wanted != got
    {
        return wrong(&format!("tokenizer_sha256: wanted the tokenizer that the adapter was trained with, {wanted}, got {got}"));
    }
    if let (Some(wanted), Some(got)) = (value.get("stop_ids").filter(|v| v.is_array()), stop(base))
        && *wanted != json!(got)
    {
        let text = "stop_ids: wanted the ids that ended an answer when the adapter was trained";
        return wrong(&format!("{text}, {wanted}, got {}", json!(got)));
    }
    let Some(wanted) = text("chat_template") else { return Ok(()) };
    let got = template(base);
    if wanted == got {
        return Ok(());
    }
    let line = wanted.lines().zip(got.lines()).take_while(|(a, b)| a == b).count();
    let of = |text: &str| {
        text.lines().nth(line).map_or("nothing".to_string(), |l| format!("{:?}", l.chars().take(80).collect::<String>()))
    };
    wrong(&format!(
        "chat_template: wanted the one that the adapter was trained with, got another: line {}: wanted {}, got {}",
        line + 1,
        of(wanted),
        of(&got)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::DType;

    #[test]
    fn another_tokenizer_or_template_is_refused() -> Result<()> {
        let failed = |e: std::io::Error| Error::Usage(e.to_string());
        let folder = tempfile::tempdir().map_err(failed)?;
        let (base, adapter) = (folder.path().join("base"), folder.path().join("adapter"));
        std::fs::create_dir_all(&base).and_then(|()| std::fs::create_dir_all(&adapter)).map_err(failed)?;
        let put = |name: &str, text: &str| std::fs::write(base.join(name), text).map_err(failed);
        put("tokenizer.json", "{}")?;
        put("chat_template.jinja", "a\n{{ b }}")?;
        assert!(check(&base, &adapter).is_ok(), "an adapter of another tool");
        write(&base, &adapter)?;
        assert!(check(&base, &adapter).is_ok());
        put("chat_template.jinja", "a\n{{ c }}")?;
        let error = check(&base, &adapter).map_err(|e| (e.exit_code(), e.to_string()));
        let wanted = "line 3: wanted \"{{ b }}\", got \"{{ c }}\"";
        assert!(error.as_ref().is_err_and(|(code, text)| *code == 3 && text.contains(wanted)), "{error:?}");
        put("chat_template.jinja", "a\n{{ b }}")?;
        put("tokenizer.json", "{ }")?;
        assert!(check(&base, &adapter).is_err_and(|e| e.to_string().contains("tokenizer_sha256")));
        Ok(())
    }

    #[test]
    fn other_weights_are_refused_and_another_type_is_not() -> Result<()> {
        let failed = |e: std::io::Error| Error::Usage(e.to_string());
        let folder = tempfile::tempdir().map_err(failed)?;
        let put = |name: &str, dtype: DType, bytes: Vec<u8>| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(&path).map_err(failed)?;
            let shape = vec![2000];
            model::weights::write_safetensors(&path.join("model.safetensors"), &[("w".into(), dtype, shape, &bytes)])?;
            Ok::<_, Error>(path)
        };
        let values: Vec<f32> = (0..2000).map(|i| 1.0 + i as f32 / 7.0).collect();
        let wide = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect();
        let trained = put("trained", DType::F32, wide(&values))?;
        let narrow = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        let narrow = put("narrow", DType::Bf16, narrow)?;
        let mut other = values.clone();
        other[700] *= 1.01;
        let other = put("other", DType::F32, wide(&other))?;
        let adapter = folder.path().join("adapter");
        std::fs::create_dir_all(&adapter).map_err(failed)?;
        assert!(check_weights(&trained, &adapter).is_ok(), "an adapter of another tool");
        write(&trained, &adapter)?;
        assert!(check_weights(&trained, &adapter).is_ok() && check_weights(&narrow, &adapter).is_ok());
        assert!(
            check_weights(&other, &adapter).is_err_and(|e| e.to_string().contains("base.json: weights_sha256: wanted the base"))
        );
        assert!(check(&other, &adapter).is_ok(), "running on another base is a matter of taste");
        Ok(())
    }
}
