//! The model floor's promises beyond numbers.

mod counted;
mod cuda;
mod steady;
