//! A chat template at work.

use super::report::Report;
use super::tokens::{coloured, table, tokens, value};
use crate::command::required;
use crate::config::Config;
use crate::data::chat::Chat;
use crate::data::{Lines, Tokens, sharegpt};
use crate::{Error, Result};
use model::{Template, Tokenizer};
use serde_json::{Map, Value, json};

pub(super) fn report(c: &Config, rows: usize) -> Result<Report> {
    let folder = required(&c.model_name_or_path, "model_name_or_path")?;
    let tokenizer = Tokenizer::open(folder)?;
    let Some(template) = Tokens::template(&tokenizer)? else {
        return Err(Error::file(folder, "wanted a folder with a chat template (chat_template.jinja), got one without"));
    };
    let talks = match &c.dataset_name {
        Some(path) => read(path, rows)?,
        None => samples(&template),
    };
    let (mut text, mut shown, mut fine) = (head(&template), Vec::new(), true);
    for (name, chat) in talks {
        let (said, value) = render(&tokenizer, &template, &chat).unwrap_or_else(|error| {
            fine = false;
            (format!("refused: {error}\n"), json!({ "refused": error.to_string() }))
        });
        text += &format!("\n{name}\n{said}");
        let mut entry = Map::from_iter([("of".to_string(), Value::from(name))]);
        entry.extend(value.as_object().cloned().unwrap_or_default());
        shown.push(Value::Object(entry));
    }
    let names: Vec<&str> = template.sources().iter().map(|(name, _)| name.as_str()).collect();
    let value = json!({ "file": template.path().display().to_string(), "templates": names,
        "marks_assistant": template.marks_assistant(), "writes_date": template.writes_date(), "rendered": shown });
    Ok(Report { value, text, fine })
}

fn head(template: &Template) -> String {
    let names: Vec<&str> = template.sources().iter().map(|(name, _)| name.as_str()).collect();
    let marks = match template.marks_assistant() {
        true => "marks what the assistant wrote",
        false => "has no {% generation %} block: the assistant's turns are what each adds to the text before",
    };
    let date = if template.writes_date() { "; writes the date" } else { "" };
    format!("{}: {}; {marks}{date}\n", template.path().display(), names.join(", "))
}

/// The conversations of the first rows of a file: of pairs the better one.
fn read(path: &std::path::Path, rows: usize) -> Result<Vec<(String, Chat)>> {
    let (mut lines, mut talks) = (Lines::open(path)?, Vec::new());
    while talks.len() < rows
        && let Some(mut line) = lines.next().transpose()?
    {
        sharegpt::read(&lines, &mut line)?;
        let list = |name: &str| line.fields.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
        let whole = ["messages", "prompt", "completion", "chosen"].into_iter().flat_map(list).collect::<Vec<_>>();
        if whole.is_empty() || whole.iter().any(|message| !message["role"].is_string()) {
            return Err(lines.error(line.line, "wanted a row of messages, each an object with a string `role`"));
        }
        talks.push((format!("row {}", line.row), Chat::of(&line.fields, whole)));
    }
    Ok(talks)
}

/// Two turns; under a system message as well where the template takes one.
fn samples(template: &Template) -> Vec<(String, Chat)> {
    let say = |role: &str, content: &str| json!({ "role": role, "content": content });
    let turns = [say("user", "What is the capital of France?"), say("assistant", "Paris."), say("user", "And of Spain?")];
    let plain = Chat::from(turns.to_vec());
    let guided = Chat::from([&[say("system", "Answer in one word.")], &turns[..]].concat());
    let takes_system = guided.render(template, Some(true)).is_ok();
    let mut talks = vec![("sample".to_string(), plain)];
    if takes_system {
        talks.push(("sample under a system message".to_string(), guided));
    } else {
        talks[0].0 += ", without the system message that the template refuses";
    }
    talks
}

/// Text and tokens of a conversation; an answer begins behind it unless it ends with one.
fn render(tokenizer: &Tokenizer, template: &Template, chat: &Chat) -> Result<(String, Value)> {
    let rendered = chat.render(template, None)?;
    let (spans, why) = match chat.assistant(template, &rendered) {
        Ok(spans) => (spans, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let (ids, marked) = Tokens::encode_marked(tokenizer, &rendered.text, &spans)?;
    let all = tokens(tokenizer, "", &ids, |i| marked[i])?;
    let note = why.as_ref().map(|why| format!("note: no assistant mask: {why}\n")).unwrap_or_default();
    let text = format!("{}\n{note}{}", rendered.text, table(&all, coloured()));
    Ok((text, json!({ "text": rendered.text, "tokens": value(&all), "no_mask": why })))
}
