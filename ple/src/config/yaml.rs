//! Settings as YAML that [`super::file`] reads back to the same values: one key a line, lists in brackets, and behind `#` where
//! a value is from.

use super::{KEYS, Resolved};
use serde_json::Value;

/// Words that YAML takes for something else than a text, in any case.
const RESERVED: [&str; 12] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf", "infinity"];

impl Resolved {
    /// The effective settings, a line each.
    pub fn yaml(&self) -> String {
        let keys = KEYS.iter().filter(|key| key.belongs_to(self.config.command));
        keys.map(|key| line(key.name, &(key.get)(&self.config), &self.source(key).to_string())).collect()
    }
}

/// `key: value  # comment` with its line end.
pub(super) fn line(key: &str, value: &Value, comment: &str) -> String {
    format!("{key}: {}  {}", inline(value), self::comment(comment))
}

/// A comment on one line whatever it holds.
pub(super) fn comment(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("# {plain}\n")
}

/// A value in flow style.
fn inline(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        Value::String(text) => quoted(text),
        Value::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        // Numbers, true, false and null are written as in JSON; no setting is a mapping.
        other => other.to_string(),
    }
}

/// Whether a text is safe without quotes: it begins as a word or a path and holds nothing that YAML gives a meaning.
fn is_plain(text: &str) -> bool {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let begins =
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') || text.starts_with("./") || text.starts_with("../");
    begins && text.chars().all(safe) && !RESERVED.contains(&text.to_ascii_lowercase().as_str())
}

/// In double quotes; whatever is not plainly printable is escaped.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out += "\\n",
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}'..='\u{ffff}') => {
                out += &format!("\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "\""
}
