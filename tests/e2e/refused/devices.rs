//! Devices that are not there, or are there in part: the driver and its compiler hidden in turn by what `LD_LIBRARY_PATH` leads to.

use super::{DEVICE, Stage};
use anyhow::{Result, ensure};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

#[test]
fn cuda_is_looked_for_and_its_absence_named() -> Result<()> {
    let stage = Stage::new()?;
    if runtime::probe::libraries().iter().any(|found| found.name == "libcuda" && found.path.is_some()) {
        eprintln!("skip: no cuda: this machine has a driver");
        return Ok(());
    }
    let words = ["no device: cuda:0", "libcuda.so", "libcuda.so.1", "LD_LIBRARY_PATH"];
    stage.sft().and("--device cuda:0").refuse(DEVICE, &words)?;
    stage.sft().and("--device cuda").refuse(DEVICE, &words)?;
    stage.sft().and("--device cuda:x").refuse(DEVICE, &["cuda:x", "wanted cuda:N"])
}

#[test]
fn a_cuda_device_without_compiler_symbol_number_or_room_is_refused_by_name() -> Result<()> {
    let (stage, Some(made)) = (Stage::new()?, emulator::libraries()) else { return Ok(()) };
    let call = |folder: &Path, device: &str| stage.sft().and("--device").and(device).libraries(folder);
    call(made, "cuda:1").refuse(DEVICE, &["no device: cuda:1", "has 1 devices"])?;
    call(made, "cuda:0").refuse(DEVICE, &["is not available on cuda:0"])?;
    let folder = tempfile::tempdir()?;
    symlink(made.join("libcuda.so"), folder.path().join("libcuda.so"))?;
    if !runtime::probe::libraries().iter().any(|found| found.name == "libnvrtc" && found.path.is_some()) {
        call(folder.path(), "cuda:0").refuse(DEVICE, &["no device: cuda:0", "compiler was not found", "libnvrtc.so.13"])?;
    }
    for (library, text, words) in [
        ("libcuda", "int cuInit(unsigned flags) { return flags; }", ["libcuda has no", "cuDriverGetVersion"]),
        ("libnvrtc", "int nvrtcVersion(int *a, int *b) { return *a = *b = 0; }", ["libnvrtc has no", "nvrtcCreateProgram"]),
    ] {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("stub.c"), text)?;
        let library = path(library).with_extension("so");
        let built = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(path("stub.c")).status()?;
        ensure!(built.success(), "gcc: {built}");
        if !path("libcuda.so").exists() {
            symlink(made.join("libcuda.so"), path("libcuda.so"))?;
        }
        call(folder.path(), "cuda:0").refuse(DEVICE, &words)?;
    }
    Ok(())
}
