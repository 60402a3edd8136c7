// Embedding from the rows of a table, ld elements apart.

// x: [n, c], one thread per element; an id that the vocabulary of v lacks makes its row NaN.
extern "C" __global__ void embedding_forward(stored *x, const u32 *tokens, const stored *table, u64 len, u32 c, u32 ld, u32 v, float scale) {
  u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= len) return;
  u32 id = tokens[at / c];
  float w = id < v ? widen(table[(u64)id * ld + at % c]) : NOT_A_NUMBER;
  x[at] = narrow(scale == 1.0f ? w : w * scale);
}

// dtable: [v, ld] f32; dx: [n, c], times scale (none by 1). The block of an id's first row adds all its rows, ascending; others have nothing to do.
extern "C" __global__ void embedding_backward(float *dtable, const stored *dx, const u32 *tokens, u32 n, u32 c, u32 ld, u32 v,
                                              float scale) {
  u32 row = blockIdx.x, id = tokens[row], earlier = 0;
  for (u32 m = threadIdx.x; m < row; m += blockDim.x)
    if (tokens[m] == id) earlier = 1;
  if (__syncthreads_or(earlier) || id >= v) return;
  for (u32 k = threadIdx.x; k < c; k += blockDim.x) {
    float acc = dtable[(u64)id * ld + k];
    for (u32 m = row; m < n; m++)
      if (tokens[m] == id) {
        float d = widen(dx[(u64)m * c + k]);
        acc += scale == 1.0f ? d : d * scale;
      }
    dtable[(u64)id * ld + k] = acc;
  }
}

// total [n] += part [n].
extern "C" __global__ void embedding_add(float *total, const float *part, u64 n) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) total[i] += part[i];
}
