//! Cellar: AscendCL by `dlopen`. Depends on nothing of PLE; builds and starts without CANN. Today it finds the library and
//! asks it what there is ([`probe`]); the calls that run kernels join [`sys`] with the Ascend device.

pub mod result;
pub mod sys;

#[cfg(target_os = "linux")]
mod loaded;

pub use result::Error;

use libloading::Library;
use std::error::Error as _;
use std::ffi::{CStr, OsString, c_char};
use std::path::{Path, PathBuf};
use sys::{AclError, Api, REPEAT_INITIALIZE, SUCCESS};

/// Newer name first: CANN since 8.5 ships `libacl_rt.so` and keeps `libascendcl.so` for compatibility.
const NAMES: [&str; 2] = ["libacl_rt.so", "libascendcl.so"];
/// Where CANN 8 and CANN 9 install themselves for all users.
const FOLDERS: [&str; 2] = ["/usr/local/Ascend/ascend-toolkit/latest/lib64", "/usr/local/Ascend/cann/lib64"];
/// Set by CANN's `set_env.sh`; each has a `lib64`.
const VARIABLES: [&str; 2] = ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"];

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The library file.
    pub path: PathBuf,
    /// Version of the interface, `major.minor.patch`.
    pub version: String,
    /// Devices that this process may use.
    pub devices: u32,
    /// `Ascend910B3`; None if the library does not know.
    pub soc: Option<String>,
}

/// Finds AscendCL in the usual places ([`candidates`]) and asks it for versions and devices.
pub fn probe() -> Result<Probe, Error> {
    // SAFETY: the candidates bear the vendor's names and lie in the vendor's places.
    unsafe { probe_at(&candidates(|name| std::env::var_os(name))) }
}

/// The files to try: the bare names, which the loader looks for in `LD_LIBRARY_PATH` and its cache, then `lib64` of
/// `ASCEND_HOME_PATH` and `ASCEND_TOOLKIT_HOME`, then the folders that CANN 8 and 9 install to. `variable` reads the environment.
pub fn candidates(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = VARIABLES.iter().filter_map(|name| variable(name)).filter(|value| !value.is_empty());
    let mut folders = vec![PathBuf::new()];
    for folder in set.map(|value| Path::new(&value).join("lib64")).chain(FOLDERS.map(PathBuf::from)) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders.iter().flat_map(|folder| NAMES.map(|name| folder.join(name))).collect()
}

/// Asks the first of `candidates` that loads. A library that loads is never unloaded (it starts threads of its own). If this
/// call was the one that initialised AscendCL it also finalises it, which may wait for device logs.
///
/// # Safety
/// A candidate that exists is AscendCL: its initialisers run, and its functions are called with the types of [`sys`].
pub unsafe fn probe_at(candidates: &[PathBuf]) -> Result<Probe, Error> {
    // SAFETY: the caller vouches for the candidates.
    let (path, api) = unsafe { open(candidates) }?;
    let failed = |call, code| Error::Call { path: path.clone(), call, code, text: recent_message(&api) };
    // SAFETY: NULL is the documented argument for no configuration file.
    let init = unsafe { (api.init)(std::ptr::null()) };
    if init != SUCCESS && init != REPEAT_INITIALIZE {
        return Err(failed("aclInit", init));
    }
    let found = ask(&api).map_err(|(call, code)| failed(call, code));
    if init == SUCCESS {
        // SAFETY: pairs with the `aclInit` above, which nobody else made.
        let code = unsafe { (api.finalize)() };
        if code != SUCCESS && found.is_ok() {
            return Err(failed("aclFinalize", code));
        }
    }
    found.map(|(version, devices, soc)| Probe { path, version, devices, soc })
}

/// Version, devices and SoC of an initialised library; the error is the function and its code.
fn ask(api: &Api) -> Result<(String, u32, Option<String>), (&'static str, AclError)> {
    let (mut major, mut minor, mut patch, mut devices) = (0, 0, 0, 0);
    // SAFETY: three distinct integers that outlive the call.
    match unsafe { (api.get_version)(&mut major, &mut minor, &mut patch) } {
        SUCCESS => {}
        code => return Err(("aclrtGetVersion", code)),
    }
    // SAFETY: an integer that outlives the call.
    match unsafe { (api.get_device_count)(&mut devices) } {
        SUCCESS => {}
        code => return Err(("aclrtGetDeviceCount", code)),
    }
    // SAFETY: no arguments.
    let soc = text(unsafe { (api.get_soc_name)() });
    Ok((format!("{major}.{minor}.{patch}"), devices, soc))
}

/// Loads the first candidate that the loader takes.
///
/// # Safety
/// As for [`probe_at`].
unsafe fn open(candidates: &[PathBuf]) -> Result<(PathBuf, Api), Error> {
    let (mut tried, mut refused) = (Vec::new(), None);
    for candidate in candidates {
        // SAFETY: the caller vouches for the initialisers.
        match unsafe { Library::new(candidate) } {
            Ok(library) => {
                // SAFETY: the caller vouches for the library.
                return unsafe { resolve(candidate, library) };
            }
            Err(e) => {
                let text = e.source().map_or_else(|| e.to_string(), ToString::to_string);
                // Which file a bare name stood for is in the loader's sentence only, and so is whether there was one.
                let bare = candidate.components().count() == 1;
                let absent = format!("{}: cannot open shared object file: No such file", candidate.display());
                let there = if bare { !text.starts_with(&absent) } else { candidate.exists() };
                if there {
                    refused.get_or_insert_with(|| Error::Load { path: candidate.clone(), text });
                }
                tried.push(candidate.display().to_string());
            }
        }
    }
    Err(refused.unwrap_or(Error::NotFound { tried }))
}

/// The functions of a loaded library and the file it came from.
///
/// # Safety
/// As for [`probe_at`].
unsafe fn resolve(candidate: &Path, library: Library) -> Result<(PathBuf, Api), Error> {
    // SAFETY: the caller vouches for the types; the library is not unloaded (next line).
    let api = unsafe { Api::load(&library) };
    std::mem::forget(library);
    match api {
        Ok(api) => Ok((file_of(candidate, api.init as usize), api)),
        Err(symbol) => Err(Error::Symbol { path: candidate.to_path_buf(), symbol }),
    }
}

/// The file that holds `address`, or what was asked for where the system does not tell.
fn file_of(candidate: &Path, address: usize) -> PathBuf {
    #[cfg(target_os = "linux")]
    if let Some(path) = loaded::file_of(address) {
        return path;
    }
    let _ = address;
    candidate.to_path_buf()
}

/// The vendor's sentence for the last failure of this thread.
fn recent_message(api: &Api) -> String {
    // SAFETY: no arguments; the text is copied before any other call.
    text(unsafe { (api.get_recent_err_msg)() }).unwrap_or_else(|| "no message".to_string())
}

/// A copy of a C string; None for NULL.
fn text(c: *const c_char) -> Option<String> {
    // SAFETY: the library's functions return NULL or a string that ends and that lives until their next call.
    (!c.is_null()).then(|| unsafe { CStr::from_ptr(c) }.to_string_lossy().trim().to_string())
}
