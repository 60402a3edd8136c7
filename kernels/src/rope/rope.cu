// Rotary positions in place, one thread per pair. x: [N, stride]; pos: [N]; table: [known, half, 2]. A position beyond the table
// makes its pairs NaN.
extern "C" __global__ void rope_rotate(stored *x, const u32 *pos, const float *table, u64 pairs, u32 heads, u32 half, u32 stride,
                                       u32 known, u32 back) {
  u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= pairs) return;
  u32 i = (u32)(at % half), head = (u32)(at / half % heads);
  u64 n = at / half / heads;
  stored *a = x + n * stride + (u64)head * 2 * half + i, *b = a + half;
  if (pos[n] >= known) {
    *a = *b = narrow(NOT_A_NUMBER);
    return;
  }
  const float *turn = table + ((u64)pos[n] * half + i) * 2;
  float cosine = turn[0], sine = back ? -turn[1] : turn[1], p = widen(*a), q = widen(*b);
  *a = narrow(p * cosine - q * sine);
  *b = narrow(q * cosine + p * sine);
}
