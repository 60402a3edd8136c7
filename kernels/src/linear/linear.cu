// Linear modules in f32: a block makes a tile of outputs.
#define PARTS 4

// One module: w [n, ld]; a [rank, k]; b [n, rank]; bias [n] or null. Its outputs stand from column `first`, its S from `slot`.
struct Part {
  const float *w, *a, *b, *bias;
  u32 n, ld, rank, first, slot;
  float scale;
};
struct Parts {
  Part part[PARTS];
};

// y [m, width] = of x [m, k]: blocks count rows in x and the tiles of all parts in y. s [m, ranks] is read where a part has a rank.
extern "C" __global__ void linear_forward(float *y, const float *x, const float *s, const __grid_constant__ Parts parts, u32 m, u32 k,
                                          u32 width, u32 ranks) {
  __shared__ Tiles tiles;
  u32 p = 0, tile = blockIdx.y, row = blockIdx.x * TILE;
  while (tile >= (parts.part[p].n + TILE - 1) / TILE) tile -= (parts.part[p++].n + TILE - 1) / TILE;
  const Part &part = parts.part[p];
  u32 column = tile * TILE, rows = rest(m, row), columns = rest(part.n, column);
  float acc[4][4] = {};
  chain(acc, tiles, k, rows, columns, [&](u32 r, u32 i) { return x[(u64)(row + r) * k + i]; },
        [&](u32 c, u32 i) { return part.w[(u64)(column + c) * part.ld + i]; });
  chain(acc, tiles, part.rank, rows, columns, [&](u32 r, u32 j) { return s[(u64)(row + r) * ranks + part.slot + j]; },
        [&](u32 c, u32 j) { return part.scale * part.b[(u64)(column + c) * part.rank + j]; });
  for (u32 i = 0; i < 4; i++)
    for (u32 j = 0; j < 4; j++) {
      u32 r = threadIdx.x / 16 + 16 * i, c = threadIdx.x % 16 + 16 * j;
      if (r < rows && c < columns)
        y[(u64)(row + r) * width + part.first + column + c] = part.bias ? acc[i][j] + part.bias[column + c] : acc[i][j];
    }
}

// dx [m, k] with rows `stride` apart = of dy [m, width]: over the outputs of all parts, then over the ranks of all parts. The weights
// are taken times the parts' `scale`.
extern "C" __global__ void linear_backward(float *dx, const float *dy, const float *ds, const __grid_constant__ Parts parts, u32 m, u32 k,
                                           u32 stride, u32 width, u32 ranks) {
  __shared__ Tiles tiles;
  u32 row = blockIdx.x * TILE, column = blockIdx.y * TILE, rows = rest(m, row), columns = rest(k, column);
  float acc[4][4] = {};
  for (const Part &part : parts.part)
    chain(acc, tiles, part.n, rows, columns, [&](u32 r, u32 n) { return dy[(u64)(row + r) * width + part.first + n]; },
          [&](u32 c, u32 n) { return part.scale * part.w[(u64)n * part.ld + column + c]; });
  for (const Part &part : parts.part)
    chain(acc, tiles, part.rank, rows, columns, [&](u32 r, u32 j) { return ds[(u64)(row + r) * ranks + part.slot + j]; },
          [&](u32 c, u32 j) { return part.a[(u64)j * k + column + c]; });
  for (u32 i = 0; i < 4; i++)
    for (u32 j = 0; j < 4; j++) {
      u32 r = threadIdx.x / 16 + 16 * i, c = threadIdx.x % 16 + 16 * j;
      if (r < rows && c < columns) dx[(u64)(row + r) * stride + column + c] = acc[i][j];
    }
}

// One operand of an outer product: columns of rows `stride` apart; a null pointer stands for ones.
struct Columns {
  const float *at;
  u32 stride, count;
};

// total[i * down + c * across] += scale * (chain over an example's rows of left(row, i) * right(row, c)), example by example; spans are
// cut at m, and one without rows adds nothing.
extern "C" __global__ void linear_outer(float *total, Columns left, Columns right, const u32 *examples, u32 count, u32 m, u32 down,
                                        u32 across, float scale) {
  __shared__ Tiles tiles;
  u32 row = blockIdx.x * TILE, column = blockIdx.y * TILE, rows = rest(left.count, row), columns = rest(right.count, column);
  u32 r = threadIdx.x / 16, c = threadIdx.x % 16;
  float sum[4][4] = {};
  for (u32 i = 0; i < 4; i++)
    for (u32 j = 0; j < 4; j++)
      if (r + 16 * i < rows && c + 16 * j < columns) sum[i][j] = total[(u64)(row + r + 16 * i) * down + (u64)(column + c + 16 * j) * across];
  for (u32 e = 0; e < count; e++) {
    u32 from = examples[2 * e], end = examples[2 * e + 1] < m ? examples[2 * e + 1] : m;
    if (from >= end) continue;
    float acc[4][4] = {};
    chain(acc, tiles, end - from, rows, columns, [&](u32 i, u32 n) { return left.at[(u64)(from + n) * left.stride + row + i]; },
          [&](u32 c, u32 n) { return right.at ? right.at[(u64)(from + n) * right.stride + column + c] : 1.0f; });
    for (u32 i = 0; i < 4; i++)
      for (u32 j = 0; j < 4; j++) sum[i][j] += acc[i][j] * scale;
  }
  for (u32 i = 0; i < 4; i++)
    for (u32 j = 0; j < 4; j++)
      if (r + 16 * i < rows && c + 16 * j < columns) total[(u64)(row + r + 16 * i) * down + (u64)(column + c + 16 * j) * across] = sum[i][j];
}
