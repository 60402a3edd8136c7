//! cuBLASLt, loaded at the first product that asks for it: one plan for each shape, kept.

use crate::{DType, Error, Gemm, Ptr, Result};
use cudarc::cublaslt::sys::{self, cublasLtMatmulDescAttributes_t as Of, cublasStatus_t as Status};
use cudarc::driver::sys::CUstream;
use std::collections::HashMap;

/// Every function of the library that is called.
const CALLS: [&str; 11] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmul",
];
/// Memory that a product may use beside its operands.
pub const WORKSPACE: usize = 32 << 20;
/// Bytes that every operand's address is a multiple of.
const ALIGNED: u64 = 16;

/// Success, or the call with its code.
fn check(call: &'static str, code: Status) -> Result<()> {
    if code == Status::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(Error::Device { call, code: code as i64, text: format!("{code:?}") })
}

/// What a plan depends on: sizes, strides, the direction of b, the storage, whether there is a bias.
type Key = ([u32; 3], [u32; 3], bool, DType, bool);

/// How the library makes one shape. Its matrices are column-major, so that it computes cᵀ = op(b)·aᵀ.
#[derive(Clone, Copy)]
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    /// Of b, a and c.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library for one device.
pub struct Library {
    handle: sys::cublasLtHandle_t,
    plans: HashMap<Key, Plan>,
    /// [`WORKSPACE`] bytes of the device.
    workspace: Ptr,
}

// SAFETY: the library's handles may be used from any thread that has made the context current.
unsafe impl Send for Library {}

impl Library {
    /// None where there is no library, or one without the calls. `workspace` gives [`WORKSPACE`] bytes of the device.
    pub fn find(workspace: impl FnOnce() -> Result<Ptr>) -> Result<Option<Library>> {
        // SAFETY: loads NVIDIA's library by its name; its initialisers run.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        for call in CALLS {
            // SAFETY: the library is present; the symbol is only looked up.
            if unsafe { sys::culib().get::<unsafe extern "C" fn()>(call.as_bytes()) }.is_err() {
                return Ok(None);
            }
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: a handle that outlives the call.
        check("cublasLtCreate", unsafe { sys::cublasLtCreate(&mut handle) })?;
        Ok(Some(Library { handle, plans: HashMap::new(), workspace: workspace()? }))
    }

