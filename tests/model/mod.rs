//! The model floor's promises beyond numbers.

mod steady;
