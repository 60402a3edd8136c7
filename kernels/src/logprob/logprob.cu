// Log-probabilities in f32, with the CPU's bits. A block has 64 entries and goes over the vocabulary 64 ids at a time: logits are
// chains over c, sixteen lanes an entry, lane k with ids k mod 16, which are the accumulators of LAW A2 in a tile of 256; their exponentials
// carry on the chains of the way, which lie in memory between. x: [n, c]; rows, targets: [m]; head: [v, ld]. An entry whose row or target is
// not there is NaN, and so is what is made of it.
#define IDS 256
#define FAR 60.0f

// The head's storage: f32, in the variant HEAD=1 bf16, HEAD=2 f16.
#if HEAD == 1
typedef u16 Stock;
__device__ float value(Stock w) { return bf16_to_f32(w); }
#elif HEAD == 2
typedef u16 Stock;
// The exponent's bias is 112 less; a product of a subnormal by 2^112 is exact.
__device__ float value(Stock w) {
  u32 bits = (u32)(w & 0x7fffu) << 13, sign = (u32)(w & 0x8000u) << 16;
  float size = (w & 0x7c00u) == 0x7c00u ? __uint_as_float(bits | 0x7f800000u) : __uint_as_float(bits) * __uint_as_float(0x77800000u);
  return __uint_as_float(__float_as_uint(size) | sign);
}
#else
typedef float Stock;
__device__ float value(Stock w) { return w; }
#endif

struct Scaling {
  float softcap, inv_temperature;
};
struct Sizes {
  u32 m, n, c, v, ld;
};

// Logit after cap and temperature, and beside it after the cap alone.
__device__ float squash(float z, const Scaling &s, float *capped) {
  *capped = s.softcap > 0.0f ? s.softcap * law_tanh(z / s.softcap) : z;
  return *capped * s.inv_temperature;
}
__device__ float slope(float capped, float cap) {
  float q = capped / cap;
  return 1.0f - q * q;
}

