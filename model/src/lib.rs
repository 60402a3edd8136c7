//! Second floor: a transformer that knows no task. It loads checkpoints, gives log-probabilities of loss rows and takes their
//! gradients, and decodes.
#![forbid(unsafe_code)]

pub mod batch;
pub mod config;
pub mod error;
mod json;

pub use batch::{Batch, Columns, Parent, PrefixId, Segment, Span};
pub use config::{Config, ModuleSpec, RopeScaling, TensorSpec};
pub use error::{Error, Result};

#[cfg(test)]
mod shared;
