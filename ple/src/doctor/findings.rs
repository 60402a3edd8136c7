//! Rules: what in a report wants mending, and how.

use super::host::{LIMITS, VARIABLES};
use super::{Library, Report};
use crate::config::nearest::nearest;
use serde::Serialize;
use std::path::Path;

/// Something to mend, and one line that says how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What is the matter.
    pub what: String,
    /// What to do.
    pub fix: String,
}

/// Runs load a checkpoint, its activations and an optimizer; below this little fits beside the smallest models.
const LITTLE_MEMORY: u64 = 1 << 30;
/// A run keeps a few dozen files open: shards, data, logs.
const FEW_FILES: u64 = 256;
/// A checkpoint of a small model with its optimizer, and room for the next before the last one goes.
const LITTLE_DISK: u64 = 1 << 30;

/// Every rule, most important first.
pub(super) fn of(r: &Report) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |what: String, fix: String| found.push(Finding { what, fix });
    instructions(r, &mut add);
    host(r, &mut add);
    limits(r, &mut add);
    disk(r, &mut add);
    variables(r, &mut add);
    r.libraries.iter().for_each(|library| loading(library, &mut add));
    cuda(r, &mut add);
    folders(r, &mut add);
    found
}

fn instructions(r: &Report, add: &mut impl FnMut(String, String)) {
    let (Some(used), Some(best)) = (&r.simd.used, r.simd.available.last()) else { return };
    if used != best {
        add(format!("{used} is used, this machine has {best}"), "unset PLE_SIMD; results are the same bits, only slower".into());
    } else if best == "portable" {
        add(
            "no AVX2 with FMA and F16C: plain code runs, many times slower".into(),
            "use a processor that has them; in a virtual machine, pass the host's processor model through".into(),
        );
    }
}

fn host(r: &Report, add: &mut impl FnMut(String, String)) {
    let (threads, processors) = (r.device.cores as usize, r.processors);
    if r.simd.used.is_some() && threads > processors {
        add(format!("{threads} threads share {processors} processors"), format!("--threads {processors}"));
    }
    let memory = r.memory;
    if memory.total > 0 && memory.available < LITTLE_MEMORY {
        add(
            format!("{} MiB of memory are available", memory.available >> 20),
            "end other programs or choose a smaller model".into(),
        );
    }
    if let Some(limit) = memory.limit.filter(|limit| *limit < LITTLE_MEMORY) {
        add(format!("this container may use {} MiB of memory", limit >> 20), "raise the container's memory limit".into());
    }
    if let Some(soft) = r.open_files.and_then(|files| files.soft).filter(|soft| *soft < FEW_FILES) {
        add(format!("{soft} files may be open at a time"), "ulimit -n 1024".into());
    }
}

/// Limits below what a run may come to need; what it needs in fact depends on the model.
fn limits(r: &Report, add: &mut impl FnMut(String, String)) {
    for limit in &r.limits {
        let letter = LIMITS.iter().find(|(name, _)| *name == limit.name).map_or('a', |(_, letter)| *letter);
        let mib = limit.soft >> 20;
        let what = match limit.name {
            "cpu time" => format!("the system ends this process after {} s of processor time", limit.soft),
            "file size" if limit.soft < LITTLE_DISK => format!("a file may grow to {} KiB only", limit.soft >> 10),
            "data size" | "address space" if limit.soft < r.memory.total => format!("{} is limited to {mib} MiB", limit.name),
            "processes" if limit.soft < u64::from(r.device.cores) + 64 => {
                format!("{} processes and threads are allowed", limit.soft)
            }
            _ => continue,
        };
        let raised = match (limit.name, limit.hard) {
            (_, None) => "unlimited".to_string(),
            // `ulimit` counts these in KiB.
            ("file size" | "data size" | "address space", Some(hard)) => (hard >> 10).to_string(),
            (_, Some(hard)) => hard.to_string(),
        };
        let fixed = limit.hard == Some(limit.soft);
        add(what, if fixed { "have the administrator raise this limit".into() } else { format!("ulimit -{letter} {raised}") });
    }
}

fn disk(r: &Report, add: &mut impl FnMut(String, String)) {
    let Some(disk) = &r.disk else { return };
    if disk.read_only {
        add(format!("{} is read-only", disk.path), "go to a folder that can be written, or give output_dir one".into());
    } else if disk.free < LITTLE_DISK {
        add(format!("{} MiB are free in {}", disk.free >> 20, disk.path), "free some, or give output_dir another disk".into());
    }
}

fn variables(r: &Report, add: &mut impl FnMut(String, String)) {
    for variable in r.variables.iter().filter(|variable| variable.effect.is_none()) {
        let near = nearest(&variable.name, VARIABLES.map(|(name, _)| name));
        add(format!("{} is set and nothing reads it", variable.name), format!("unset it; the nearest known is {near}"));
    }
}

/// A library that is there and not as it should be. That one is absent is no fault.
fn loading(library: &Library, add: &mut impl FnMut(String, String)) {
    let Some(note) = &library.note else { return };
    let fix = match &library.path {
        Some(path) if library.version.is_some() => {
            let folder = Path::new(path).parent().unwrap_or(Path::new("/"));
            format!("add {} to LD_LIBRARY_PATH", folder.display())
        }
        Some(path) => format!("install this library again, or take {path} out of LD_LIBRARY_PATH"),
        None if library.name == "AscendCL" => "source CANN's set_env.sh; check the driver with npu-smi info".into(),
        None => "install this library again for this machine's architecture".into(),
    };
    add(format!("{}: {note}", library.name), fix);
}

/// `major.minor` of a version.
fn pair(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn cuda(r: &Report, add: &mut impl FnMut(String, String)) {
    let version = |name: &str| r.libraries.iter().find(|l| l.name == name).and_then(|l| l.version.as_deref());
    let Some(driver) = version("libcuda") else { return };
    if let Some(compiler) = version("libnvrtc").filter(|compiler| pair(compiler) > pair(driver)) {
        add(
            format!("the compiler is of CUDA {compiler}, the driver serves up to {driver}"),
            format!("update the driver, or install libnvrtc of CUDA {driver} or older"),
        );
    }
    if r.device.name == "cpu" {
        add(
            format!("a CUDA {driver} driver is here and the CPU is used"),
            "nothing: this version computes on the CPU only".into(),
        );
    }
}

fn folders(r: &Report, add: &mut impl FnMut(String, String)) {
    for folder in [Some(&r.model_cache), r.shared.as_ref()].into_iter().flatten().filter(|folder| !folder.present) {
        if let Some(variable) = folder.variable {
            add(format!("{variable} leads to {}, which is not a folder", folder.path), format!("create it, or unset {variable}"));
        }
    }
}
