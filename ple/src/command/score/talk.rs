//! Rows of messages as `ple score` reads them: the texts that a run would have scored, had the policy given the answer.

use crate::config::Config;
use crate::data::jsonl::Line;
use crate::data::{Lines, Tokens, chat, sharegpt};
use crate::{Error, Result};
use model::Tokenizer;
use serde_json::Value;
use std::path::Path;

/// Query and answer of a row as texts, and the answer's tokens.
pub(super) struct Told {
    pub(super) prompt: String,
    pub(super) completion: String,
    /// The end token included if there is one.
    pub(super) tokens: usize,
}

/// What renders and ends the messages of a file.
pub(super) struct Talk {
    tokenizer: Tokenizer,
    stop: Vec<u32>,
}

impl Talk {
    /// Of the settings' model folder: its tokenizer, template and stop ids; no weights.
    pub(super) fn open(c: &Config) -> Result<Talk> {
        let Some(folder) = &c.model_name_or_path else {
            return Err(Error::Usage(
                "model_name_or_path: wanted the folder whose chat template renders messages, got none".into(),
            ));
        };
        let tokenizer = Tokenizer::open(folder)?;
        Ok(Talk { stop: stop(folder, &tokenizer), tokenizer })
    }

    /// The query as the template renders it; the answer's ids up to the first that ends it, as text without special tokens.
    pub(super) fn read(&self, lines: &Lines, line: &Line) -> Result<Told> {
        let mut line = line.clone();
        let wrong = |text: &str| lines.error(line.line, text);
        if let Some(Value::Array(messages)) = line.fields.shift_remove("messages") {
            match messages.split_last() {
                Some((answer, query)) if answer["role"] == "assistant" && !query.is_empty() => {
                    line.fields.insert("prompt".into(), query.into());
                    line.fields.insert("completion".into(), std::slice::from_ref(answer).into());
                }
                _ => return Err(wrong("field messages: wanted a query and the assistant's answer at the end")),
            }
        }
        chat::render(lines, &mut line, &self.tokenizer, chat::Want::Whole)?;
        let text = |name: &str| match line.fields.get(name) {
            Some(Value::String(text)) => Ok(text.as_str()),
            _ => Err(lines.error(line.line, format!("field {name}: wanted messages, got none"))),
        };
        let (prompt, completion) = (text("prompt")?.to_string(), text("completion")?);
        let mut ids = Tokens::encode(&self.tokenizer, completion, false)?;
        if let Some(end) = ids.iter().position(|id| self.stop.contains(id)) {
            ids.truncate(end + 1);
        }
        let completion = Tokens::decode(&self.tokenizer, &ids, true)?;
        Ok(Told { prompt, completion, tokens: ids.len() })
    }
}

/// Whether a row has messages. ShareGPT's are put in order.
pub(super) fn is_told(lines: &Lines, line: &mut Line) -> Result<bool> {
    sharegpt::read(lines, line)?;
    Ok(["messages", "prompt", "completion"].iter().any(|name| line.fields.get(*name).is_some_and(Value::is_array)))
}

/// Every id that tokenizer and configuration call an end. A folder of a family that is not run here has a template all the same: then
/// the tokenizer's alone.
fn stop(folder: &Path, tokenizer: &Tokenizer) -> Vec<u32> {
    let own = model::Config::from_folder(folder).map(|config| config.eos_token_ids).unwrap_or_default();
    own.into_iter().chain(tokenizer.eos).collect()
}
