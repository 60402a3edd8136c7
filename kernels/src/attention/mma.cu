// Attention in bf16 on the tensor cores, heads padded with zeros to HEAD_DIM. A block has four warps, 64 lines (or 64 keys) and one kv
// head; a warp has 16 of them. What the block keeps lies in shared memory throughout, what it goes over passes through two buffers. A chain
// is one f32 accumulator over steps of 16, ascending, one mma each; slots that a line does not see are multiplied by zeros.
#define THREADS 128
#define CHUNKS (HEAD_DIM / 8)
// Columns of o, dk and dv that a block has accumulators for.
#define COLUMNS (HEAD_DIM < 128 ? HEAD_DIM : 128)
// Slots, or lines, that a warp of a gradient has the scores of at once.
#define SPAN (HEAD_DIM > 128 ? 16 : 32)
// The largest head leaves no registers for looking ahead.
#if HEAD_DIM > 128 && !defined SIMT
#define OVER_HEAD _Pragma("unroll 1")
#else
#define OVER_HEAD
#endif

// 64 rows of two operands.
struct Pair {
  Chunk left[TILE * CHUNKS], right[TILE * CHUNKS];
};

// Runs `load(q, buffer)` one stage ahead of `compute(q, buffer)`; what was queued before is there too. Ends with all buffers free.
template <class Load, class Compute> __device__ void streamed(u32 stages, Load load, Compute compute) {
  if (stages > 0) load(0, 0);
  cp_async_commit();
  for (u32 q = 0; q < stages; q++) {
    if (q + 1 < stages) load(q + 1, (q + 1) % 2);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    compute(q, q % 2);
    __syncthreads();
  }
}

// Half of row threadIdx.x / 2 of a tile; its other half is the neighbour's.
__device__ void load_row(Chunk *tile, const u16 *row, const u16 *aligned, bool there, u32 d) {
  for (u32 c = threadIdx.x % 2; c < CHUNKS; c += 2) copy(tile + place<CHUNKS>(threadIdx.x / 2, c), row + 8 * c, aligned, there && 8 * c < d);
}

