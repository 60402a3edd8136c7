//! `metrics.csv`: one line per row of the log, for a spreadsheet or `pandas.read_csv`.
//!
//! The rows are append-only. Columns stand in the order in which the log first named them; a row ends with the last column known
//! when it was written, and readers take what a short row lacks as empty (NaN). A new name is written into the first line: the file
//! is replaced once (new name, rename) by one with a longer first line and the same rows, byte for byte. So the byte length *of
//! the rows* alone says where to cut the file when a run goes on, whatever names came later; such a column stays, and is empty.

use crate::{Error, Result};
use runtime::host;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The table being written.
#[derive(Debug)]
pub struct Metrics {
    /// At its end; None before the first row.
    out: Option<File>,
    path: PathBuf,
    columns: Vec<String>,
    /// Bytes of the first line.
    header: u64,
    /// Bytes of the rows.
    rows: u64,
}

impl Metrics {
    /// Starts the file anew, as an empty one.
    pub fn create(path: &Path) -> Result<Metrics> {
        host::write_file(path, |_| Ok(()))?;
        Ok(Metrics { out: None, path: path.to_path_buf(), columns: Vec::new(), header: 0, rows: 0 })
    }

    /// Goes on after the first `rows` bytes of rows and cuts off what follows.
    pub fn resume(path: &Path, rows: u64) -> Result<Metrics> {
        if rows == 0 {
            return Metrics::create(path);
        }
        let failed = |action| move |source| runtime::Error::File { path: path.to_path_buf(), action, source };
        let mut out = File::options().read(true).write(true).open(path).map_err(failed("open"))?;
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map_err(failed("read"))?;
        let (columns, header) = first_line(&bytes).ok_or_else(|| Error::file(path, "line 1: wanted names of columns"))?;
        let last = usize::try_from(rows - 1).ok().and_then(|last| bytes[header..].get(last));
        if last != Some(&b'\n') {
            let got = bytes.len() - header;
            return Err(Error::file(path, format!("wanted whole rows of {rows} bytes to go on after, got {got} bytes of rows")));
        }
        out.set_len(header as u64 + rows).and_then(|()| out.seek(SeekFrom::End(0))).map_err(failed("cut"))?;
        Ok(Metrics { out: Some(out), path: path.to_path_buf(), columns, header: header as u64, rows })
    }

    /// Bytes of the rows, the first line aside.
    pub fn bytes(&self) -> u64 {
        self.rows
    }

    /// Adds a row; it is with the system when this returns.
    pub fn row(&mut self, row: &Map<String, Value>) -> Result<()> {
        let known = self.columns.len();
        let new: Vec<String> = row.keys().filter(|name| !self.columns.contains(name)).cloned().collect();
        self.columns.extend(new);
        if self.columns.len() > known {
            self.widen()?;
        }
        let cells: Vec<String> = self.columns.iter().map(|name| row.get(name).map_or(String::new(), cell)).collect();
        let line = cells.join(",") + "\n";
        let failed = |source| runtime::Error::File { path: self.path.clone(), action: "write", source };
        if let Some(out) = &mut self.out {
            out.write_all(line.as_bytes()).map_err(failed)?;
            self.rows += line.len() as u64;
        }
        Ok(())
    }

    /// Replaces the first line.
    fn widen(&mut self) -> Result<()> {
        let names: Vec<String> = self.columns.iter().map(|name| quoted(name)).collect();
        let line = names.join(",") + "\n";
        let (path, header, rows) = (&self.path, self.header, self.rows);
        host::write_file(path, |out| {
            let mut old = File::open(path)?;
            old.seek(SeekFrom::Start(header))?;
            out.write_all(line.as_bytes())?;
            std::io::copy(&mut old.take(rows), out).map(drop)
        })?;
        let failed = |source| runtime::Error::File { path: path.clone(), action: "open", source };
        self.out = Some(File::options().append(true).open(path).map_err(failed)?);
        self.header = line.len() as u64;
        Ok(())
    }
}

/// A value as a cell: null is empty, lists and objects are JSON.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => quoted(text),
        other => quoted(&other.to_string()),
    }
}

/// In quotes where a comma, a quote or a line end would part it.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
}

/// The names of the first line and its length; a line end inside quotes belongs to a name.
fn first_line(bytes: &[u8]) -> Option<(Vec<String>, usize)> {
    let (mut names, mut name, mut inside) = (Vec::new(), Vec::new(), false);
    let mut rest = bytes.iter().enumerate().peekable();
    while let Some((at, byte)) = rest.next() {
        match byte {
            b'"' if inside && rest.peek().is_some_and(|(_, next)| **next == b'"') => name.extend(rest.next().map(|(_, b)| *b)),
            b'"' => inside = !inside,
            b',' | b'\n' if !inside => {
                names.push(String::from_utf8(std::mem::take(&mut name)).ok()?);
                if *byte == b'\n' {
                    return Some((names, at + 1));
                }
            }
            _ => name.push(*byte),
        }
    }
    None
}
