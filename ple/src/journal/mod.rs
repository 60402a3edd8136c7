//! `rollouts/iter-NNNNN.jsonl`: everything an iteration has sampled and scored, written as it comes, so that nothing of it is
//! drawn or asked twice. One JSON object a line, each closed by the CRC-32 of itself (see [`line`]):
//!
//! ```text
//! {"iteration":3,"adapter":"<sha256>","answers":"<sha256>","rewards":"<sha256>","seed":42,"crc":"…"}   the head: whose answers these are
//! {"row":7,"side":1,"sample":0,"ids":[..],"logps":[..],"sampling_logps":[..],"finished":true,"crc":"…"}   logps: f32 bit patterns
//! {"row":7,"side":1,"sample":0,"reward":0.5,"parts":[0.5],"crc":"…"}
//! ```
//!
//! The file only grows until the iteration is scored; [`Journal::finish`] then writes it anew in (row, side, sample) order, so
//! that its bytes are the same however the run went.

mod contents;
mod line;
#[cfg(test)]
mod tests;

pub use contents::Held;
pub use line::{Head, Key, Rewarded, Sampled};

use crate::{Error, Result};
use contents::{Contents, contents};
use runtime::host;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// An iteration's journal, open for more.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    len: u64,
}

/// How [`Journal::open`] came by what it returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There was no file.
    Nothing,
    /// There was one of the same head; so many bytes at its end were damaged or cut short, and are gone.
    Same {
        /// Bytes.
        cut: u64,
    },
    /// There was one of another head, or none that could be read; it lies under this name now.
    Stale(PathBuf),
    /// There was one whose rewards are others; it lies under this name now, and its answers are in a new one.
    Rewarded(PathBuf),
}

impl Journal {
    /// Opens the journal of an iteration in its folder (made if absent) and returns what it holds. A file of another head is
    /// put aside as `.stale`; where only rewards depend on what differs, its answers are taken over. A journal whose lines are intact and yet contradict each other is an error that names file and line.
    pub fn open(folder: &Path, head: &Head) -> Result<(Journal, Held, Found)> {
        crate::checkpoint::create_folder(folder)?;
        let path = folder.join(name(head.iteration));
        let Some(bytes) = bytes(&path)? else { return Journal::create(path, head, Found::Nothing) };
        let contents = contents(&path, &bytes, Some(head))?;
        match &contents.head {
            Some(found) if found == head => {}
            Some(found) if found.answers_as(head) => return Journal::rewarded(path, head, contents.held),
            _ => {
                let stale = aside(&path)?;
                return Journal::create(path, head, Found::Stale(stale));
            }
        }
        let cut = bytes.len() as u64 - contents.whole;
        let file = append(&path)?;
        if cut > 0 {
            file.set_len(contents.whole).and_then(|()| file.sync_all()).map_err(failed(&path, "cut"))?;
        }
        Ok((Journal { path, file, len: contents.whole }, contents.held, Found::Same { cut }))
    }

    /// A journal that begins: one of an earlier run is put aside as `.stale`, whatever it holds.
    pub fn begin(folder: &Path, head: &Head) -> Result<(Journal, Held, Found)> {
        crate::checkpoint::create_folder(folder)?;
        let path = folder.join(name(head.iteration));
        if !path.exists() {
            return Journal::create(path, head, Found::Nothing);
        }
        let stale = aside(&path)?;
        Journal::create(path, head, Found::Stale(stale))
    }

    /// A new file with the answers of the one that is there, of which a copy stays.
    fn rewarded(path: PathBuf, head: &Head, held: Held) -> Result<(Journal, Held, Found)> {
        let stale = stale(&path);
        std::fs::copy(&path, &stale).map_err(failed(&path, "copy"))?;
        let text = head.line() + &held.samples.values().map(Sampled::line).collect::<String>();
        host::write_file(&path, |out| out.write_all(text.as_bytes()))?;
        let file = append(&path)?;
        let held = Held { rewards: BTreeMap::new(), ..held };
        Ok((Journal { path, file, len: text.len() as u64 }, held, Found::Rewarded(stale)))
    }

    /// A new file, which has its name only when its head is on disk.
    fn create(path: PathBuf, head: &Head, found: Found) -> Result<(Journal, Held, Found)> {
        let line = head.line();
        host::write_file(&path, |out| out.write_all(line.as_bytes()))?;
        let file = append(&path)?;
        Ok((Journal { path, file, len: line.len() as u64 }, Held::default(), found))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds answers; they are with the system when this returns.
    pub fn append_samples(&mut self, samples: &[Sampled]) -> Result<()> {
        self.append(samples.iter().map(Sampled::line).collect())
    }

    /// Adds rewards of answers that are there.
    pub fn append_rewards(&mut self, rewards: &[Rewarded]) -> Result<()> {
        self.append(rewards.iter().map(Rewarded::line).collect())
    }

    /// One write; if it fails half-way, the file is cut to what it was.
    fn append(&mut self, text: String) -> Result<()> {
        if let Err(source) = self.file.write_all(text.as_bytes()) {
            let _ = self.file.set_len(self.len);
            return Err(failed(&self.path, "write")(source));
        }
        self.len += text.len() as u64;
        Ok(())
    }

    /// Waits until everything added is on disk: the end of a phase.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(failed(&self.path, "sync"))
    }

    /// Ends the iteration: the file is written anew in (row, side, sample) order, each answer followed by its reward. Every
    /// answer must have one.
    pub fn finish(self) -> Result<Held> {
        let Journal { path, file, .. } = self;
        drop(file);
        let bytes = bytes(&path)?.unwrap_or_default();
        let Contents { head: Some(head), held, whole } = contents(&path, &bytes, None)? else {
            return Err(Error::file(&path, "line 1: wanted the head of a journal"));
        };
        if whole != bytes.len() as u64 {
            return Err(Error::file(&path, format!("wanted whole lines to the end, got {whole} bytes of {}", bytes.len())));
        }
        if let Some(key) = held.samples.keys().find(|key| !held.rewards.contains_key(key)) {
            return Err(Error::file(&path, format!("{key}: wanted a reward for every answer, got none")));
        }
        let lines = held.samples.values().zip(held.rewards.values()).map(|(s, r)| s.line() + &r.line());
        host::write_file(&path, |out| {
            out.write_all(head.line().as_bytes())?;
            lines.into_iter().try_for_each(|line| out.write_all(line.as_bytes()))
        })?;
        Ok(held)
    }
}

/// Reads a journal without changing it: its head, and what stands before the first line that is damaged or cut short.
pub fn read(path: &Path) -> Result<(Head, Held)> {
    let bytes = std::fs::read(path).map_err(failed(path, "read"))?;
    let contents = contents(path, &bytes, None)?;
    let head = contents.head.ok_or_else(|| Error::file(path, "line 1: wanted the head of a journal"))?;
    Ok((head, contents.held))
}

fn name(iteration: u32) -> String {
    format!("iter-{iteration:05}.jsonl")
}

/// Where a journal lies that is of no use any more.
fn stale(path: &Path) -> PathBuf {
    path.with_extension("jsonl.stale")
}

/// Renames a journal to `.stale`.
fn aside(path: &Path) -> Result<PathBuf> {
    let stale = stale(path);
    std::fs::rename(path, &stale).map_err(failed(path, "rename"))?;
    Ok(stale)
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| runtime::Error::File { path, action, source }.into()
}

fn append(path: &Path) -> Result<File> {
    File::options().append(true).open(path).map_err(failed(path, "open"))
}

/// A file's bytes, if it is there.
fn bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed(path, "read")(source)),
    }
}
