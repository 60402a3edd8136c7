//! Conversational rows (lists of messages) as rows of text: the model's template renders them, as TRL does, and the rest of the data
//! path reads texts. What a template rendered has its special tokens in it, so none are added when it is tokenised.

use super::Tokens;
use super::jsonl::{Line, Lines, kind};
use super::sharegpt;
use crate::principle::Principle;
use crate::{Error, Result};
use model::{Conversation, Template};
use serde_json::{Map, Value, json};
use std::ops::Range;

/// Messages, and what a row says to the template beside them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chat {
    messages: Vec<Value>,
    tools: Value,
    documents: Value,
    variables: Map<String, Value>,
}

/// What became of a row.
pub enum Told {
    /// It has no messages and is as it was.
    Text,
    /// Its fields are texts now; of a whole conversation, what the assistant wrote in it if that was asked for.
    Chat(Box<Chat>, Vec<Range<usize>>),
    /// Two dialogues that do not begin alike.
    Unpaired,
}

/// What a row is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Everything in it.
    Whole,
    /// The same, and which bytes of a whole conversation the assistant wrote.
    Assistant,
    /// A query: of a whole conversation, what comes before its last answer.
    Query,
}

/// Messages alone.
impl From<Vec<Value>> for Chat {
    fn from(messages: Vec<Value>) -> Chat {
        Chat { messages, ..Chat::default() }
    }
}

impl Chat {
    pub(crate) fn of(fields: &Map<String, Value>, messages: Vec<Value>) -> Chat {
        let get = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let variables = fields.get("chat_template_kwargs").and_then(Value::as_object).cloned().unwrap_or_default();
        Chat { messages, tools: get("tools"), documents: get("documents"), variables }
    }

    fn with(&self, more: &[Value]) -> Chat {
        Chat { messages: [&self.messages, more].concat(), ..self.clone() }
    }

    /// The text, and what `{% generation %}` marked in it. Whether the text ends with the beginning of an answer follows from the
    /// last message unless it is said.
    pub(crate) fn render(&self, template: &Template, answer: Option<bool>) -> Result<model::Rendered> {
        let messages = Value::Array(self.messages.clone());
        let add_generation_prompt = answer.unwrap_or_else(|| !self.ends_with_assistant());
        Ok(template.render(&Conversation {
            messages: &messages,
            tools: Some(&self.tools).filter(|v| !v.is_null()),
            documents: Some(&self.documents).filter(|v| !v.is_null()),
            variables: Some(&self.variables),
            add_generation_prompt,
        })?)
    }

    fn ends_with_assistant(&self) -> bool {
        self.messages.last().is_some_and(|m| m["role"] == "assistant")
    }

    /// As a query. An answer that has begun goes on: the text ends where its content does.
    pub fn query(&self, template: &Template) -> Result<String> {
        let mut text = self.render(template, None)?.text;
        if let Some(content) = self.messages.last().filter(|_| self.ends_with_assistant()).and_then(|m| m["content"].as_str()) {
            let content = content.trim();
            if let Some(at) = text.rfind(content) {
                text.truncate(at + content.len());
            }
        }
        Ok(text)
    }

    /// Under a principle, which is the system message or stands before it.
    pub fn guided(&self, principle: &Principle) -> Chat {
        let mut guided = self.clone();
        match guided.messages.first_mut().filter(|m| m["role"] == "system") {
            Some(system) => {
                let own = system["content"].as_str().unwrap_or_default();
                system["content"] = format!("{}\n\n{own}", principle.text).into();
            }
            None => guided.messages.insert(0, json!({ "role": "system", "content": principle.text })),
        }
        guided
    }

    /// What the assistant wrote in the whole text: as the template marks it, else what each of its turns adds to the text before.
    pub(crate) fn assistant(&self, template: &Template, whole: &model::Rendered) -> Result<Vec<Range<usize>>> {
        if template.marks_assistant() {
            return Ok(whole.assistant.clone());
        }
        let mut spans = Vec::new();
        for (i, _) in self.messages.iter().enumerate().filter(|(_, m)| m["role"] == "assistant") {
            let part = |n: usize| Chat { messages: self.messages[..n].to_vec(), ..self.clone() };
            let (before, after) = (part(i).render(template, Some(true))?.text, part(i + 1).render(template, Some(false))?.text);
            if !whole.text.starts_with(&before) {
                let text = format!("message {i}: the template has no {{% generation %}} block and writes earlier turns anew");
                return Err(Error::file(template.path(), format!("assistant_only_loss: {text}")));
            }
            let end = common(&after, &whole.text);
            if before.len() < end {
                spans.push(before.len()..end);
            }
        }
        Ok(spans)
    }
}

