//! The driver's calls, guarded: no call before the library and every symbol that is used are known to be there, every code kept.

use crate::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::CStr;

/// Every function of the driver that this crate calls; a driver without one of them is refused by its name.
const CALLS: [&str; 45] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute",
    "cuDeviceGetDefaultMemPool",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuGetErrorString",
    "cuMemGetInfo_v2",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemPoolSetAttribute",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamQuery",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventElapsedTime_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncGetParamInfo",
    "cuFuncSetAttribute",
    "cuLaunchKernelEx",
    "cuTensorMapEncodeTiled",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphLaunch",
];

/// Checks that the driver is there and has what is called, and initialises it.
pub fn start(device: &str) -> Result<()> {
    let missing = |what: String| Err(Error::NoDevice(format!("{device}: {what}")));
    // SAFETY: loads NVIDIA's driver by its name; its initialisers run.
    if !unsafe { sys::is_culib_present() } {
        return missing(
            "NVIDIA's driver was not found: looked for libcuda.so and libcuda.so.1 in LD_LIBRARY_PATH and the loader's cache"
                .into(),
        );
    }
    for call in CALLS {
        // SAFETY: the library is present; the symbol is only looked up.
        if unsafe { sys::culib().get::<unsafe extern "C" fn()>(call.as_bytes()) }.is_err() {
            return missing(format!("libcuda has no {call}: wanted a driver of CUDA 12.8 or newer"));
        }
    }
    // SAFETY: the symbol was found.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_NO_DEVICE => missing("the driver is here and finds no device".into()),
        code => missing(failure("cuInit", code).to_string()),
    }
}

/// Whether the driver loads what the compiler of CUDA `major` makes; otherwise why not.
pub fn serves(major: i32) -> std::result::Result<(), String> {
    let mut version = 0;
    // SAFETY: an integer that outlives the call.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) }).map_err(|e| e.to_string())?;
    if version / 1000 >= major {
        return Ok(());
    }
    let served = format!("{}.{}", version / 1000, version % 1000 / 10);
    Err(format!(
        "the driver serves CUDA {served}, the compiler is of CUDA {major}: wanted a newer driver or libnvrtc.so.{}",
        version / 1000
    ))
}

/// Whether each launch is waited for, so that a fault is told with the kernel that made it: `PLE_LAUNCH_BLOCKING=1`.
pub fn blocking() -> bool {
    std::env::var_os("PLE_LAUNCH_BLOCKING").is_some_and(|value| value == "1")
}

/// Codes of faults in a kernel, which show at a later call: from an illegal address to an unspecified failure.
const FAULTS: std::ops::RangeInclusive<i64> = 700..=719;

/// The vendor's code and sentence as an error.
pub fn failure(call: &'static str, code: CUresult) -> Error {
    let mut text = std::ptr::null();
    // SAFETY: `start` found the symbol; the driver's sentences are static strings.
    let known = unsafe { sys::cuGetErrorString(code, &mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
    // SAFETY: as above.
    let text = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned() } else { format!("{code:?}") };
    let later = FAULTS.contains(&(code as i64)) && !blocking();
    let text = if later { format!("{text}; under PLE_LAUNCH_BLOCKING=1 its kernel is named") } else { text };
    Error::Device { call, code: code as i64, text }
}

/// Success, or the call with its code.
pub fn check(call: &'static str, code: CUresult) -> Result<()> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(failure(call, code)) }
}

/// The error with more words before the vendor's own.
pub fn said(e: Error, what: String) -> Error {
    match e {
        Error::Device { call, code, text } => Error::Device { call, code, text: format!("{what}: {text}") },
        other => other,
    }
}
