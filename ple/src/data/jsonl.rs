//! JSONL and JSONL.gz, one row in memory at a time. Errors name file and line.

use crate::{Error, Result};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Chain, Cursor, Read};
use std::path::{Path, PathBuf};

/// A longer line is a mistake, or an attack on memory.
const LIMIT: u64 = 64 << 20;

/// An object of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Index of the row: objects before it.
    pub row: u32,
    /// Line in the file, from 1.
    pub line: u64,
    /// Its fields.
    pub fields: Map<String, Value>,
}

/// The objects of a file in order; blank lines are no rows.
pub struct Lines {
    path: PathBuf,
    reader: BufReader<Box<dyn Read>>,
    line: u64,
    rows: u32,
    failed: bool,
}

impl Lines {
    /// Opens a file; its first two bytes tell whether it is compressed.
    pub fn open(path: &Path) -> Result<Lines> {
        let open = || -> std::io::Result<(Vec<u8>, File)> {
            let mut file = File::open(path)?;
            let mut magic = Vec::with_capacity(2);
            file.by_ref().take(2).read_to_end(&mut magic)?;
            Ok((magic, file))
        };
        let (magic, file) = open().map_err(|e| Error::file(path, format!("cannot open: {e}")))?;
        let zipped = magic == [0x1f, 0x8b];
        let whole: Chain<Cursor<Vec<u8>>, File> = Cursor::new(magic).chain(file);
        let source: Box<dyn Read> = if zipped { Box::new(MultiGzDecoder::new(BufReader::new(whole))) } else { Box::new(whole) };
        let reader = BufReader::with_capacity(1 << 16, source);
        Ok(Lines { path: path.to_path_buf(), reader, line: 0, rows: 0, failed: false })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error at a line of this file.
    pub fn error(&self, line: u64, text: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("line {line}: {text}"))
    }

    /// The next line with something in it.
    fn text(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let mut bytes = Vec::new();
            self.line += 1;
            let read = self.reader.by_ref().take(LIMIT + 1).read_until(b'\n', &mut bytes);
            let read = read.map_err(|e| self.error(self.line, format!("cannot read: {e}")))?;
            if read == 0 {
                return Ok(None);
            }
            if bytes.len() as u64 > LIMIT {
                return Err(self.error(self.line, format!("wanted a line of at most {LIMIT} bytes, got a longer one")));
            }
            if self.line == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
            if !bytes.trim_ascii().is_empty() {
                return Ok(Some(bytes));
            }
        }
    }

    fn object(&mut self) -> Result<Option<Line>> {
        let Some(bytes) = self.text()? else { return Ok(None) };
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| self.error(self.line, format!("wanted UTF-8, got other bytes at column {}", e.valid_up_to() + 1)))?;
        let value = serde_json::from_str(text).map_err(|e| {
            // serde_json counts lines within the text, which is one line.
            let text = e.to_string();
            let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
            self.error(self.line, format!("wanted a JSON object, got {reason} at column {}", e.column()))
        })?;
        let Value::Object(fields) = value else {
            return Err(self.error(self.line, format!("wanted a JSON object, got {}", kind(&value))));
        };
        let row = self.rows;
        self.rows = row.checked_add(1).ok_or_else(|| self.error(self.line, "wanted fewer than 4294967295 rows, got more"))?;
        Ok(Some(Line { row, line: self.line, fields }))
    }
}

impl Iterator for Lines {
    type Item = Result<Line>;

    /// After an error nothing follows.
    fn next(&mut self) -> Option<Result<Line>> {
        if self.failed {
            return None;
        }
        let next = self.object().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

/// What a value is, for an error.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
