//! ShareGPT's rows, `{"conversations": [{"from", "value"}]}`, as rows of messages: the names of LLaMA-Factory's readers. Rows of pairs
//! have the answers beside it, `chosen` and `rejected`, one message each.

use super::jsonl::{Line, Lines, kind};
use crate::Result;
use serde_json::{Value, json};

/// Speakers and their roles in a template. A call is the assistant's.
const ROLES: [(&str, &str); 9] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("system", "system"),
    ("observation", "tool"),
    ("tool", "tool"),
    ("function", "tool"),
    (CALL, "assistant"),
];
const CALL: &str = "function_call";

/// Turns a row with `conversations` into one with `messages`, or with `prompt`, `chosen` and `rejected`; any other row is left alone.
/// A `system` text becomes the first message, `tools` in a text are read. Errors name line, field, message, wanted, got.
pub fn read(lines: &Lines, line: &mut Line) -> Result<()> {
    let Some(conversations) = line.fields.shift_remove("conversations") else { return Ok(()) };
    let wrong = |field: &str, text: String| lines.error(line.line, format!("field {field}: {text}"));
    let Value::Array(list) = conversations else {
        return Err(wrong("conversations", format!("wanted a list of messages, got {}", kind(&conversations))));
    };
    let message =
        |field: &str, i: usize, value: &Value| message(value).map_err(|text| wrong(field, format!("message {i}: {text}")));
    let mut messages = Vec::with_capacity(list.len() + 1);
    match line.fields.get("system") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(Value::String(text)) => messages.push(json!({ "role": "system", "content": text })),
        Some(other) => return Err(wrong("system", format!("wanted a string, got {}", kind(other)))),
    }
    for (i, value) in list.iter().enumerate() {
        messages.push(message("conversations", i, value)?);
    }
    let answers: Vec<&str> = ["chosen", "rejected"].into_iter().filter(|name| line.fields.contains_key(*name)).collect();
    for name in &answers {
        let given = line.fields.get(*name).cloned().unwrap_or_default();
        let list = match given {
            Value::Array(list) => list,
            one => vec![one],
        };
        let read = list.iter().enumerate().map(|(i, value)| message(name, i, value)).collect::<Result<Vec<_>>>()?;
        line.fields.insert((*name).into(), Value::Array(read));
    }
    if let Some(Value::String(text)) = line.fields.get("tools") {
        let tools = match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).map_err(|e| wrong("tools", format!("wanted JSON in the text, got {e}")))?,
        };
        line.fields.insert("tools".into(), tools);
    }
    line.fields.insert(if answers.is_empty() { "messages" } else { "prompt" }.into(), Value::Array(messages));
    Ok(())
}

/// A message by its speaker; one that has a role already is taken as it is.
fn message(value: &Value) -> std::result::Result<Value, String> {
    let Some(fields) = value.as_object() else {
        return Err(format!("wanted an object with `from` and `value`, got {}", kind(value)));
    };
    if fields.get("role").is_some_and(Value::is_string) {
        return Ok(value.clone());
    }
    let text = |name: &str| match fields.get(name) {
        Some(Value::String(text)) => Ok(text.as_str()),
        other => Err(format!("field {name}: wanted a string, got {}", other.map_or("none", kind))),
    };
    let (from, content) = (text("from")?, text("value")?);
    let Some((_, role)) = ROLES.iter().find(|(name, _)| *name == from) else {
        let names: Vec<&str> = ROLES.iter().map(|(name, _)| *name).collect();
        return Err(format!("field from: wanted one of {}, got {from:?}", names.join(", ")));
    };
    if from != CALL {
        return Ok(json!({ "role": role, "content": content }));
    }
    let call: Value = serde_json::from_str(content).map_err(|e| format!("field value: wanted a call as JSON, got {e}"))?;
    let calls = match call {
        Value::Array(list) => list,
        one => vec![one],
    };
    if let Some(bad) = calls.iter().find(|call| !call["name"].is_string()) {
        return Err(format!("field value: wanted calls with a string `name`, got {}", kind(bad)));
    }
    let calls: Vec<Value> = calls.into_iter().map(|call| json!({ "type": "function", "function": call })).collect();
    Ok(json!({ "role": role, "content": "", "tool_calls": calls }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use std::path::Path;

    fn line(fields: Value) -> Line {
        Line { row: 0, line: 1, fields: fields.as_object().cloned().unwrap_or_default() }
    }

    fn lines() -> Result<(tempfile::TempDir, Lines)> {
        let failed = |e: std::io::Error| Error::Usage(e.to_string());
        let folder = tempfile::tempdir().map_err(failed)?;
        let path: &Path = &folder.path().join("rows.jsonl");
        std::fs::write(path, "").map_err(failed)?;
        let lines = Lines::open(path)?;
        Ok((folder, lines))
    }

    fn of(fields: Value) -> Result<Value> {
        let (_folder, lines) = lines()?;
        let mut line = line(fields);
        read(&lines, &mut line)?;
        Ok(Value::Object(line.fields))
    }

    #[test]
    fn speakers_become_roles() -> Result<()> {
        let got = of(json!({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call",
            "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"}, {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "a"}], "system": "s", "tools": "[{\"name\": \"f\"}]", "note": 1}))?;
        let wanted = json!({"system": "s", "tools": [{"name": "f"}], "note": 1, "messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
            {"role": "tool", "content": "3"}, {"role": "assistant", "content": "a"}]});
        assert_eq!(got, wanted);
        let got = of(json!({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"}}))?;
        let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
        assert_eq!(got["prompt"], json!([{"role": "user", "content": "q"}]));
        assert_eq!((&got["chosen"], &got["rejected"]), (&answer("a"), &answer("b")));
        let spelt = json!([{"role": "user", "content": "q"}]);
        assert_eq!(of(json!({"conversations": spelt}))?, json!({"messages": spelt}));
        assert_eq!(of(json!({"text": "t"}))?, json!({"text": "t"}));
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (row, wanted) in [
            (json!({"conversations": "x"}), "line 1: field conversations: wanted a list of messages, got a string"),
            (json!({"conversations": ["x"]}), "message 0: wanted an object with `from` and `value`, got a string"),
            (json!({"conversations": [{"from": "you", "value": "x"}]}), "field from: wanted one of human, user"),
            (json!({"conversations": [{"from": "gpt"}]}), "message 0: field value: wanted a string, got none"),
            (json!({"conversations": [{"from": "function_call", "value": "f()"}]}), "wanted a call as JSON"),
            (json!({"conversations": [{"from": "function_call", "value": "[1]"}]}), "wanted calls with a string `name`"),
            (json!({"conversations": [], "system": 1}), "field system: wanted a string, got a number"),
            (json!({"conversations": [], "tools": "["}), "field tools: wanted JSON in the text"),
            (json!({"conversations": [], "chosen": 1}), "field chosen: message 0: wanted an object"),
        ] {
            let got = of(row.clone()).map_err(|e| e.to_string());
            assert!(got.as_ref().is_err_and(|text| text.contains(wanted)), "{row}: {got:?}");
        }
    }
}
