//! `ple report`: a page on runs, and their tables on the terminal.

use crate::config::Config;
use crate::{Error, Result, log, report};

/// Runs the command.
pub fn run(c: &Config) -> Result<()> {
    let file = c.output_file.clone().map_or_else(|| report::place(&c.runs), Ok)?;
    if let Some(absent) = c.runs.iter().find(|folder| !folder.is_dir()) {
        return Err(Error::file(absent, "wanted the folder of a run, got nothing there"));
    }
    log::probe(&file)?;
    let tables = report::write(&c.runs, &file)?;
    if c.quiet { Ok(()) } else { log::print(&format!("{tables}\n{}\n", file.display())) }
}
