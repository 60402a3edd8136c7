//! Records as a file: a device's name, and each record's words in hexadecimal, eight digits a word.

use super::Record;
use runtime::{Error, Result, Stream};
use serde_json::{Value, json};
use std::path::Path;

/// Writes what [`super::dump`] gave, with the device and the versions that gave it.
pub fn write(path: &Path, s: &Stream, records: &[Record]) -> Result<()> {
    let info = s.backend().info();
    let found: serde_json::Map<String, Value> = info.found.iter().map(|(name, version)| (name.clone(), json!(version))).collect();
    let hex = |bits: &[u32]| bits.iter().map(|word| format!("{word:08x}")).collect::<String>();
    let one = |r: &Record| json!({"name": r.name, "seed": r.seed, "bits": hex(&r.bits)});
    let records: Vec<Value> = records.iter().map(one).collect();
    let all = json!({"device": info.name, "arch": info.arch, "found": found, "records": records});
    runtime::host::write_file(path, |out| writeln!(out, "{all:#}"))
}

/// Reads such a file.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read(path).map_err(|source| Error::File { path: path.into(), action: "read", source })?;
    let wrong = |what: String| Error::Shape(format!("{}: {what}", path.display()));
    let all: Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    let records = all["records"].as_array().ok_or_else(|| wrong("records: wanted a list".into()))?;
    let one = |(i, r): (usize, &Value)| {
        let field = |name: &str, wanted: &str| wrong(format!("records[{i}].{name}: wanted {wanted}, got {}", r[name]));
        let name = r["name"].as_str().ok_or_else(|| field("name", "a text"))?.to_string();
        let seed = r["seed"].as_u64().ok_or_else(|| field("seed", "a number"))?;
        let digits = r["bits"].as_str().filter(|d| d.is_ascii() && d.len() % 8 == 0);
        let digits = digits.ok_or_else(|| field("bits", "eight hexadecimal digits a word"))?.as_bytes();
        let word = |d: &[u8]| std::str::from_utf8(d).ok().and_then(|d| u32::from_str_radix(d, 16).ok());
        let bits = digits.chunks(8).map(word).collect::<Option<Vec<u32>>>();
        Ok(Record { name, seed, bits: bits.ok_or_else(|| field("bits", "hexadecimal digits"))? })
    };
    records.iter().enumerate().map(one).collect()
}

/// One line for every record of `want` that `got` lacks or has with other bits; what only `got` has is no difference.
pub fn differences(got: &[Record], want: &[Record]) -> Vec<String> {
    let one = |w: &Record| {
        let Some(g) = got.iter().find(|g| (&g.name, g.seed) == (&w.name, w.seed)) else {
            return Some(format!("{} (seed {}): missing", w.name, w.seed));
        };
        if g.bits.len() != w.bits.len() {
            return Some(format!("{}: wanted {} words, got {}", w.name, w.bits.len(), g.bits.len()));
        }
        let other = || g.bits.iter().zip(&w.bits).enumerate().filter(|(_, (g, w))| g != w);
        let (at, (got, want)) = other().next()?;
        let (count, all) = (other().count(), w.bits.len());
        Some(format!("{}: {count} of {all} words differ; word {at}: wanted {want:08x}, got {got:08x}", w.name))
    };
    want.iter().filter_map(one).collect()
}
