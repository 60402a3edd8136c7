//! Errors by what the user can do about them; each kind has its exit code.

use std::path::{Path, PathBuf};

/// Every error of the command line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A flag, a key of a config file or a combination of them. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A file of data or of a run. Exit code 3.
    #[error("{path}: {text}")]
    File {
        /// The file.
        path: PathBuf,
        /// Line and field, wanted, got.
        text: String,
    },
    /// A loss, gradient or reward that is not finite, or too many of them. Exit code 5.
    #[error("{0}")]
    Numeric(String),
    /// A signal; what was done is on disk. Exit code 130.
    #[error("interrupted")]
    Interrupted,
    /// From the model floor.
    #[error(transparent)]
    Model(model::Error),
    /// From the runtime.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
}

impl From<model::Error> for Error {
    fn from(error: model::Error) -> Error {
        match error {
            model::Error::Interrupted => Error::Interrupted,
            other => Error::Model(other),
        }
    }
}

/// Shorthand of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// [`Error::File`] with a text.
    pub fn file(path: &Path, text: impl Into<String>) -> Error {
        Error::File { path: path.to_path_buf(), text: text.into() }
    }

    /// The process exit code: 2 usage, 3 data or model file, 4 device or memory, 5 numeric stop, 130 interrupted.
    pub fn exit_code(&self) -> i32 {
        use runtime::Error as R;
        match self {
            Error::Usage(_) => 2,
            Error::File { .. } => 3,
            Error::Numeric(_) | Error::Model(model::Error::Numeric(_)) => 5,
            Error::Interrupted => 130,
            Error::Model(model::Error::Runtime(e)) | Error::Runtime(e) => match e {
                R::File { .. } => 3,
                R::Numeric(_) => 5,
                _ => 4,
            },
            Error::Model(_) => 3,
        }
    }
}
