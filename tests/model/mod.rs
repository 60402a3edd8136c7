//! The model floor's promises beyond numbers.

mod counted;
mod cuda;
mod cuda_bf16;
mod cuda_full;
mod cuda_library;
mod families;
mod recomputed;
mod steady;
