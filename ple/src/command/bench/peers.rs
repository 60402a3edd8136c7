//! What the peers' scripts write, as lines of a table: one JSON object with the versions it was measured with and `rows`, of which those
//! of LoRA training (`cell`, `shape`, `batch`, `length`, `step_ms`, `tokens_per_s`) stand beside the steps of `ple bench --e2e`.

use super::step::named;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// The rows of a file of theirs; None if it is none. Cells that failed or were left out are passed over.
pub(super) fn rows(file: &Path, text: &str) -> Result<Option<Vec<Value>>> {
    let Ok(Value::Object(whole)) = serde_json::from_str(text) else { return Ok(None) };
    let Some(rows) = whole.get("rows").and_then(Value::as_array) else { return Ok(None) };
    let version = |name: &str| Some(format!("{name} {}", whole.get(name)?.as_str()?));
    let versions = ["torch", "peft", "trl"].into_iter().filter_map(version).collect::<Vec<_>>().join(" ");
    let card = whole.get("gpu").and_then(Value::as_str).unwrap_or("?");
    let mut found = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let Some(cell) = row["cell"].as_str() else {
            return Err(Error::file(file, format!("rows[{i}]: cell: wanted a text, got {}", row["cell"])));
        };
        let size = |name: &str| row[name].as_u64().and_then(|n| usize::try_from(n).ok());
        let Some(((shape, batch), length)) = row["shape"].as_str().zip(size("batch")).zip(size("length")) else { continue };
        let Some(ms) = row["step_ms"].as_f64() else { continue };
        let way = cell.strip_prefix(shape).unwrap_or(cell).trim();
        found.push(json!({
            "room": "step", "name": named(shape, batch, length), "us": 1e3 * ms, "tokens_per_s": row["tokens_per_s"],
            "tflops": row["model_tflops"], "planned_gib": row["peak_gib"], "model": card, "commit": format!("{versions} {way}"), "date": "?",
        }));
    }
    Ok(Some(found))
}
