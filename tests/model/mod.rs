//! The model floor's promises beyond numbers.

mod families;
mod steady;
