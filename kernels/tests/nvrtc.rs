//! Every CUDA kernel and variant, compiled by NVIDIA's own compiler for each architecture: `PLE_NVRTC` names its library
//! (`libnvrtc.so.13` of the wheel `nvidia-cuda-nvrtc`, beside its builtins). No device is needed.

use ple_kernels::cuda;
use runtime::cuda::Compiler;
use std::collections::BTreeSet;
use std::path::Path;

/// Loads the library and the builtins that lie beside it, so that the runtime's own search meets them.
fn load(library: &Path) {
    let mut beside: Vec<_> = library.parent().unwrap().read_dir().unwrap().map(|f| f.unwrap().path()).collect();
    beside.retain(|f| f.file_name().unwrap().to_string_lossy().starts_with("libnvrtc-builtins.so"));
    for file in beside.iter().map(|f| f.as_path()).chain([library]) {
        // SAFETY: NVIDIA's libraries, as the variable's setter says.
        std::mem::forget(unsafe { libloading::Library::new(file) }.unwrap_or_else(|e| panic!("{}: {e}", file.display())));
    }
}

#[test]
fn on_cuda_every_kernel_compiles_for_every_architecture() {
    let Some(library) = std::env::var_os("PLE_NVRTC") else {
        eprintln!("skip: cuda compiler: PLE_NVRTC names no library");
        return;
    };
    load(Path::new(&library));
    for arch in ["sm_80", "sm_90a"] {
        let compiler = Compiler::find(arch, None).unwrap();
        assert_ne!(compiler.version().split('.').next(), Some("0"), "an emulated compiler was found");
        let mut bytes = 0;
        for (kernel, defines) in cuda::kernels() {
            let image = compiler.module(&kernel, &defines).unwrap_or_else(|e| panic!("{arch} {defines:?}: {e}"));
            assert!(image.starts_with(b"\x7fELF"), "{arch} {}", kernel.name);
            assert!(image.windows(kernel.name.len()).any(|w| w == kernel.name.as_bytes()), "{arch} {}", kernel.name);
            bytes += image.len();
        }
        println!("{arch}: {} kernels by NVRTC {}, {bytes} bytes", cuda::kernels().len(), compiler.version());
    }
}

#[test]
fn on_cuda_every_kernel_is_listed() {
    let listed: BTreeSet<&str> = cuda::kernels().iter().map(|(k, _)| k.name).collect();
    let rooms = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").read_dir().unwrap().map(|f| f.unwrap().path());
    let mut written = BTreeSet::new();
    for room in rooms.filter(|room| room.is_dir()) {
        let files = room.read_dir().unwrap().map(|f| f.unwrap().path()).filter(|f| f.extension().is_some_and(|e| e == "cu"));
        for text in files.map(|file| std::fs::read_to_string(file).unwrap()) {
            written.extend(text.split("__global__ void ").skip(1).map(|t| t.split('(').next().unwrap().to_string()));
        }
    }
    assert_eq!(written.iter().map(String::as_str).collect::<BTreeSet<_>>(), listed);
}