// logp, z_target, sum, max: [m]; way: [m, c], or null if it is not wanted.
extern "C" __launch_bounds__(256, 2) __global__ void logprob_forward(float *logp, float *z_target, float *sum_out, float *max_out, float *way,
                                                                  const float *x, const u32 *rows, const u32 *targets, const Stock *head,
                                                                  const Sizes a, const Scaling scaling) {
  __shared__ Tiles tiles;
  __shared__ float e[TILE][TILE + 1];
  __shared__ float z[TILE];
  __shared__ u32 named[TILE], target[TILE];
  u32 first = blockIdx.x * TILE, count = rest(a.m, first), row = threadIdx.x / 16, column = threadIdx.x % 16;
  if (threadIdx.x < TILE) {
    u32 own = threadIdx.x < count ? rows[first + threadIdx.x] : a.n, id = threadIdx.x < count ? targets[first + threadIdx.x] : a.v;
    bool known = own < a.n && id < a.v;
    float acc = known ? 0.0f : NOT_A_NUMBER;
    if (known)
      for (u32 i = 0; i < a.c; i++) acc = fmaf(x[(u64)own * a.c + i], value(head[(u64)id * a.ld + i]), acc);
    z[threadIdx.x] = acc, named[threadIdx.x] = known ? own : a.n, target[threadIdx.x] = id;
  }
  __syncthreads();
  float zt[4], reference[4], sum[4], top[4], part[4];
  bool active[4], far[4];
UNROLL
  for (u32 i = 0; i < 4; i++) {
    float capped;
    reference[i] = zt[i] = squash(z[row + 16 * i], scaling, &capped);
    sum[i] = part[i] = 0.0f, top[i] = -INFINITE, active[i] = row + 16 * i < count, far[i] = false;
  }
  // The second pass, if any entry asks for it, is the second form of those that do.
  for (u32 pass = 0; pass < 2; pass++) {
    for (u32 id = 0; id < a.v; id += TILE) {
      u32 ids = rest(a.v, id), from[4], to[4];
      float acc[4][4] = {};
      chain(acc, tiles, a.c, count, ids, [&](u32 r, u32 i) { return named[r] < a.n ? x[(u64)named[r] * a.c + i] : 0.0f; },
            [&](u32 k, u32 i) { return value(head[(u64)(id + k) * a.ld + i]); });
UNROLL
      for (u32 i = 0; i < 4; i++) {
        from[i] = 0, to[i] = active[i] ? ids : 0;
UNROLL
        for (u32 j = 0; j < 4; j++) {
          u32 k = column + 16 * j;
          float capped, t = squash(acc[i][j], scaling, &capped), w = law_exp(t - reference[i]);
          bool own = pass == 0 && id + k == target[row + 16 * i];
          if (k < ids) {
            top[i] = upper(t, top[i]);
            if (!own) part[i] += w;
          }
          if (own) w = 0.0f;
          e[k][row + 16 * i] = scaling.softcap > 0.0f ? w * slope(capped, scaling.softcap) : w;
        }
      }
      if ((id + TILE) % IDS == 0 || id + TILE >= a.v) {
UNROLL
        for (u32 i = 0; i < 4; i++) {
          float tile = sixteen_sum(part[i]);
          if (active[i]) sum[i] += tile;
          part[i] = 0.0f;
        }
      }
      if (!way) continue;
      for (u32 k = 0; k < a.c; k += TILE) {
        u32 columns = rest(a.c, k);
        float u[4][4] = {};
        float *own = way + (u64)(first + row) * a.c + k + column;
UNROLL
        for (u32 i = 0; i < 4; i++)
          for (u32 j = 0; j < 4; j++)
            if (id > 0 && active[i] && column + 16 * j < columns) u[i][j] = own[(u64)(16 * i) * a.c + 16 * j];
        extend(u, tiles, e, ids, columns, from, to, [&](u32 c, u32 s) { return value(head[(u64)(id + s) * a.ld + k + c]); });
UNROLL
        for (u32 i = 0; i < 4; i++)
          for (u32 j = 0; j < 4; j++)
            if (active[i] && column + 16 * j < columns) own[(u64)(16 * i) * a.c + 16 * j] = u[i][j];
      }
    }
    if (pass > 0) break;
    bool any = false;
UNROLL
    for (u32 i = 0; i < 4; i++) {
      top[i] = sixteen_largest(top[i]);
      far[i] = active[i] && top[i] - zt[i] > FAR;
      any = any || far[i];
    }
    if (!__syncthreads_or(any)) break;
UNROLL
    for (u32 i = 0; i < 4; i++) {
      active[i] = far[i];
      if (far[i]) reference[i] = top[i], sum[i] = 0.0f;
    }
  }
UNROLL
  for (u32 i = 0; i < 4; i++) {
    u32 line = row + 16 * i, at = first + line;
    if (line >= count) continue;
    if (column == 0) {
      logp[at] = far[i] ? (zt[i] - top[i]) - law_log(sum[i]) : -law_log1p(sum[i]);
      z_target[at] = zt[i], sum_out[at] = sum[i], max_out[at] = far[i] ? top[i] : INFINITE;
    }
    if (!way) continue;
    float capped, factor = sum[i];
    squash(z[line], scaling, &capped);
    if (scaling.softcap > 0.0f) factor *= slope(capped, scaling.softcap);
    const Stock *w = head + (u64)(target[line] < a.v ? target[line] : 0) * a.ld;
    for (u32 k = column; k < a.c; k += 16) way[(u64)at * a.c + k] = fmaf(factor, value(w[k]), 0.0f - way[(u64)at * a.c + k]);
  }
}

// What a row of the form is divided by.
__device__ float under(float sum, float max) { return max == INFINITE ? 1.0f + sum : sum; }

// dx [n, c] as stored, of the ways; one block of SCAN threads per row.
extern "C" __global__ void logprob_backward(stored *dx, const float *dlogp, const float *sum, const float *max, const float *way,
                                            const u32 *rows, u32 m, u32 c, float inv_temperature) {
  __shared__ u32 hit[SCAN];
  for (u32 first = 0; first < c; first += SCAN) {
    u32 k = first + threadIdx.x;
    float acc = 0.0f;
    each_entry(hit, rows, m, blockIdx.x, [&](u32 i) {
      if (k < c) acc += way[(u64)i * c + k] * (dlogp[i] * inv_temperature / under(sum[i], max[i]));
    });
    if (k < c) dx[(u64)blockIdx.x * c + k] = narrow(acc);
  }
}

