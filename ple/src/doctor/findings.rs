//! Rules: what in a report wants mending, and how.

use super::{Library, Report};
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

/// Every rule, most important first.
pub(super) fn of(r: &Report) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |what: String, fix: String| found.push(Finding { what, fix });
    instructions(r, &mut add);
    host(r, &mut add);
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
