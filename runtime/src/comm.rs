//! Collectives between ranks.

use crate::{Result, Stream, View};

/// What the trainer needs of its peers: sums in rank order, copies from rank 0, gathered bytes.
pub trait Comm: Send + Sync {
    /// Index of this process.
    fn rank(&self) -> usize;
    /// Number of processes.
    fn world(&self) -> usize;
    /// `x += x of the other ranks`, added in rank order.
    fn all_reduce(&self, s: &Stream, x: View<'_>) -> Result<()>;
    /// Copies rank 0's `x` to every rank.
    fn broadcast(&self, s: &Stream, x: View<'_>) -> Result<()>;
    /// Every rank's bytes, in rank order.
    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;
}

/// The only rank there is.
#[derive(Debug, Default)]
pub struct Single;

impl Comm for Single {
    fn rank(&self) -> usize {
        0
    }
    fn world(&self) -> usize {
        1
    }
    fn all_reduce(&self, _: &Stream, _: View<'_>) -> Result<()> {
        Ok(())
    }
    fn broadcast(&self, _: &Stream, _: View<'_>) -> Result<()> {
        Ok(())
    }
    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }
}
