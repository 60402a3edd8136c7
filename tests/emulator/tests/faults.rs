//! What the emulated device must catch, and what the runtime makes of it: each fault is an error with kernel and thread in it.

use ple_emulator as emulator;

use emulator::{Cuda, Order, Sanitizer};
use runtime::cuda::Compiler;
use runtime::{Arg, Buffer, Defines, Error, Kernel, Launch, Result, TensorMap};
use std::path::{Path, PathBuf};

const SOURCE: &str = concat!(
    include_str!("../../../kernels/src/common.cuh"),
    "#line 1 \"ptx.cuh\"\n",
    include_str!("../../../kernels/src/ptx.cuh"),
    "#line 1 \"faults.cu\"\n",
    include_str!("faults.cu")
);

/// Faults stick to the device, so these tests take turns; one that failed leaves a fault behind.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Launches 64 threads with 256 bytes of dynamic shared memory on a fresh y `[64]` and gives it back.
fn run(cuda: &Cuda, name: &'static str) -> Result<Vec<f32>> {
    run_with(cuda, name, 64, 256, &[])
}

/// The same for another block, and with arguments behind y.
fn run_with(cuda: &Cuda, name: &'static str, block: u32, shared: u32, rest: &[Arg<'_>]) -> Result<Vec<f32>> {
    let y = cuda.stream.upload(&[-1f32; 64])?;
    let kernel = Kernel { name, cuda: SOURCE, ascend: "" };
    let launch = Launch { grid: [1; 3], block, shared, ..Launch::default() };
    let args = [&[Arg::Ptr(y.view().ptr())], rest].concat();
    // SAFETY: the kernel's arguments, y with 64 elements.
    unsafe { cuda.stream.launch(&kernel, &launch, &args)? };
    y.to_vec()
}

/// Queues a write of element `at` of x.
fn write_to(cuda: &Cuda, x: &Buffer<f32>, at: u32) -> Result<()> {
    let kernel = Kernel { name: "beyond", cuda: SOURCE, ascend: "" };
    let launch = Launch { grid: [1; 3], block: 1, ..Launch::default() };
    // SAFETY: the kernel's arguments; what lies beyond x is the emulated device's to notice.
    unsafe { cuda.stream.launch(&kernel, &launch, &[Arg::Ptr(x.view().ptr()), Arg::U32(at)]) }
}

/// Writes element `at` of an x `[20]`.
fn write(cuda: &Cuda, at: u32) -> Result<Vec<f32>> {
    let x = cuda.stream.upload(&[0f32; 20])?;
    write_to(cuda, &x, at)?;
    x.to_vec()
}

fn fails<T: std::fmt::Debug>(cuda: &Cuda, result: Result<T>, code: i64, parts: &[&str]) {
    match result {
        Err(Error::Device { code: got, text, .. }) => {
            assert!(got == code && parts.iter().all(|part| text.contains(part)), "{got} {text}");
        }
        other => panic!("wanted code {code} and {parts:?}, got {other:?}"),
    }
    cuda.clear();
}

#[test]
fn on_cuda_faults_are_caught_and_named() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let _turn = TURN.lock();
    let mirrored: Vec<f32> = (0..64).rev().map(|i| i as f32).collect();
    for order in Order::ALL {
        cuda.order(order);
        assert_eq!(run(cuda, "patient")?, mirrored);
        assert_ne!(run(cuda, "hurried")?, mirrored, "{order:?}: a missing barrier shows");
        assert!(run(cuda, "unwritten")?.iter().all(|v| v.is_nan()));
        fails(cuda, run(cuda, "stuck"), 719, &["deadlock", "__syncthreads", "stuck", "32 of 64"]);
        fails(cuda, run(cuda, "divergent"), 719, &["divergent warp", "__shfl_xor_sync", "__shfl_down_sync"]);
        assert_eq!(write(cuda, 9)?[9], 1.0);
        fails(cuda, write(cuda, 21), 719, &["write beyond", "of 80 bytes"]);
        fails(cuda, write(cuda, 1024), 700, &["illegal address", "beyond"]);
        assert_eq!(run(cuda, "patient")?, mirrored);
    }
    Ok(())
}

