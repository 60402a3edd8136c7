//! `ple generate`: answers to the queries of a file, one line out per answer.

use crate::config::Config;
use crate::{Error, Result};

/// Runs the command.
pub fn run(_: &Config) -> Result<()> {
    Err(Error::Usage("generate is not built yet".into()))
}
