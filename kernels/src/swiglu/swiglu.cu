// SwiGLU, one thread per element of y. gate_up, dgate_up: [n/f, 2f]; y, dy: [n/f, f].
extern "C" __global__ void swiglu_forward(float *y, const float *gate_up, u64 n, u32 f) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float *row = gate_up + i / f * 2 * f;
  u32 c = (u32)(i % f);
  float g = row[c], u = row[f + c];
  y[i] = g * law_sigmoid(g) * u;
}

extern "C" __global__ void swiglu_backward(float *dgate_up, const float *dy, const float *gate_up, u64 n, u32 f) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float *row = gate_up + i / f * 2 * f;
  float *out = dgate_up + i / f * 2 * f;
  u32 c = (u32)(i % f);
  float g = row[c], u = row[f + c], d = dy[i], sigma = law_sigmoid(g);
  out[c] = (d * u) * (sigma * (1.0f + g * (1.0f - sigma)));
  out[f + c] = d * (g * sigma);
}
