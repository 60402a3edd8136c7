//! Which of NVIDIA's libraries this machine has, from which file and in which version. Nothing is initialised, no device is
//! touched, nothing panics; a library that loads stays loaded.

use libloading::Library;
use std::error::Error as _;
use std::ffi::c_int;
use std::path::{Path, PathBuf};

/// One library, found or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `libcuda`, `libnvrtc`, `libcublasLt`, `libnccl`.
    pub name: &'static str,
    /// The file it was loaded from; None if it was not found.
    pub path: Option<PathBuf>,
    /// `major.minor` or `major.minor.patch`, as the library itself says. For `libcuda` the newest CUDA that the driver serves.
    pub version: Option<String>,
    /// Every file that was tried, in order; the last is the one that loaded, if one did.
    pub tried: Vec<String>,
    /// What is odd about it: a file the loader refuses, a missing function, a vendor code, a place that the loader does not know.
    pub note: Option<String>,
}

/// Asks a loaded library for its version; returns it with the address of the function that told it.
type Ask = unsafe fn(&Library) -> (Option<usize>, Result<String, String>);

/// Finds CUDA's driver, its compiler, its matrix library and NCCL: by bare name (`LD_LIBRARY_PATH` and the loader's cache), all
/// but the driver then in `lib64` of `CUDA_HOME`, `CUDA_PATH` and `/usr/local/cuda`.
pub fn libraries() -> Vec<Found> {
    let set = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).filter(|value| !value.is_empty());
    let mut folders: Vec<PathBuf> =
        set.map(PathBuf::from).chain([PathBuf::from("/usr/local/cuda")]).map(|f| f.join("lib64")).collect();
    folders.dedup();
    let toolkit = |name, files: &[&str], ask| {
        let beyond = folders.iter().flat_map(|folder| files.iter().map(|file| folder.join(file)));
        let candidates: Vec<PathBuf> = files.iter().map(PathBuf::from).chain(beyond).collect();
        // SAFETY: the candidates bear the vendor's names and lie in the vendor's places.
        unsafe { find(name, &candidates, ask) }
    };
    vec![
        // SAFETY: as above. The driver is the system's: a copy in a toolkit's folder is a stub.
        unsafe { find("libcuda", &[PathBuf::from("libcuda.so.1")], driver) },
        toolkit("libnvrtc", &["libnvrtc.so.13", "libnvrtc.so.12"], nvrtc),
        toolkit("libcublasLt", &["libcublasLt.so.13", "libcublasLt.so.12"], cublas_lt),
        toolkit("libnccl", &["libnccl.so.2"], nccl),
    ]
}

/// Loads the first candidate that the loader takes and asks it.
///
/// # Safety
/// A candidate that exists is the library that `ask` is for: its initialisers run.
unsafe fn find(name: &'static str, candidates: &[PathBuf], ask: Ask) -> Found {
    let mut found = Found { name, path: None, version: None, tried: Vec::new(), note: None };
    for candidate in candidates {
        found.tried.push(candidate.display().to_string());
        // SAFETY: the caller vouches for the library.
        match unsafe { Library::new(candidate) } {
            Ok(library) => {
                // SAFETY: as above.
                unsafe { describe(&mut found, candidate, &library, ask) };
                std::mem::forget(library);
                return found;
            }
            Err(e) => {
                let text = e.source().map_or_else(|| e.to_string(), ToString::to_string);
                if refused(candidate, &text) {
                    found.note = Some(format!("{} cannot be loaded: {text}", candidate.display()));
                }
            }
        }
    }
    found
}

/// Whether the loader met a file that it would not take; otherwise there was none.
fn refused(candidate: &Path, text: &str) -> bool {
    if bare(candidate) {
        !text.starts_with(&format!("{}: cannot open shared object file: No such file", candidate.display()))
    } else {
        candidate.exists()
    }
}

/// A name without a folder, which the loader looks up by itself.
fn bare(candidate: &Path) -> bool {
    candidate.components().count() == 1
}

