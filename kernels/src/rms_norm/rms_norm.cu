// RMSNorm, one block per row: the row passes through shared memory in stretches that all threads load and sixteen lanes sum.
// x, delta, sum, y, dx, dy, add: [N, c]; rstd: [N]; w, dw: [c]. What is absent is a null pointer.
#define STRETCH 1024

__device__ float factor(float offset, float w) { return offset == 0.0f ? w : offset + w; }
__device__ u32 stretch(u32 c, u32 first) { return c - first < STRETCH ? c - first : STRETCH; }

extern "C" __global__ void rms_norm_forward(float *y, float *rstd, float *sum, const float *x, const float *delta, const float *w,
                                            u32 c, float eps, float offset) {
  __shared__ float v[STRETCH];
  __shared__ float scale;
  u64 row = (u64)blockIdx.x * c;
  float acc = 0.0f;
  for (u32 first = 0; first < c; first += STRETCH) {
    u32 n = stretch(c, first);
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
      u64 at = row + first + i;
      v[i] = delta ? x[at] + delta[at] : x[at];
      if (delta) sum[at] = v[i];
    }
    __syncthreads();
    acc = row_dot(acc, v, v, n);
    __syncthreads();
  }
  if (threadIdx.x < 32) {
    float total = row_sum(acc);
    if (threadIdx.x == 0) rstd[blockIdx.x] = scale = 1.0f / sqrtf(total / (float)c + eps);
  }
  __syncthreads();
  const float *from = delta ? sum : x;
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) y[row + i] = (from[row + i] * scale) * factor(offset, w[i]);
}

extern "C" __global__ void rms_norm_apply(float *y, const float *x, const float *rstd, const float *w, u32 c, float offset) {
  u64 row = (u64)blockIdx.x * c;
  float scale = rstd[blockIdx.x];
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) y[row + i] = (x[row + i] * scale) * factor(offset, w[i]);
}

extern "C" __global__ void rms_norm_backward(float *dx, const float *dy, const float *x, const float *rstd, const float *w,
                                             const float *add, u32 c, float offset) {
  __shared__ float g[STRETCH], xhat[STRETCH];
  __shared__ float mean;
  u64 row = (u64)blockIdx.x * c;
  float scale = rstd[blockIdx.x], acc = 0.0f;
  for (u32 first = 0; first < c; first += STRETCH) {
    u32 n = stretch(c, first);
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
      u64 at = row + first + i;
      g[i] = dy[at] * factor(offset, w[first + i]);
      xhat[i] = x[at] * scale;
    }
    __syncthreads();
    acc = row_dot(acc, g, xhat, n);
    __syncthreads();
  }
  if (threadIdx.x < 32) {
    float total = row_sum(acc);
    if (threadIdx.x == 0) mean = total / (float)c;
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) {
    u64 at = row + i;
    float d = scale * (dy[at] * factor(offset, w[i]) - (x[at] * scale) * mean);
    dx[at] = add ? d + add[at] : d;
  }
}

// One thread per column; spans are cut at the rows there are.
extern "C" __global__ void rms_norm_backward_weight(float *dw, const float *dy, const float *x, const float *rstd,
                                                    const u32 *examples, u32 count, u32 rows, u32 c) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= c) return;
  float total = dw[i];
  for (u32 e = 0; e < count; e++) {
    u32 end = examples[2 * e + 1] < rows ? examples[2 * e + 1] : rows;
    float partial = 0.0f;
    for (u32 n = examples[2 * e]; n < end; n++) partial = fmaf(dy[(u64)n * c + i], x[(u64)n * c + i] * rstd[n], partial);
    total += partial;
  }
  dw[i] = total;
}
