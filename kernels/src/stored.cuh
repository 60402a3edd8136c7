// Storage of activations and of the weights beside them: f32, or in the variant BF16 rounded to bf16.
#if BF16
typedef u16 stored;
__device__ float widen(stored v) { return bf16_to_f32(v); }
__device__ stored narrow(float v) { return f32_to_bf16(v); }
#else
typedef float stored;
__device__ float widen(stored v) { return v; }
__device__ stored narrow(float v) { return v; }
#endif
