//! Chat templates: messages to the text a model was tuned on, as transformers renders it. A template is a program of whoever
//! published the model: its steps and its output are limited, and what it raises is an error of its file.

use crate::json::{self, Object};
use crate::{Error, Result};
use minijinja::Environment;
use minijinja::value::Serde;
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod clock;
mod environment;
mod python;
mod rewrite;
#[cfg(test)]
mod tests;

/// Bytes of a rendering.
const MOST: usize = 4 << 20;
/// Bytes of a template's source.
const LONGEST: usize = 64 << 10;
/// Bytes of the stack that templates run on; only what is used of it is ever there.
const STACK: usize = 128 << 20;
/// The template that is meant where no other is named.
const DEFAULT: &str = "default";
/// The one for conversations with tools, where a model has it.
const TOOLS: &str = "tool_use";
/// Tokens that a template knows by name, from tokenizer_config.json.
const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What is rendered.
#[derive(Clone, Copy, Debug)]
pub struct Conversation<'a> {
    /// A list of objects with `role` and `content`.
    pub messages: &'a Value,
    /// A list of tools, if the row has one.
    pub tools: Option<&'a Value>,
    /// A list of documents, if the row has one.
    pub documents: Option<&'a Value>,
    /// Further variables (`chat_template_kwargs`).
    pub variables: Option<&'a Map<String, Value>>,
    /// Whether the text ends with the beginning of an answer.
    pub add_generation_prompt: bool,
}

impl<'a> Conversation<'a> {
    /// Messages alone.
    pub fn new(messages: &'a Value, add_generation_prompt: bool) -> Conversation<'a> {
        Conversation { messages, tools: None, documents: None, variables: None, add_generation_prompt }
    }
}

/// A rendering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text, special tokens spelt out: it is tokenised without adding any.
    pub text: String,
    /// The bytes that `{% generation %}` blocks wrote, in order.
    pub assistant: Vec<Range<usize>>,
}

/// The template of a model; a clone is the same one.
#[derive(Clone, Debug)]
pub struct Template {
    env: Arc<Environment<'static>>,
    /// Name and source of each.
    sources: Arc<Vec<(String, String)>>,
    path: PathBuf,
    special: Map<String, Value>,
    marked: bool,
    /// Seconds since 1970 that `strftime_now` writes.
    now: u64,
}

impl Template {
    /// The template of a model's folder: `chat_template.jinja`, else `chat_template` of tokenizer_config.json (a text, or a list
    /// of named ones), else that of chat_template.json; beside the first, `additional_chat_templates/NAME.jinja`. None where the
    /// folder has none. A template that cannot be read or parsed is an error of its file.
    pub fn open(folder: &Path, now: u64) -> Result<Option<Template>> {
        let special = special(folder)?;
        let lone = folder.join("chat_template.jinja");
        if lone.exists() {
            let mut sources = vec![(DEFAULT.to_string(), json::read(&lone)?)];
            sources.extend(additional(&folder.join("additional_chat_templates"))?);
            return Template::new(&lone, sources, special, now).map(Some);
        }
        for name in ["tokenizer_config.json", "chat_template.json"] {
            let path = folder.join(name);
            if !path.exists() {
                continue;
            }
            let map = json::parse(&path, &json::read(&path)?)?;
            let sources = named(&Object::new(&path, &map))?;
            if !sources.is_empty() {
                return Template::new(&path, sources, special, now).map(Some);
            }
        }
        Ok(None)
    }

    /// A template from a file of its own, or of another folder, with the special tokens of `folder`.
    pub fn from_path(path: &Path, folder: &Path, now: u64) -> Result<Template> {
        if path.is_dir() {
            let found = Template::open(path, now)?;
            let special = special(folder)?;
            let found = found.map(|template| Template { special, ..template });
            return found.ok_or_else(|| Error::file(path, "wanted a folder with a chat template, got one without"));
        }
        Template::new(path, vec![(DEFAULT.into(), json::read(path)?)], special(folder)?, now)
    }

