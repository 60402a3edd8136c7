// Attention in f32, with the CPU's bits: a block has 64 lines (or 64 keys), one kv head and 64 columns of a head's d. Scores are chains over d, sixteen lanes a row, lane c with slots c mod
// 16, which are the accumulators of LAW A2; then the block's values join, or the gradients' chains go on.

// D of a line, by the sixteen lanes of a row: A2 over d of fma(dout, out).
__device__ float delta(const float *dout, const float *out, u32 d, bool there) {
  float acc = 0.0f;
  if (there)
    for (u32 i = threadIdx.x % 16; i < d; i += 16) acc = fmaf(dout[i], out[i], acc);
  return sixteen_sum(acc);
}

// out [n, h d], m [n, h], l [n, h] of qkv. Blocks: tiles of lines, kv heads, columns.
extern "C" __launch_bounds__(256, 2) __global__ void attention_forward(float *out, int *m, float *l, const float *qkv,
                                                                       const Segment *segments, const Shape a, const Params params) {
  __shared__ Tiles tiles;
  __shared__ float w[KEYS][TILE + 1];
  __shared__ u32 rows[KEYS];
  Part part;
  u32 group = a.h / a.k, width = a.h + 2 * a.k, first_column = blockIdx.z * TILE, columns = rest(a.d, first_column);
  if (!find(part, segments, a, group, blockIdx.x)) return;
  Lines x = lines_of(part, group, params);
  u32 end = past_seen(params, position(part, group, part.count - 1), part.of);
  for (u32 block = first_seen(params, position(part, group, 0)) / KEYS; block * KEYS < end; block++) {
    if (threadIdx.x < KEYS) rows[threadIdx.x] = row_at(segments, part.index, a, block * KEYS + threadIdx.x);
    __syncthreads();
    auto key = [&](u32 s, u32 which, u32 i) {
      return rows[s] == ABSENT ? NOT_A_NUMBER : qkv[((u64)rows[s] * width + a.h + which * a.k + blockIdx.y) * a.d + i];
    };
    attend(x, tiles, w, block, part.count, a.d, columns, params,
           [&](u32 r, u32 i) { return qkv[at(part, group, r, width, a.d) + i]; }, [&](u32 s, u32 i) { return key(s, 0, i); },
           [&](u32 c, u32 s) { return key(s, 1, first_column + c); });
  }
  finish(x, part, a, first_column, out, m, l);
}

// dq in dqkv. Blocks as above.
extern "C" __launch_bounds__(256, 2) __global__ void attention_backward_query(float *dqkv, const float *dout, const float *out, const float *qkv,
                                                                           const int *m, const float *l, const Segment *segments,
                                                                           const Shape a, const Params params) {
  __shared__ Tiles tiles;
  __shared__ float dt[KEYS][TILE + 1];
  __shared__ u32 rows[KEYS];
  Part part;
  u32 group = a.h / a.k, width = a.h + 2 * a.k, first_column = blockIdx.z * TILE, columns = rest(a.d, first_column);
  if (!find(part, segments, a, group, blockIdx.x)) return;
  u32 row = threadIdx.x / 16, column = threadIdx.x % 16;
  float top[4], sum[4], deltas[4], dq[4][4] = {};
  u32 first[4], past[4];
UNROLL
  for (u32 i = 0; i < 4; i++) {
    u32 line = row + 16 * i, pos = position(part, group, line);
    bool there = line < part.count;
    u64 own = there ? at(part, group, line, a.h, a.d) : 0;
    first[i] = there ? first_seen(params, pos) : 0, past[i] = there ? past_seen(params, pos, part.of) : 0;
    top[i] = there ? (float)m[own / a.d] : 0.0f, sum[i] = there ? l[own / a.d] : 1.0f;
    deltas[i] = delta(dout + own, out + own, a.d, there);
  }
  u32 end = past_seen(params, position(part, group, part.count - 1), part.of);
  for (u32 block = first_seen(params, position(part, group, 0)) / KEYS; block * KEYS < end; block++) {
    if (threadIdx.x < KEYS) rows[threadIdx.x] = row_at(segments, part.index, a, block * KEYS + threadIdx.x);
    __syncthreads();
    auto key = [&](u32 s, u32 which, u32 i) {
      return rows[s] == ABSENT ? NOT_A_NUMBER : qkv[((u64)rows[s] * width + a.h + which * a.k + blockIdx.y) * a.d + i];
    };
    float acc[4][4] = {}, dp[4][4] = {};
    chain(acc, tiles, a.d, part.count, KEYS, [&](u32 r, u32 i) { return qkv[at(part, group, r, width, a.d) + i]; },
          [&](u32 c, u32 i) { return key(c, 0, i); });
    chain(dp, tiles, a.d, part.count, KEYS, [&](u32 r, u32 i) { return dout[at(part, group, r, a.h, a.d) + i]; },
          [&](u32 c, u32 i) { return key(c, 1, i); });
    u32 from[4], to[4];
UNROLL
    for (u32 i = 0; i < 4; i++) {
      from[i] = slot(first[i], block), to[i] = slot(past[i], block);
UNROLL
      for (u32 j = 0; j < 4; j++)
        slopes(acc[i][j], dp[i][j], top[i], sum[i], deltas[i], params, &dt[column + 16 * j][row + 16 * i]);
    }
    extend(dq, tiles, dt, KEYS, columns, from, to, [&](u32 c, u32 s) { return key(s, 0, first_column + c); });
  }
UNROLL
  for (u32 i = 0; i < 4; i++)
    for (u32 j = 0; j < 4; j++) {
      u32 line = row + 16 * i, c = column + 16 * j;
      if (line < part.count && c < columns) dqkv[at(part, group, line, width, a.d) + first_column + c] = dq[i][j];
    }
}

