//! Devices that are not there, or are there in part: the driver and its compiler hidden in turn by what `LD_LIBRARY_PATH` leads to.

use super::super::program::{Ple, ple};
use super::{DEVICE, Stage, USAGE};
use anyhow::{Context, Result, ensure};
use model::weights::Checkpoint;
use ple_tests::tiny;
use runtime::DType;
use std::collections::BTreeSet;
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
    call(made, "cuda:0").and("--dtype float16").refuse(USAGE, &["dtype: wanted float32 or bfloat16 on cuda:0", "got f16"])?;
    let folder = tempfile::tempdir()?;
    symlink(made.join("libcuda.so"), folder.path().join("libcuda.so"))?;
    if !runtime::probe::libraries().iter().any(|found| found.name == "libnvrtc" && found.path.is_some()) {
        call(folder.path(), "cuda:0").refuse(DEVICE, &["no device: cuda:0", "compiler was not found", "libnvrtc.so.13"])?;
    }
    Ok(())
}

/// Training, checkpoints and what is read back of the device: the files are those of the CPU.
#[test]
fn on_cuda_a_run_writes_the_files_that_the_cpu_writes() -> Result<()> {
    let (stage, Some(made)) = (Stage::new()?, emulator::libraries()) else { return Ok(()) };
    let adapter = || stage.read("out/adapter_model.safetensors");
    let run = || stage.sft().and("--max_steps 3 --learning_rate 0.01 --save_steps 2");
    run().succeed()?;
    let want = adapter()?;
    std::fs::rename(stage.path("out"), stage.path("cpu"))?;
    let on_device = || run().and("--device cuda:0").libraries(made);
    on_device().succeed()?;
    ensure!(adapter()? == want, "another adapter than the CPU's");
    for name in ["checkpoint-2/adapter_model.safetensors", "checkpoint-2/optimizer.safetensors"] {
        let [device, cpu] = ["out", "cpu"].map(|run| stage.read(&format!("{run}/{name}")));
        ensure!(device? == cpu?, "{name} differs from the CPU's");
    }
    std::fs::remove_file(stage.path("out/adapter_model.safetensors"))?;
    on_device().and("--resume_from_checkpoint true").succeed()?;
    ensure!(adapter()? == want, "another adapter after going on from a checkpoint");
    // A run of the device goes on on the CPU.
    run().and("--resume_from_checkpoint true").succeed()?;
    ensure!(adapter()? == want, "another adapter on the other device");
    Ok(())
}

/// In bf16 a run has its checkpoints, and one that goes on from one has the bits of one that did not stop.
#[test]
fn on_cuda_a_run_in_bf16_goes_on_where_it_stopped() -> Result<()> {
    let (stage, Some(made)) = (Stage::new()?, emulator::libraries()) else { return Ok(()) };
    let on_device = |call: Ple| call.and("--device cuda:0 --dtype bfloat16").libraries(made);
    for (tune, file) in [("lora", "out/adapter_model.safetensors"), ("full", "out/model.safetensors")] {
        let run = || on_device(stage.sft().and("--max_steps 3 --learning_rate 0.01 --save_steps 2 --tune").and(tune));
        run().succeed()?;
        let want = stage.read(file)?;
        std::fs::remove_file(stage.path(file))?;
        run().and("--resume_from_checkpoint true").succeed()?;
        ensure!(stage.read(file)? == want, "{tune}: another {file} after going on from a checkpoint");
        if tune == "lora" {
            std::fs::remove_dir_all(stage.path("out"))?;
        }
    }
    // What is left is the f32 master, of which the device scores the rounded weights.
    let (left, rounded_at) = (Checkpoint::open(&stage.path("out"))?, stage.path("rounded"));
    let mut rounded = Vec::new();
    for name in left.names() {
        let tensor = left.tensor(name)?;
        ensure!(tensor.dtype == DType::F32, "{name} is {}", tensor.dtype);
        // What is no matrix stays f32 on the device.
        let narrow = |v: &f32| half::bf16::from_f32(*v).to_f32().to_le_bytes();
        let values = tensor.to_f32();
        let bytes = if tensor.shape.len() == 2 { values.iter().flat_map(narrow).collect() } else { tensor.bytes.to_vec() };
        rounded.push((name.to_string(), tensor.shape.to_vec(), bytes));
    }
    std::fs::create_dir(&rounded_at)?;
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(stage.path("out").join(name), rounded_at.join(name))?;
    }
    tiny::write(&rounded_at.join("model.safetensors"), safetensors::Dtype::F32, &rounded)?;
    let scored = |model: &str, device: bool| {
        let call = ple("logprob").key("model_name_or_path", stage.path(model)).key("dataset_name", stage.path("rows.jsonl"));
        let call = call.key("output_file", stage.path("scored.jsonl"));
        if device { on_device(call) } else { call }.succeed()?;
        stage.read("scored.jsonl")
    };
    let got = scored("out", true)?;
    ensure!(got == scored("rounded", true)?, "the device scores other weights than the rounded ones");
    ensure!(got != scored("out", false)?, "the device did not compute in bf16");
    Ok(())
}

