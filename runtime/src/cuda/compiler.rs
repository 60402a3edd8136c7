//! NVRTC: embedded source to a CUBIN for one architecture, kept on disk by what it was made of.

use crate::{Defines, Error, Kernel, Result, host};
use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};
use sha2::{Digest, Sha256};
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

const CALLS: [&str; 9] = [
    "nvrtcVersion",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcCompileProgram",
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
    "nvrtcGetErrorString",
];

/// Where compiled kernels are kept: `PLE_CACHE`, or `ple` in `XDG_CACHE_HOME` or `~/.cache`; None without any of them.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let kept = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    set("PLE_CACHE").or_else(|| kept.map(|folder| folder.join("ple"))).map(|folder| folder.join("kernels"))
}

/// NVIDIA's run-time compiler for one architecture.
#[derive(Debug)]
pub struct Compiler {
    /// `sm_80`, `sm_90a`.
    arch: String,
    /// major, minor.
    version: (i32, i32),
    folder: Option<PathBuf>,
}

impl Compiler {
    /// Finds NVRTC. `folder` is where results are kept, None to keep nothing.
    pub fn find(arch: &str, folder: Option<PathBuf>) -> Result<Compiler> {
        // SAFETY: loads NVIDIA's compiler by its name; its initialisers run.
        if !unsafe { sys::is_culib_present() } {
            let names = "libnvrtc.so, libnvrtc.so.13 and libnvrtc.so.12 in LD_LIBRARY_PATH and the loader's cache";
            return Err(Error::NoDevice(format!("NVIDIA's compiler was not found: looked for {names}")));
        }
        for call in CALLS {
            // SAFETY: the library is present; the symbol is only looked up.
            if unsafe { sys::culib().get::<unsafe extern "C" fn()>(call.as_bytes()) }.is_err() {
                return Err(Error::NoDevice(format!("libnvrtc has no {call}")));
            }
        }
        let mut version = (0, 0);
        // SAFETY: two integers that outlive the call.
        check("nvrtcVersion", unsafe { sys::nvrtcVersion(&mut version.0, &mut version.1) })?;
        Ok(Compiler { arch: arch.to_string(), version, folder })
    }

    /// `major.minor`
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// The first number of its version: of the CUDA that it belongs to.
    pub(super) fn major(&self) -> i32 {
        self.version.0
    }

    /// What it compiles for, and its version.
    pub(super) fn target(&self) -> String {
        format!("{} by NVRTC {}", self.arch, self.version())
    }

    /// The kernel's module, from the cache folder if it holds an intact one.
    pub fn module(&self, k: &Kernel, defines: &Defines) -> Result<Vec<u8>> {
        let options = self.options(defines);
        let Some(folder) = &self.folder else { return self.compile(k, &options) };
        let file = folder.join(format!("{}.cubin", self.key(k.cuda, &options)));
        if let Some(image) = kept(&file) {
            return Ok(image);
        }
        let image = self.compile(k, &options)?;
        keep(folder, &file, &image).map_err(|e| match e {
            Error::File { path, action, source } => {
                let text = format!("{source}; PLE_CACHE names another folder for compiled kernels");
                Error::File { path, action, source: std::io::Error::new(source.kind(), text) }
            }
            other => other,
        })?;
        Ok(image)
    }

    fn options(&self, defines: &Defines) -> Vec<String> {
        let fixed = [format!("--gpu-architecture={}", self.arch), "--std=c++17".into(), "--fmad=false".into()];
        fixed.into_iter().chain(defines.0.iter().map(|(name, value)| format!("-D{name}={value}"))).collect()
    }

    /// Of everything that the module's bytes depend on.
    fn key(&self, source: &str, options: &[String]) -> String {
        let text = format!("{}\n{}\n{source}", self.version(), options.join("\n"));
        Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn compile(&self, k: &Kernel, options: &[String]) -> Result<Vec<u8>> {
        let text =
            |t: &str| CString::new(t).map_err(|_| Error::Shape(format!("{}: a zero byte in its source or options", k.name)));
        let (source, name) = (text(k.cuda)?, text(k.name)?);
        let options: Vec<CString> = options.iter().map(|o| text(o)).collect::<Result<_>>()?;
        let options: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program = Program(std::ptr::null_mut());
        // SAFETY: strings that outlive the calls; the program is destroyed with its value.
        unsafe {
            let (none, names) = (std::ptr::null(), std::ptr::null());
            check("nvrtcCreateProgram", sys::nvrtcCreateProgram(&mut program.0, source.as_ptr(), name.as_ptr(), 0, none, names))?;
            let code = sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr());
            if code != nvrtcResult::NVRTC_SUCCESS {
                let text = format!("{} for {}: {}: {}", k.name, self.arch, sentence(code), program.log());
                return Err(Error::Device { call: "nvrtcCompileProgram", code: code as i64, text });
            }
            program.cubin()
        }
    }
}

/// A program of NVRTC, destroyed on drop.
struct Program(nvrtcProgram);

impl Program {
    /// What the compiler had to say.
    unsafe fn log(&self) -> String {
        let mut len = 0;
        // SAFETY: the program lives; the buffer has the length that the compiler asks for.
        unsafe {
            if sys::nvrtcGetProgramLogSize(self.0, &mut len) != nvrtcResult::NVRTC_SUCCESS {
                return "no log".into();
            }
            let mut log = vec![0u8; len.max(1)];
            match sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) {
                nvrtcResult::NVRTC_SUCCESS => String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_string(),
                _ => "no log".into(),
            }
        }
    }

    unsafe fn cubin(&self) -> Result<Vec<u8>> {
        let mut len = 0;
        // SAFETY: as in `log`.
        unsafe {
            check("nvrtcGetCUBINSize", sys::nvrtcGetCUBINSize(self.0, &mut len))?;
            let mut image = vec![0u8; len];
            check("nvrtcGetCUBIN", sys::nvrtcGetCUBIN(self.0, image.as_mut_ptr().cast()))?;
            Ok(image)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by nvrtcCreateProgram, destroyed once.
            unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
        }
    }
}

/// The image of a cache file whose checksum holds; anything else is made again.
fn kept(file: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).ok()?;
    let (sum, image) = bytes.split_at_checked(32)?;
    (Sha256::digest(image).as_slice() == sum).then(|| image.to_vec())
}

/// Writes an image behind its checksum.
fn keep(folder: &Path, file: &Path, image: &[u8]) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|source| Error::File { path: folder.to_path_buf(), action: "create", source })?;
    host::write_file(file, |out| {
        out.write_all(&Sha256::digest(image))?;
        out.write_all(image)
    })
}

fn sentence(code: nvrtcResult) -> String {
    // SAFETY: `find` found the symbol; the compiler's sentences are static strings.
    unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(code)) }.to_string_lossy().into_owned()
}

fn check(call: &'static str, code: nvrtcResult) -> Result<()> {
    if code == nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    Err(Error::Device { call, code: code as i64, text: sentence(code) })
}
