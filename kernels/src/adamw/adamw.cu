// AdamW, one thread per element of p, m, v, g: [n]; the gradient norm; and the bf16 copies that the parameters have in a base's weights.
enum Side { A, B, WHOLE };

// Elements start .. end of the arena are an adapter's A [rank, columns] or B [columns = rank], which go to `to`, the first element of the
// module's strip in an augmented matrix with rows ld apart; or a whole matrix, which lies there as it does here.
struct Copy {
  u64 start, end;
  u16 *to;
  u32 columns, rank, ld, side;
  float scale;
  u32 twice;
};

__device__ void write_copy(const Copy *copies, u32 count, u64 i, float value) {
  if (count == 0 || i < copies[0].start) return;
  u32 low = 0, high = count;
  while (high - low > 1) {
    u32 middle = (low + high) / 2;
    if (copies[middle].start <= i) low = middle;
    else high = middle;
  }
  const Copy &s = copies[low];
  if (i >= s.end) return;
  if (s.side == WHOLE) {
    s.to[i - s.start] = f32_to_bf16(value);
    return;
  }
  u32 row = (u32)((i - s.start) / s.columns), column = (u32)((i - s.start) % s.columns), j = s.side == B ? column : row;
  u32 step = s.twice ? j / 8 * 16 + j % 8 : j;
  u16 *to = s.to + (s.side == B ? (u64)row * s.ld + step : (u64)step * s.ld + column), v = f32_to_bf16(s.scale * value);
  to[0] = v;
  if (s.twice) to[s.side == B ? 8 : 8 * (u64)s.ld] = v;
}

// `clip`, if there is one, is a further factor of the gradient.
extern "C" __global__ void adamw_step(float *p, float *m, float *v, const float *g, const float *clip, const Copy *copies, u32 count,
                                      u64 n, float scale, float first, float second, float decay, float rate, float root, float eps) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float d = g[i] * (clip ? scale * *clip : scale), a = m[i], b = v[i], value = p[i];
  a += first * (d - a);
  b += second * (d * d - b);
  m[i] = a;
  v[i] = b;
  value -= decay * value + rate * (a / (sqrtf(b) / root + eps));
  p[i] = value;
  write_copy(copies, count, i, value);
}

// All copies of p: [n].
extern "C" __global__ void adamw_copies(const float *p, const Copy *copies, u32 count, u64 n) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) write_copy(copies, count, i, p[i]);
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

// The norm from the sums of all tensors, ascending, and the factor that clips it; by one thread.
extern "C" __global__ void adamw_clip(double *norm, float *clip, const double *sums, u32 count, double most) {
  double total = 0.0;
  for (u32 t = 0; t < count; t++) total += sums[t];
  *norm = sqrt(total);
  double scale = most / (*norm + 1e-6);
  *clip = most <= 0.0 || scale > 1.0 ? 1.0f : (float)scale;
}
