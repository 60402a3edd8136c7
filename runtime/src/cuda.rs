//! CUDA as a device: the driver and the compiler are loaded where they are found, and their absence is an error with a name.

use crate::{Backend, Error, Result};
use std::sync::Arc;

#[cfg(feature = "cuda")]
mod compiler;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod events;
#[cfg(feature = "cuda")]
mod graphs;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
mod modules;
#[cfg(feature = "cuda")]
mod tensor_map;

#[cfg(feature = "cuda")]
pub use compiler::{Compiler, cache_folder};

/// Device `index` in the driver's order. Without a driver, a compiler or the device this is [`Error::NoDevice`] with what was
/// looked for.
#[cfg(feature = "cuda")]
pub fn open(index: u32) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(device::Cuda::open(index)?))
}

/// This build drives no CUDA device.
#[cfg(not(feature = "cuda"))]
pub fn open(index: u32) -> Result<Arc<dyn Backend>> {
    Err(Error::NoDevice(format!("cuda:{index}: this build is without the feature `cuda`")))
}

/// The index in `cuda:N` or `cuda`; None for what names no CUDA device.
pub(crate) fn index(device: &str) -> Option<Result<u32>> {
    let rest = device.strip_prefix("cuda")?;
    let wanted = || Error::NoDevice(format!("{device}: wanted cuda:N with N from 0"));
    match rest.strip_prefix(':') {
        Some(digits) => Some(digits.parse().map_err(|_| wanted())),
        None if rest.is_empty() => Some(Ok(0)),
        None => Some(Err(wanted())),
    }
}

#[cfg(test)]
mod tests {
    use crate::{Error, Stream};

    #[test]
    fn a_cuda_device_that_is_not_there_is_named() {
        for (device, part) in
            [("cuda:x", "wanted cuda:N"), ("cuda0", "wanted cuda:N"), ("cuda:-1", "wanted cuda:N"), ("cuda:4096", "cuda:4096: ")]
        {
            match Stream::open(device, None) {
                Err(Error::NoDevice(text)) => assert!(text.contains(part), "{text}"),
                other => panic!("{device}: {other:?}"),
            }
        }
    }
}
