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

// in: n times d [32, 4], a [32, 4], b [32, 2] fragments; out: n times d [32, 4], by one step of 16 or, with `eights`, by two of 8.
extern "C" __global__ void dump_mma(u32 *out, const u32 *in, u32 n, u32 eights) {
  for (; n > 0; n--, in += 320, out += 128) {
    u32 lane = threadIdx.x, a[4], b[2];
    float d[4];
    for (u32 i = 0; i < 4; i++) d[i] = __uint_as_float(in[4 * lane + i]), a[i] = in[128 + 4 * lane + i];
    for (u32 i = 0; i < 2; i++) b[i] = in[256 + 2 * lane + i];
    if (!eights) mma_bf16(d, a, b);
    else {
      u32 low[2] = {a[0], a[1]}, high[2] = {a[2], a[3]}, first[1] = {b[0]}, second[1] = {b[1]};
      mma_bf16_k8(d, low, first);
      mma_bf16_k8(d, high, second);
    }
    for (u32 i = 0; i < 4; i++) out[4 * lane + i] = __float_as_uint(d[i]);
  }
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

// in: [32, 4] words a lane. out: the stored matrices [4, 8, 8] of u16, then the same transposed.
extern "C" __global__ void dump_stmatrix(u32 *out, const u32 *in) {
#ifdef HOPPER
  __shared__ __align__(16) u32 stored[128];
  u32 lane = threadIdx.x, s[4];
  for (u32 i = 0; i < 4; i++) s[i] = in[4 * lane + i];
  stmatrix_x4(stored + 4 * lane, s);
  __syncwarp();
  for (u32 i = lane; i < 128; i += 32) out[i] = stored[i];
  __syncwarp();
  stmatrix_x4_trans(stored + 4 * lane, s);
  __syncwarp();
  for (u32 i = lane; i < 128; i += 32) out[128 + i] = stored[i];
#endif
}

// Boxes of bf16 with 128-byte swizzle, in two phases of one barrier: [16 rows, 64 columns] at (x, y) of a flat map, then
// [2 halves of a row, 8 rows, 64 columns] at row y of a deep one. out: [512], [512]: raw shared memory after each.
extern "C" __global__ void dump_tensor_load(u32 *out, const __grid_constant__ TensorMap flat, const __grid_constant__ TensorMap deep,
                                            u32 x, u32 y) {
#ifdef HOPPER
  DYNAMIC_SHARED(tile);
  __shared__ u64 loaded;
  u32 lane = threadIdx.x;
  if (lane == 0) {
    mbarrier_init(&loaded, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  for (u32 phase = 0; phase < 2; phase++) {
    if (lane == 0) {
      mbarrier_expect(&loaded, 2048);
      if (phase == 0) tensor_load_2d(tile, &flat, &loaded, (int)x, (int)y);
      else tensor_load_3d(tile, &deep, &loaded, 0, (int)y, 0);
    }
    mbarrier_wait(&loaded, phase);
    for (u32 i = lane; i < 512; i += 32) out[512 * phase + i] = ((const u32 *)tile)[i];
    fence_async();
    __syncthreads();
  }
#endif
}

#ifdef WGMMA
// D of one lane to out [N / 2, 128].
template <int H> __device__ __forceinline__ void put(u32 *out, const float (&d)[H]) {
UNROLL
  for (u32 i = 0; i < H; i++) out[i * 128 + threadIdx.x] = __float_as_uint(d[i]);
}

// K / 16 steps of D[64, N]: A [64, 64] k-major and B [N, 64] k-major from shared memory, or A from registers, or both from tiles with k rows.
template <int N> __device__ void products(u32 *out, const unsigned char *a, const unsigned char *b, const u32 *in) {
  float d[N / 2];
  for (u32 i = 0; i < N / 2; i++) d[i] = 0.0f;
  wgmma_fence();
  for (u32 k = 0; k < 4; k++) wgmma_bf16<0, 0>(d, tile_of(a + 32 * k, 16, 1024), tile_of(b + 32 * k, 16, 1024), k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  put(out, d);
  u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, rows[4][4];
  for (u32 k = 0; k < 4; k++)
    for (u32 i = 0; i < 4; i++) rows[k][i] = in[(row + i % 2 * 8) * 32 + k * 8 + lane % 4 + i / 2 * 4];
  for (u32 i = 0; i < N / 2; i++) d[i] = NOT_A_NUMBER;
  wgmma_fence();
  for (u32 k = 0; k < 4; k++) wgmma_bf16<0>(d, rows[k], tile_of(b + 32 * k, 16, 1024), k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  put(out + 64 * N, d);
}

// The same from shared memory, from +0, each step waited for.
template <int N> __device__ void serial(u32 *out, const unsigned char *a, const unsigned char *b) {
  float d[N / 2];
UNROLL
  for (u32 i = 0; i < N / 2; i++) d[i] = 0.0f;
UNROLL
  for (u32 k = 0; k < 4; k++) {
    wgmma_fence();
    wgmma_bf16<0, 0>(d, tile_of(a + 32 * k, 16, 1024), tile_of(b + 32 * k, 16, 1024), 1);
    wgmma_commit();
    wgmma_wait<0>();
  }
  put(out, d);
}
#endif

// in: A [64, 64], B [n, 64] bf16. out: [n / 2, 128] for A in shared memory, for A in registers, for A in shared memory with steps that wait
// for each other and begin at +0; where n is 64 also for transposed tiles (the memory of A and of B read as [k, row]).
extern "C" __global__ void dump_wgmma(u32 *out, const u32 *in, u32 n) {
#ifdef WGMMA
  DYNAMIC_SHARED(a);
  unsigned char *b = a + 8192;
  for (u32 i = threadIdx.x; i < (64 + n) * 32; i += 128) *(u32 *)(a + swizzled(i / 32, i % 32 * 4)) = in[i];
  fence_async();
  __syncthreads();
  if (n == 8) products<8>(out, a, b, in), serial<8>(out + 1024, a, b);
  if (n == 64) products<64>(out, a, b, in), serial<64>(out + 8192, a, b);
  if (n == 128) products<128>(out, a, b, in), serial<128>(out + 16384, a, b);
  if (n == 256) products<256>(out, a, b, in), serial<256>(out + 32768, a, b);
  if (n == 64) {
    float d[32];
    wgmma_fence();
    for (u32 k = 0; k < 4; k++) wgmma_bf16<1, 1>(d, tile_of(a + 2048 * k, 8192, 1024), tile_of(b + 2048 * k, 8192, 1024), k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    put(out + 192 * n, d);
  }
#endif
}

// The same products as dump_wgmma by mma, in the same places: in: A [64, 64], B [n, 64] bf16; out: [n / 2, 128].
extern "C" __global__ void dump_chain(u32 *out, const u32 *in, u32 n) {
  u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = threadIdx.x / 32 * 16 + g;
  for (u32 j = 0; j < n / 8; j++) {
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 k = 0; k < 4; k++) {
      u32 a[4], b[2];
      for (u32 i = 0; i < 4; i++) a[i] = in[(row + i % 2 * 8) * 32 + k * 8 + t + i / 2 * 4];
      for (u32 i = 0; i < 2; i++) b[i] = in[(64 + j * 8 + g) * 32 + k * 8 + t + i * 4];
      mma_bf16(d, a, b);
    }
    for (u32 i = 0; i < 4; i++) out[(4 * j + i) * 128 + threadIdx.x] = __float_as_uint(d[i]);
  }
}

// in: x [n], y [n] f32 by their bits. out: [12, n]: the functions of the law, then sqrt, division, fma and the larger one.
extern "C" __global__ void dump_elementary(u32 *out, const u32 *in, u32 n) {
  for (u32 i = threadIdx.x; i < n; i += 32) {
    float x = __uint_as_float(in[i]), y = __uint_as_float(in[n + i]);
    float all[12] = {law_exp2(x), law_exp(x), law_log1p(absolute(x)), law_log(absolute(x)), law_log2(absolute(x)), law_tanh(x),
                     law_erf(x), law_sigmoid(x), sqrtf(absolute(x)), x / y, fmaf(x, y, x), upper(x, y)};
    for (u32 f = 0; f < 12; f++) out[f * n + i] = __float_as_uint(all[f]);
  }
}
