// Embedding from panels. TABLE is the storage of the weights: 0 f32, 1 bf16, 2 f16.
#if TABLE == 0
typedef float weight;
__device__ float widen(weight w) { return w; }
#elif TABLE == 1
typedef u16 weight;
__device__ float widen(weight w) { return __uint_as_float((u32)w << 16); }
#else
typedef u16 weight;
// Exact: an f16 without exponent is a multiple of 2^-24, the largest exponent is infinity's and NaN's.
__device__ float widen(weight w) {
  u32 exponent = w >> 10 & 31, fraction = w & 1023, bits = (exponent + 112) << 23 | fraction << 13;
  if (exponent == 31) bits |= 0x7f800000u;
  if (exponent == 0) bits = __float_as_uint((float)fraction * __uint_as_float(0x33800000u));
  return __uint_as_float(bits | (u32)(w >> 15) << 31);
}
#endif

// x: [n, c], one thread per element; an id that the vocabulary of v lacks makes its row NaN.
extern "C" __global__ void embedding_forward(float *x, const u32 *tokens, const weight *table, u64 len, u32 c, u32 v, float scale) {
  u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= len) return;
  u32 id = tokens[at / c];
  float w = id < v ? widen(table[panel_index(id, (u32)(at % c), c)]) : NOT_A_NUMBER;
  x[at] = scale == 1.0f ? w : w * scale;
}

// dtable: panels [v, c]; dx: [n, c]. The block of an id's first row adds all its rows, ascending; others have nothing to do.
extern "C" __global__ void embedding_backward(float *dtable, const float *dx, const u32 *tokens, u32 n, u32 c, u32 v) {
  u32 row = blockIdx.x, id = tokens[row], earlier = 0;
  for (u32 m = threadIdx.x; m < row; m += blockDim.x)
    if (tokens[m] == id) earlier = 1;
  if (__syncthreads_or(earlier) || id >= v) return;
  for (u32 k = threadIdx.x; k < c; k += blockDim.x) {
    float acc = dtable[panel_index(id, k, c)];
    for (u32 m = row; m < n; m++)
      if (tokens[m] == id) acc += dx[(u64)m * c + k];
    dtable[panel_index(id, k, c)] = acc;
  }
}
