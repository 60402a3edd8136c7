//! Where checkpoints lie in a run's folder, and the order of file operations that keeps them whole:
//!
//! 1. `.checkpoint-N.tmp/` is made and filled; each file is synced before it has its name (`host::write_file`);
//! 2. `ple_state.json`, with the digests of the others; the folder is synced;
//! 3. only where `checkpoint-N/` is there already: it is renamed to `.checkpoint-N.old`;
//! 4. `.checkpoint-N.tmp` is renamed to `checkpoint-N`, and the run's folder is synced;
//! 5. only after 3: `.checkpoint-N.old` is removed.
//!
//! [`sweep`] ends what a kill broke off: an `.old` whose name is free again gets it back (killed between 3 and 4: the old state),
//! any other `.old` and every `.tmp` is removed. Nothing is removed under its own name: [`prune`] renames to `.tmp` first.

use super::state::{self, Digests, State};
use crate::digest::sha256_file;
use crate::{Error, Result};
use runtime::host;
use std::fs;
use std::path::{Path, PathBuf};

/// Written last, and what makes a folder a checkpoint.
const STATE: &str = "ple_state.json";

fn failed(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| runtime::Error::File { path, action, source }.into()
}

fn named(output: &Path, step: u64) -> PathBuf {
    output.join(format!("checkpoint-{step}"))
}

/// `.checkpoint-N.tmp` or `.checkpoint-N.old`.
fn hidden(output: &Path, step: u64, ending: &str) -> PathBuf {
    output.join(format!(".checkpoint-{step}.{ending}"))
}

/// Names of a folder's entries, sorted; those that are not UTF-8 are shown with replacement characters.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let read = || -> std::io::Result<Vec<String>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let mut names = read().map_err(failed(folder, "list"))?;
    names.sort();
    Ok(names)
}

/// The steps of names of this form, ascending; `checkpoint-007` is none.
fn steps(names: &[String], prefix: &str, ending: &str) -> Vec<u64> {
    let number = |name: &String| {
        let digits = name.strip_prefix(prefix)?.strip_suffix(ending)?;
        digits.parse::<u64>().ok().filter(|step| step.to_string() == digits)
    };
    let mut steps: Vec<u64> = names.iter().filter_map(number).collect();
    steps.sort_unstable();
    steps
}

fn sync(folder: &Path) -> Result<()> {
    fs::File::open(folder).and_then(|f| f.sync_all()).map_err(failed(folder, "sync"))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(failed(from, "rename"))
}

fn remove(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).map_err(failed(folder, "remove"))
}

/// Ends what a kill broke off.
fn sweep(output: &Path) -> Result<()> {
    let names = entries(output)?;
    for step in steps(&names, ".checkpoint-", ".old") {
        let (old, name) = (hidden(output, step, "old"), named(output, step));
        if name.exists() { remove(&old)? } else { rename(&old, &name)? }
    }
    steps(&names, ".checkpoint-", ".tmp").into_iter().try_for_each(|step| remove(&hidden(output, step, "tmp")))
}

/// Writes a checkpoint whose files, other than the state, come from `fill`.
pub(super) fn write(output: &Path, state: &State, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    super::create_folder(output)?;
    sweep(output)?;
    let outcome = place(output, state, fill);
    if outcome.is_err() {
        // The first error is the one to tell; what cannot be swept now is swept at the next start.
        let _ = sweep(output);
    }
    outcome
}

fn place(output: &Path, state: &State, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let (name, new, old) = (named(output, state.step), hidden(output, state.step, "tmp"), hidden(output, state.step, "old"));
    fs::create_dir(&new).map_err(failed(&new, "create"))?;
    fill(&new)?;
    let digest = |file: String| Ok((file.clone(), sha256_file(&new.join(file))?));
    let files = entries(&new)?.into_iter().map(digest).collect::<Result<Digests>>()?;
    let text = state::text(state, &files);
    host::write_file(&new.join(STATE), |out| out.write_all(text.as_bytes()))?;
    sync(&new)?;
    let replaces = name.exists();
    if replaces {
        rename(&name, &old)?;
    }
    rename(&new, &name)?;
    sync(output)?;
    if replaces {
        remove(&old)?;
    }
    Ok(name)
}

