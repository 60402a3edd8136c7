//! `ple report`: a page on runs.

use crate::config::Config;
use crate::{Error, Result};

/// Runs the command.
pub fn run(_: &Config) -> Result<()> {
    Err(Error::Usage("report is not built yet".into()))
}
