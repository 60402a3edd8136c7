//! What a run leaves behind: an adapter folder that PEFT loads, or a model folder that transformers loads.

use crate::{Error, Result};
use model::{Adapter, Transformer, Tune};
use runtime::{Stream, host};
use std::path::Path;

/// Files of a model folder that belong to its tokenizer or are copied as they are.
const COMPANIONS: [&str; 10] = [
    "config.json",
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

/// Makes a folder and what leads to it.
pub fn create_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path)
        .map_err(|source| runtime::Error::File { path: path.to_path_buf(), action: "create", source }.into())
}

/// Writes what was tuned into `folder`. Under full tuning `base` is the folder whose configuration and tokenizer go along.
pub fn save(s: &Stream, model: &Transformer, tune: Tune, base: &Path, folder: &Path) -> Result<()> {
    create_folder(folder)?;
    match tune {
        Tune::Lora(slot) => {
            let lora = model.slot(Adapter::Slot(slot))?.ok_or_else(|| Error::Usage("no adapter to save".into()))?;
            Ok(lora.download(s)?.save(folder)?)
        }
        Tune::Full => {
            model.base().save(s, folder)?;
            COMPANIONS.iter().try_for_each(|name| copy(&base.join(name), &folder.join(name)))
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_file() {
        return Ok(());
    }
    let bytes =
        std::fs::read(from).map_err(|source| runtime::Error::File { path: from.to_path_buf(), action: "read", source })?;
    Ok(host::write_file(to, |out| out.write_all(&bytes))?)
}
