//! A page on runs.