    /// Of a source; `path` is what errors name. `special` are the tokens that it knows by name.
    pub fn new(path: &Path, sources: Vec<(String, String)>, special: Map<String, Value>, now: u64) -> Result<Template> {
        if let Some((_, source)) = sources.iter().find(|(_, source)| source.len() > LONGEST) {
            let got = source.len();
            return Err(Error::file(path, format!("chat template: wanted at most {LONGEST} bytes, got {got}")));
        }
        let compiled = on_deep_stack(path, || -> std::result::Result<_, minijinja::Error> {
            let (mut env, mut marked) = (environment::environment()?, false);
            for (name, source) in &sources {
                let (text, generation) = rewrite::rewrite(source);
                marked |= generation;
                env.add_template_owned(name.clone(), text)?;
            }
            Ok((env, marked))
        })?;
        let (env, marked) = compiled.map_err(|e| fault(path, &e))?;
        let (env, sources, path) = (Arc::new(env), Arc::new(sources), path.to_path_buf());
        Ok(Template { env, sources, path, special, marked, now })
    }

    /// The file it is from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Name and source of each.
    pub fn sources(&self) -> &[(String, String)] {
        &self.sources
    }

    /// Whether it says by `{% generation %}` what the assistant wrote.
    pub fn marks_assistant(&self) -> bool {
        self.marked
    }

    /// Whether a rendering depends on the day.
    pub fn writes_date(&self) -> bool {
        self.sources.iter().any(|(_, source)| source.contains("strftime_now"))
    }

    /// Renders a conversation. Errors name the template's file and line, and what it raised.
    pub fn render(&self, chat: &Conversation<'_>) -> Result<Rendered> {
        let tools = chat.tools.filter(|tools| tools.as_array().is_none_or(|list| !list.is_empty()));
        let name = if tools.is_some() && self.sources.iter().any(|(name, _)| name == TOOLS) { TOOLS } else { DEFAULT };
        let mut variables = self.special.clone();
        variables.insert("messages".into(), chat.messages.clone());
        variables.insert("tools".into(), tools.cloned().unwrap_or_default());
        variables.insert("documents".into(), chat.documents.cloned().unwrap_or_default());
        variables.insert("add_generation_prompt".into(), chat.add_generation_prompt.into());
        variables.extend(chat.variables.cloned().unwrap_or_default());
        variables.insert(environment::NOW.into(), json!(self.now));
        let (outcome, out) = on_deep_stack(&self.path, || {
            let mut out = Capped::default();
            let template = self.env.get_template(name);
            let variables = minijinja::Value::from(Serde(&variables));
            (template.and_then(|t| t.render_captured_to(variables, &mut out).map(drop)), out)
        })?;
        if out.full {
            return Err(Error::file(&self.path, format!("wanted a rendering of at most {MOST} bytes, got more")));
        }
        outcome.map_err(|e| fault(&self.path, &e))?;
        let text = String::from_utf8(out.bytes).map_err(|_| Error::file(&self.path, "wanted a rendering in UTF-8"))?;
        if self.marked { self.cut(&text) } else { Ok(Rendered { text, assistant: Vec::new() }) }
    }

    /// Takes the marks out of a rendering.
    fn cut(&self, marked: &str) -> Result<Rendered> {
        let (mut rendered, mut open) = (Rendered::default(), Vec::new());
        for piece in marked.split_inclusive(environment::MARKS) {
            let (text, mark) = match piece.char_indices().next_back() {
                Some((at, c)) if environment::MARKS.contains(&c) => (&piece[..at], Some(c)),
                _ => (piece, None),
            };
            rendered.text.push_str(text);
            match mark {
                Some(c) if c == environment::MARKS[0] => open.push(rendered.text.len()),
                Some(_) => match open.pop() {
                    // A block inside another says nothing new.
                    Some(start) if open.is_empty() && start < rendered.text.len() => {
                        rendered.assistant.push(start..rendered.text.len());
                    }
                    Some(_) => {}
                    None => return Err(self.forged()),
                },
                None => {}
            }
        }
        if open.is_empty() { Ok(rendered) } else { Err(self.forged()) }
    }

