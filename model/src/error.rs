//! What can be wrong with a checkpoint, an adapter, a tokenizer or a batch.

use std::path::{Path, PathBuf};

/// Every error of the model floor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of a model, adapter or tokenizer folder says something that cannot be used. The text names the field, what was
    /// wanted and what was found.
    #[error("{path}: {text}")]
    File {
        /// The file.
        path: PathBuf,
        /// Field, wanted, got.
        text: String,
    },
    /// A batch that the model cannot run; the text says why.
    #[error("batch: {0}")]
    Batch(String),
    /// A number that must be finite is not; the text says where.
    #[error("{0}")]
    Numeric(String),
    /// The caller's progress said to stop; what had been started was given up.
    #[error("interrupted")]
    Interrupted,
    /// From the floors below.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
}

/// Shorthand of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// [`Error::File`] with a text.
    pub fn file(path: &Path, text: impl Into<String>) -> Error {
        Error::File { path: path.to_path_buf(), text: text.into() }
    }
}
