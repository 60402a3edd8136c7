//! Third floor: text in, adapters and metrics out. Methods, data, rewards, the training loop, the command line.
#![forbid(unsafe_code)]

pub mod config;
pub mod data;
pub mod doctor;
pub mod error;
pub mod method;
pub mod optim;
pub mod principle;
pub mod reward;

pub use error::{Error, Result};
