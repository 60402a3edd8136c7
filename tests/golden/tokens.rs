//! A case's tokenizer: ids of probes and of rendered chats, and the text of ids.

use super::lm::Lm;
use super::{ids, json};
use anyhow::{Context, Result, ensure};
use model::Tokenizer;
use serde_json::Value;

fn text<'a>(v: &'a Value, field: &str) -> Result<&'a str> {
    v[field].as_str().with_context(|| format!("tokenizer_golden.json: {field} is not a text"))
}

/// Compares every probe exactly.
pub fn compare(case: &Lm) -> Result<()> {
    let golden = json(&case.folder.join("tokenizer_golden.json"))?;
    let tokenizer = Tokenizer::open(&case.folder.join("model"))?;
    let probes = golden["probes"].as_array().context("tokenizer_golden.json: probes")?;
    ensure!(!probes.is_empty(), "tokenizer_golden.json has no probes");
    for probe in probes {
        let given = text(probe, "text")?;
        let with = ids(&probe["ids"], "ids")?;
        ensure!(
            tokenizer.encode(given, true)? == with,
            "ids of {given:?}: {:?}, wanted {with:?}",
            tokenizer.encode(given, true)?
        );
        let without = ids(&probe["ids_no_special"], "ids_no_special")?;
        ensure!(tokenizer.encode(given, false)? == without, "ids without special of {given:?}");
        ensure!(tokenizer.decode(&without, false)? == text(probe, "decoded")?, "text of the ids of {given:?}");
        ensure!(tokenizer.decode(&with, true)? == text(probe, "decoded_skip_special")?, "text without special of {given:?}");
    }
    for chat in golden["chats"].as_array().into_iter().flatten() {
        let given = text(chat, "text")?;
        ensure!(tokenizer.encode(given, false)? == ids(&chat["ids"], "ids")?, "ids of the chat {given:?}");
    }
    for (field, ours) in [("bos_id", tokenizer.bos), ("eos_id", tokenizer.eos)] {
        let wanted = golden[field].as_u64().map(|id| id as u32);
        ensure!(ours == wanted, "{field}: {ours:?}, wanted {wanted:?}");
    }
    Ok(())
}