// dk and dv in dqkv. Blocks: tiles of 64 keys of a segment, kv heads, columns. The lines that may see the keys come in tree order.
extern "C" __launch_bounds__(256, 2) __global__ void attention_backward_key(float *dqkv, const float *dout, const float *out, const float *qkv,
                                                                         const int *m, const float *l, const Segment *segments,
                                                                         const Shape a, const Params params) {
  __shared__ Tiles tiles;
  __shared__ float p[TILE][TILE + 1], dt[TILE][TILE + 1];
  __shared__ float top[TILE], sum[TILE], deltas[TILE];
  Part keys;
  u32 group = a.h / a.k, width = a.h + 2 * a.k, first_column = blockIdx.z * TILE, columns = rest(a.d, first_column);
  if (!find(keys, segments, a, 1, blockIdx.x)) return;
  u32 row = threadIdx.x / 16, column = threadIdx.x % 16;
  float dk[4][4] = {}, dv[4][4] = {};
  auto key = [&](u32 r, u32 which) { return ((u64)(keys.of.start + keys.first + r) * width + a.h + which * a.k + blockIdx.y) * a.d; };
  for (u32 index = keys.index; index < a.count; index++) {
    Segment s = segment(segments, index, a);
    if (index > keys.index && s.parent == ABSENT) break;
    if (!on_path(segments, keys.index, index)) continue;
    u32 pos = keys.of.pos0 + keys.first;
    Seeing rows = seeing(params, s, pos, keys.count);
    for (u32 at_line = rows.begin * group; at_line < rows.end * group; at_line += TILE) {
      Part part = {index, at_line, rest(rows.end * group, at_line), s};
UNROLL
      for (u32 i = 0; i < 4; i++) {
        u32 line = row + 16 * i;
        bool there = line < part.count;
        u64 own = there ? at(part, group, line, a.h, a.d) : 0;
        float value = delta(dout + own, out + own, a.d, there);
        if (column == 0) top[line] = there ? (float)m[own / a.d] : 0.0f, sum[line] = there ? l[own / a.d] : 1.0f, deltas[line] = value;
      }
      // They are read after the chains, which have barriers.
      float acc[4][4] = {}, dp[4][4] = {};
      chain(acc, tiles, a.d, keys.count, part.count, [&](u32 r, u32 i) { return qkv[key(r, 0) + i]; },
            [&](u32 c, u32 i) { return qkv[at(part, group, c, width, a.d) + i]; });
      chain(dp, tiles, a.d, keys.count, part.count, [&](u32 r, u32 i) { return qkv[key(r, 1) + i]; },
            [&](u32 c, u32 i) { return dout[at(part, group, c, a.h, a.d) + i]; });
      u32 from[4], to[4];
UNROLL
      for (u32 i = 0; i < 4; i++) {
        // Lines ascend by position, so those that see a key are one run.
        Seeing own = seeing(params, s, pos + row + 16 * i, 1);
        from[i] = own.begin * group > at_line ? own.begin * group - at_line : 0;
        to[i] = own.end * group > at_line ? own.end * group - at_line : 0;
        if (to[i] > part.count) to[i] = part.count;
        if (row + 16 * i >= keys.count) to[i] = 0;
UNROLL
        for (u32 j = 0; j < 4; j++) {
          u32 c = column + 16 * j;
          p[c][row + 16 * i] = slopes(acc[i][j], dp[i][j], top[c], sum[c], deltas[c], params, &dt[c][row + 16 * i]);
        }
      }
      extend(dk, tiles, dt, part.count, columns, from, to,
             [&](u32 c, u32 e) { return qkv[at(part, group, e, width, a.d) + first_column + c]; });
      extend(dv, tiles, p, part.count, columns, from, to,
             [&](u32 c, u32 e) { return dout[at(part, group, e, a.h, a.d) + first_column + c]; });
    }
  }
UNROLL
  for (u32 i = 0; i < 4; i++)
    for (u32 j = 0; j < 4; j++) {
      u32 r = row + 16 * i, c = column + 16 * j;
      if (r >= keys.count || c >= columns) continue;
      dqkv[key(r, 0) + first_column + c] = dk[i][j];
      dqkv[key(r, 1) + first_column + c] = dv[i][j];
    }
}
