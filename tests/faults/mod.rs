//! Bad input through the public interface: an error that says what is wrong, never a panic. Broken files are tested beside their
//! parsers; here are batches, requests, plans, disks and reward commands.

mod batches;
mod checkpoint;
mod disks;
mod killed;
mod requests;
#[cfg(unix)]
mod rewards;
mod training;

use anyhow::{Result, ensure};
use std::fmt::Display;

/// The error that was wanted, holding these words.
fn refused<T, E: Display>(what: &str, outcome: std::result::Result<T, E>, words: &[&str]) -> Result<()> {
    let Err(error) = outcome else { anyhow::bail!("{what}: went through") };
    let text = error.to_string();
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(*word)).collect();
    ensure!(missing.is_empty(), "{what}: the error does not say {missing:?}: {text}");
    Ok(())
}
