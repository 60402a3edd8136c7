//! The run's log: one JSON object a line in `log.jsonl`, and one short line for a reader.

use crate::Result;
use crate::config::{Config, LogFormat};
use crate::progress::Bars;
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

/// A float that JSON can hold; null for NaN and infinities.
pub fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// A line for whoever watches; that nobody can read it stops no run.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints what a command was asked for. A reader that has gone is content with what it has; any other failure is an error.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(runtime::Error::File { path: "standard output".into(), action: "write", source }.into())
        }
        _ => Ok(()),
    }
}

/// Whether a file can be written at `path`, before the work that fills it: a file is made beside it and removed.
pub fn probe(path: &Path) -> Result<()> {
    let failed = |source| runtime::Error::File { path: path.to_path_buf(), action: "create", source };
    if path.is_dir() {
        return Err(failed(std::io::Error::from(std::io::ErrorKind::IsADirectory)).into());
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = path.with_file_name(format!(".{name}.{}.probe", std::process::id()));
    Ok(File::create(&beside).and_then(|_| std::fs::remove_file(&beside)).map_err(failed)?)
}

/// Where a run speaks.
#[derive(Debug)]
pub struct Log {
    file: Lines,
    quiet: bool,
    json: bool,
    /// Bars of its phases; lines are printed beside them.
    pub bars: Bars,
}

impl Log {
    /// `log.jsonl` in the run's folder. `quiet` keeps the terminal silent, `log_format json` prints the objects themselves.
    pub fn create(folder: &Path, c: &Config) -> Result<Log> {
        let (file, json) = (Lines::create(&folder.join("log.jsonl"))?, c.log_format == LogFormat::Json);
        Ok(Log { file, quiet: c.quiet, json, bars: Bars::new(c) })
    }

    /// Writes one object, and `text` for the reader.
    pub fn row(&mut self, row: Map<String, Value>, text: &str) -> Result<()> {
        self.record(row)?;
        self.say(text);
        Ok(())
    }

    /// Writes one object without a line for the reader.
    pub fn record(&mut self, row: Map<String, Value>) -> Result<()> {
        let row = Value::Object(row);
        self.file.write(&row)?;
        if self.json {
            tell(&row.to_string());
        }
        Ok(())
    }

    /// A line for the reader only.
    pub fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            self.bars.aside(|| tell(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_leaves_nothing_behind() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        assert!(probe(&folder.path().join("out.jsonl")).is_ok());
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);
        for bad in [folder.path().to_path_buf(), folder.path().join("absent/out.jsonl")] {
            assert!(probe(&bad).is_err_and(|e| e.exit_code() == 3), "{}", bad.display());
        }
        Ok(())
    }
}
