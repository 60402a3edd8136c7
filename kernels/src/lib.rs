//! First floor: one room per op, each with its specification, an f64 reference, a CPU form and its tests.
//!
//! Every room follows `spec/LAW.md`'s one reduction order: a row's result is a function of that row's path, the weights and the
//! adapter alone. Launchers take the stream, then outputs, inputs, sizes, scalars.

#[macro_use]
pub mod cpu;
pub mod linear;
pub mod logprob;
pub mod math;
pub mod panels;
