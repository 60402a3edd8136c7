//! Second floor: a transformer that knows no task. It loads checkpoints, gives log-probabilities of loss rows and takes their
//! gradients, and decodes.
#![forbid(unsafe_code)]

pub mod batch;
pub mod error;

pub use batch::{Batch, Columns, Parent, PrefixId, Segment, Span};
pub use error::{Error, Result};
