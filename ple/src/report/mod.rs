//! Reports on runs: a page of HTML that needs nothing but itself, and a table for the terminal. All of it is computed from the
//! files of the runs.

use crate::demo::summary::Summary;
use crate::{Error, Result};
use runtime::host;
use std::path::{Path, PathBuf};

pub mod chart;
mod compare;
pub mod figures;
mod held_out;
pub mod page;
pub mod run;
pub mod scale;
pub mod svg;
pub mod text;

use run::Run;

/// The runs of a demo, in the order in which they are shown.
const OF_DEMO: [&str; 4] = ["ple", "raft", "sft", "model"];

/// Reads the folders, writes the page and returns the tables. The folder of a demo stands for its runs and its summary.
pub fn write(folders: &[PathBuf], file: &Path) -> Result<String> {
    let (mut runs, mut demo) = (Vec::new(), None);
    for folder in folders {
        if folder.join("summary.json").is_file() {
            demo = Some((Summary::of(folder)?, runs.len()));
            for name in OF_DEMO {
                runs.push(Run::read(&folder.join(name))?);
            }
        } else {
            runs.push(Run::read(folder)?);
        }
    }
    let demo = demo.map(|(summary, at)| page::Demo { summary, ple: &runs[at], raft: &runs[at + 1] });
    let page = page::page(&runs, demo.as_ref());
    host::write_file(file, |out| out.write_all(page.as_bytes()))?;
    Ok(runs.iter().map(text::table).collect::<Vec<_>>().join("\n"))
}

/// `reward.svg` of a demo: the rewards of both runs.
pub fn picture(folder: &Path, file: &Path) -> Result<()> {
    let [ple, raft] = ["ple", "raft"].map(|name| Run::read(&folder.join(name)));
    let svg = figures::comparison_file(&ple?, &raft?, &page::colours());
    Ok(host::write_file(file, |out| writeln!(out, "{svg}"))?)
}

/// Where a page goes that nobody named a place for: beside the first run.
pub fn place(folders: &[PathBuf]) -> Result<PathBuf> {
    let first =
        folders.first().ok_or_else(|| Error::Usage("runs: wanted the folders of one or more runs, got nothing".into()))?;
    Ok(first.join("report.html"))
}