#[test]
fn the_vendor_s_products_are_refused_where_there_are_none() -> Result<()> {
    let stage = Stage::new()?;
    stage.sft().and("--gemm library").refuse(USAGE, &["gemm: wanted own on cpu", "got library"])?;
    stage.sft().and("--gemm blas").refuse(USAGE, &["gemm", "own, library"])?;
    let Some(made) = emulator::libraries() else { return Ok(()) };
    let call = |more: &str| stage.sft().and("--device cuda:0 --gemm library").and(more).libraries(made);
    call("").refuse(USAGE, &["gemm: wanted own on cuda:0", "dtype` bfloat16"])?;
    call("--dtype float32").refuse(USAGE, &["gemm: wanted own on cuda:0", "dtype` bfloat16"])?;
    call("--dtype bfloat16 --tune full").refuse(USAGE, &["gemm: wanted own on cuda:0", "tune full"])?;
    let drawn = ple("generate --device cuda:0 --dtype bfloat16 --gemm library --dataset_name none --output_file none");
    let drawn = drawn.key("model_name_or_path", stage.path("model")).libraries(made);
    drawn.refuse(USAGE, &["gemm: wanted own on cuda:0", "`ple generate` promises one set of bits"])?;
    ple("bench --device cuda:0 --gemm library").libraries(made).refuse(USAGE, &["gemm: wanted own on cuda:0", "--e2e"])
}

/// A run says whose products it used, and repeats itself.
#[test]
fn on_cuda_a_run_through_the_library_repeats_itself() -> Result<()> {
    let (stage, Some(made)) = (Stage::new()?, emulator::libraries()) else { return Ok(()) };
    let run = || {
        let keys = "--max_steps 2 --learning_rate 0.01 --device cuda:0 --dtype bfloat16 --gemm library";
        stage.sft().and(keys).libraries(made).succeed()?;
        let adapter = stage.read("out/adapter_model.safetensors")?;
        std::fs::rename(stage.path("out"), stage.path("before"))?;
        Result::<_>::Ok(adapter)
    };
    let first = run()?;
    let said: serde_json::Value = serde_json::from_slice(&stage.read("before/run.json")?)?;
    ensure!(said.to_string().contains(r#""gemm":"library""#), "{said}");
    std::fs::remove_dir_all(stage.path("before"))?;
    ensure!(run()? == first, "a repeat has another adapter");
    let scored = ple("logprob --device cuda:0 --dtype bfloat16 --gemm library").libraries(made);
    let scored = scored.key("model_name_or_path", stage.path("model")).key("adapter", stage.path("before"));
    scored.key("dataset_name", stage.path("rows.jsonl")).key("output_file", stage.path("logps.jsonl")).succeed()?;
    ensure!(!stage.read("logps.jsonl")?.is_empty(), "no log-probabilities");
    Ok(())
}

/// A shared library of the vendor's name, from C.
fn stub(folder: &Path, library: &str, text: &str) -> Result<()> {
    let source = folder.join("stub.c");
    std::fs::write(&source, text)?;
    let built = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(folder.join(library)).arg(source).status()?;
    ensure!(built.success(), "gcc: {built}");
    Ok(())
}

fn doctor(libraries: &Path) -> Ple {
    ple("doctor --device cuda:0").libraries(libraries)
}

/// A copy of a library in which the loader does not find `symbol`: its name is another in the tables.
fn without(symbol: &str, from: &Path, to: &Path) -> Result<()> {
    let mut image = std::fs::read(from)?;
    let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
    let places: Vec<usize> = image.windows(name.len()).enumerate().filter(|(_, w)| *w == name).map(|(i, _)| i + 1).collect();
    ensure!(!places.is_empty(), "{}: no {symbol}", from.display());
    places.into_iter().for_each(|at| image[at] = b'_');
    Ok(std::fs::write(to, image)?)
}

/// Every function of NVIDIA's driver and compiler that the runtime's source calls through cudarc, which panics at one that is missing.
/// cuBLASLt may be missing as a whole.
fn called() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../runtime/src/cuda"))? {
        let text = std::fs::read_to_string(file?.path())?;
        let names = text.split("sys::").skip(1).filter_map(|rest| rest.split_once('(').map(|(name, _)| name));
        let function = |name: &&str| {
            let needed = (name.starts_with("cu") && !name.starts_with("cublas")) || name.starts_with("nvrtc");
            needed && name.chars().all(|c| c.is_alphanumeric() || c == '_')
        };
        found.extend(names.filter(function).filter(|name| *name != "culib").map(String::from));
    }
    Ok(found)
}

