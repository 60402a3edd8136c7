//! Builds the stand-ins with the machine's C++ compiler. Where there is none, or the machine is no Linux on x86-64, the package
//! still builds and says so when a device is asked for.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// How kernels are compiled, warnings and sanitizers apart.
const FLAGS: &str = "-std=c++17 -fPIC -fvisibility=hidden -fno-strict-aliasing -ffp-contract=off -fno-fast-math";

fn main() {
    let host = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("host");
    let out = PathBuf::from(std::env::var("OUT_DIR").unwrap_or_default());
    println!("cargo:rerun-if-changed={}", host.display());
    println!("cargo:rerun-if-env-changed=CXX");
    println!("cargo:rustc-env=EMULATOR_CXX=");
    println!("cargo:rustc-env=EMULATOR_FOLDER={}", out.display());
    let why = build(&host, &out).err().unwrap_or_default();
    println!("cargo:rustc-env=EMULATOR_ABSENT={}", why.replace('\n', " "));
}

fn build(host: &Path, out: &Path) -> Result<(), String> {
    let target = |name| std::env::var(name).unwrap_or_default();
    if (target("CARGO_CFG_TARGET_OS"), target("CARGO_CFG_TARGET_ARCH")) != ("linux".into(), "x86_64".into()) {
        return Err("the emulator runs on Linux on x86-64 only".into());
    }
    let cxx = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    println!("cargo:rustc-env=EMULATOR_CXX={cxx}");
    let mut hash = DefaultHasher::new();
    let mut files: Vec<_> = std::fs::read_dir(host).map_err(|e| e.to_string())?.flatten().map(|f| f.path()).collect();
    files.sort();
    for file in files {
        std::fs::read(file).map_err(|e| e.to_string())?.hash(&mut hash);
    }
    let defines = [
        format!("-DEMULATOR_VERSION={}", hash.finish() % 1_000_000_000),
        format!("-DEMULATOR_HOST=\"{}\"", host.display()),
        format!("-DEMULATOR_CXX=\"{cxx}\""),
        format!("-DEMULATOR_FLAGS=\"{FLAGS}\""),
        format!("-DEMULATOR_MADE=\"{}\"", out.display()),
    ];
    header(&cxx, host, out)?;
    for name in ["libcuda", "libnvrtc", "libcublasLt"] {
        let made = Command::new(&cxx)
            .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"])
            .args(&defines)
            .arg(format!("-Wl,-soname,{name}.so"))
            .arg(host.join(name).with_extension("cpp"))
            .arg("-o")
            .arg(out.join(name).with_extension("so"))
            .arg("-ldl")
            .output();
        match made {
            Err(e) => return Err(format!("{cxx}: {e}")),
            // A mistake in the stand-ins is no missing compiler.
            Ok(made) if !made.status.success() => panic!("{name}: {}", String::from_utf8_lossy(&made.stderr)),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// What every module begins with, compiled once for both of the stand-in compiler's kinds of machine: a third of the time of a module.
/// A compiler that does without reads the text.
fn header(cxx: &str, host: &Path, out: &Path) -> Result<(), String> {
    let folder = out.join("simt.hpp.gch");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    for (name, machine) in [("plain", &[][..]), ("fused", &["-mavx2", "-mfma"])] {
        let mut call = Command::new(cxx);
        call.args(["-x", "c++-header", "-w", "-O2"]).args(FLAGS.split(' ')).args(machine);
        let made = call.arg(host.join("simt.hpp")).arg("-o").arg(folder.join(name)).output();
        made.map_err(|e| format!("{cxx}: {e}"))?;
    }
    Ok(())
}
