//! `ple score`: rewards of given answers, one line out per line in, in the same order.

use crate::config::Config;
use crate::{Error, Result};

/// Runs the command.
pub fn run(_: &Config) -> Result<()> {
    Err(Error::Usage("score is not built yet".into()))
}
