//! The run's log: one JSON object a line in `log.jsonl`, and one short line for a reader.

use crate::Result;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file of JSON lines that is written as the run goes.
#[derive(Debug)]
pub struct Lines {
    out: BufWriter<File>,
    path: PathBuf,
}

impl Lines {
    /// Starts the file anew.
    pub fn create(path: &Path) -> Result<Lines> {
        let out =
            File::create(path).map_err(|source| runtime::Error::File { path: path.to_path_buf(), action: "create", source })?;
        Ok(Lines { out: BufWriter::new(out), path: path.to_path_buf() })
    }

    /// Adds one line; it is with the system when this returns.
    pub fn write(&mut self, row: &Value) -> Result<()> {
        let failed = |source| runtime::Error::File { path: self.path.clone(), action: "write", source };
        let mut line = row.to_string();
        line.push('\n');
        Ok(self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush()).map_err(failed)?)
    }
}

/// Prints a line for the reader. One who has gone (a closed pipe) ends no run.
pub fn print(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A float that JSON can hold; null for NaN and infinities.
pub fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// Where a run speaks.
#[derive(Debug)]
pub struct Log {
    file: Lines,
    quiet: bool,
    json: bool,
}

impl Log {
    /// `log.jsonl` in the run's folder. `quiet` keeps the terminal silent, `json` prints the objects themselves.
    pub fn create(folder: &Path, quiet: bool, json: bool) -> Result<Log> {
        Ok(Log { file: Lines::create(&folder.join("log.jsonl"))?, quiet, json })
    }

    /// Writes one object, and `text` for the reader.
    pub fn row(&mut self, row: Map<String, Value>, text: &str) -> Result<()> {
        let row = Value::Object(row);
        self.file.write(&row)?;
        if self.json {
            print(row);
        } else {
            self.say(text);
        }
        Ok(())
    }

    /// A line for the reader only.
    pub fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            print(text);
        }
    }
}