// acc = 16 rows of `left` from `row` times 8 N rows of `right` from `column`, over HEAD_DIM.
template <u32 N> __device__ void product(float (&acc)[N][4], const Chunk *left, u32 row, const Chunk *right, u32 column) {
  u32 lane = threadIdx.x % 32;
OVER_HEAD
  for (u32 step = 0; step < HEAD_DIM / 16; step++) {
    u32 a[4];
    ldmatrix_x4(a, left + place<CHUNKS>(row + lane % 16, 2 * step + lane / 16));
UNROLL
    for (u32 j = 0; j < N / 2; j++) {
      u32 both[4];
      ldmatrix_x4(both, right + place<CHUNKS>(column + 16 * j + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
      u32 b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
      mma_bf16(acc[2 * j], a, b[0]);
      mma_bf16(acc[2 * j + 1], a, b[1]);
    }
  }
}

// acc [16, 16] += factors [16, 16 STEPS] times rows of `right` from `row`, columns from `column`. factors[j][h]: a row's pair in eight columns.
template <u32 STEPS>
__device__ void extend(float (&low)[4], float (&high)[4], const u32 (&factors)[2 * STEPS][2], const Chunk *right, u32 row, u32 column) {
  u32 lane = threadIdx.x % 32;
UNROLL
  for (u32 k = 0; k < STEPS; k++) {
    u32 a[4] = {factors[2 * k][0], factors[2 * k][1], factors[2 * k + 1][0], factors[2 * k + 1][1]}, both[4];
    ldmatrix_x4_trans(both, right + place<CHUNKS>(row + 16 * k + lane % 16, column / 8 + lane / 16));
    u32 b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
    mma_bf16(low, a, b[0]);
    mma_bf16(high, a, b[1]);
  }
}

// Over the four lanes that share a row.
__device__ float row_largest(float v) {
  v = upper(v, __shfl_xor_sync(~0u, v, 2));
  return upper(v, __shfl_xor_sync(~0u, v, 1));
}
__device__ float row_total(float v) {
  v += __shfl_xor_sync(~0u, v, 2);
  return v + __shfl_xor_sync(~0u, v, 1);
}

// The keys and values of block b of a part's path.
__device__ void load_keys(Pair &to, const u16 *qkv, const Segment *segments, const Shape &a, u32 index, u32 block) {
  u32 row = row_at(segments, index, a, block * KEYS + threadIdx.x / 2);
  const u16 *key = qkv + ((u64)row * (a.h + 2 * a.k) + a.h + blockIdx.y) * a.d;
  load_row(to.left, key, qkv, row != ABSENT, a.d);
  load_row(to.right, key + (u64)a.k * a.d, qkv, row != ABSENT, a.d);
}

// D of each line of the part: two lanes a line, a chunk of eight in turn, chains of fma ascending, the even lane's first.
__device__ void load_deltas(float *deltas, const u16 *dout, const u16 *out, const Part &part, const Shape &a, u32 out_ld) {
  u32 line = threadIdx.x / 2;
  float acc = 0.0f;
  if (line < part.count) {
    u64 own = at(part, a.h / a.k, line, a.h, a.d), there = at_pitch(part, a.h / a.k, line, out_ld, a.d);
    for (u32 c = 8 * (threadIdx.x % 2); c < a.d; c += 16) {
      uint4 x = *(const uint4 *)(dout + own + c), y = *(const uint4 *)(out + there + c);
      acc = fmaf(low_f32(x.x), low_f32(y.x), acc), acc = fmaf(high_f32(x.x), high_f32(y.x), acc);
      acc = fmaf(low_f32(x.y), low_f32(y.y), acc), acc = fmaf(high_f32(x.y), high_f32(y.y), acc);
      acc = fmaf(low_f32(x.z), low_f32(y.z), acc), acc = fmaf(high_f32(x.z), high_f32(y.z), acc);
      acc = fmaf(low_f32(x.w), low_f32(y.w), acc), acc = fmaf(high_f32(x.w), high_f32(y.w), acc);
    }
  }
  acc += __shfl_xor_sync(~0u, acc, 1);
  if (threadIdx.x % 2 == 0) deltas[line] = acc;
}

// Blocks of keys that any line of the part sees.
struct Blocks {
  u32 from, count;
};
__device__ Blocks blocks_of(const Part &part, u32 group, const Params &params) {
  u32 from = first_seen(params, position(part, group, 0)) / KEYS;
  return {from, (past_seen(params, position(part, group, part.count - 1), part.of) + KEYS - 1) / KEYS - from};
}

// The positions that this thread's rows lane / 4 and lane / 4 + 8 of its warp's 16 lines see.
struct Sight {
  u32 first[2], past[2];
};
__device__ Sight sight_of(const Part &part, u32 group, const Params &params) {
  Sight s;
UNROLL
  for (u32 h = 0; h < 2; h++) {
    u32 line = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * h, pos = position(part, group, line);
    bool there = line < part.count;
    s.first[h] = there ? first_seen(params, pos) : 0, s.past[h] = there ? past_seen(params, pos, part.of) : 0;
  }
  return s;
}

// Writes a warp's 16 x 16 at columns from `column`, each row to where `place(row)` says, null if nowhere.
template <class Place> __device__ void write(const float (&low)[4], const float (&high)[4], u32 column, u32 d, Place place) {
UNROLL
  for (u32 h = 0; h < 2; h++) {
    u16 *row = place(threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * h);
    u32 c = column + threadIdx.x % 4 * 2;
    if (row && c < d) *(u32 *)(row + c) = pack_bf16(low[2 * h], low[2 * h + 1]);
    if (row && c + 8 < d) *(u32 *)(row + c + 8) = pack_bf16(high[2 * h], high[2 * h + 1]);
  }
}

// out [n, h d] in rows out_ld apart, m, l [n, h] of qkv. Blocks: tiles of lines, kv heads, columns. The weights are rounded to bf16 for
// their product with the values; what divides it is the sum of the rounded ones, l that of the others.
extern "C" __launch_bounds__(THREADS, 2) __global__ void attention_mma_forward(u16 *out, int *m, float *l, const u16 *qkv,
                                                                            const Segment *segments, const Shape a, const Params params, u32 out_ld) {
  DYNAMIC_SHARED(shared);
  Chunk *q = (Chunk *)shared;
  Pair *keys = (Pair *)(shared + sizeof(Chunk) * TILE * CHUNKS);
  Part part;
  u32 group = a.h / a.k, warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.z * COLUMNS;
  if (!find(part, segments, a, group, blockIdx.x)) return;
  bool there = threadIdx.x / 2 < part.count;
  load_row(q, qkv + (there ? at(part, group, threadIdx.x / 2, a.h + 2 * a.k, a.d) : 0), qkv, there, a.d);
  Sight sight = sight_of(part, group, params);
  Blocks blocks = blocks_of(part, group, params);
  float top[2] = {-INFINITE, -INFINITE}, sum[2] = {}, rounded[2] = {}, o[COLUMNS / 8][4];
UNROLL
  for (u32 j = 0; j < COLUMNS / 8; j++)
    for (u32 e = 0; e < 4; e++) o[j][e] = -0.0f;  // as in attention.cu
  streamed(blocks.count, [&](u32 b, u32 buffer) { load_keys(keys[buffer], qkv, segments, a, part.index, blocks.from + b); },
           [&](u32 b, u32 buffer) {
             float s[8][4] = {};
             product(s, q, 16 * warp, keys[buffer].left, 0);
             u32 w[8][2];
             bool seen[2], old[2];
             float by[2];
UNROLL
             for (u32 h = 0; h < 2; h++) {
               u32 from = slot(sight.first[h], blocks.from + b), to = slot(sight.past[h], blocks.from + b);
               float most = -INFINITE, capped, sum_b = 0.0f, rounded_b = 0.0f;
UNROLL
               for (u32 j = 0; j < 8; j++)
UNROLL
                 for (u32 e = 0; e < 2; e++) {
                   u32 k = 8 * j + lane % 4 * 2 + e;
                   s[j][2 * h + e] = exponent(s[j][2 * h + e], params, &capped);
                   if (from <= k && k < to) most = upper(s[j][2 * h + e], most);
                 }
               float top_b = within_edges(floorf(row_largest(most)));
UNROLL
               for (u32 j = 0; j < 8; j++) {
                 float each[2];
UNROLL
                 for (u32 e = 0; e < 2; e++) {
                   u32 k = 8 * j + lane % 4 * 2 + e;
                   each[e] = from <= k && k < to ? weight(s[j][2 * h + e], top_b) : 0.0f;
                   sum_b += each[e];
                 }
                 w[j][h] = pack_bf16(each[0], each[1]);
                 rounded_b += low_f32(w[j][h]), rounded_b += high_f32(w[j][h]);
               }
               sum_b = row_total(sum_b), rounded_b = row_total(rounded_b);
               seen[h] = from < to, old[h] = false, by[h] = 0.0f;
               if (seen[h]) {
                 Join joined = join(top[h], sum[h], top_b, sum_b);
                 old[h] = joined.old, by[h] = joined.by;
                 rounded[h] = old[h] ? fmaf(rounded[h], by[h], rounded_b) : fmaf(rounded_b, by[h], rounded[h]);
               }
             }
UNROLL
             for (u32 c = 0; c < COLUMNS / 16; c++) {
               float block_o[2][4] = {};
               extend<4>(block_o[0], block_o[1], w, keys[buffer].right, 0, first + 16 * c);
UNROLL
               for (u32 i = 0; i < 2; i++)
UNROLL
                 for (u32 e = 0; e < 4; e++) {
                   float &so_far = o[2 * c + i][e], v = block_o[i][e];
                   if (seen[e / 2]) so_far = old[e / 2] ? fmaf(so_far, by[e / 2], v) : fmaf(v, by[e / 2], so_far);
                 }
             }
           });
UNROLL
  for (u32 j = 0; j < COLUMNS / 8; j++)
UNROLL
    for (u32 e = 0; e < 4; e++) o[j][e] = o[j][e] / rounded[e / 2];
UNROLL
  for (u32 c = 0; c < COLUMNS / 16; c++)
    write(o[2 * c], o[2 * c + 1], first + 16 * c, a.d, [&](u32 line) { return line < part.count ? out + at_pitch(part, group, line, out_ld, a.d) : nullptr; });
UNROLL
  for (u32 h = 0; h < 2; h++) {
    u32 line = 16 * warp + lane / 4 + 8 * h;
    if (line >= part.count || lane % 4 > 0 || first > 0) continue;
    u64 to = at(part, group, line, a.h, 1);
    m[to] = as_integer(top[h]), l[to] = sum[h];
  }
}

// dq in dqkv, in rows dqkv_ld apart. Blocks: tiles of lines, kv heads.
extern "C" __launch_bounds__(THREADS, 2) __global__ void attention_mma_backward_query(u16 *dqkv, const u16 *dout, const u16 *out,
                                                                                   const u16 *qkv, const int *m, const float *l,
                                                                                   const Segment *segments, const Shape a,
                                                                                   const Params params, u32 dqkv_ld, u32 out_ld) {
  DYNAMIC_SHARED(shared);
  __shared__ float deltas[TILE];
  Pair *own = (Pair *)shared, *keys = own + 1;
  Part part;
  u32 group = a.h / a.k, warp = threadIdx.x / 32, lane = threadIdx.x % 32, width = a.h + 2 * a.k;
  if (!find(part, segments, a, group, blockIdx.x)) return;
  bool there = threadIdx.x / 2 < part.count;
  load_row(own->left, qkv + (there ? at(part, group, threadIdx.x / 2, width, a.d) : 0), qkv, there, a.d);
  load_row(own->right, dout + (there ? at(part, group, threadIdx.x / 2, a.h, a.d) : 0), dout, there, a.d);
  load_deltas(deltas, dout, out, part, a, out_ld);
  __syncthreads();
  Sight sight = sight_of(part, group, params);
  Blocks blocks = blocks_of(part, group, params);
  float top[2], sum[2], delta[2], dq[HEAD_DIM / 8][4] = {};
UNROLL
  for (u32 h = 0; h < 2; h++) {
    u32 line = 16 * warp + lane / 4 + 8 * h;
    u64 from = line < part.count ? at(part, group, line, a.h, 1) : 0;
    top[h] = (float)m[from], sum[h] = l[from], delta[h] = deltas[line];
  }
  streamed(blocks.count, [&](u32 b, u32 buffer) { load_keys(keys[buffer], qkv, segments, a, part.index, blocks.from + b); },
           [&](u32 b, u32 buffer) {
             for (u32 half = 0; half < KEYS; half += SPAN) {
               float s[SPAN / 8][4] = {}, dp[SPAN / 8][4] = {};
               product(s, own->left, 16 * warp, keys[buffer].left, half);
               product(dp, own->right, 16 * warp, keys[buffer].right, half);
               u32 factors[SPAN / 8][2];
UNROLL
               for (u32 h = 0; h < 2; h++) {
                 u32 from = slot(sight.first[h], blocks.from + b), to = slot(sight.past[h], blocks.from + b);
UNROLL
                 for (u32 j = 0; j < SPAN / 8; j++) {
                   float dt[2];
UNROLL
                   for (u32 e = 0; e < 2; e++) {
                     u32 k = half + 8 * j + lane % 4 * 2 + e;
                     slopes(s[j][2 * h + e], dp[j][2 * h + e], top[h], sum[h], delta[h], params, &dt[e]);
                     if (k < from || k >= to) dt[e] = 0.0f;
                   }
                   factors[j][h] = pack_bf16(dt[0], dt[1]);
                 }
               }
UNROLL
               for (u32 c = 0; c < HEAD_DIM / 16; c++) extend<SPAN / 16>(dq[2 * c], dq[2 * c + 1], factors, keys[buffer].left, half, 16 * c);
             }
           });
UNROLL
  for (u32 c = 0; c < HEAD_DIM / 16; c++)
    write(dq[2 * c], dq[2 * c + 1], 16 * c, a.d, [&](u32 line) { return line < part.count ? dqkv + at_pitch(part, group, line, dqkv_ld, a.d) : nullptr; });
}

// dk and dv in dqkv likewise. Blocks: tiles of 64 keys of a segment, kv heads, columns. The lines that may see the keys come in tree order.
extern "C" __launch_bounds__(THREADS, 2) __global__ void attention_mma_backward_key(u16 *dqkv, const u16 *dout, const u16 *out,
                                                                                 const u16 *qkv, const int *m, const float *l,
                                                                                 const Segment *segments, const Shape a,
                                                                                 const Params params, u32 dqkv_ld, u32 out_ld) {
  DYNAMIC_SHARED(shared);
  __shared__ float top[2][TILE], sum[2][TILE], deltas[2][TILE];
  Pair *own = (Pair *)shared, *lines = own + 1;
  Part keys;
  u32 group = a.h / a.k, warp = threadIdx.x / 32, lane = threadIdx.x % 32, width = a.h + 2 * a.k, first = blockIdx.z * COLUMNS;
  if (!find(keys, segments, a, 1, blockIdx.x)) return;
  auto key = [&](u32 r, u32 which, u32 ld) { return (u64)(keys.of.start + keys.first + r) * ld + (u64)(a.h + which * a.k + blockIdx.y) * a.d; };
  bool there = threadIdx.x / 2 < keys.count;
  load_row(own->left, qkv + (there ? key(threadIdx.x / 2, 0, width * a.d) : 0), qkv, there, a.d);
  load_row(own->right, qkv + (there ? key(threadIdx.x / 2, 1, width * a.d) : 0), qkv, there, a.d);
  u32 pos = keys.of.pos0 + keys.first;
  float dk[COLUMNS / 8][4] = {}, dv[COLUMNS / 8][4] = {};
  for (u32 index = keys.index; index < a.count; index++) {
    Segment of = segment(segments, index, a);
    if (index > keys.index && of.parent == ABSENT) break;
    if (!on_path(segments, keys.index, index)) continue;
    Seeing rows = seeing(params, of, pos, keys.count), see[2];
UNROLL
    for (u32 h = 0; h < 2; h++) {
      u32 r = 16 * warp + lane / 4 + 8 * h;
      see[h] = seeing(params, of, pos + r, 1);
      if (r >= keys.count) see[h].end = 0;
    }
    u32 begin = rows.begin * group, all = rows.end > rows.begin ? (rows.end - rows.begin) * group : 0;
    auto part_of = [&](u32 q) { return Part{index, begin + q * TILE, all - q * TILE < TILE ? all - q * TILE : TILE, of}; };
    streamed((all + TILE - 1) / TILE,
             [&](u32 q, u32 buffer) {
               Part part = part_of(q);
               u32 line = threadIdx.x / 2;
               bool there = line < part.count;
               load_row(lines[buffer].left, qkv + (there ? at(part, group, line, width, a.d) : 0), qkv, there, a.d);
               load_row(lines[buffer].right, dout + (there ? at(part, group, line, a.h, a.d) : 0), dout, there, a.d);
               load_deltas(deltas[buffer], dout, out, part, a, out_ld);
               u64 from = there ? at(part, group, line, a.h, 1) : 0;
               if (threadIdx.x % 2 == 0) top[buffer][line] = (float)m[from], sum[buffer][line] = l[from];
             },
             [&](u32 q, u32 buffer) {
               Part part = part_of(q);
               for (u32 half = 0; half < TILE; half += SPAN) {
                 float s[SPAN / 8][4] = {}, dp[SPAN / 8][4] = {};
                 product(s, own->left, 16 * warp, lines[buffer].left, half);
                 product(dp, own->right, 16 * warp, lines[buffer].right, half);
                 u32 of_k[SPAN / 8][2], of_v[SPAN / 8][2];
UNROLL
                 for (u32 h = 0; h < 2; h++)
UNROLL
                   for (u32 j = 0; j < SPAN / 8; j++) {
                     float p[2], dt[2];
UNROLL
                     for (u32 e = 0; e < 2; e++) {
                       u32 i = half + 8 * j + lane % 4 * 2 + e, row = (part.first + i) / group;
                       p[e] = slopes(s[j][2 * h + e], dp[j][2 * h + e], top[buffer][i], sum[buffer][i], deltas[buffer][i], params, &dt[e]);
                       if (i >= part.count || row < see[h].begin || row >= see[h].end) p[e] = dt[e] = 0.0f;
                     }
                     of_v[j][h] = pack_bf16(p[0], p[1]), of_k[j][h] = pack_bf16(dt[0], dt[1]);
                   }
UNROLL
                 for (u32 c = 0; c < COLUMNS / 16; c++) {
                   extend<SPAN / 16>(dk[2 * c], dk[2 * c + 1], of_k, lines[buffer].left, half, first + 16 * c);
                   extend<SPAN / 16>(dv[2 * c], dv[2 * c + 1], of_v, lines[buffer].right, half, first + 16 * c);
                 }
               }
             });
  }
UNROLL
  for (u32 c = 0; c < COLUMNS / 16; c++) {
    write(dk[2 * c], dk[2 * c + 1], first + 16 * c, a.d, [&](u32 r) { return r < keys.count ? dqkv + key(r, 0, dqkv_ld) : nullptr; });
    write(dv[2 * c], dv[2 * c + 1], first + 16 * c, a.d, [&](u32 r) { return r < keys.count ? dqkv + key(r, 1, dqkv_ld) : nullptr; });
  }
}
