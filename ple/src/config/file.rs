//! Settings files: YAML, of which JSON is a part. `ple:`, `reward:` and `lora:` blocks are prefixes; a dash in a key is an underscore.

use super::{Given, Origin};
use crate::{Error, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;
use std::fmt;
use std::path::Path;

/// A settings file is small; a larger one is a mistake.
const LIMIT: u64 = 1 << 20;

/// A mapping with the line of every key.
struct Entries(Vec<(Spanned<String>, Spanned<Value>)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Entries, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of settings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// The keys of one file, in its order.
pub fn read(path: &Path) -> Result<Vec<Given>> {
    let usage = |text: String| Error::Usage(format!("{}: {text}", path.display()));
    let length = std::fs::metadata(path).map_err(|e| usage(format!("cannot open: {e}")))?.len();
    if length > LIMIT {
        return Err(usage(format!("wanted a settings file of at most {LIMIT} bytes, got {length}")));
    }
    let bytes = std::fs::read(path).map_err(|e| usage(format!("cannot read: {e}")))?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        usage(format!("line {line}: wanted UTF-8, got other bytes"))
    })?;
    if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
        return Ok(Vec::new());
    }
    let entries: Entries = serde_saphyr::from_str(text).map_err(|e| {
        let line = e.location().map_or(String::new(), |l| format!("line {}: ", l.line()));
        usage(format!("{line}{}", e.without_snippet()))
    })?;
    let mut given = Vec::new();
    for (key, value) in entries.0 {
        flatten(path, key.referenced.line(), "", &key.value, value.value, &mut given);
    }
    Ok(given)
}

/// One key, or the keys of a block under their prefix.
fn flatten(path: &Path, line: u64, prefix: &str, key: &str, value: Value, given: &mut Vec<Given>) {
    let name = format!("{prefix}{}", key.replace('-', "_"));
    let block = match name.as_str() {
        "ple" | "reward" | "lora" => Some(format!("{name}_")),
        "lr_scheduler_kwargs" => Some(String::new()),
        _ => None,
    };
    match (block, value) {
        (Some(prefix), Value::Object(inner)) => {
            inner.into_iter().for_each(|(key, value)| flatten(path, line, &prefix, &key, value, given));
        }
        (_, value) => given.push(Given { from: Origin::File { path: path.to_path_buf(), line, key: name.clone() }, name, value }),
    }
}
