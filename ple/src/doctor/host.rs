//! The host's processor, the folder a run would write to, the limits of this process and its environment, as Linux tells them in
//! `/proc` and `/sys`. Elsewhere most of it is unknown.

use rustix::fs::{StatVfsMountFlags, statvfs};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

/// What the kernels use or could use of a processor, in its own words.
const FEATURES: [&str; 14] = [
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
];

/// Limits that a run can meet: what `/proc/self/limits` calls them, and `ulimit`'s letter.
pub(super) const LIMITS: [(&str, char); 5] =
    [("cpu time", 't'), ("file size", 'f'), ("data size", 'd'), ("processes", 'u'), ("address space", 'v')];

/// Variables of the environment that are read, and by what.
pub(super) const VARIABLES: [(&str, &str); 8] = [
    ("PLE_SIMD", "forces an instruction set"),
    ("PLE_SHARED", "data of the tests"),
    ("PLE_REQUIRE", "tests fail where they would skip"),
    ("PLE_LONG", "long tests"),
    ("PLE_CACHE", "folder of compiled kernels"),
    ("PLE_LAUNCH_BLOCKING", "1 waits for each launch and names the kernel of a fault"),
    ("PLE_COMMIT", "the commit that benchmarks name"),
    ("PLE_NVRTC", "NVIDIA's compiler, for tests"),
];

/// A cache of the first processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// 1 is the nearest.
    pub level: u32,
    /// Data, Instruction or Unified.
    pub kind: String,
    /// Its size.
    pub bytes: u64,
    /// Processors that share it, as the system lists them.
    pub shared_by: String,
}

/// Where the current folder lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// The folder.
    pub path: String,
    /// Bytes that this user may still write.
    pub free: u64,
    /// Bytes of the file system.
    pub total: u64,
    /// Whether nothing can be written there.
    pub read_only: bool,
}

/// A limit that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// As in `/proc/self/limits`, without `Max`.
    pub name: &'static str,
    /// Seconds, bytes or processes.
    pub soft: u64,
    /// What it may be raised to; None is unlimited.
    pub hard: Option<u64>,
}

/// A variable `PLE_…` that is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// What it does; None where nothing reads it.
    pub effect: Option<&'static str>,
}

/// Words of the first `flags` (or `Features`) line of `/proc/cpuinfo` that are of use, in their order here.
pub(super) fn features(cpuinfo: &str) -> Vec<&'static str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let words: BTreeSet<&str> =
        line.and_then(|l| l.split_once(':')).map_or(BTreeSet::new(), |(_, w)| w.split_whitespace().collect());
    FEATURES.into_iter().filter(|feature| words.contains(feature)).collect()
}

/// Cores under a folder of processors: siblings on one core count once. None where the system does not tell.
pub(super) fn cores(cpus: &Path) -> Option<usize> {
    let read = |cpu: &Path, file: &str| read_to_string(cpu.join("topology").join(file)).ok();
    let core = |cpu: PathBuf| Some((read(&cpu, "physical_package_id")?, read(&cpu, "core_id")?));
    let found: BTreeSet<_> = read_dir(cpus).ok()?.flatten().filter_map(|entry| core(entry.path())).collect();
    (!found.is_empty()).then_some(found.len())
}

/// The caches under a processor's folder, nearest first.
pub(super) fn caches(cpu: &Path) -> Vec<Cache> {
    let read = |folder: &Path, file: &str| Some(read_to_string(folder.join(file)).ok()?.trim().to_string());
    let of = |folder: PathBuf| {
        let level = read(&folder, "level")?.parse().ok()?;
        let bytes = size(&read(&folder, "size")?)?;
        Some(Cache { level, kind: read(&folder, "type")?, bytes, shared_by: read(&folder, "shared_cpu_list")? })
    };
    let mut found: Vec<Cache> =
        read_dir(cpu.join("cache")).into_iter().flatten().flatten().filter_map(|e| of(e.path())).collect();
    found.sort_by(|a, b| (a.level, &a.kind).cmp(&(b.level, &b.kind)));
    found
}

/// `48K`, `2M`.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The file system of a folder.
pub(super) fn disk(folder: &Path) -> Option<Disk> {
    let found = statvfs(folder).ok()?;
    Some(Disk {
        path: folder.display().to_string(),
        free: found.f_bavail.saturating_mul(found.f_frsize),
        total: found.f_blocks.saturating_mul(found.f_frsize),
        read_only: found.f_flag.contains(StatVfsMountFlags::RDONLY),
    })
}

/// Those of [`LIMITS`] that are in force, from the text of `/proc/self/limits`.
pub(super) fn limits(text: &str) -> Vec<Limit> {
    let of = |name: &'static str| {
        let line = text.lines().find_map(|line| line.strip_prefix("Max ")?.strip_prefix(name))?;
        let mut words = line.split_whitespace();
        Some(Limit { name, soft: words.next()?.parse().ok()?, hard: words.next()?.parse().ok() })
    };
    LIMITS.into_iter().filter_map(|(name, _)| of(name)).collect()
}

/// Those of an environment whose names begin with `PLE_`, by name.
pub(super) fn variables(environment: impl Iterator<Item = (String, String)>) -> Vec<Variable> {
    let effect = |name: &str| VARIABLES.into_iter().find(|(known, _)| *known == name).map(|(_, effect)| effect);
    let ours = environment.filter(|(name, _)| name.starts_with("PLE_"));
    let mut found: Vec<Variable> = ours.map(|(name, value)| Variable { effect: effect(&name), name, value }).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}
