//! What was found, for a reader and as JSON.

use serde_json::{Map, Value};

/// One inspection.
pub(super) struct Report {
    /// All of it, as JSON.
    pub(super) value: Value,
    /// The same for a reader.
    pub(super) text: String,
    /// Whether nothing is refused or odd.
    pub(super) fine: bool,
}

/// Facts in order, and what is refused.
#[derive(Default)]
pub(super) struct Facts {
    facts: Map<String, Value>,
    refused: Vec<String>,
}

impl Facts {
    /// A fact; null is none.
    pub(super) fn put(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        if !value.is_null() {
            self.facts.insert(name.into(), value);
        }
    }

    /// The value, or why there is none among what is refused.
    pub(super) fn refuse<T, E: std::fmt::Display>(&mut self, outcome: Result<T, E>) -> Option<T> {
        outcome.map_err(|error| self.refused.push(error.to_string())).ok()
    }

    /// Whether nothing was refused so far.
    pub(super) fn fine(&self) -> bool {
        self.refused.is_empty()
    }

    pub(super) fn report(mut self) -> Report {
        let fine = self.fine();
        let mut text: String = self.facts.iter().map(|(name, value)| line(name, value)).collect();
        let refused = self.refused.iter().map(|why| format!("{:<20} {why}\n", "refused"));
        text += &refused.collect::<String>();
        text += if fine { "nothing is refused\n" } else { "" };
        self.facts.insert("refused".into(), self.refused.into());
        Report { value: Value::Object(self.facts), text, fine }
    }
}

/// A fact as a line; a list of objects or of sentences as a line each.
fn line(name: &str, value: &Value) -> String {
    match value {
        Value::Array(list) if list.iter().any(|v| v.is_object() || v.as_str().is_some_and(|s| s.contains(' '))) => {
            let rows = list.iter().enumerate().map(|(i, v)| format!("{:<20} {}\n", if i == 0 { name } else { "" }, flat(v)));
            rows.collect()
        }
        _ => format!("{name:<20} {}\n", flat(value)),
    }
}

fn flat(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Array(list) => list.iter().map(flat).collect::<Vec<_>>().join(", "),
        Value::Object(map) => map.iter().map(|(name, v)| format!("{name} {}", flat(v))).collect::<Vec<_>>().join("  "),
        other => other.to_string(),
    }
}
