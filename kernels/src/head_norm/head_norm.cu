// RMSNorm of heads, sixteen lanes to a head, of which lane c has the elements c mod 16: they are A2's accumulators.
// x, y, d: [N, stride] as stored; rstd: [N, queries + keys], wq, wk, dwq, dwk: [d] f32.
struct Heads {
  u32 queries, keys, d, stride;
};

__device__ float factor(float offset, float w) { return offset == 0.0f ? w : offset + w; }

// y and rstd. What follows the heads of a row is copied by sixteen lanes more.
extern "C" __global__ void head_norm_forward(stored *y, float *rstd, const stored *x, const float *wq, const float *wk, u64 rows,
                                             const Heads a, float eps, float offset) {
  u32 heads = a.queries + a.keys, lane = threadIdx.x % 16;
  u64 group = ((u64)blockIdx.x * blockDim.x + threadIdx.x) / 16, row = group / (heads + 1);
  u32 head = (u32)(group % (heads + 1));
  u64 from = row * a.stride + (u64)head * a.d;
  bool normed = row < rows && head < heads;
  float acc = 0.0f;
  for (u32 i = lane; normed && i < a.d; i += 16) acc = fmaf(widen(x[from + i]), widen(x[from + i]), acc);
  float scale = 1.0f / sqrtf(sixteen_sum(acc) / (float)a.d + eps);
  if (row >= rows) return;
  if (!normed) {
    for (u32 i = heads * a.d + lane; i < a.stride; i += 16) y[row * a.stride + i] = x[row * a.stride + i];
    return;
  }
  if (lane == 0) rstd[row * heads + head] = scale;
  const float *w = head < a.queries ? wq : wk;
  for (u32 i = lane; i < a.d; i += 16) y[from + i] = narrow((widen(x[from + i]) * scale) * factor(offset, w[i]));
}

// d in place, rows d_ld apart; a lane reads and writes its own elements only.
extern "C" __global__ void head_norm_backward(stored *d, const stored *x, const float *rstd, const float *wq, const float *wk, u64 rows,
                                              const Heads a, u32 d_ld, float offset) {
  u32 heads = a.queries + a.keys, lane = threadIdx.x % 16;
  u64 group = ((u64)blockIdx.x * blockDim.x + threadIdx.x) / 16, row = group / heads;
  u32 head = (u32)(group % heads);
  u64 from = row * a.stride + (u64)head * a.d;
  d += row * d_ld + (u64)head * a.d;
  const float *w = head < a.queries ? wq : wk;
  bool there = row < rows;
  float scale = there ? rstd[group] : 0.0f, acc = 0.0f;
  for (u32 i = lane; there && i < a.d; i += 16)
    acc = fmaf(widen(d[i]) * factor(offset, w[i]), widen(x[from + i]) * scale, acc);
  float mean = sixteen_sum(acc) / (float)a.d;
  for (u32 i = lane; there && i < a.d; i += 16) {
    float g = widen(d[i]) * factor(offset, w[i]);
    d[i] = narrow(scale * (g - (widen(x[from + i]) * scale) * mean));
  }
}

// One thread per element of both gradients; spans are cut at the rows there are.
extern "C" __global__ void head_norm_backward_weight(float *dwq, float *dwk, const stored *d, const stored *x, const float *rstd,
                                                     const u32 *examples, u32 count, u32 rows, const Heads a) {
  u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= 2 * (u64)a.d) return;
  u32 heads = a.queries + a.keys, i = (u32)(at % a.d);
  bool key = at >= a.d;
  float *dw = key ? dwk : dwq, total = dw[i];
  for (u32 e = 0; e < count; e++) {
    u32 end = examples[2 * e + 1] < rows ? examples[2 * e + 1] : rows;
    float partial = 0.0f;
    for (u32 n = examples[2 * e]; n < end; n++)
      for (u32 head = key ? a.queries : 0; head < (key ? heads : a.queries); head++) {
        u64 from = (u64)n * a.stride + (u64)head * a.d + i;
        partial = fmaf(widen(d[from]), widen(x[from]) * rstd[(u64)n * heads + head], partial);
      }
    total += partial;
  }
  dw[i] = total;
}
