//! What can go wrong below the model: shapes, devices, files.

use std::path::PathBuf;

/// Every error of the runtime and of the kernels.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand has another length, dtype or overlap than the op asks for; the text names op, operand, wanted and got.
    #[error("{0}")]
    Shape(String),
    /// A value that must be finite (or in range) is not; the text names where it was found.
    #[error("{0}")]
    Numeric(String),
    /// No device of this name; the text says what was looked for and where.
    #[error("no device: {0}")]
    NoDevice(String),
    /// The device has no room or library for this call.
    #[error("{call} is not available on {device}")]
    Unsupported {
        /// Which room or verb was asked for.
        call: &'static str,
        /// Name of the device.
        device: String,
    },
    /// A vendor call failed; the code is never dropped.
    #[error("{call} failed with code {code}: {text}")]
    Device {
        /// The vendor's function.
        call: &'static str,
        /// The vendor's code, as it came.
        code: i64,
        /// The vendor's sentence for it.
        text: String,
    },
    /// The device has no room for the allocation.
    #[error("out of memory: {wanted} bytes for {what}")]
    OutOfMemory {
        /// Bytes asked for.
        wanted: usize,
        /// What they were for.
        what: String,
    },
    /// A wait for a device passed its deadline; the CPU has none.
    #[error("{what} did not finish within {seconds} s")]
    Deadline {
        /// What was waited for.
        what: String,
        /// The limit.
        seconds: u64,
    },
    /// A file could not be opened, mapped, read or written.
    #[error("{path}: cannot {action}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Which call: open, map, read, write, sync, rename.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Shorthand of this crate.
pub type Result<T> = std::result::Result<T, Error>;
