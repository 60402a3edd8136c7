//! Runs side by side: figures with a line for each, and the settings in which they differ.

use super::figures;
use super::page::shortened;
use super::run::Run;
use super::svg::escape;
use serde_json::Value;
use std::collections::BTreeSet;

/// Characters of a name that fit beside a chart.
const NAME: usize = 11;

/// The part of the page.
pub fn section(runs: &[Run]) -> String {
    let names = names(runs);
    let named: Vec<(&str, &Run)> = names.iter().map(String::as_str).zip(runs).collect();
    format!(
        "<h2>Side by side</h2><div class=\"grid\">{}</div>{}",
        figures::side_by_side(&named).concat(),
        differences(&names, runs)
    )
}

/// The ends of the runs' paths, as many parts as tell them apart; the beginning of a long one is left out.
fn names(runs: &[Run]) -> Vec<String> {
    let end = |run: &Run, parts: usize| {
        let all: Vec<String> = run.folder.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    let apart = |parts: &usize| runs.iter().map(|run| end(run, *parts)).collect::<BTreeSet<_>>().len() == runs.len();
    let parts = (1..6).find(apart).unwrap_or(1);
    let short = |name: String| match name.chars().count() {
        n if n > NAME => format!("…{}", name.chars().skip(n - NAME + 1).collect::<String>()),
        _ => name,
    };
    runs.iter().map(|run| short(end(run, parts))).collect()
}

/// A row per setting that is not the same in all runs.
fn differences(names: &[String], runs: &[Run]) -> String {
    let settings = |run: &Run| run.settings.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
    let all: Vec<_> = runs.iter().map(settings).collect();
    let keys: BTreeSet<&String> = all.iter().flat_map(|config| config.keys()).collect();
    let text = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "–".to_string(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let row = |key: &&String| {
        let values: Vec<String> = all.iter().map(|config| text(config.get(*key))).collect();
        let cells: String = values.iter().map(|value| format!("<td><code>{}</code></td>", escape(&shortened(value)))).collect();
        let differs = values.iter().any(|value| *value != values[0]);
        differs.then(|| format!("<tr><td><code>{}</code></td>{cells}</tr>", escape(key)))
    };
    let rows: String = keys.iter().filter_map(row).collect();
    if rows.is_empty() {
        return "<p class=\"soft\">The settings of the runs are the same.</p>".into();
    }
    let heads: String = names.iter().map(|name| format!("<th>{}</th>", escape(name))).collect();
    format!(
        "<h3>Settings that differ</h3><div class=\"wide\"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
}