/// # Safety
/// `library` is the one that `ask` is for, and is not unloaded.
unsafe fn describe(found: &mut Found, candidate: &Path, library: &Library, ask: Ask) {
    // SAFETY: the caller vouches for the library.
    let (address, answer) = unsafe { ask(library) };
    found.path = Some(address.and_then(file_of).unwrap_or_else(|| candidate.to_path_buf()));
    found.note = if bare(candidate) { None } else { Some("found outside the loader's search path".to_string()) };
    match answer {
        Ok(version) => found.version = Some(version),
        Err(text) => found.note = Some(text),
    }
}

/// The file mapped at `address` in this process.
fn file_of(address: usize) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (start, rest) = line.split_once('-')?;
        let (end, _) = rest.split_once(' ')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let path = line.find('/').map(|at| PathBuf::from(&line[at..]));
        path.filter(|_| range.contains(&address))
    })
}

/// Calls `int call(int *version)`.
///
/// # Safety
/// The library's function of this name has that type.
unsafe fn ask_int(library: &Library, call: &'static str) -> (Option<usize>, Result<c_int, String>) {
    // SAFETY: the caller vouches for the type.
    let Ok(f) = (unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(call) }) else {
        return (None, Err(format!("has no {call}")));
    };
    let mut version = 0;
    // SAFETY: an integer that outlives the call.
    let code = unsafe { f(&mut version) };
    (Some(*f as usize), if code == 0 { Ok(version) } else { Err(format!("{call} failed with code {code}")) })
}

/// `CUresult cuDriverGetVersion(int *)`: 1000 major + 10 minor; needs no `cuInit`.
unsafe fn driver(library: &Library) -> (Option<usize>, Result<String, String>) {
    // SAFETY: the driver's declaration; an enum of C is an int.
    let (address, version) = unsafe { ask_int(library, "cuDriverGetVersion") };
    (address, version.map(|v| format!("{}.{}", v / 1000, v % 1000 / 10)))
}

/// `nvrtcResult nvrtcVersion(int *major, int *minor)`
unsafe fn nvrtc(library: &Library) -> (Option<usize>, Result<String, String>) {
    type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    // SAFETY: NVRTC's declaration; an enum of C is an int.
    let Ok(f) = (unsafe { library.get::<Version>("nvrtcVersion") }) else {
        return (None, Err("has no nvrtcVersion".to_string()));
    };
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two integers that outlive the call.
    let code = unsafe { f(&mut major, &mut minor) };
    let version = if code == 0 { Ok(format!("{major}.{minor}")) } else { Err(format!("nvrtcVersion failed with code {code}")) };
    (Some(*f as usize), version)
}

/// `size_t cublasLtGetVersion(void)`: 10000 major + 100 minor + patch.
unsafe fn cublas_lt(library: &Library) -> (Option<usize>, Result<String, String>) {
    // SAFETY: cuBLASLt's declaration.
    let Ok(f) = (unsafe { library.get::<unsafe extern "C" fn() -> usize>("cublasLtGetVersion") }) else {
        return (None, Err("has no cublasLtGetVersion".to_string()));
    };
    // SAFETY: no arguments.
    let v = unsafe { f() };
    (Some(*f as usize), Ok(format!("{}.{}.{}", v / 10000, v / 100 % 100, v % 100)))
}

/// `ncclResult_t ncclGetVersion(int *)`: 10000 major + 100 minor + patch since 2.9, 1000 major + 100 minor + patch before.
unsafe fn nccl(library: &Library) -> (Option<usize>, Result<String, String>) {
    // SAFETY: NCCL's declaration; an enum of C is an int.
    let (address, version) = unsafe { ask_int(library, "ncclGetVersion") };
    let text = |v: c_int| {
        let major = if v < 10000 { v / 1000 } else { v / 10000 };
        format!("{major}.{}.{}", if v < 10000 { v % 1000 / 100 } else { v / 100 % 100 }, v % 100)
    };
    (address, version.map(text))
}

#[cfg(test)]
mod tests;
