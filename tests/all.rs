//! Every integration test, as one binary.

mod allocations;
mod e2e;
mod faults;
mod golden;
mod law;
mod model;
mod mutated;
