//! What can go wrong, with the vendor's code kept.

use crate::sys::AclError;
use std::path::PathBuf;

/// Every error of these bindings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No AscendCL library in any of the usual places.
    #[error("AscendCL not found; tried {}", tried.join(", "))]
    NotFound {
        /// Every file, in the order of the search; a bare name is looked up by the loader (`LD_LIBRARY_PATH`, its cache).
        tried: Vec<String>,
    },
    /// A library file is there and the loader refuses it: another architecture, or a library it needs is missing.
    #[error("{}: cannot be loaded: {text}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        text: String,
    },
    /// A function that every CANN since 8.1 has is missing: the library is older, or not AscendCL.
    #[error("{}: has no {symbol}; CANN 8.1 or newer is wanted", path.display())]
    Symbol {
        /// The library.
        path: PathBuf,
        /// The function.
        symbol: &'static str,
    },
    /// A call failed.
    #[error("{}: {call} failed with code {code}{}: {text}", path.display(), name(*code).map(|n| format!(" ({n})")).unwrap_or_default())]
    Call {
        /// The library.
        path: PathBuf,
        /// The function.
        call: &'static str,
        /// The vendor's code, as it came.
        code: AclError,
        /// The vendor's sentence; `no message` if it gave none.
        text: String,
    },
}

/// The vendor's name of a code, without its `ACL_ERROR_` prefix; None for a code not listed here.
pub fn name(code: AclError) -> Option<&'static str> {
    Some(match code {
        0 => "SUCCESS",
        100000 => "INVALID_PARAM",
        100001 => "UNINITIALIZE",
        100002 => "REPEAT_INITIALIZE",
        100003 => "INVALID_FILE",
        100039 => "COMPILING_STUB_MODE, a stub library of the toolkit's devlib folder was loaded",
        107000 => "RT_PARAM_INVALID",
        107001 => "RT_INVALID_DEVICEID",
        107002 => "RT_CONTEXT_NULL",
        107019 => "RT_WAIT_TIMEOUT",
        200000 => "BAD_ALLOC",
        200001 => "API_NOT_SUPPORT",
        207000 => "RT_FEATURE_NOT_SUPPORT",
        207001 => "RT_MEMORY_ALLOCATION",
        207004 => "RT_NO_DEVICE",
        207005 => "RT_RESOURCE_ALLOC_FAIL",
        207018 => "RT_DEVICE_OOM",
        300000 => "STORAGE_OVER_LIMIT",
        500000 => "INTERNAL_ERROR",
        500003 => "RT_FAILURE",
        500004 => "DRV_FAILURE",
        507000 => "RT_INTERNAL_ERROR",
        507010 => "RT_LOST_HEARTBEAT",
        507899 => "RT_DRV_INTERNAL_ERROR",
        _ => return None,
    })
}
