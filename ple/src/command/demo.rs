//! `ple demo`: the whole way on a small model made on the spot, without downloads.

use crate::config::Config;
use crate::{Error, Result};

/// Runs the command.
pub fn run(_: &Config) -> Result<()> {
    Err(Error::Usage("demo is not built yet".into()))
}
