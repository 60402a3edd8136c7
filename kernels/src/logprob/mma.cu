// Log-probabilities in bf16 on the tensor cores. A block has 64 lines and goes over columns 256 at a time: products of 64 x 256 over
// c, whose factors, rounded to bf16, then multiply the columns' own rows onto sums [64, c] that lie in memory between. Forward: lines are
// entries, columns ids, sums the ways; backward_weight: lines are ids, columns entries, sums dhead. Every chain is one f32 accumulator over
// steps of 16, ascending. x: [n, c]; rows, targets: [m]; head: [v, ld]; c a multiple of 8. What is not there is NaN, as in logprob.cu.
#define THREADS 256
#define LINES 64
#define IDS 256
#define FAR 60.0f

struct Scaling {
  float softcap, inv_temperature;
};
struct Sizes {
  u32 m, n, c, v, ld;
};

// What a block holds: two stages of 64 columns of the 256 rows lie where the products' operands did.
struct Room {
  union {
    struct {
      Chunk left[STAGES][LINES * 4], right[STAGES][IDS * 4];
    };
    Chunk across[2][IDS * 8];
  };
  Chunk factors[LINES * 32];
  float parts[4][LINES], tops[4][LINES];
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
__device__ float under(float sum, float max) { return max == INFINITE ? 1.0f + sum : sum; }

// This thread's places in a block: line(i, h) of its 4, column(j, e) of its 16 in the 256.
__device__ u32 line_of(u32 i, u32 h) { return threadIdx.x / 128 * 32 + 16 * i + 8 * h + threadIdx.x % 32 / 4; }
__device__ u32 column_of(u32 j, u32 e) { return threadIdx.x / 32 % 4 * 64 + 8 * j + threadIdx.x % 4 * 2 + e; }

// acc = 64 lines times 256 columns over c; left(r) and right(k) are rows, null if they are not there.
template <class Left, class Right>
__device__ void product(float (&acc)[2][8][4], Room &room, u32 c, const u16 *aligned, Left left, Right right) {
  u32 lane = threadIdx.x % 32, down = threadIdx.x / 128 * 32, across = threadIdx.x / 32 % 4 * 64;
UNROLL
  for (u32 i = 0; i < 2; i++)
UNROLL
    for (u32 j = 0; j < 8; j++)
      for (u32 e = 0; e < 4; e++) acc[i][j][e] = 0.0f;
  staged((c + DEPTH - 1) / DEPTH,
         [&](u32 q, u32 buffer) {
           for (u32 i = threadIdx.x; i < (LINES + IDS) * 4; i += THREADS) {
             u32 r = i / 4, k = q * DEPTH + i % 4 * 8;
             const u16 *row = r < LINES ? left(r) : right(r - LINES);
             Chunk *to = r < LINES ? room.left[buffer] + place<4>(r, i % 4) : room.right[buffer] + place<4>(r - LINES, i % 4);
             copy(to, row + k, aligned, row && k < c);
           }
         },
         [&](u32 q, u32 buffer) {
UNROLL
           for (u32 half = 0; half < 2; half++) {
             if (q * DEPTH + 16 * half >= c) break;
             u32 a[2][4];
UNROLL
             for (u32 i = 0; i < 2; i++) ldmatrix_x4(a[i], room.left[buffer] + place<4>(down + 16 * i + lane % 16, 2 * half + lane / 16));
UNROLL
             for (u32 j = 0; j < 4; j++) {
               u32 both[4];
               ldmatrix_x4(both, room.right[buffer] + place<4>(across + 16 * j + lane / 16 * 8 + lane % 8, 2 * half + lane / 8 % 2));
               u32 b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
UNROLL
               for (u32 i = 0; i < 2; i++)
UNROLL
                 for (u32 e = 0; e < 2; e++) mma_bf16(acc[i][2 * j + e], a[i], b[e]);
             }
           }
         });
}

// sums(r) [c] = or, if `on`, += factors times right(k), for the lines that `sums` has a row for. Factors that were just put are there
// after the first barrier in here.
template <class Right, class Sums>
__device__ void extend(Room &room, u32 c, const u16 *aligned, bool on, Right right, Sums sums) {
  u32 lane = threadIdx.x % 32, down = threadIdx.x / 128 * 32, across = threadIdx.x / 32 % 4 * 16, blocks = (c + 63) / 64;
  auto load = [&](u32 q, u32 buffer) {
    for (u32 i = threadIdx.x; i < IDS * 8; i += THREADS) {
      u32 r = i / 8, k = q * 64 + i % 8 * 8;
      const u16 *row = right(r);
      copy(room.across[buffer] + place<8>(r, i % 8), row + k, aligned, row && k < c);
    }
  };
  load(0, 0);
  cp_async_commit();
  for (u32 q = 0; q < blocks; q++) {
    if (q + 1 < blocks) load(q + 1, (q + 1) % 2);
    cp_async_commit();
    float acc[2][2][4];
    u32 first = q * 64 + across + lane % 4 * 2;
UNROLL
    for (u32 i = 0; i < 2; i++)
UNROLL
      for (u32 j = 0; j < 2; j++)
UNROLL
        for (u32 h = 0; h < 2; h++) {
          const float *from = sums(line_of(i, h));
          bool there = on && from && first + 8 * j < c;
          float2 so_far = there ? *(const float2 *)(from + first + 8 * j) : make_float2(0.0f, 0.0f);
          acc[i][j][2 * h] = so_far.x, acc[i][j][2 * h + 1] = so_far.y;
        }
    cp_async_wait<1>();
    __syncthreads();
    for (u32 step = 0; step < IDS / 16; step++) {
      u32 a[2][4], both[4];
      ldmatrix_x4_trans(both, room.across[q % 2] + place<8>(16 * step + lane % 16, across / 8 + lane / 16));
      u32 b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
UNROLL
      for (u32 i = 0; i < 2; i++) {
        ldmatrix_x4(a[i], room.factors + place<32>(down + 16 * i + lane % 16, 2 * step + lane / 16));
UNROLL
        for (u32 j = 0; j < 2; j++) mma_bf16(acc[i][j], a[i], b[j]);
      }
    }
UNROLL
    for (u32 i = 0; i < 2; i++)
UNROLL
      for (u32 j = 0; j < 2; j++)
UNROLL
        for (u32 h = 0; h < 2; h++) {
          float *to = sums(line_of(i, h));
          if (to && first + 8 * j < c) *(float2 *)(to + first + 8 * j) = make_float2(acc[i][j][2 * h], acc[i][j][2 * h + 1]);
        }
    __syncthreads();
  }
}

// Two factors of a line side by side.
__device__ void put(Room &room, u32 line, u32 column, float low, float high) {
  *(u32 *)(room.factors[place<32>(line, column / 8)].at + column % 8) = pack_bf16(low, high);
}

// Over the four lanes that share a line.
__device__ float line_total(float v) {
  v += __shfl_xor_sync(~0u, v, 2);
  return v + __shfl_xor_sync(~0u, v, 1);
}
__device__ float line_largest(float v) {
  v = upper(v, __shfl_xor_sync(~0u, v, 2));
  return upper(v, __shfl_xor_sync(~0u, v, 1));
}

// logp, z_target, sum, max: [m]; way: [m, c] f32, or null if it is not wanted.
extern "C" __launch_bounds__(THREADS) __global__ void logprob_mma_forward(float *logp, float *z_target, float *sum_out, float *max_out,
                                                                          float *way, const u16 *x, const u32 *rows, const u32 *targets,
                                                                          const u16 *head, const Sizes a, const Scaling scaling) {
  DYNAMIC_SHARED(shared);
  __shared__ u32 named[LINES], target[LINES];
  __shared__ float z[LINES], sum[LINES], top[LINES], reference[LINES];
  __shared__ bool active[LINES];
  Room &room = *(Room *)shared;
  u32 first = blockIdx.x * LINES, count = a.m - first < LINES ? a.m - first : LINES, own = threadIdx.x;
  if (own < LINES) {
    u32 row = own < count ? rows[first + own] : a.n, id = own < count ? targets[first + own] : a.v;
    named[own] = id < a.v ? row : a.n, target[own] = row < a.n ? id : a.v;
    active[own] = own < count, sum[own] = 0.0f, top[own] = -INFINITE, z[own] = NOT_A_NUMBER;
  }
  __syncthreads();
  auto entry = [&](u32 r) { return named[r] < a.n ? x + (u64)named[r] * a.c : nullptr; };
  float acc[2][8][4], capped;
  // The targets' logits are the diagonal of a product with their own rows.
  product(acc, room, a.c, x, entry, [&](u32 k) { return k < LINES && target[k] < a.v ? head + (u64)target[k] * a.ld : nullptr; });
UNROLL
  for (u32 i = 0; i < 2; i++)
UNROLL
    for (u32 j = 0; j < 8; j++)
UNROLL
      for (u32 e = 0; e < 4; e++) {
        u32 line = line_of(i, e / 2);
        if (line == column_of(j, e % 2) && target[line] < a.v) z[line] = acc[i][j][e];
      }
  __syncthreads();
  // Others read it after a product, which has barriers, here and where the second pass begins.
  if (own < LINES) reference[own] = squash(z[own], scaling, &capped);
  bool far = false;
  // The second pass, if any entry asks for it, is the second form of those that do.
  for (u32 pass = 0; pass < 2; pass++) {
    for (u32 id = 0; id < a.v; id += IDS) {
      auto weight = [&](u32 k) { return id + k < a.v ? head + (u64)(id + k) * a.ld : nullptr; };
      product(acc, room, a.c, x, entry, weight);
UNROLL
      for (u32 i = 0; i < 2; i++)
UNROLL
        for (u32 h = 0; h < 2; h++) {
          u32 line = line_of(i, h);
          float part = 0.0f, most = -INFINITE, from = reference[line];
          u32 of = pass == 0 ? target[line] : a.v;
UNROLL
          for (u32 j = 0; j < 8; j++) {
            float e[2];
UNROLL
            for (u32 k = 0; k < 2; k++) {
              u32 column = id + column_of(j, k);
              float t = squash(acc[i][j][2 * h + k], scaling, &capped);
              e[k] = column < a.v && column != of ? law_exp(t - from) : 0.0f;
              part += e[k];
              if (column < a.v) most = upper(t, most);
              if (scaling.softcap > 0.0f) e[k] *= slope(capped, scaling.softcap);
            }
            put(room, line, column_of(j, 0), e[0], e[1]);
          }
          part = line_total(part), most = line_largest(most);
          if (own % 4 == 0) room.parts[own / 32 % 4][line] = part, room.tops[own / 32 % 4][line] = most;
        }
      __syncthreads();
      if (own < LINES && active[own]) {
        sum[own] += ((room.parts[0][own] + room.parts[1][own]) + room.parts[2][own]) + room.parts[3][own];
        for (u32 w = 0; w < 4; w++) top[own] = upper(room.tops[w][own], top[own]);
      }
      if (way)
        extend(room, a.c, x, id > 0, weight, [&](u32 r) { return active[r] ? way + (u64)(first + r) * a.c : nullptr; });
    }
    if (pass > 0) break;
    if (own < LINES) far = active[own] && top[own] - reference[own] > FAR;
    if (!__syncthreads_or(far)) break;
    if (own < LINES) {
      active[own] = far;
      if (far) reference[own] = top[own], sum[own] = 0.0f;
    }
  }
  if (own < count) {
    float zt = squash(z[own], scaling, &capped);
    logp[first + own] = far ? (zt - top[own]) - law_log(sum[own]) : -law_log1p(sum[own]);
    z_target[first + own] = zt, sum_out[first + own] = sum[own], max_out[first + own] = far ? top[own] : INFINITE;
    reference[own] = scaling.softcap > 0.0f ? sum[own] * slope(capped, scaling.softcap) : sum[own];
  }
  __syncthreads();
  if (!way) return;
  for (u32 r = 0; r < count; r++) {
    const u16 *w = head + (u64)(target[r] < a.v ? target[r] : 0) * a.ld;
    float *to = way + (u64)(first + r) * a.c;
    for (u32 k = own; k < a.c; k += THREADS) to[k] = fmaf(reference[r], bf16_to_f32(w[k]), 0.0f - to[k]);
  }
}

// dhead [v, ld] f32 goes on; one block per 64 ids, 256 entries at a time.
extern "C" __launch_bounds__(THREADS) __global__ void logprob_mma_backward_weight(float *dhead, const float *dlogp, const float *z_target,
                                                                                  const float *sum, const float *max, const u16 *x,
                                                                                  const u32 *rows, const u32 *targets, const u16 *head,
                                                                                  const Sizes a, u32 dhead_ld, const Scaling scaling) {
  DYNAMIC_SHARED(shared);
  Room &room = *(Room *)shared;
  u32 id = blockIdx.x * LINES;
  for (u32 first = 0; first < a.m; first += IDS) {
    auto entry = [&](u32 k) { return first + k < a.m && rows[first + k] < a.n ? x + (u64)rows[first + k] * a.c : nullptr; };
    float acc[2][8][4];
    product(acc, room, a.c, x, [&](u32 r) { return id + r < a.v ? head + (u64)(id + r) * a.ld : nullptr; }, entry);
UNROLL
    for (u32 j = 0; j < 8; j++) {
      float d[2][2][2];
UNROLL
      for (u32 k = 0; k < 2; k++) {
        u32 at = first + column_of(j, k);
        bool there = at < a.m;
        at = there ? at : 0;
        bool near = max[at] == INFINITE;
        float reference = near ? z_target[at] : max[at], below = under(sum[at], max[at]);
UNROLL
        for (u32 i = 0; i < 2; i++)
UNROLL
          for (u32 h = 0; h < 2; h++) {
            float capped, t = squash(acc[i][j][2 * h + k], scaling, &capped), p = law_exp(t - reference) / below, own = 0.0f - p;
            if (id + line_of(i, h) == targets[at]) own = near ? sum[at] / below : 1.0f - p;
            own = (dlogp[at] * own) * scaling.inv_temperature;
            if (scaling.softcap > 0.0f) own *= slope(capped, scaling.softcap);
            d[i][h][k] = there ? own : 0.0f;
          }
      }
UNROLL
      for (u32 i = 0; i < 2; i++)
UNROLL
        for (u32 h = 0; h < 2; h++) put(room, line_of(i, h), column_of(j, 0), d[i][h][0], d[i][h][1]);
    }
    extend(room, a.c, x, true, entry, [&](u32 r) { return id + r < a.v ? dhead + (u64)(id + r) * dhead_ld : nullptr; });
  }
}
