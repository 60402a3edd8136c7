//! Third floor: text in, adapters and metrics out. Methods, data, rewards, the training loop, the command line.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod command;
pub mod config;
pub mod data;
pub mod demo;
pub mod digest;
pub mod doctor;
pub mod error;
pub mod eval;
pub mod identity;
pub mod interrupt;
pub mod journal;
pub mod log;
pub mod logprob;
pub mod memory;
pub mod method;
pub mod open;
pub mod optim;
pub mod origin;
pub mod pack;
pub mod principle;
pub mod progress;
pub mod report;
pub mod reward;
pub mod rollout;
pub mod side;
pub mod telemetry;
pub mod trainer;

pub use error::{Error, Result};
