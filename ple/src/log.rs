//! The run's log: one JSON object a line in `log.jsonl`, and one short line for a reader.

use crate::Result;
use crate::config::{Config, LogFormat};
use crate::progress::Bars;
use crate::telemetry::{Telemetry, Trace, TrainerState};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file's name in a run's folder.
pub const NAME: &str = "log.jsonl";

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

    /// Goes on at the end of the file.
    pub fn resume(path: &Path) -> Result<Lines> {
        let out = File::options().append(true).create(true).open(path);
        let out = out.map_err(|source| runtime::Error::File { path: path.to_path_buf(), action: "open", source })?;
        Ok(Lines { out: BufWriter::new(out), path: path.to_path_buf() })
    }

    /// Adds one line; it is with the system when this returns.
    pub fn write(&mut self, row: &Value) -> Result<()> {
        let failed = |source| runtime::Error::File { path: self.path.clone(), action: "write", source };
        let mut line = row.to_string();
        line.push('\n');
        Ok(self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush()).map_err(failed)?)
    }

    /// Waits until every line is on disk.
    pub fn sync(&self) -> Result<()> {
        let failed = |source| runtime::Error::File { path: self.path.clone(), action: "sync", source };
        Ok(self.out.get_ref().sync_data().map_err(failed)?)
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
    folder: PathBuf,
    telemetry: Telemetry,
    quiet: bool,
    json: bool,
    /// Bars of its phases; lines are printed beside them.
    pub bars: Bars,
    /// Times of its phases.
    pub trace: Arc<Trace>,
}

impl Log {
    /// `log.jsonl` in the run's folder, and what `report_to` and `trace` name. `state` is that of a run that begins. `quiet` keeps
    /// the terminal silent, `log_format json` prints the objects themselves.
    pub fn create(folder: &Path, c: &Config, state: TrainerState) -> Result<Log> {
        let telemetry = Telemetry::create(folder, state, &c.report_to)?;
        Log::over(folder, c, Lines::create(&folder.join(NAME))?, telemetry)
    }

    /// Goes on from a checkpoint that [`Log::keep`] has written to, once `log.jsonl` is cut to what it had then. `before` are the
    /// steps of the stages before the one that goes on. A trace begins anew.
    pub fn resume(folder: &Path, c: &Config, checkpoint: &Path, before: u64) -> Result<Log> {
        let telemetry = Telemetry::resume(folder, checkpoint, before, &c.report_to)?;
        Log::over(folder, c, Lines::resume(&folder.join(NAME))?, telemetry)
    }

    fn over(folder: &Path, c: &Config, file: Lines, telemetry: Telemetry) -> Result<Log> {
        let trace = c.trace.as_deref().map_or(Ok(Trace::off()), Trace::create)?;
        let json = c.log_format == LogFormat::Json;
        Ok(Log { file, folder: folder.into(), telemetry, quiet: c.quiet, json, bars: Bars::new(c), trace: Arc::new(trace) })
    }

    /// What `trainer_state.json` will say.
    pub fn state(&mut self) -> &mut TrainerState {
        &mut self.telemetry.state
    }

    /// The next stage counts its steps from 1 again.
    pub fn stage(&mut self) {
        self.telemetry.stage();
    }

    /// Writes `trainer_state.json` into a checkpoint's folder, after all rows are on disk.
    pub fn keep(&mut self, folder: &Path) -> Result<()> {
        self.file.sync()?;
        self.telemetry.keep(folder)
    }

    /// The same into the run's folder, at its end; a trace that broke off is told.
    pub fn finish(&mut self) -> Result<()> {
        self.telemetry.keep(&self.folder)?;
        if let Err(error) = self.trace.finish() {
            self.say(&format!("note  the trace broke off: {error}"));
        }
        Ok(())
    }

    /// Writes one object, and `text` for the reader.
    pub fn row(&mut self, row: Map<String, Value>, text: &str) -> Result<()> {
        self.record(row)?;
        self.say(text);
        Ok(())
    }

    /// Writes one object without a line for the reader.
    pub fn record(&mut self, row: Map<String, Value>) -> Result<()> {
        let line = Value::Object(row.clone());
        self.file.write(&line)?;
        if self.json {
            tell(&line.to_string());
        }
        self.telemetry.row(&row)
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
