//! Second floor: a transformer that knows no task. It loads checkpoints, gives log-probabilities of loss rows and takes their
//! gradients, and decodes.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod batch;
pub mod config;
pub mod error;
mod header;
mod json;
pub mod tokenizer;
pub mod weights;

pub use adapter::{AdapterConfig, AdapterModule, Targets};
pub use batch::{Batch, Columns, Parent, PrefixId, Segment, Span};
pub use config::{Config, ModuleSpec, RopeScaling, TensorSpec};
pub use error::{Error, Result};
pub use tokenizer::Tokenizer;
pub use weights::{Checkpoint, TensorData};

#[cfg(test)]
mod shared;