// dhead [v, ld] goes on; one block per 64 ids, 64 entries at a time.
extern "C" __launch_bounds__(256) __global__ void logprob_backward_weight(float *dhead, const float *dlogp, const float *z_target,
                                                                          const float *sum, const float *max, const float *x,
                                                                          const u32 *rows, const u32 *targets, const Stock *head,
                                                                          const Sizes a, u32 dhead_ld, const Scaling scaling) {
  __shared__ Tiles tiles;
  __shared__ float dz[TILE][TILE + 1];
  __shared__ u32 named[TILE];
  u32 id = blockIdx.x * TILE, ids = rest(a.v, id), row = threadIdx.x / 16, column = threadIdx.x % 16;
  for (u32 first = 0; first < a.m; first += TILE) {
    u32 count = rest(a.m, first), from[4], to[4];
    if (threadIdx.x < count) named[threadIdx.x] = rows[first + threadIdx.x];
    __syncthreads();
    auto hidden = [&](u32 k, u32 i) { return named[k] < a.n ? x[(u64)named[k] * a.c + i] : NOT_A_NUMBER; };
    float acc[4][4] = {};
    chain(acc, tiles, a.c, ids, count, [&](u32 r, u32 i) { return value(head[(u64)(id + r) * a.ld + i]); }, hidden);
UNROLL
    for (u32 j = 0; j < 4; j++) {
      u32 k = column + 16 * j, at = first + (k < count ? k : 0);
      bool near = max[at] == INFINITE;
      float reference = near ? z_target[at] : max[at], below = under(sum[at], max[at]);
UNROLL
      for (u32 i = 0; i < 4; i++) {
        float capped, t = squash(acc[i][j], scaling, &capped), p = law_exp(t - reference) / below, d = 0.0f - p;
        if (id + row + 16 * i == targets[at]) d = near ? sum[at] / below : 1.0f - p;
        d = (dlogp[at] * d) * scaling.inv_temperature;
        dz[k][row + 16 * i] = scaling.softcap > 0.0f ? d * slope(capped, scaling.softcap) : d;
      }
    }
UNROLL
    for (u32 i = 0; i < 4; i++) from[i] = 0, to[i] = row + 16 * i < ids ? count : 0;
    for (u32 k = 0; k < a.c; k += TILE) {
      u32 columns = rest(a.c, k);
      float dw[4][4] = {};
      float *own = dhead + (u64)(id + row) * dhead_ld + k + column;
UNROLL
      for (u32 i = 0; i < 4; i++)
        for (u32 j = 0; j < 4; j++)
          if (row + 16 * i < ids && column + 16 * j < columns) dw[i][j] = own[(u64)(16 * i) * dhead_ld + 16 * j];
      extend(dw, tiles, dz, count, columns, from, to, [&](u32 c, u32 s) { return hidden(s, k + c); });
UNROLL
      for (u32 i = 0; i < 4; i++)
        for (u32 j = 0; j < 4; j++)
          if (row + 16 * i < ids && column + 16 * j < columns) own[(u64)(16 * i) * dhead_ld + 16 * j] = dw[i][j];
    }
  }
}

// logp [rows] of ids [rows] under stored logits [rows, v]: a block per row, sixteen lanes per tile of 256, sixteen tiles at a time.
extern "C" __launch_bounds__(256) __global__ void logprob_of_logits(float *logp, const float *logits, const u32 *ids, u32 v,
                                                                    const Scaling scaling) {
  __shared__ float tiles[16], tops[16];
  const float *z = logits + (u64)blockIdx.x * v;
  u32 id = ids[blockIdx.x], tile = threadIdx.x / 16, column = threadIdx.x % 16;
  float capped, zt = id < v ? squash(z[id], scaling, &capped) : NOT_A_NUMBER, reference = zt, top = -INFINITE, sum = 0.0f;
  bool far = false;
  for (u32 pass = 0; pass < 2; pass++) {
    sum = 0.0f;
    for (u32 first = 0; first < v; first += 16 * IDS) {
      float part = 0.0f, most = -INFINITE;
      for (u32 k = first + tile * IDS + column; k < v && k < first + (tile + 1) * IDS; k += 16) {
        float t = squash(z[k], scaling, &capped), w = law_exp(t - reference);
        most = upper(t, most);
        if (far || k != id) part += w;
      }
      part = sixteen_sum(part), most = sixteen_largest(most);
      if (column == 0) tiles[tile] = part, tops[tile] = most;
      __syncthreads();
      for (u32 i = 0; i < 16 && first + i * IDS < v; i++) sum += tiles[i], top = upper(tops[i], top);
      __syncthreads();
    }
    if (far || !(top - zt > FAR)) break;
    far = true, reference = top;
  }
  if (threadIdx.x == 0) logp[blockIdx.x] = far ? (zt - top) - law_log(sum) : -law_log1p(sum);
}
