//! The model floor's promises beyond numbers.

mod counted;
mod cuda;
mod families;
mod steady;
