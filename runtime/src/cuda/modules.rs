//! Kernels by name and variant: compiled or read from the cache at first use, their parameters known from then on.

use super::compiler::Compiler;
use super::driver::{check, said};
use super::tensor_map;
use crate::{Arg, Defines, Error, Kernel, Result, ensure};
use cudarc::driver::sys::{self, CUfunction, CUmodule, CUresult};
use std::collections::HashMap;
use std::ffi::CString;

/// A loaded entry point.
#[derive(Clone)]
pub struct Function {
    /// The driver's handle.
    pub handle: CUfunction,
    /// Bytes of each parameter.
    sizes: Vec<usize>,
    name: &'static str,
}

impl Function {
    /// The arguments as the driver reads them: 8-byte words, each argument at the start of one. Refuses what the entry point
    /// does not take.
    pub fn pack(&self, args: &[Arg<'_>]) -> Result<Vec<Vec<u64>>> {
        let (name, wanted) = (self.name, self.sizes.len());
        ensure!(args.len() == wanted, "{name}: takes {wanted} arguments, got {}", args.len());
        let one = |(i, arg): (usize, &Arg<'_>)| {
            let (bytes, word) = match arg {
                Arg::Ptr(p) => (8, vec![p.0]),
                Arg::U64(v) => (8, vec![*v]),
                Arg::U32(v) => (4, vec![u64::from(*v)]),
                Arg::Bits(v) => (4, vec![u64::from(v.to_bits())]),
                Arg::Struct(bytes) => (bytes.len(), words(bytes)),
                Arg::TensorMap(map) => (128, tensor_map::encode(map)?),
            };
            ensure!(bytes == self.sizes[i], "{name}: argument {i} has {} bytes, got {bytes}", self.sizes[i]);
            Ok(word)
        };
        args.iter().enumerate().map(one).collect()
    }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    let word = |part: &[u8]| {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        u64::from_ne_bytes(word)
    };
    bytes.chunks(8).map(word).collect()
}

/// Every module and function that was asked for. Sources are told apart by address: they are embedded.
#[derive(Default)]
pub struct Modules {
    modules: HashMap<(usize, Defines), CUmodule>,
    functions: HashMap<(usize, &'static str, Defines), Function>,
}

// SAFETY: the driver's handles may be used from any thread that has made the context current.
unsafe impl Send for Modules {}

impl Modules {
    /// The entry point of a kernel's variant.
    pub fn function(&mut self, compiler: &Compiler, k: &Kernel, defines: &Defines) -> Result<Function> {
        let source = k.cuda.as_ptr() as usize;
        let key = (source, k.name, defines.clone());
        if let Some(function) = self.functions.get(&key) {
            return Ok(function.clone());
        }
        let module = match self.modules.get(&(source, defines.clone())) {
            Some(module) => *module,
            None => {
                let image = compiler.module(k, defines)?;
                let module = load(&image).map_err(|e| said(e, format!("{} for {}", k.name, compiler.target())))?;
                self.modules.insert((source, defines.clone()), module);
                module
            }
        };
        let function = find(module, k.name).map_err(|e| said(e, k.name.to_string()))?;
        self.functions.insert(key, function.clone());
        Ok(function)
    }

    /// Gives the modules back.
    pub fn clear(&mut self) {
        self.functions.clear();
        for (_, module) in self.modules.drain() {
            // SAFETY: loaded by cuModuleLoadData, unloaded once, its functions forgotten.
            unsafe { sys::cuModuleUnload(module) };
        }
    }
}

fn load(image: &[u8]) -> Result<CUmodule> {
    let mut module = std::ptr::null_mut();
    // SAFETY: the image is a whole CUBIN, which names its own length.
    check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) })?;
    Ok(module)
}

fn find(module: CUmodule, name: &'static str) -> Result<Function> {
    let text = CString::new(name).map_err(|_| Error::Shape(format!("kernel {name:?}: a zero byte in its name")))?;
    let mut handle = std::ptr::null_mut();
    // SAFETY: the module lives and the name outlives the call.
    check("cuModuleGetFunction", unsafe { sys::cuModuleGetFunction(&mut handle, module, text.as_ptr()) })?;
    let (mut sizes, mut offset, mut size) = (Vec::new(), 0, 0);
    // SAFETY: two integers that outlive the call; past the last parameter the driver answers with an error.
    while unsafe { sys::cuFuncGetParamInfo(handle, sizes.len(), &mut offset, &mut size) } == CUresult::CUDA_SUCCESS {
        sizes.push(size);
    }
    Ok(Function { handle, sizes, name })
}
