// Forward in f32 over one block of keys after another, wherever they lie: training, scoring and decoding run these very functions.

// What the sixteen lanes of a row know of their 4 lines, row + 16 i: the state so far, and the positions that each sees.
struct Lines {
  float top[4], sum[4], o[4][4];
  u32 first[4], past[4];
};

__device__ Lines lines_of(const Part &part, u32 group, const Params &params) {
  Lines x;
UNROLL
  for (u32 i = 0; i < 4; i++) {
    u32 line = threadIdx.x / 16 + 16 * i, pos = position(part, group, line);
    bool there = line < part.count;
    x.first[i] = there ? first_seen(params, pos) : 0, x.past[i] = there ? past_seen(params, pos, part.of) : 0;
    x.top[i] = -INFINITE, x.sum[i] = 0.0f;
    for (u32 j = 0; j < 4; j++) x.o[i][j] = -0.0f;  // which joins as nothing: -0 0 + b is b, whatever its sign
  }
  return x;
}

// One block: query(line, i), key(slot, i), value(column, slot); w is the block's own.
template <class Query, class Key, class Value>
__device__ void attend(Lines &x, Tiles &tiles, float (&w)[KEYS][TILE + 1], u32 block, u32 count, u32 d, u32 columns, const Params &params,
                       Query query, Key key, Value value) {
  u32 row = threadIdx.x / 16, column = threadIdx.x % 16, from[4], to[4];
  float acc[4][4] = {}, block_o[4][4] = {}, by[4];
  bool old[4];
  chain(acc, tiles, d, count, KEYS, query, key);
UNROLL
  for (u32 i = 0; i < 4; i++) {
    float most = -INFINITE, sum_b = 0.0f, capped;
    from[i] = slot(x.first[i], block), to[i] = slot(x.past[i], block);
UNROLL
    for (u32 j = 0; j < 4; j++) {
      acc[i][j] = exponent(acc[i][j], params, &capped);
      u32 s = column + 16 * j;
      if (from[i] <= s && s < to[i]) most = upper(acc[i][j], most);
    }
    float top_b = within_edges(floorf(sixteen_largest(most)));
UNROLL
    for (u32 j = 0; j < 4; j++) {
      u32 s = column + 16 * j;
      float v = weight(acc[i][j], top_b);
      w[s][row + 16 * i] = v;
      if (from[i] <= s && s < to[i]) sum_b += v;
    }
    sum_b = sixteen_sum(sum_b);
    old[i] = false, by[i] = 0.0f;
    if (from[i] < to[i]) {
      Join joined = join(x.top[i], x.sum[i], top_b, sum_b);
      old[i] = joined.old, by[i] = joined.by;
    }
  }
  extend(block_o, tiles, w, KEYS, columns, from, to, value);
UNROLL
  for (u32 i = 0; i < 4; i++)
    for (u32 j = 0; j < 4; j++)
      if (from[i] < to[i]) x.o[i][j] = old[i] ? fmaf(x.o[i][j], by[i], block_o[i][j]) : fmaf(block_o[i][j], by[i], x.o[i][j]);
}

// out [n, h d], and m, l [n, h] unless they are null.
__device__ void finish(const Lines &x, const Part &part, const Shape &a, u32 first_column, float *out, int *m, float *l) {
  u32 row = threadIdx.x / 16, column = threadIdx.x % 16, columns = rest(a.d, first_column);
UNROLL
  for (u32 i = 0; i < 4; i++) {
    u32 line = row + 16 * i;
    if (line >= part.count) continue;
    u64 to = at(part, a.h / a.k, line, a.h, a.d);
    for (u32 j = 0; j < 4; j++)
      if (column + 16 * j < columns) out[to + first_column + column + 16 * j] = x.o[i][j] / x.sum[i];
    if (m && column == 0 && blockIdx.z == 0) m[to / a.d] = as_integer(x.top[i]), l[to / a.d] = x.sum[i];
  }
}