/// Bytes of whole characters that both begin with.
fn common(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

/// Turns the messages of a row into texts, in place.
pub fn render(lines: &Lines, line: &mut Line, tokens: &dyn Tokens, want: Want) -> Result<Told> {
    sharegpt::read(lines, line)?;
    let list = |name: &str| line.fields.get(name).is_some_and(Value::is_array);
    if !["messages", "prompt", "completion", "chosen", "rejected"].into_iter().any(list) {
        return Ok(Told::Text);
    }
    let Some(template) = tokens.template()? else {
        let text = "a row of messages, but the model's folder has no chat template (chat_template.jinja makes one)";
        return Err(lines.error(line.line, text));
    };
    let fields = std::mem::take(&mut line.fields);
    let read = |name: &str| messages(lines, line.line, &fields, name);
    let mut out = fields.clone();
    let mut set = |name: &str, text: &str| drop(out.insert(name.into(), text.into()));
    let told = if fields.contains_key("messages") {
        let mut chat = Chat::of(&fields, read("messages")?);
        if want == Want::Query {
            if chat.ends_with_assistant() {
                chat.messages.pop();
            }
            set("prompt", &chat.query(&template)?);
            Told::Chat(Box::new(chat), Vec::new())
        } else {
            let whole = chat.render(&template, Some(false))?;
            set("text", &whole.text);
            let spans = if want == Want::Assistant { chat.assistant(&template, &whole)? } else { Vec::new() };
            Told::Chat(Box::new(chat), spans)
        }
    } else {
        let answers: Vec<&str> = ["completion", "chosen", "rejected"].into_iter().filter(|n| fields.contains_key(*n)).collect();
        let mut rest = answers.iter().map(|name| read(name)).collect::<Result<Vec<_>>>()?;
        let own = fields.contains_key("prompt").then(|| read("prompt")).transpose()?;
        let shared = match (&own, rest.as_slice()) {
            (None, [a, b]) => a.iter().zip(b).take_while(|(a, b)| a == b).count().min(a.len().min(b.len()).saturating_sub(1)),
            _ => 0,
        };
        let prompt = own.unwrap_or_else(|| rest[0][..shared].to_vec());
        if prompt.is_empty() {
            return Ok(Told::Unpaired);
        }
        rest.iter_mut().for_each(|list| drop(list.drain(..shared)));
        let chat = Chat::of(&fields, prompt);
        let mut text = chat.query(&template)?;
        let wholes =
            rest.iter().map(|list| Ok(chat.with(list).render(&template, Some(false))?.text)).collect::<Result<Vec<_>>>()?;
        // What the template writes otherwise once an answer follows belongs to the answer.
        let end = wholes.iter().map(|whole| common(&text, whole)).min().unwrap_or(text.len());
        text.truncate(end);
        set("prompt", &text);
        answers.iter().zip(&wholes).for_each(|(name, whole)| set(name, &whole[end..]));
        Told::Chat(Box::new(chat), Vec::new())
    };
    out.remove("messages");
    line.fields = out;
    Ok(told)
}

/// A list of messages, each with a role.
fn messages(lines: &Lines, line: u64, fields: &Map<String, Value>, name: &str) -> Result<Vec<Value>> {
    let wrong = |text: String| lines.error(line, format!("field {name}: {text}"));
    let list = match fields.get(name) {
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(Value::Array(_)) => return Err(wrong("wanted messages, got an empty list".into())),
        other => return Err(wrong(format!("wanted a list of messages, got {}", other.map_or("nothing", kind)))),
    };
    match list.iter().position(|message| !message["role"].is_string()) {
        Some(i) => Err(wrong(format!("message {i}: wanted an object with a string `role`"))),
        None => Ok(list.clone()),
    }
}

/// Tokens of what a template rendered: none are added.
pub struct AsRendered<'a>(pub &'a dyn Tokens);

impl Tokens for AsRendered<'_> {
    fn encode(&self, text: &str, _: bool) -> Result<Vec<u32>> {
        self.0.encode(text, false)
    }
    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.0.decode(ids, skip_special)
    }
    fn eos(&self) -> Option<u32> {
        None
    }
}

#[cfg(test)]
mod tests;
