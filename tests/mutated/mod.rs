//! Files that users bring, changed at random but as what they are, so that what lies behind the parser is met: no panic, bounded memory.
//! The numbers of rounds are small; `PLE_LONG` asks for twenty times as many.

mod adapters;
mod fuzz;
mod jinja;
mod json;
mod templates;

#[path = "../fuzz/functions.rs"]
mod functions;

use crate::allocations;
use anyhow::{Context, Result, ensure};
use ple_tests::data::say;
use std::path::{Path, PathBuf};

/// Rounds of a campaign that has `small` of them in CI.
fn rounds(small: usize) -> usize {
    if std::env::var_os("PLE_LONG").is_some() { 20 * small } else { small }
}

/// Bytes that reading a file may take: twice the file, and this.
const SLACK: usize = 16 << 20;

/// The seeds of a function, by name.
fn seeds(name: &str) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    ensure!(!paths.is_empty(), "no seeds in {}", folder.display());
    paths
        .into_iter()
        .map(|path| std::fs::read(&path).map(|bytes| (path.clone(), bytes)).context(path.display().to_string()))
        .collect()
}

/// How far a campaign came.
#[derive(Debug, Default)]
struct Tally {
    rounds: usize,
    /// Past the outer parse.
    past: usize,
    /// Most bytes held at once beyond twice the file; none where memory is not bounded.
    most: Option<usize>,
}

impl Tally {
    /// A round; over `len` bytes of files where memory is bounded by them.
    fn counted(&mut self, len: Option<usize>, work: impl FnOnce() -> bool) -> Result<()> {
        let (past, count) = allocations::of(work);
        self.rounds += 1;
        self.past += usize::from(past);
        if let Some(len) = len {
            self.most = self.most.max(Some(count.peak.saturating_sub(2 * len)));
            ensure!(count.peak <= 2 * len + SLACK, "{} bytes at once for files of {len}", count.peak);
        }
        Ok(())
    }

    /// At least three in ten are past the outer parse.
    fn end(&self, name: &str) -> Result<()> {
        let Tally { rounds, past, most } = self;
        let memory = most.map(|n| format!("; at most {n} bytes beyond twice the file")).unwrap_or_default();
        say(&format!("{name}: {past} of {rounds} past the outer parse{memory}"));
        ensure!(past * 10 >= rounds * 3, "{name}: {past} of {rounds} past the outer parse");
        Ok(())
    }
}
