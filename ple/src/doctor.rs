//! `ple doctor`: what this machine offers, what a run would use of it, and what to mend. Reads only and leaves nothing behind; where
//! AscendCL is installed it is initialised and finalised for the question.

mod findings;
mod host;
mod system;
mod text;

pub use findings::Finding;
pub use host::{Cache, Disk, Limit, Variable};

use runtime::{Isa, Stream};
use serde::Serialize;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Everything, as `--json` writes it; its text form is made to be pasted into an issue.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Of PLE.
    pub version: &'static str,
    /// Operating system, architecture, kernel.
    pub system: String,
    /// What was chosen.
    pub device: Device,
    /// Of the CPU.
    pub simd: Simd,
    /// Processors that this process may run on.
    pub processors: usize,
    /// Cores of the machine; None where the system does not tell.
    pub cores: Option<usize>,
    /// Of the first processor, nearest first.
    pub caches: Vec<Cache>,
    /// Of the host.
    pub memory: Memory,
    /// None where the system does not tell.
    pub open_files: Option<OpenFiles>,
    /// Other limits of this process that are in force and that a run can meet.
    pub limits: Vec<Limit>,
    /// The current folder's; None where the system does not tell.
    pub disk: Option<Disk>,
    /// `PLE_…` in the environment.
    pub variables: Vec<Variable>,
    /// Of the vendors: CUDA's, then AscendCL.
    pub libraries: Vec<Library>,
    /// Where `huggingface_hub` keeps models.
    pub model_cache: Folder,
    /// `PLE_SHARED`, the data of the tests; None if it is not set.
    pub shared: Option<Folder>,
    /// What to mend, most important first.
    pub findings: Vec<Finding>,
}

/// The device of the stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Device {
    /// As on the command line.
    pub name: String,
    /// The maker's name.
    pub model: String,
    /// `avx512`, `sm_90a`, a SoC name.
    pub arch: String,
    /// Bytes.
    pub memory: u64,
    /// Threads of the pool on the CPU, else cores of the device.
    pub cores: u32,
}

/// Instruction sets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Simd {
    /// What the stream runs; None if it is not on the CPU.
    pub used: Option<String>,
    /// What this machine has, portable first.
    pub available: Vec<String>,
    /// What the processor says of itself, of what is or could be used.
    pub features: Vec<&'static str>,
    /// `PLE_SIMD`.
    pub forced: Option<String>,
}

/// Host memory in bytes; 0 where the system does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Of the machine.
    pub total: u64,
    /// Without swapping.
    pub available: u64,
    /// What the container or service may use, if that is less than the machine has.
    pub limit: Option<u64>,
}

/// `RLIMIT_NOFILE`; None is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OpenFiles {
    /// In force.
    pub soft: Option<u64>,
    /// What `ulimit -n` may raise it to.
    pub hard: Option<u64>,
}

/// A vendor's library.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Library {
    /// Without `.so`.
    pub name: String,
    /// The file it was loaded from.
    pub path: Option<String>,
    /// As the library says.
    pub version: Option<String>,
    /// Devices and chip, where the library tells.
    pub devices: Option<String>,
    /// Every file that was looked for.
    pub tried: Vec<String>,
    /// What is odd about it.
    pub note: Option<String>,
}

/// A folder that may be there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Folder {
    /// Where.
    pub path: String,
    /// Whether it is a folder.
    pub present: bool,
    /// The variable that names it; None for the default.
    pub variable: Option<&'static str>,
}

/// Looks at the machine and at the device of `s`.
pub fn report(s: &Stream) -> Report {
    let info = s.backend().info();
    let device = Device {
        name: s.backend().name().to_string(),
        model: info.name.clone(),
        arch: info.arch.clone(),
        memory: info.memory,
        cores: info.cores,
    };
    let simd = Simd {
        used: s.host().map(|pool| pool.isa().to_string()),
        available: Isa::all().iter().map(ToString::to_string).collect(),
        features: host::features(&read_to_string("/proc/cpuinfo").unwrap_or_default()),
        forced: std::env::var("PLE_SIMD").ok(),
    };
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        system: system::name(),
        device,
        simd,
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        cores: host::cores(Path::new("/sys/devices/system/cpu")),
        caches: host::caches(Path::new("/sys/devices/system/cpu/cpu0")),
        memory: system::memory(),
        open_files: system::open_files(),
        limits: host::limits(&read_to_string("/proc/self/limits").unwrap_or_default()),
        disk: std::env::current_dir().ok().and_then(|folder| host::disk(&folder)),
        variables: host::variables(std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value)))),
        libraries: runtime::probe::libraries().into_iter().map(cuda).chain([ascend(ascendcl::probe())]).collect(),
        model_cache: model_cache(|name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)),
        shared: std::env::var_os("PLE_SHARED").map(|path| folder(PathBuf::from(path), Some("PLE_SHARED"))),
        findings: Vec::new(),
    };
    report.findings = findings::of(&report);
    report
}

impl Report {
    /// As JSON; `{:#}` indents it.
    pub fn json(&self) -> serde_json::Value {
        // Strings, numbers and lists only: every one of them has a JSON form.
        serde_json::to_value(self).unwrap_or_else(|e| serde_json::Value::String(e.to_string()))
    }

    /// As lines of text: a fact each, then the findings.
    pub fn text(&self) -> String {
        self.to_string()
    }
}

fn lossy(text: std::ffi::OsString) -> String {
    text.to_string_lossy().into_owned()
}

fn cuda(found: runtime::probe::Found) -> Library {
    Library {
        name: found.name.to_string(),
        path: found.path.map(|p| p.display().to_string()),
        version: found.version,
        devices: None,
        tried: found.tried,
        note: found.note,
    }
}

fn ascend(probe: Result<ascendcl::Probe, ascendcl::Error>) -> Library {
    let library = Library { name: "AscendCL".to_string(), ..Library::default() };
    match probe {
        Ok(found) => Library {
            path: Some(found.path.display().to_string()),
            version: Some(found.version),
            devices: Some(format!("{} × {}", found.devices, found.soc.as_deref().unwrap_or("unknown SoC"))),
            ..library
        },
        Err(ascendcl::Error::NotFound { tried }) => Library { tried, ..library },
        Err(other) => Library { note: Some(other.to_string()), ..library },
    }
}

fn folder(path: PathBuf, variable: Option<&'static str>) -> Folder {
    Folder { present: path.is_dir(), path: path.display().to_string(), variable }
}

/// `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `huggingface` of the user's cache folder.
fn model_cache(variable: impl Fn(&str) -> Option<PathBuf>) -> Folder {
    if let Some(path) = variable("HF_HUB_CACHE") {
        return folder(path, Some("HF_HUB_CACHE"));
    }
    if let Some(home) = variable("HF_HOME") {
        return folder(home.join("hub"), Some("HF_HOME"));
    }
    let home = || Some(variable("HOME")?.join(".cache"));
    let cache = variable("XDG_CACHE_HOME").or_else(home).unwrap_or_else(|| PathBuf::from(".cache"));
    folder(cache.join("huggingface/hub"), None)
}

#[cfg(test)]
mod tests;
