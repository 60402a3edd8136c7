// AdamW, one thread per element of p, m, v, g: [n].
extern "C" __global__ void adamw_step(float *p, float *m, float *v, const float *g, u64 n, float scale, float first, float second,
                                      float decay, float rate, float root, float eps) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float d = g[i] * scale, a = m[i], b = v[i];
  a += first * (d - a);
  b += second * (d * d - b);
  m[i] = a;
  v[i] = b;
  p[i] -= decay * p[i] + rate * (a / (sqrtf(b) / root + eps));
}

#define LANES 256

// sums[t] of the squares of tensor t, one block of LANES threads each: element i of it enters sum i mod LANES, then halves add.
extern "C" __global__ void adamw_squares(double *sums, const float *g, const u64 *tensors) {
  __shared__ double part[LANES];
  u64 end = tensors[2 * blockIdx.x + 1];
  double acc = 0.0;
  for (u64 i = tensors[2 * blockIdx.x] + threadIdx.x; i < end; i += LANES) acc += (double)g[i] * (double)g[i];
  part[threadIdx.x] = acc;
  for (u32 half = LANES / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}