    /// Queues the product; false if the library does not take these operands.
    ///
    /// # Safety
    /// The addresses cover the matrices.
    pub unsafe fn run(&mut self, stream: CUstream, g: &Gemm) -> Result<bool> {
        let aligned = [Some(g.a), Some(g.b), Some(g.c), g.bias].iter().flatten().all(|p| p.0.is_multiple_of(ALIGNED));
        let strides = g.ld.iter().all(|ld| (*ld as usize * g.dtype.size()).is_multiple_of(ALIGNED as usize));
        if !aligned || !strides || !matches!(g.dtype, DType::F32 | DType::Bf16) {
            return Ok(false);
        }
        let key = (g.size, g.ld, g.down, g.dtype, g.bias.is_some());
        let plan = match self.plans.get(&key) {
            Some(plan) => *plan,
            None => match self.plan(g)? {
                Some(plan) => *self.plans.entry(key).or_insert(plan),
                None => return Ok(false),
            },
        };
        if let Some(bias) = g.bias {
            let at = (&raw const bias.0).cast();
            // SAFETY: the plan's own descriptor and an address, with the size that it has. Plans are used under a lock.
            let set = unsafe { sys::cublasLtMatmulDescSetAttribute(plan.product, Of::CUBLASLT_MATMUL_DESC_BIAS_POINTER, at, 8) };
            check("cublasLtMatmulDescSetAttribute", set)?;
        }
        let (one, zero) = (1f32, 0f32);
        let (one, zero) = ((&raw const one).cast(), (&raw const zero).cast());
        let [b, a, c] = plan.layouts;
        let (at, to) = ([g.b, g.a].map(|p| p.0 as *const core::ffi::c_void), g.c.0 as *mut core::ffi::c_void);
        let (workspace, stream) = (self.workspace.0 as *mut core::ffi::c_void, stream.cast());
        // SAFETY: descriptors that live as long as the plan; the matrices are the caller's promise; c is not read (beta 0).
        let code = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                plan.product,
                one,
                at[0],
                b,
                at[1],
                a,
                zero,
                to,
                c,
                to,
                c,
                &plan.algorithm,
                workspace,
                WORKSPACE,
                stream,
            )
        };
        check("cublasLtMatmul", code).map(|()| true)
    }

    /// None if the library knows no way.
    fn plan(&self, g: &Gemm) -> Result<Option<Plan>> {
        let ([m, n, k], [ldc, lda, ldb]) = (g.size, g.ld);
        let stored = if g.dtype == DType::Bf16 { sys::cudaDataType::CUDA_R_16BF } else { sys::cudaDataType::CUDA_R_32F };
        let layout = |rows: u32, columns: u32, ld: u32| {
            let mut layout = std::ptr::null_mut();
            // SAFETY: a handle that outlives the call.
            let code = unsafe { sys::cublasLtMatrixLayoutCreate(&mut layout, stored, rows.into(), columns.into(), ld.into()) };
            check("cublasLtMatrixLayoutCreate", code).map(|()| layout)
        };
        let b = if g.down { layout(n, k, ldb)? } else { layout(k, n, ldb)? };
        let layouts = [b, layout(k, m, lda)?, layout(n, m, ldc)?];
        // CUBLAS_OP_N or CUBLAS_OP_T, which the bindings of this library leave out.
        let (turned, most_bytes) = (i32::from(!g.down), WORKSPACE as u64);
        let (mut product, mut preference) = (std::ptr::null_mut(), std::ptr::null_mut());
        let (mut found, mut count) = (std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed(), 0);
        let (single, full) = (sys::cudaDataType::CUDA_R_32F, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F);
        let most = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let [b, a, c] = layouts;
        // SAFETY: values that outlive the calls, with the sizes that their attributes have.
        let code = unsafe {
            check("cublasLtMatmulDescCreate", sys::cublasLtMatmulDescCreate(&mut product, full, single))?;
            let (turned, size) = ((&raw const turned).cast(), size_of_val(&turned));
            let set = sys::cublasLtMatmulDescSetAttribute(product, Of::CUBLASLT_MATMUL_DESC_TRANSA, turned, size);
            check("cublasLtMatmulDescSetAttribute", set)?;
            if g.bias.is_some() {
                let added = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                let (added, size) = ((&raw const added).cast(), size_of_val(&added));
                let set = sys::cublasLtMatmulDescSetAttribute(product, Of::CUBLASLT_MATMUL_DESC_EPILOGUE, added, size);
                check("cublasLtMatmulDescSetAttribute", set)?;
            }
            check("cublasLtMatmulPreferenceCreate", sys::cublasLtMatmulPreferenceCreate(&mut preference))?;
            let bytes = (&raw const most_bytes).cast();
            let set = sys::cublasLtMatmulPreferenceSetAttribute(preference, most, bytes, size_of::<u64>());
            check("cublasLtMatmulPreferenceSetAttribute", set)?;
            let (to, found) = (&mut count, found.as_mut_ptr());
            sys::cublasLtMatmulAlgoGetHeuristic(self.handle, product, b, a, c, c, preference, 1, found, to)
        };
        if code == Status::CUBLAS_STATUS_NOT_SUPPORTED || (code == Status::CUBLAS_STATUS_SUCCESS && count == 0) {
            return Ok(None);
        }
        check("cublasLtMatmulAlgoGetHeuristic", code)?;
        // SAFETY: the library wrote one result.
        let algorithm = unsafe { found.assume_init() }.algo;
        Ok(Some(Plan { product, layouts, algorithm }))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        for (_, plan) in self.plans.drain() {
            // SAFETY: made by `plan`, destroyed once. Errors have nowhere to go.
            unsafe {
                for layout in plan.layouts {
                    sys::cublasLtMatrixLayoutDestroy(layout);
                }
                sys::cublasLtMatmulDescDestroy(plan.product);
            }
        }
        // SAFETY: as above.
        unsafe { sys::cublasLtDestroy(self.handle) };
    }
}
