//! Every integration test, as one binary.

mod allocations;
mod faults;
mod golden;
mod law;
mod model;
