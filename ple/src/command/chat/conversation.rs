//! What was said, and the ids that ask for the next answer.

use crate::data::Tokens;
use crate::data::chat::Chat;
use crate::log;
use crate::open::Opened;
use crate::{Error, Result};
use model::Template;
use serde_json::{Value, json};
use std::path::Path;

/// Messages under a chat template; without one, texts and how they were continued, each by itself.
pub(super) struct Conversation {
    template: Option<Template>,
    /// In the template's order, the system message first if there is one.
    messages: Vec<Value>,
    /// Texts and continuations.
    texts: Vec<(String, String)>,
}

impl Conversation {
    pub(super) fn new(opened: &Opened, system: Option<&str>) -> Result<Conversation> {
        let template = Tokens::template(&opened.tokenizer)?;
        let mut new = Conversation { template, messages: Vec::new(), texts: Vec::new() };
        match system {
            Some(text) => new.system(text).map(|()| new),
            None => Ok(new),
        }
    }

    pub(super) fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Begins anew under the system message there is.
    pub(super) fn reset(&mut self) {
        self.messages.truncate(self.messages.first().map_or(0, |m| usize::from(m["role"] == "system")));
        self.texts.clear();
    }

    /// Begins anew under a system message, or under none if the text is empty.
    pub(super) fn system(&mut self, text: &str) -> Result<()> {
        if self.template.is_none() {
            return Err(Error::Usage(
                "system: wanted a model with a chat template (chat_template.jinja), got one without".into(),
            ));
        }
        self.messages.clear();
        self.texts.clear();
        if !text.is_empty() {
            self.messages.push(json!({ "role": "system", "content": text }));
        }
        Ok(())
    }

    /// The ids of all that was said and of a message, up to where the answer begins.
    pub(super) fn prompt(&self, opened: &Opened, message: &str) -> Result<Vec<u32>> {
        let Some(template) = &self.template else { return Tokens::encode(&opened.tokenizer, message, true) };
        let mut messages = self.messages.clone();
        messages.push(json!({ "role": "user", "content": message }));
        let text = Chat::from(messages).query(template)?;
        Tokens::encode(&opened.tokenizer, &text, false)
    }

    /// Keeps a message and its answer.
    pub(super) fn answered(&mut self, message: &str, answer: String) {
        match self.template {
            Some(_) => {
                self.messages.push(json!({ "role": "user", "content": message }));
                self.messages.push(json!({ "role": "assistant", "content": answer }));
            }
            None => self.texts.push((message.into(), answer)),
        }
    }

    /// Adds it to a file as `ple sft` reads it: a row of messages, or rows of prompt and completion.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let mut lines = log::Lines::resume(path)?;
        if !self.messages.is_empty() {
            lines.write(&json!({ "messages": self.messages }))?;
        }
        let rows = self.texts.iter().map(|(prompt, completion)| json!({ "prompt": prompt, "completion": completion }));
        rows.into_iter().try_for_each(|row| lines.write(&row))
    }
}
