//! Whole commands on a real checkpoint and real rows, each in a process of its own.

mod bad_input;
mod commands;
mod process;

use ple_tests::data::shared;
use std::path::PathBuf;

/// What the commands run on.
struct Data {
    model: PathBuf,
    rows: PathBuf,
    lexicon: PathBuf,
    bf16: PathBuf,
}

/// The checkpoint, the HH rows and the word list, or None after saying which is absent.
fn data() -> Option<Data> {
    Some(Data {
        model: shared("data/models/stories260k")?,
        rows: shared("data/hh/helpful-base.jsonl")?,
        lexicon: shared("data/lexicon/opinion_positive-words.txt")?,
        bf16: shared("data/models/stories260k-bf16")?,
    })
}
