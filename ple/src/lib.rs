//! Third floor: text in, adapters and metrics out. Methods, data, rewards, the training loop, the command line.
#![forbid(unsafe_code)]

pub mod doctor;
pub mod error;
pub mod method;

pub use error::{Error, Result};