/// Runs this file's test of that name in a process of its own, with `PLE_LAUNCH_BLOCKING=1`.
fn blocking(test: &str) {
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let out = again.args(["--exact", test, "--nocapture"]).env("PLE_LAUNCH_BLOCKING", "1").output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn on_cuda_a_fault_is_told_with_its_launch_where_launches_are_waited_for() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let _turn = TURN.lock();
    let x = cuda.stream.upload(&[0f32; 20])?;
    let launched = write_to(cuda, &x, 1024);
    if std::env::var_os("PLE_LAUNCH_BLOCKING").is_some() {
        let named = format!("beyond grid [1, 1, 1] block 1 shared 0 (x {:#x}, at 1024): illegal address", x.view().ptr().0);
        fails(cuda, launched, 700, &[&named]);
        let mut harmless = || write_to(cuda, &x, 3);
        let graph = cuda.stream.backend().capture(cuda.stream.queue(), &mut harmless)?;
        assert!(graph.is_some(), "launches that are recorded are not waited for");
    } else {
        launched?;
        fails(cuda, x.to_vec(), 700, &["illegal address", "under PLE_LAUNCH_BLOCKING=1 its kernel is named"]);
        blocking("on_cuda_a_fault_is_told_with_its_launch_where_launches_are_waited_for");
    }
    Ok(())
}

/// A folder of the system's for temporary files, removed on drop.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn on_cuda_a_damaged_cache_is_made_again_and_one_that_cannot_be_written_is_named() -> Result<()> {
    if emulator::cuda().is_none() {
        return Ok(());
    }
    let folder = Folder(std::env::temp_dir().join(format!("ple-kernels-{}", std::process::id())));
    let kernel = Kernel { name: "patient", cuda: SOURCE, ascend: "" };
    let module = |folder: &Path| Compiler::find("sm_90a", Some(folder.to_path_buf()))?.module(&kernel, &Defines::default());
    let image = module(&folder.0)?;
    let [file] = &entries(&folder.0)[..] else { panic!("{:?}", entries(&folder.0)) };
    let whole = std::fs::read(file).unwrap();
    assert_eq!(whole[32..], image);
    let flipped = whole.iter().enumerate().map(|(i, b)| if i == whole.len() / 2 { b ^ 1 } else { *b }).collect();
    for damaged in [flipped, whole[..whole.len() - 1].to_vec(), whole[..20].to_vec(), Vec::new()] {
        std::fs::write(file, damaged).unwrap();
        assert_eq!(module(&folder.0)?.len(), image.len());
        assert_eq!(std::fs::read(file).unwrap()[32..].len(), image.len());
    }
    std::fs::write(file, [&whole[..], b"more"].concat()).unwrap();
    module(&folder.0)?;
    assert_eq!(entries(&folder.0), std::slice::from_ref(file), "temporary files are left");
    for unfit in [file.join("kernels"), PathBuf::from("/proc/nowhere/kernels")] {
        let text = module(&unfit).unwrap_err().to_string();
        let said = text.starts_with(&format!("{}: cannot create: ", unfit.display()));
        assert!(said && text.ends_with("; PLE_CACHE names another folder for compiled kernels"), "{text}");
    }
    Ok(())
}