    fn forged(&self) -> Error {
        Error::file(&self.path, "wanted messages without the noncharacters U+FDD0 and U+FDD1, which mark {% generation %} blocks")
    }
}

/// Runs a step of the template library on a stack on which the deepest expression that a source can have is parsed, and the deepest
/// value that its steps can build is freed: both go by recursion.
fn on_deep_stack<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let failed = |text: String| Error::file(path, format!("chat template: {text}"));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| failed(format!("wanted a thread with a stack of {STACK} bytes, got {e}")))?;
        thread.join().map_err(|_| failed("wanted a template, got one that the template library cannot handle".into()))
    })
}

/// An error of minijinja as one of the template's file.
fn fault(path: &Path, error: &minijinja::Error) -> Error {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let text = match (error.kind(), error.detail()) {
        (minijinja::ErrorKind::OutOfFuel, _) => "wanted a rendering of at most 1000000 steps, got more".to_string(),
        (minijinja::ErrorKind::InvalidOperation, Some(detail)) => detail.to_string(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    Error::file(path, format!("chat template: {line}{text}"))
}

/// What is written, up to a limit.
#[derive(Default)]
struct Capped {
    bytes: Vec<u8>,
    full: bool,
}

impl std::io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > MOST {
            self.full = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The templates that a JSON file names: one text, or a list of objects with `name` and `template`.
fn named(file: &Object) -> Result<Vec<(String, String)>> {
    let wanted = "a string, or a list of objects with the strings `name` and `template`";
    match file.get("chat_template") {
        None => Ok(Vec::new()),
        Some(Value::String(source)) => Ok(vec![(DEFAULT.into(), source.clone())]),
        Some(Value::Array(list)) => {
            let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_string);
            let one = |entry: &Value| Some((text(entry, "name")?, text(entry, "template")?));
            let all = list.iter().map(one).collect::<Option<Vec<_>>>();
            let mut all = all.ok_or_else(|| file.wrong("chat_template", wanted))?;
            // A lone one is meant whatever its name.
            if let [(name, _)] = all.as_mut_slice() {
                *name = DEFAULT.into();
            }
            match all.iter().any(|(name, _)| name == DEFAULT) || all.is_empty() {
                true => Ok(all),
                false => Err(file.wrong("chat_template", "a template with the name `default` among several")),
            }
        }
        Some(_) => Err(file.wrong("chat_template", wanted)),
    }
}

/// `NAME.jinja` of a folder, if it is there.
fn additional(folder: &Path) -> Result<Vec<(String, String)>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |source| Error::Runtime(runtime::Error::File { path: folder.to_path_buf(), action: "list", source });
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    let named = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".jinja")?.to_string();
        Some(json::read(path).map(|source| (name, source)))
    };
    paths.iter().filter_map(named).collect()
}

/// The special tokens of a folder's tokenizer_config.json, as texts.
fn special(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join("tokenizer_config.json");
    let mut special = Map::new();
    if !path.exists() {
        return Ok(special);
    }
    let map = json::parse(&path, &json::read(&path)?)?;
    let text = |value: &Value| value.as_str().or_else(|| value.get("content").and_then(Value::as_str)).map(str::to_string);
    for name in SPECIAL {
        if let Some(content) = map.get(name).and_then(text) {
            special.insert(name.into(), content.into());
        }
    }
    if let Some(list) = map.get("additional_special_tokens").and_then(Value::as_array) {
        special.insert("additional_special_tokens".into(), list.iter().filter_map(text).collect());
    }
    Ok(special)
}