#[test]
fn each_function_of_cuda_that_is_missing_is_named() -> Result<()> {
    let Some(made) = emulator::libraries() else { return Ok(()) };
    let called = called()?;
    ensure!(called.len() > 40, "{called:?}");
    for symbol in &called {
        let folder = tempfile::tempdir()?;
        let (hit, other) = if symbol.starts_with("nvrtc") { ("libnvrtc", "libcuda") } else { ("libcuda", "libnvrtc") };
        let file = |library: &str| folder.path().join(library).with_extension("so");
        symlink(made.join(other).with_extension("so"), file(other))?;
        without(symbol, &made.join(hit).with_extension("so"), &file(hit))?;
        doctor(folder.path())
            .refuse(DEVICE, &["no device: cuda:0", &format!("{hit} has no {symbol}")])
            .context(symbol.clone())?;
    }
    Ok(())
}

#[test]
fn a_driver_that_is_older_than_the_compiler_is_refused() -> Result<()> {
    let (Some(made), folder) = (emulator::libraries(), tempfile::tempdir()?) else { return Ok(()) };
    let calls = called()?;
    let calls = calls.iter().filter(|name| name.starts_with("nvrtc") && *name != "nvrtcVersion");
    let others: String = calls.map(|name| format!("int {name}(void) {{ return 1; }}\n")).collect();
    let version = "int nvrtcVersion(int *major, int *minor) { *major = 14; *minor = 2; return 0; }\n";
    stub(folder.path(), "libnvrtc.so", &(others + version))?;
    symlink(made.join("libcuda.so"), folder.path().join("libcuda.so"))?;
    let words = ["no device: cuda:0", "driver serves CUDA 13.0", "compiler is of CUDA 14", "newer driver or libnvrtc.so.13"];
    doctor(folder.path()).refuse(DEVICE, &words)
}

#[test]
fn a_driver_without_a_device_and_one_that_does_not_start_are_told() -> Result<()> {
    let Some(made) = emulator::libraries() else { return Ok(()) };
    let calls = called()?;
    let others = |but: &str| -> String {
        let calls = calls.iter().filter(|name| name.starts_with("cu") && *name != but);
        calls.map(|name| format!("int {name}(void) {{ return 1; }}\n")).collect()
    };
    for (code, words) in [(100, "the driver is here and finds no device"), (803, "cuInit failed with code 803")] {
        let folder = tempfile::tempdir()?;
        stub(folder.path(), "libcuda.so", &(others("cuInit") + &format!("int cuInit(unsigned flags) {{ return {code}; }}\n")))?;
        symlink(made.join("libnvrtc.so"), folder.path().join("libnvrtc.so"))?;
        doctor(folder.path()).refuse(DEVICE, &["no device: cuda:0", words])?;
    }
    Ok(())
}