#[test]
fn on_cuda_faults_of_instructions_are_caught_and_named() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let _turn = TURN.lock();
    for order in Order::ALL {
        cuda.order(order);
        // What is not waited for is there at once or, in the lazy mode, not at all.
        for name in ["unwaited", "uncommitted"] {
            assert_eq!(run(cuda, name)?, [0.0; 64]);
            cuda.lazy(true);
            assert!(run(cuda, name)?.iter().all(|v| v.is_nan()), "{name}");
            cuda.lazy(false);
        }
        for (name, parts) in [
            ("copy_aslant", &["cp_async in faults.cu", "misaligned address in global"][..]),
            ("matrix_aslant", &["ldmatrix_x4 in faults.cu", "misaligned address in shared"]),
            ("matrix_elsewhere", &["ldmatrix_x4 in faults.cu", "outside of shared memory"]),
            ("beyond_shared", &["write beyond 256 bytes of dynamic shared memory"]),
            ("uninitialised", &["mbarrier_arrive in faults.cu", "nobody initialised"]),
            ("too_many", &["mbarrier_arrive in faults.cu", "more arrivals than the phase expects"]),
            ("forgotten", &["deadlock", "mbarrier_try_wait in faults.cu"]),
            ("not_a_map", &["tensor_load_2d in faults.cu", "a tensor map that the driver did not make"]),
        ] {
            fails(cuda, run(cuda, name), 719, parts);
        }
        let counts = run_with(cuda, "two_counts", 128, 0, &[]);
        fails(cuda, counts, 719, &["bar_sync in faults.cu", "another number of threads"]);
        let product = |which| run_with(cuda, "product", 128, 9216, &[Arg::U32(which)]);
        assert_eq!(product(0)?, [16.0; 64]);
        fails(cuda, product(1), 719, &["wgmma_ss_n8 in faults.cu", "no wgmma.fence"]);
        cuda.lazy(true);
        assert_eq!(product(0)?, [16.0; 64]);
        assert_eq!(product(2)?, [0.0; 64], "a product that is not waited for is not there");
        let x = cuda.stream.upload(&[1f32; 256])?;
        let (base, dtype) = (x.view().ptr(), runtime::DType::F32);
        let map = TensorMap { dtype, base, dims: vec![16, 16], strides: vec![64], tile: vec![8, 8], swizzle: false };
        fails(cuda, run_with(cuda, "left_behind", 64, 256, &[Arg::TensorMap(&map)]), 719, &["ends before a tensor copy"]);
        cuda.lazy(false);
    }
    Ok(())
}

/// One kernel, named by the caller of this binary; `on_cuda_what_only_a_sanitizer_sees` is it.
#[test]
fn on_cuda_one_kernel_by_name() -> Result<()> {
    let Some(name) = std::env::var_os("EMULATOR_FAULT") else { return Ok(()) };
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let known = ["patient", "beyond_array", "shifted", "raced", "hurried"];
    let name = known.into_iter().find(|k| name == *k).expect("a kernel of faults.cu");
    run(cuda, name).map(drop)
}

#[test]
fn on_cuda_what_only_a_sanitizer_sees() {
    for (sanitizer, name, parts) in [
        (Sanitizer::Address, "patient", &[][..]),
        (Sanitizer::Address, "beyond_array", &["global-buffer-overflow", "faults.cu:"]),
        (Sanitizer::Address, "shifted", &["runtime error: ", "shift", "faults.cu:"]),
        (Sanitizer::Thread, "patient", &[]),
        (Sanitizer::Thread, "raced", &["data race", "faults.cu:"]),
        (Sanitizer::Thread, "hurried", &["data race", "faults.cu:"]),
    ] {
        let Some(mut command) = emulator::sanitized(sanitizer) else { continue };
        let out = command.args(["--exact", "on_cuda_one_kernel_by_name"]).env("EMULATOR_FAULT", name).output().unwrap();
        let told = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.success(), parts.is_empty(), "{sanitizer:?} {name}: {told}");
        assert!(parts.iter().all(|part| told.contains(part)), "{sanitizer:?} {name}: {told}");
    }
}

#[test]
fn on_cuda_maps_that_the_hardware_cannot_take_are_refused() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let _turn = TURN.lock();
    let x = cuda.stream.upload(&[1f32; 256])?;
    let (base, dtype) = (x.view().ptr(), runtime::DType::F32);
    let good = TensorMap { dtype, base, dims: vec![16, 16], strides: vec![64], tile: vec![8, 8], swizzle: false };
    let change = |f: &dyn Fn(&mut TensorMap)| {
        let mut map = good.clone();
        f(&mut map);
        run_with(cuda, "left_behind", 64, 256, &[Arg::TensorMap(&map)]).unwrap_err().to_string()
    };
    let wrong: [&dyn Fn(&mut TensorMap); 6] =
        [&|m| m.base.0 += 8, &|m| m.strides[0] = 72, &|m| m.tile[0] = 7, &|m| m.tile[1] = 257, &|m| m.dims[1] = 0, &|m| {
            (m.tile[0], m.swizzle) = (64, true)
        }];
    for f in wrong {
        let text = change(f);
        assert!(text.contains("cuTensorMapEncodeTiled failed with code 1") && text.contains("TensorMap"), "{text}");
    }
    let text = change(&|m| m.dims.truncate(1));
    assert!(text.contains("dims, strides, tile of [1, 1, 2] entries"), "{text}");
    Ok(())
}

