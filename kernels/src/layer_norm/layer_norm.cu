// LayerNorm, one block per row: the row passes through shared memory in stretches that all threads load and sixteen lanes sum.
// x, delta, sum, y, dx, dy, add: [N, c] as stored; stats: [N, 2] of mean and rstd, w, b, dw, db: [c] f32. What is absent is a null
// pointer. The sum is what was stored of it, so that a later pass over it computes the same. Rows of y, dx, dy and add lie y_ld,
// dx_ld, dy_ld and add_ld apart.
#define STRETCH 1024

__device__ u32 stretch(u32 c, u32 first) { return c - first < STRETCH ? c - first : STRETCH; }

extern "C" __global__ void layer_norm_forward(stored *y, float *stats, stored *sum, const stored *x, const stored *delta,
                                              const float *w, const float *b, u32 c, u32 y_ld, float eps) {
  __shared__ float v[STRETCH];
  __shared__ float mean, rstd;
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
    acc = row_add(acc, v, n);
    __syncthreads();
  }
  if (threadIdx.x < 32) {
    float total = row_sum(acc);
    if (threadIdx.x == 0) mean = total / (float)c;
  }
  __syncthreads();
  const stored *from = delta ? sum : x;
  acc = 0.0f;
  for (u32 first = 0; first < c; first += STRETCH) {
    u32 n = stretch(c, first);
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) v[i] = widen(from[row + first + i]) - mean;
    __syncthreads();
    acc = row_dot(acc, v, v, n);
    __syncthreads();
  }
  if (threadIdx.x < 32) {
    float total = row_sum(acc);
    if (threadIdx.x == 0) {
      rstd = 1.0f / sqrtf(total / (float)c + eps);
      stats[2 * (u64)blockIdx.x] = mean, stats[2 * (u64)blockIdx.x + 1] = rstd;
    }
  }
  __syncthreads();
  y += (u64)blockIdx.x * y_ld;
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) y[i] = narrow(((widen(from[row + i]) - mean) * rstd) * w[i] + b[i]);
}

extern "C" __global__ void layer_norm_apply(stored *y, const stored *x, const float *stats, const float *w, const float *b, u32 c,
                                            u32 y_ld) {
  u64 row = (u64)blockIdx.x * c;
  y += (u64)blockIdx.x * y_ld;
  float mean = stats[2 * (u64)blockIdx.x], rstd = stats[2 * (u64)blockIdx.x + 1];
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) y[i] = narrow(((widen(x[row + i]) - mean) * rstd) * w[i] + b[i]);
}

extern "C" __global__ void layer_norm_backward(stored *dx, const stored *dy, const stored *x, const float *stats, const float *w,
                                               const stored *add, u32 c, u32 dx_ld, u32 dy_ld, u32 add_ld) {
  __shared__ float g[STRETCH], xhat[STRETCH];
  __shared__ float m, k;
  u64 row = (u64)blockIdx.x * c;
  dy += (u64)blockIdx.x * dy_ld;
  float mean = stats[2 * (u64)blockIdx.x], rstd = stats[2 * (u64)blockIdx.x + 1], plain = 0.0f, product = 0.0f;
  for (u32 first = 0; first < c; first += STRETCH) {
    u32 n = stretch(c, first);
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
      u64 at = row + first + i;
      g[i] = widen(dy[first + i]) * w[first + i];
      xhat[i] = (widen(x[at]) - mean) * rstd;
    }
    __syncthreads();
    plain = row_add(plain, g, n);
    product = row_dot(product, g, xhat, n);
    __syncthreads();
  }
  if (threadIdx.x < 32) {
    plain = row_sum(plain), product = row_sum(product);
    if (threadIdx.x == 0) m = plain / (float)c, k = product / (float)c;
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < c; i += blockDim.x) {
    u64 at = row + i;
    float d = rstd * ((widen(dy[i]) * w[i] - m) - ((widen(x[at]) - mean) * rstd) * k);
    dx[(u64)blockIdx.x * dx_ld + i] = narrow(add ? d + widen(add[(u64)blockIdx.x * add_ld + i]) : d);
  }
}

// One thread per column; spans are cut at the rows there are.
extern "C" __global__ void layer_norm_backward_weight(float *dw, float *db, const stored *dy, const stored *x, const float *stats,
                                                      const u32 *examples, u32 count, u32 rows, u32 c) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= c) return;
  float total_w = dw[i], total_b = db[i];
  for (u32 e = 0; e < count; e++) {
    u32 end = examples[2 * e + 1] < rows ? examples[2 * e + 1] : rows;
    float w = 0.0f, b = 0.0f;
    for (u32 n = examples[2 * e]; n < end; n++) {
      float d = widen(dy[(u64)n * c + i]);
      w = fmaf(d, (widen(x[(u64)n * c + i]) - stats[2 * (u64)n]) * stats[2 * (u64)n + 1], w);
      b += d;
    }
    total_w += w, total_b += b;
  }
  dw[i] = total_w, db[i] = total_b;
}
