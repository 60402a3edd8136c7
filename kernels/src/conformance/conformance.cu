// One micro-kernel per wrapper of ptx.cuh: one warp (where not said otherwise) on raw words, raw words out.

// out: [32] of what each of the shuffles brings lane by lane.
extern "C" __global__ void dump_shuffle(u32 *out, const u32 *in) {
  u32 lane = threadIdx.x, v = in[lane];
  out[lane] = __shfl_down_sync(~0u, v, 5);
  out[32 + lane] = __shfl_xor_sync(~0u, v, 9);
  out[64 + lane] = __shfl_sync(~0u, v, in[32 + lane] % 32);
}

// in: [n] f32 by their bits. out: [n] one rounded, [n] paired with its neighbour.
extern "C" __global__ void dump_cvt(u32 *out, const u32 *in, u32 n) {
  for (u32 i = threadIdx.x; i < n; i += 32) {
    float v = __uint_as_float(in[i]), next = __uint_as_float(in[i ^ 1]);
    out[i] = f32_to_bf16(v);
    out[n + i] = pack_bf16(v, next);
  }
}

// in: d [32, 4], a [32, 4], b [32, 2] fragments; out: d [32, 4].
extern "C" __global__ void dump_mma(u32 *out, const u32 *in) {
  u32 lane = threadIdx.x, a[4], b[2];
  float d[4];
  for (u32 i = 0; i < 4; i++) d[i] = __uint_as_float(in[4 * lane + i]), a[i] = in[128 + 4 * lane + i];
  for (u32 i = 0; i < 2; i++) b[i] = in[256 + 2 * lane + i];
  mma_bf16(d, a, b);
  for (u32 i = 0; i < 4; i++) out[4 * lane + i] = __float_as_uint(d[i]);
}

// in: four matrices [4, 8, 8] of u16; out: x1 [32], x2 [32, 2], x4 [32, 4], and the same transposed.
extern "C" __global__ void dump_ldmatrix(u32 *out, const u32 *in) {
  __shared__ __align__(16) u32 matrices[128];
  u32 lane = threadIdx.x, one[1], two[2], four[4];
  for (u32 i = lane; i < 128; i += 32) matrices[i] = in[i];
  __syncwarp();
  const u32 *row = matrices + 4 * lane;
  ldmatrix_x1(one, row), out[lane] = one[0];
  ldmatrix_x2(two, row);
  for (u32 i = 0; i < 2; i++) out[32 + 2 * lane + i] = two[i];
  ldmatrix_x4(four, row);
  for (u32 i = 0; i < 4; i++) out[96 + 4 * lane + i] = four[i];
  ldmatrix_x1_trans(one, row), out[224 + lane] = one[0];
  ldmatrix_x2_trans(two, row);
  for (u32 i = 0; i < 2; i++) out[256 + 2 * lane + i] = two[i];
  ldmatrix_x4_trans(four, row);
  for (u32 i = 0; i < 4; i++) out[320 + 4 * lane + i] = four[i];
}

// in: [32, 4]; lane l copies its 16 bytes, of them l mod 17; two groups, the second waited for alone. out: [32, 4], [32, 4].
extern "C" __global__ void dump_cp_async(u32 *out, const u32 *in) {
  DYNAMIC_SHARED(raw);
  u32 *first = (u32 *)raw, *second = first + 128, lane = threadIdx.x;
  cp_async(first + 4 * lane, in + 4 * lane, 16);
  cp_async_commit();
  cp_async(second + 4 * lane, in + 4 * lane, lane % 17);
  cp_async_commit();
  cp_async_wait<1>();
  for (u32 i = 0; i < 4; i++) out[4 * lane + i] = first[4 * lane + i];
  cp_async_wait<0>();
  for (u32 i = 0; i < 4; i++) out[128 + 4 * lane + i] = second[4 * lane + i];
}

// Two warps meet at a barrier of their own while a third goes on. in: [96]; out: [96], the first two warps exchanged.
extern "C" __global__ void dump_bar_sync(u32 *out, const u32 *in) {
  __shared__ u32 words[64];
  u32 i = threadIdx.x;
  if (i >= 64) {
    out[i] = in[i];
    return;
  }
  words[i] = in[i];
  bar_sync(1, 64);
  out[i] = words[63 - i];
}