#[test]
fn on_cuda_wrong_launches_are_refused_by_name() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let _turn = TURN.lock();
    let (s, launch) = (&cuda.stream, Launch { grid: [1; 3], block: 64, ..Launch::default() });
    let go = |cuda, name, launch: &Launch, args: &[Arg<'_>]| {
        // SAFETY: none of these gets as far as a kernel.
        let result = unsafe { s.launch(&Kernel { name, cuda, ascend: "" }, launch, args) };
        result.unwrap_err().to_string()
    };
    for (args, part) in [
        (&[][..], "stuck: takes 1 arguments, got 0"),
        (&[Arg::U32(0)], "stuck: argument 0 has 8 bytes, got 4"),
        (&[Arg::Struct(&[0; 12])], "stuck: argument 0 has 8 bytes, got 12"),
    ] {
        let text = go(SOURCE, "stuck", &launch, args);
        assert_eq!(text, part);
    }
    assert!(go(SOURCE, "absent", &launch, &[]).contains("cuModuleGetFunction failed with code 500"));
    let wrong = "extern \"C\" __global__ void broken() { missing(); }";
    let text = go(wrong, "broken", &launch, &[]);
    assert!(text.contains("nvrtcCompileProgram failed with code 6") && text.contains("missing"), "{text}");
    for shared in [(227 << 10) + 1, u32::MAX / 2] {
        let text = go(SOURCE, "stuck", &Launch { shared, ..launch.clone() }, &[Arg::U64(0)]);
        assert!(text.contains("cuFuncSetAttribute failed with code 1"), "{text}");
    }
    // Four multiprocessors hold 128 blocks of 64 threads at once, and a grid of clusters has whole ones.
    for (wrong, code) in [
        (Launch { cooperative: true, grid: [129, 1, 1], ..launch.clone() }, 720),
        (Launch { cluster: 2, grid: [3, 1, 1], ..launch.clone() }, 912),
        (Launch { cluster: 16, grid: [16, 1, 1], ..launch }, 912),
    ] {
        let text = go(SOURCE, "stuck", &wrong, &[Arg::U64(0)]);
        assert!(text.contains(&format!("cuLaunchKernelEx failed with code {code}")), "{text}");
    }
    let text = s.zeros::<f32>(1 << 40).unwrap_err().to_string();
    let asked = "out of memory: 4398046511104 bytes for a buffer on cuda:0, ";
    assert!(text.starts_with(asked) && text.ends_with("of 4294967296 bytes are free"), "{text}");
    Ok(())
}

#[test]
fn on_cuda_clusters_and_cooperative_grids_are_launched() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let _turn = TURN.lock();
    let kernel = Kernel { name: "patient", cuda: SOURCE, ascend: "" };
    for (cluster, cooperative) in [(2, false), (0, true), (4, true)] {
        let y = cuda.stream.upload(&[-1f32; 64])?;
        let launch = Launch { grid: [8, 1, 1], block: 64, shared: 256, cluster, cooperative, ..Launch::default() };
        // SAFETY: the kernel's argument, y with 64 elements; every block writes the same ones.
        unsafe { cuda.stream.launch(&kernel, &launch, &[Arg::Ptr(y.view().ptr())])? };
        assert_eq!(y.to_vec()?, (0..64).rev().map(|i| i as f32).collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn on_cuda_events_time_the_queue_and_grow_old() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    let _turn = TURN.lock();
    let (s, b) = (&cuda.stream, cuda.stream.backend());
    let first = s.record()?;
    let second = s.record()?;
    b.wait(s.queue(), &first)?;
    assert!(b.elapsed(&first, &second)? < std::time::Duration::from_secs(60));
    for _ in 0..1100 {
        s.record()?;
    }
    let text = b.elapsed(&first, &second).unwrap_err().to_string();
    assert!(text.contains("wanted one of the newest 1024"), "{text}");
    Ok(())
}
