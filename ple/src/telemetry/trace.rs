//! A Chrome trace: where the time of a run goes, phase by phase, for `chrome://tracing` or Perfetto. The file is a JSON array and
//! is valid after every event: the closing bracket is written over by the next event and again behind it, in one call.

use crate::Result;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Closes the array; the next event begins where this does.
const END: &[u8] = b"\n]\n";

/// A trace, or none: spans of [`Trace::off`] cost nothing.
#[derive(Debug)]
pub struct Trace(Option<Open>);

#[derive(Debug)]
struct Open {
    start: Instant,
    path: PathBuf,
    /// The file, and why the first event that was lost was lost.
    file: Mutex<(File, Option<std::io::Error>)>,
}

impl Trace {
    /// No trace.
    pub fn off() -> Trace {
        Trace(None)
    }

    /// Starts a file anew; its times count from here, by a clock that cannot be set.
    pub fn create(path: &Path) -> Result<Trace> {
        let failed = |action| move |source| runtime::Error::File { path: path.to_path_buf(), action, source };
        let mut file = File::create(path).map_err(failed("create"))?;
        let name = json!({"name": "process_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": "ple"}});
        let mut text = format!("[\n{name}").into_bytes();
        text.extend(END);
        file.write_all(&text).map_err(failed("write"))?;
        Ok(Trace(Some(Open { start: Instant::now(), path: path.to_path_buf(), file: Mutex::new((file, None)) })))
    }

    /// Begins a phase (`rollout`, `reward`, `label`, `step`, `checkpoint`); it ends where the span is dropped. One that begins
    /// and ends inside another is shown under it.
    pub fn span(&self, name: &'static str) -> Span<'_> {
        Span { trace: self, name, start: self.micros(), args: Map::new() }
    }

    /// The error of the first event that could not be written: a trace that breaks off stops no run, but is told.
    pub fn finish(&self) -> Result<()> {
        let Some(open) = &self.0 else { return Ok(()) };
        match open.file.lock().unwrap_or_else(PoisonError::into_inner).1.take() {
            Some(source) => Err(runtime::Error::File { path: open.path.clone(), action: "write", source }.into()),
            None => Ok(()),
        }
    }

    fn micros(&self) -> f64 {
        self.0.as_ref().map_or(0.0, |open| open.start.elapsed().as_nanos() as f64 / 1e3)
    }

    fn add(&self, event: &Value) {
        let Some(open) = &self.0 else { return };
        let (file, lost) = &mut *open.file.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.is_some() {
            return;
        }
        let mut text = format!(",\n{event}").into_bytes();
        text.extend(END);
        *lost = file.seek(SeekFrom::End(-(END.len() as i64))).and_then(|_| file.write_all(&text)).err();
    }
}

/// A phase that is going on.
#[derive(Debug)]
pub struct Span<'a> {
    trace: &'a Trace,
    name: &'static str,
    /// Microseconds from the trace's start.
    start: f64,
    args: Map<String, Value>,
}

impl Span<'_> {
    /// Adds something to show with it: an iteration, a count of tokens.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.note(name, value);
        self
    }

    /// The same on the way, where a value is known only then.
    pub fn note(&mut self, name: &str, value: impl Into<Value>) {
        if self.trace.0.is_some() {
            self.args.insert(name.to_string(), value.into());
        }
    }
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        if self.trace.0.is_none() {
            return;
        }
        let (start, args) = (self.start, std::mem::take(&mut self.args));
        let lasted = self.trace.micros() - start;
        self.trace.add(&json!({
            "name": self.name, "cat": "ple", "ph": "X", "ts": start, "dur": lasted, "pid": 1, "tid": 1, "args": args,
        }));
    }
}
