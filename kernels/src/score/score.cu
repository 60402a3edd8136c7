// The scalar head. x, dx: [n, c] as stored; rows, out, dout: [m]; w, dw: [c]. An entry whose row is none of the n is NaN.

// One thread per entry.
extern "C" __global__ void score_forward(float *out, const stored *x, const u32 *rows, const float *w, u32 m, u32 n, u32 c) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= m) return;
  float acc = rows[i] < n ? 0.0f : NOT_A_NUMBER;
  const stored *row = x + (u64)(rows[i] < n ? rows[i] : 0) * c;
  for (u32 k = 0; k < c; k++) acc = fmaf(widen(row[k]), w[k], acc);
  out[i] = acc;
}

// One block of SCAN threads per row.
extern "C" __global__ void score_backward(stored *dx, const float *dout, const u32 *rows, const float *w, u32 m, u32 c) {
  __shared__ u32 hit[SCAN];
  for (u32 first = 0; first < c; first += SCAN) {
    u32 k = first + threadIdx.x;
    float acc = 0.0f, weight = k < c ? w[k] : 0.0f;
    each_entry(hit, rows, m, blockIdx.x, [&](u32 i) { acc += dout[i] * weight; });
    if (k < c) dx[(u64)blockIdx.x * c + k] = narrow(acc);
  }
}

// One thread per column; spans are cut at m.
extern "C" __global__ void score_backward_weight(float *dw, const float *dout, const stored *x, const u32 *rows, const u32 *examples,
                                                 u32 count, u32 m, u32 n, u32 c) {
  u32 k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k >= c) return;
  float total = dw[k];
  for (u32 e = 0; e < count; e++) {
    u32 end = examples[2 * e + 1] < m ? examples[2 * e + 1] : m;
    float partial = 0.0f;
    for (u32 i = examples[2 * e]; i < end; i++) partial = fmaf(dout[i], rows[i] < n ? widen(x[(u64)rows[i] * c + k]) : NOT_A_NUMBER, partial);
    total += partial;
  }
  dw[k] = total;
}
