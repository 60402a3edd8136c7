//! The text form of a report: one line per fact, two per finding.

use super::{Cache, Disk, Folder, Library, Limit, Report, Variable};
use std::fmt::{Display, Formatter, Result};

/// Bytes as GiB with one digit.
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut line = |name: &str, text: String| writeln!(f, "{name:<12} {text}");
        line("ple", format!("{} on {}", self.version, self.system))?;
        line("device", format!("{}: {}, {}", self.device.name, self.device.model, gib(self.device.memory)))?;
        let forced = self.simd.forced.as_ref().map_or("PLE_SIMD not set".to_string(), |v| format!("PLE_SIMD={v}"));
        let used = self.simd.used.as_deref().unwrap_or("none");
        line("instructions", format!("{used} of {} ({forced})", self.simd.available.join(", ")))?;
        line("features", or_none(&self.simd.features, |feature| (*feature).to_string()))?;
        let cores = self.cores.map_or(String::new(), |n| format!(", {n} cores"));
        line("threads", format!("{} on {} processors{cores}", self.device.cores, self.processors))?;
        line("caches", or_none(&self.caches, cache))?;
        let limit = self.memory.limit.map_or(String::new(), |limit| format!(", limited to {}", gib(limit)));
        line("memory", format!("{} of {} available{limit}", gib(self.memory.available), gib(self.memory.total)))?;
        let files = |limit: Option<u64>| limit.map_or("unlimited".to_string(), |n| n.to_string());
        let open = self.open_files.map(|l| format!("{} (at most {})", files(l.soft), files(l.hard)));
        line("open files", open.unwrap_or_else(|| "unknown".to_string()))?;
        line("limits", or_none(&self.limits, bound))?;
        line("disk", self.disk.as_ref().map_or("unknown".to_string(), disk))?;
        line("variables", or_none(&self.variables, variable))?;
        for library in &self.libraries {
            line(&library.name, describe(library))?;
        }
        line("model cache", place(&self.model_cache))?;
        line("PLE_SHARED", self.shared.as_ref().map_or("not set".to_string(), place))?;
        line("findings", if self.findings.is_empty() { "none".to_string() } else { self.findings.len().to_string() })?;
        for finding in &self.findings {
            writeln!(f, "- {}\n  fix: {}", finding.what, finding.fix)?;
        }
        Ok(())
    }
}

/// A list on one line.
fn or_none<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
    if items.is_empty() { "none".to_string() } else { items.iter().map(text).collect::<Vec<_>>().join(", ") }
}

fn cache(cache: &Cache) -> String {
    let kind = match cache.kind.as_str() {
        "Data" => "d",
        "Instruction" => "i",
        _ => "",
    };
    format!("L{}{kind} {} KiB", cache.level, cache.bytes >> 10)
}

fn bound(limit: &Limit) -> String {
    let hard = limit.hard.map_or("unlimited".to_string(), |hard| hard.to_string());
    format!("{} {} (at most {hard})", limit.name, limit.soft)
}

fn disk(disk: &Disk) -> String {
    let fault = if disk.read_only { ", read-only" } else { "" };
    format!("{} of {} free in {}{fault}", gib(disk.free), gib(disk.total), disk.path)
}

fn variable(variable: &Variable) -> String {
    format!("{}={}", variable.name, variable.value)
}

fn place(folder: &Folder) -> String {
    format!("{}{}", folder.path, if folder.present { "" } else { " (absent)" })
}

/// Version, path and devices of a library, or where it was looked for.
fn describe(library: &Library) -> String {
    let Some(path) = &library.path else {
        let fault = if library.note.is_some() { "found, not usable" } else { "not found" };
        let tried = if library.tried.is_empty() { String::new() } else { format!("; tried {}", library.tried.join(", ")) };
        return format!("{fault}{tried}");
    };
    let devices = library.devices.as_ref().map_or(String::new(), |d| format!(", {d}"));
    format!("{} at {path}{devices}", library.version.as_deref().unwrap_or("unknown version"))
}
