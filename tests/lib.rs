//! What this package's tests share: the shared data and its golden tensors, one pass through a model, and models and runs
//! small enough to need no data.

pub mod data;
pub mod pass;
pub mod tensors;
pub mod tiny;
pub mod tuning;
