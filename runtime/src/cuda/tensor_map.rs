//! Tensor descriptors: 128 bytes that the driver encodes and a kernel takes by value.

use super::driver::check;
use crate::{DType, Result, TensorMap, ensure};
use cudarc::driver::sys::{self, CUtensorMap, CUtensorMapDataType as Type};

/// The words of the descriptor. The driver refuses extents, strides and boxes that the hardware cannot take.
pub fn encode(map: &TensorMap) -> Result<Vec<u64>> {
    let rank = map.dims.len();
    let fits = (2..=3).contains(&rank) && map.strides.len() == rank - 1 && map.tile.len() == rank;
    let lengths = [rank, map.strides.len(), map.tile.len()];
    ensure!(fits, "tensor map: dims, strides, tile of {lengths:?} entries, wanted [n, n - 1, n] with n 2 or 3");
    let dtype = match map.dtype {
        DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::U32 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT32,
        DType::I32 => Type::CU_TENSOR_MAP_DATA_TYPE_INT32,
    };
    let swizzle = match map.swizzle {
        true => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        false => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
    };
    let (ones, mut made) = ([1u32; 3], CUtensorMap { opaque: [0; 16] });
    // SAFETY: arrays of `rank` and `rank - 1` entries that outlive the call, which only encodes.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut made,
            dtype,
            rank as u32,
            map.base.0 as *mut _,
            map.dims.as_ptr(),
            map.strides.as_ptr(),
            map.tile.as_ptr(),
            ones.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    check("cuTensorMapEncodeTiled", code).map_err(|e| super::driver::said(e, format!("{map:?}")))?;
    Ok(made.opaque.to_vec())
}
