// SwiGLU, one thread per element of y. gate_up, dgate_up: [n/f, 2f]; y, dy: [n/f, f]. Rows of y and dgate_up lie ld apart.
extern "C" __global__ void swiglu_forward(stored *y, const stored *gate_up, u64 n, u32 f, u32 ld) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const stored *row = gate_up + i / f * 2 * f;
  u32 c = (u32)(i % f);
  float g = widen(row[c]), u = widen(row[f + c]);
  y[i / f * ld + c] = narrow(g * law_sigmoid(g) * u);
}

extern "C" __global__ void swiglu_backward(stored *dgate_up, const stored *dy, const stored *gate_up, u64 n, u32 f, u32 ld) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const stored *row = gate_up + i / f * 2 * f;
  stored *out = dgate_up + i / f * ld;
  u32 c = (u32)(i % f);
  float g = widen(row[c]), u = widen(row[f + c]), d = widen(dy[i]), sigma = law_sigmoid(g);
  out[c] = narrow((d * u) * (sigma * (1.0f + g * (1.0f - sigma))));
  out[f + c] = narrow(d * (g * sigma));
}
