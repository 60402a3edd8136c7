//! Gates without a device: every CUDA kernel and variant is compiled by NVIDIA's own compiler for each architecture, spills nothing,
//! keeps within its budget and has the instructions that it must have. `PLE_NVRTC` names the compiler's library (`libnvrtc.so.13` of
//! the wheel `nvidia-cuda-nvrtc`, beside its builtins; `.ci/nvrtc` fetches it).

mod budgets;
mod cubin;

use budgets::{Budget, faults, line, parse, variant};
use cubin::Usage;
use ple_kernels::cuda;
use runtime::cuda::Compiler;
use runtime::{Defines, Kernel};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Once;

const BUDGETS: &str = include_str!("../../budgets.txt");
const WRONG: &str = include_str!("wrong.cu");

/// Architectures of every run, and those that `PLE_LONG` adds.
const ARCHS: [&str; 2] = ["sm_80", "sm_90a"];
const MORE: [&str; 2] = ["sm_90", "sm_100"];

/// The compiler for an architecture; None, said aloud, where none is named.
fn compiler(arch: &str) -> Option<Compiler> {
    static LOADED: Once = Once::new();
    let Some(library) = std::env::var_os("PLE_NVRTC").filter(|path| !path.is_empty()) else {
        eprintln!("skip: cuda compiler: PLE_NVRTC names no library");
        return None;
    };
    LOADED.call_once(|| load(Path::new(&library)));
    let compiler = Compiler::find(arch, None).unwrap();
    assert_ne!(compiler.version().split('.').next(), Some("0"), "an emulated compiler was found");
    Some(compiler)
}

/// Loads the library and the builtins that lie beside it, so that the runtime's own search meets them.
fn load(library: &Path) {
    let mut beside: Vec<_> = library.parent().unwrap().read_dir().unwrap().map(|f| f.unwrap().path()).collect();
    beside.retain(|f| f.file_name().unwrap().to_string_lossy().starts_with("libnvrtc-builtins.so"));
    for file in beside.iter().map(|f| f.as_path()).chain([library]) {
        // SAFETY: NVIDIA's libraries, as the variable's setter says.
        std::mem::forget(unsafe { libloading::Library::new(file) }.unwrap_or_else(|e| panic!("{}: {e}", file.display())));
    }
}

/// What each of `kernels` takes on `arch`; a source is compiled once for each variant.
fn usages(compiler: &Compiler, arch: &str, kernels: &[(Kernel, Defines)]) -> BTreeMap<[String; 3], Usage> {
    let mut modules: HashMap<(*const u8, &Defines), BTreeMap<String, Usage>> = HashMap::new();
    let mut found = BTreeMap::new();
    for (kernel, defines) in kernels {
        let module = modules.entry((kernel.cuda.as_ptr(), defines)).or_insert_with(|| {
            let image = compiler.module(kernel, defines).unwrap_or_else(|e| panic!("{arch} {defines:?}: {e}"));
            cubin::kernels(&image, arch).unwrap_or_else(|e| panic!("{arch} {}: {e}", kernel.name))
        });
        let usage = module.get(kernel.name).unwrap_or_else(|| panic!("{arch} {}: not in its module", kernel.name));
        found.insert([kernel.name.to_string(), variant(defines), arch.to_string()], usage.clone());
    }
    found
}

#[test]
fn on_cuda_every_kernel_compiles_and_keeps_its_budget() {
    let long = std::env::var("PLE_LONG").is_ok_and(|v| v == "1");
    let archs: Vec<&'static str> = ARCHS.into_iter().chain(MORE.into_iter().filter(|_| long)).collect();
    let budgets: BTreeMap<[String; 3], Budget> = parse(BUDGETS).unwrap().into_iter().map(|b| (b.of.clone(), b)).collect();
    let mut wrong = Vec::new();
    // An architecture a thread: compiling is all that takes time.
    let compiled: Vec<_> = std::thread::scope(|scope| {
        let one = |arch: &'static str| {
            let compiler = compiler(arch)?;
            Some((usages(&compiler, arch, &cuda::kernels()), compiler.version().to_string()))
        };
        let threads: Vec<_> = archs.iter().map(|arch| scope.spawn(move || one(arch))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (arch, compiled) in archs.into_iter().zip(compiled) {
        let Some((used, version)) = compiled else { return };
        for (of, usage) in &used {
            match budgets.get(of) {
                Some(budget) => wrong.extend(faults(budget, usage)),
                None => wrong.push(format!("budgets.txt has no line\n{}", line(of, usage))),
            }
        }
        let stale = budgets.keys().filter(|of| of[2] == arch && !used.contains_key(*of));
        wrong.extend(stale.map(|of| format!("budgets.txt: {}: no such kernel", of.join(" "))));
        let most = |of: fn(&Usage) -> u32| used.values().map(of).max().unwrap_or_default();
        let (registers, stack) = (most(|usage| usage.registers), most(|usage| usage.stack));
        let count = used.len();
        println!("{arch}: {count} kernels by NVRTC {version}, at most {registers} registers and {stack} bytes of stack");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn on_cuda_what_spills_or_is_over_budget_is_refused() {
    for arch in ARCHS.into_iter().chain(MORE) {
        let Some(compiler) = compiler(arch) else { return };
        let kernels = ["spilling", "indexed", "modest", "tensor"];
        let kernels = kernels.map(|name| (Kernel { name, cuda: WRONG, ascend: "" }, Defines::default()));
        let used = usages(&compiler, arch, &kernels);
        let gate = |name: &str, registers, shared, instructions: &[&str]| {
            let of = [name, "-", arch].map(String::from);
            let instructions = instructions.iter().map(ToString::to_string).collect();
            faults(&Budget { of: of.clone(), registers, shared, instructions }, &used[&of])
        };
        let refused =
            |found: Vec<String>, part: &str| assert!(found.len() == 1 && found[0].contains(part), "{arch}: {found:?} {part}");
        refused(gate("spilling", 255, 0, &[]), "bytes of stack");
        refused(gate("indexed", 255, 0, &[]), "bytes of stack");
        assert_eq!(gate("modest", 32, 384, &[]), [""; 0]);
        refused(gate("modest", 4, 384, &[]), "registers, its budget has 4");
        refused(gate("modest", 32, 383, &[]), "384 bytes of shared memory, its budget has 383");
        refused(gate("modest", 32, 384, &["HMMA"]), "no HMMA in its code");
        assert_eq!(gate("tensor", 32, 1024, &["HMMA", "LDSM", "LDGSTS"]), [""; 0]);
        refused(gate("tensor", 32, 1024, &["HGMMA"]), "no HGMMA in its code");
    }
}

#[test]
fn on_cuda_a_cut_file_is_an_error_or_says_the_same() {
    let Some(compiler) = compiler("sm_80") else { return };
    let kernel = Kernel { name: "modest", cuda: WRONG, ascend: "" };
    let image = compiler.module(&kernel, &Defines::default()).unwrap();
    let whole = cubin::kernels(&image, "sm_80").unwrap();
    let cuts = (0..image.len()).step_by(97).map(|len| cubin::kernels(&image[..len], "sm_80"));
    let (read, refused): (Vec<_>, Vec<_>) = cuts.partition(Result::is_ok);
    assert!(whole.len() == 4 && refused.len() > 9 * read.len() && read.into_iter().all(|found| found.unwrap() == whole));
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
