// RMSNorm, one block per row: the row passes through shared memory in stretches that all threads load and sixteen lanes sum.
// x, delta, sum, y, dx, dy, add: [N, c] as stored; rstd: [N], w, dw: [c] f32. What is absent is a null pointer. The sum is what was
// stored of it, so that a later pass over it computes the same. Rows of y, dx, dy and add lie y_ld, dx_ld, dy_ld and add_ld apart.
#define STRETCH 1024

__device__ float factor(float offset, float w) { return offset == 0.0f ? w : offset + w; }
__device__ u32 stretch(u32 c, u32 first) { return c - first < STRETCH ? c - first : STRETCH; }

extern "C" __global__ void rms_norm_forward(stored *y, float *rstd, stored *sum, const stored *x, const stored *delta,
                                            const float *w, u32 c, u32 y_ld, float eps, float offset) {
  __shared__ float v[STRETCH];
  __shared__ float scale;
  u64 row = (u64)blockIdx.x * c;
  float acc = 0.0f;
  for (u32 first = 0; first < c; first += STRETCH) {
    u32 n = stretch(c, first);
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
      u64 at = row + first + i;
      stored value = delta ? narrow(widen(x[at]) + widen(delta[at])) : x[at];
      v[i] = widen(value);
      if (delta) sum[at] = value;
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
  const stored *from = delta ? sum : x;
  y += (u64)blockIdx.x * y_ld;
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) y[i] = narrow((widen(from[row + i]) * scale) * factor(offset, w[i]));
}

extern "C" __global__ void rms_norm_apply(stored *y, const stored *x, const float *rstd, const float *w, u32 c, u32 y_ld,
                                          float offset) {
  u64 row = (u64)blockIdx.x * c;
  float scale = rstd[blockIdx.x];
  y += (u64)blockIdx.x * y_ld;
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) y[i] = narrow((widen(x[row + i]) * scale) * factor(offset, w[i]));
}

extern "C" __global__ void rms_norm_backward(stored *dx, const stored *dy, const stored *x, const float *rstd, const float *w,
                                             const stored *add, u32 c, u32 dx_ld, u32 dy_ld, u32 add_ld, float offset) {
  __shared__ float g[STRETCH], xhat[STRETCH];
  __shared__ float mean;
  u64 row = (u64)blockIdx.x * c;
  dy += (u64)blockIdx.x * dy_ld;
  float scale = rstd[blockIdx.x], acc = 0.0f;
  for (u32 first = 0; first < c; first += STRETCH) {
    u32 n = stretch(c, first);
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
      u64 at = row + first + i;
      g[i] = widen(dy[first + i]) * factor(offset, w[first + i]);
      xhat[i] = widen(x[at]) * scale;
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
    float d = scale * (widen(dy[i]) * factor(offset, w[i]) - (widen(x[at]) * scale) * mean);
    dx[(u64)blockIdx.x * dx_ld + i] = narrow(add ? d + widen(add[(u64)blockIdx.x * add_ld + i]) : d);
  }
}

// One thread per column; spans are cut at the rows there are.
extern "C" __global__ void rms_norm_backward_weight(float *dw, const stored *dy, const stored *x, const float *rstd,
                                                    const u32 *examples, u32 count, u32 rows, u32 c) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= c) return;
  float total = dw[i];
  for (u32 e = 0; e < count; e++) {
    u32 end = examples[2 * e + 1] < rows ? examples[2 * e + 1] : rows;
    float partial = 0.0f;
    for (u32 n = examples[2 * e]; n < end; n++) partial = fmaf(widen(dy[(u64)n * c + i]), widen(x[(u64)n * c + i]) * rstd[n], partial);
    total += partial;
  }
  dw[i] = total;
}
