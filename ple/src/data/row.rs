//! The kinds of rows, told apart by the fields they have. Other fields are left alone.

use super::jsonl::{Line, Lines, kind};
use super::tldr;
use crate::Result;
use serde_json::Value;

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// `{"text"}`: a whole text.
    Text(String),
    /// `{"prompt", "completion"}`, or `{"prompt", "chosen", "rejected"}` of which the chosen answer counts.
    Answered {
        /// The query.
        prompt: String,
        /// Its answer, with the space it begins with.
        completion: String,
    },
    /// `{"chosen", "rejected"}`: two whole dialogues.
    Dialogue {
        /// The better one.
        chosen: String,
        /// The worse one.
        rejected: String,
    },
    /// `{"prompt"}`: a query alone; or `{"subreddit", "title", "post"}` without a `summary`, which would be its answer.
    Prompt(String),
}

/// [`Row`] without its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// A whole text.
    Text,
    /// Query and answer.
    Answered,
    /// Two dialogues.
    Dialogue,
    /// A query.
    Prompt,
}

impl Row {
    /// The row of a line; errors name file, line and field.
    pub fn read(lines: &Lines, line: &Line) -> Result<Row> {
        let has = |name: &str| line.fields.contains_key(name);
        if has("messages") {
            return Err(lines.error(line.line, "conversational rows cannot be read here; wanted texts"));
        }
        let text = |name: &str| text(lines, line, name);
        Ok(match (has("prompt"), has("completion"), has("chosen") || has("rejected"), has("text")) {
            (true, true, ..) => Row::Answered { prompt: text("prompt")?, completion: text("completion")? },
            (true, false, true, _) => Row::Answered { prompt: text("prompt")?, completion: text("chosen")? },
            (true, false, false, _) => Row::Prompt(text("prompt")?),
            (false, true, ..) => return Err(lines.error(line.line, "field prompt: wanted a string beside completion, got none")),
            (false, false, true, _) => Row::Dialogue { chosen: text("chosen")?, rejected: text("rejected")? },
            (false, false, false, true) => Row::Text(text("text")?),
            (false, false, false, false) if has("post") => {
                let prompt = tldr::query(&text("subreddit")?, &text("title")?, &text("post")?);
                match has("summary") {
                    true => Row::Answered { prompt, completion: format!(" {}", text("summary")?) },
                    false => Row::Prompt(prompt),
                }
            }
            (false, false, false, false) => {
                let names: Vec<_> = line.fields.keys().take(8).map(String::as_str).collect();
                let wanted = "wanted text, prompt, prompt and completion, chosen and rejected, or subreddit, title and post";
                return Err(lines.error(line.line, format!("fields: {wanted}, got [{}]", names.join(", "))));
            }
        })
    }

    /// Which kind it is.
    pub fn kind(&self) -> RowKind {
        match self {
            Row::Text(_) => RowKind::Text,
            Row::Answered { .. } => RowKind::Answered,
            Row::Dialogue { .. } => RowKind::Dialogue,
            Row::Prompt(_) => RowKind::Prompt,
        }
    }
}

/// A field that must be a text with something in it.
pub(super) fn text(lines: &Lines, line: &Line, name: &str) -> Result<String> {
    match line.fields.get(name) {
        Some(Value::String(s)) if !s.is_empty() => Ok(s.clone()),
        Some(Value::String(_)) => Err(lines.error(line.line, format!("field {name}: wanted a text, got an empty one"))),
        Some(Value::Array(_)) => {
            Err(lines
                .error(line.line, format!("field {name}: conversational rows (a list) cannot be read here; wanted a string")))
        }
        Some(other) => Err(lines.error(line.line, format!("field {name}: wanted a string, got {}", kind(other)))),
        None => Err(lines.error(line.line, format!("field {name}: wanted a string, got none"))),
    }
}
