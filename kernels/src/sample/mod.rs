//! Sampling: random numbers (LAW "Random numbers").

mod random;

pub use random::{Tag, draw, key, philox};
