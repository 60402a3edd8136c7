//! Text to token ids and back: `tokenizer.json`, with the padding and truncation that a trainer may have left in it switched off.

use crate::chat::Template;
use crate::json::{self, Object};
use crate::{Error, Result};
use serde_json::Value;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

mod stream;

pub use stream::TextStream;

/// The tokenizer of a model folder; a clone is the same one.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    path: PathBuf,
    /// The chat template beside it, once it was asked for.
    chat: Arc<OnceLock<Option<Template>>>,
    /// Id of `bos_token` of tokenizer_config.json.
    pub bos: Option<u32>,
    /// Id of `eos_token` of tokenizer_config.json.
    pub eos: Option<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a folder and, if it is there, `tokenizer_config.json` (of which only the names of the first and
    /// the last token matter). Errors name file and field; a file that makes the parser panic is an error too.
    pub fn open(folder: &Path) -> Result<Tokenizer> {
        let path = folder.join("tokenizer.json");
        let text = json::read(&path)?;
        if text.starts_with("version https://git-lfs") {
            return Err(json::lfs_pointer(&path));
        }
        let mut inner: tokenizers::Tokenizer = guard(&path, "wanted a tokenizer", || tokenizers::Tokenizer::from_bytes(&text))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::file(&path, format!("truncation: {e}")))?;
        let mut tokenizer = Tokenizer { inner: Arc::new(inner), path, chat: Arc::default(), bos: None, eos: None };
        let path = folder.join("tokenizer_config.json");
        if path.exists() {
            let map = json::parse(&path, &json::read(&path)?)?;
            let file = Object::new(&path, &map);
            tokenizer.bos = tokenizer.special(&file, "bos_token")?;
            tokenizer.eos = tokenizer.special(&file, "eos_token")?;
        }
        Ok(tokenizer)
    }

    /// The id of a token that the file names by a string or by an object with its `content`.
    fn special(&self, file: &Object, field: &str) -> Result<Option<u32>> {
        let Some(value) = file.get(field) else { return Ok(None) };
        let content = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
        let content = content.ok_or_else(|| file.wrong(field, "a string, or an object with a string `content`"))?;
        self.id(content).map(Some).ok_or_else(|| file.wrong(field, "a token of tokenizer.json"))
    }

    /// The ids of a text; `special` adds what the tokenizer itself puts around a text (for Llama the first token).
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = guard(&self.path, "wanted to encode a text", || self.inner.encode_fast(text, special))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The chat template of its folder, read when it is first asked for; what it writes of the date is that of this moment.
    pub fn template(&self) -> Result<Option<Template>> {
        if let Some(known) = self.chat.get() {
            return Ok(known.clone());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let found = Template::open(self.path.parent().unwrap_or(Path::new(".")), now)?;
        Ok(self.chat.get_or_init(|| found).clone())
    }

    /// The ids of a text without special tokens around it, and of each whether any of its bytes lies in `marked`.
    pub fn encode_marked(&self, text: &str, marked: &[Range<usize>]) -> Result<(Vec<u32>, Vec<bool>)> {
        let encoding = guard(&self.path, "wanted to encode a text", || self.inner.encode(text, false))?;
        let lies = |(start, end): &(usize, usize)| marked.iter().any(|m| *start < m.end && m.start < *end);
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().iter().map(lies).collect()))
    }

    /// The text of ids; `skip_special` leaves the special tokens out. Ids that do not exist are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guard(&self.path, "wanted to decode ids", || self.inner.decode(ids, skip_special))
    }

    /// The token of an id, as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token, spelt as in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Count of tokens, added ones included. The model's V may be larger.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// Runs a call of the tokenizers crate; its errors and its panics become errors of the file.
fn guard<T>(path: &Path, what: &str, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Error::file(path, format!("{what}: {e}"))),
        Err(_) => Err(Error::file(path, format!("{what}, got a file that the tokenizers library cannot handle"))),
    }
}

#[cfg(test)]
mod tests;