/// The state of a whole checkpoint: its files are those that `ple_state.json` names, each with the digest it names. Anything
/// else is refused with file and reason.
pub fn load(folder: &Path) -> Result<State> {
    let path = folder.join(STATE);
    if !path.is_file() {
        return Err(Error::file(&path, "wanted, but it is not there"));
    }
    let bytes = fs::read(&path).map_err(failed(&path, "read"))?;
    let (state, mut files) = state::parse(&path, &bytes)?;
    for name in entries(folder)?.into_iter().filter(|name| name != STATE) {
        let path = folder.join(&name);
        let Some(wanted) = files.remove(&name).filter(|_| path.is_file()) else {
            return Err(Error::file(&path, format!("wanted nothing but the files that {STATE} names")));
        };
        let got = sha256_file(&path)?;
        if got != wanted {
            return Err(Error::file(&path, format!("sha256: wanted {wanted}, got {got}")));
        }
    }
    match files.keys().next() {
        Some(name) => Err(Error::file(&folder.join(name), format!("wanted, as {STATE} names it, but it is not there"))),
        None => Ok(state),
    }
}

/// What [`newest`] has found.
#[derive(Debug, Default)]
pub struct Newest {
    /// The whole checkpoint with the highest step.
    pub found: Option<(PathBuf, State)>,
    /// Folders of higher steps that are not whole, and why; highest first.
    pub passed: Vec<(PathBuf, String)>,
}

fn whole(output: &Path, step: u64) -> Result<State> {
    let folder = named(output, step);
    let state = load(&folder)?;
    if state.step != step {
        return Err(Error::file(&folder.join(STATE), format!("step: wanted {step} as in the folder's name, got {}", state.step)));
    }
    Ok(state)
}

/// The newest whole checkpoint of a run's folder, after ending what a kill broke off there. No folder has no checkpoint.
pub fn newest(output: &Path) -> Result<Newest> {
    let mut newest = Newest::default();
    if !output.exists() {
        return Ok(newest);
    }
    sweep(output)?;
    for step in steps(&entries(output)?, "checkpoint-", "").into_iter().rev() {
        match whole(output, step) {
            Ok(state) => {
                newest.found = Some((named(output, step), state));
                break;
            }
            Err(error) => newest.passed.push((named(output, step), error.to_string())),
        }
    }
    Ok(newest)
}

/// Removes every checkpoint of a run's folder.
pub fn clear(output: &Path) -> Result<()> {
    sweep(output)?;
    steps(&entries(output)?, "checkpoint-", "").into_iter().try_for_each(|step| gone(output, step).map(drop))
}

/// Removes a checkpoint, which loses its name first.
fn gone(output: &Path, step: u64) -> Result<PathBuf> {
    let (name, hidden) = (named(output, step), hidden(output, step, "tmp"));
    rename(&name, &hidden)?;
    remove(&hidden)?;
    Ok(name)
}

/// Removes the checkpoints of the lowest steps until `limit` are left (0: no limit), but never the newest whole one nor that of
/// the step `best`. Where none is whole, nothing is removed. Returns what was.
pub fn prune(output: &Path, limit: usize, best: Option<u64>) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    sweep(output)?;
    let steps = steps(&entries(output)?, "checkpoint-", "");
    let mut over = steps.len().saturating_sub(limit);
    if limit == 0 || over == 0 {
        return Ok(removed);
    }
    let Some(newest) = steps.iter().rev().find(|step| whole(output, **step).is_ok()) else { return Ok(removed) };
    for step in steps.iter().filter(|step| *step != newest && Some(**step) != best) {
        if over == 0 {
            break;
        }
        removed.push(gone(output, *step)?);
        over -= 1;
    }
    Ok(removed)
}
