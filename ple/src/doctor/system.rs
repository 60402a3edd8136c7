//! What Linux says of the machine and of this process, in `/proc` and `/sys`. Elsewhere most of it is unknown.

use super::{Memory, OpenFiles};
use std::fs::read_to_string;

/// Operating system, architecture and kernel.
pub(super) fn name() -> String {
    let kernel = read_to_string("/proc/sys/kernel/osrelease").map(|k| format!(" {}", k.trim())).unwrap_or_default();
    format!("{} {}{kernel}", std::env::consts::OS, std::env::consts::ARCH)
}

/// Host memory, and the limit of the control group if it is the tighter one.
pub(super) fn memory() -> Memory {
    let text = read_to_string("/proc/meminfo").unwrap_or_default();
    let (total, available) = (field(&text, "MemTotal:"), field(&text, "MemAvailable:"));
    Memory { total, available, limit: runtime::memory::limit().filter(|limit| *limit < total) }
}

/// A line `name   123 kB` in bytes; 0 if it is not there.
pub(super) fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
}

/// The limits of this process.
pub(super) fn open_files() -> Option<OpenFiles> {
    limits(&read_to_string("/proc/self/limits").ok()?)
}

/// The line `Max open files   soft   hard   files`.
pub(super) fn limits(text: &str) -> Option<OpenFiles> {
    let mut words = text.lines().find_map(|l| l.strip_prefix("Max open files"))?.split_whitespace();
    let mut limit = || match words.next()? {
        "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    };
    Some(OpenFiles { soft: limit()?, hard: limit()? })
}
