// Outer products in bf16 on the tensor cores: gradients of weights and of adapters. Every output is one f32 accumulator an example from +0
// over steps of 16 of its rows, ascending from its first, one mma each, whatever the tile: TILE_M columns of the left operand by TILE_N of
// the right a block, WARP_M x WARP_N a warp. A step that the rows end in is filled with zeros.
#define THREADS 256

// One operand: `count` columns of rows `stride` apart.
struct Columns {
  const u16 *at;
  u32 stride, count;
};

struct Rows {
  Chunk left[STAGES][DEPTH * TILE_M / 8], right[STAGES][DEPTH * TILE_N / 8];
};

// Brings WIDTH chunks of each of 32 rows from `first`, from the column `column` on; rows from `end` on are zeros.
template <int WIDTH> __device__ void load(Chunk *to, const Columns &from, u32 first, u32 end, u32 column) {
  for (u32 i = threadIdx.x; i < DEPTH * WIDTH; i += THREADS) {
    u32 r = i / WIDTH, k = column + i % WIDTH * 8, there = first + r < end && k < from.count ? eight(k, from.count) : 0;
    bring(to + place<WIDTH>(r, i % WIDTH), from.at + (u64)(first + r) * from.stride + k, from.at, there);
  }
}

// total[j * down + c * across] += scale * (an example's rows, ascending from its first, of left(row, j) * right(row, c)), example by example.
// With `halves` every 16 columns of `left` are 8 upper halves and 8 lower ones: each has its own chain, and the two are added once; there
// are `rank` of j. Spans are cut at m.
extern "C" __launch_bounds__(THREADS) __global__ void linear_mma_outer(float *total, Columns left, Columns right, const u32 *examples,
                                                                       u32 count, u32 m, u32 rank, u32 down, u32 across, u32 halves,
                                                                       float scale) {
  __shared__ Rows rows;
  const u32 abreast = TILE_N / WARP_N;
  u32 row = blockIdx.x * TILE_M, column = blockIdx.y * TILE_N, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 own_row = warp / abreast * WARP_M, own_column = warp % abreast * WARP_N;
  // Where an output of this thread lies; null if it is none.
  auto out = [&](u32 i, u32 n, u32 e) -> float * {
    u32 at = row + own_row + 16 * i, j = halves ? at / 2 + lane / 4 : at + lane / 4 + e / 2 * 8;
    u32 c = column + own_column + 8 * n + lane % 4 * 2 + e % 2;
    return j < rank && c < right.count && !(halves && e >= 2) ? total + (u64)j * down + (u64)c * across : nullptr;
  };
  float sum[WARP_M / 16][WARP_N / 8][4];
UNROLL
  for (u32 i = 0; i < WARP_M / 16; i++)
UNROLL
    for (u32 n = 0; n < WARP_N / 8; n++)
UNROLL
      for (u32 e = 0; e < 4; e++) {
        const float *at = out(i, n, e);
        sum[i][n][e] = at ? *at : 0.0f;
      }
  for (u32 example = 0; example < count; example++) {
    u32 from = examples[2 * example], end = examples[2 * example + 1] < m ? examples[2 * example + 1] : m;
    if (from >= end) continue;
    u32 steps = (end - from + 15) / 16;
    float acc[WARP_M / 16][WARP_N / 8][4] = {};
    staged((steps + 1) / 2,
           [&](u32 q, u32 buffer) {
             load<TILE_M / 8>(rows.left[buffer], left, from + q * DEPTH, end, row);
             load<TILE_N / 8>(rows.right[buffer], right, from + q * DEPTH, end, column);
           },
           [&](u32 q, u32 buffer) {
             for (u32 half = 0; half < 2 && 2 * q + half < steps; half++) {
               u32 a[WARP_M / 16][4];
UNROLL
               for (u32 i = 0; i < WARP_M / 16; i++)
                 ldmatrix_x4_trans(a[i], rows.left[buffer] + place<TILE_M / 8>(16 * half + lane / 16 * 8 + lane % 8,
                                                                              own_row / 8 + 2 * i + lane / 8 % 2));
UNROLL
               for (u32 n = 0; n < WARP_N / 8; n++) {
                 u32 b[2];
                 ldmatrix_x2_trans(b, rows.right[buffer] + place<TILE_N / 8>(16 * half + lane % 16, own_column / 8 + n));
UNROLL
                 for (u32 i = 0; i < WARP_M / 16; i++) mma_bf16(acc[i][n], a[i], b);
               }
             }
           });
UNROLL
    for (u32 i = 0; i < WARP_M / 16; i++)
UNROLL
      for (u32 n = 0; n < WARP_N / 8; n++) {
        if (halves) acc[i][n][0] += acc[i][n][2], acc[i][n][1] += acc[i][n][3];
UNROLL
        for (u32 e = 0; e < 4; e++) sum[i][n][e] += acc[i][n][e] * scale;
      }
  }
UNROLL
  for (u32 i = 0; i < WARP_M / 16; i++)
UNROLL
    for (u32 n = 0; n < WARP_N / 8; n++)
UNROLL
      for (u32 e = 0; e < 4; e++)
        if (float *at = out(i, n, e)) *at = sum[i][n][e];
}

// dbias [n] += the sum of each example's rows of dy, columns from `first` of rows `width` wide; one thread per output.
extern "C" __global__ void linear_mma_bias(float *dbias, const u16 *dy, const u32 *examples, u32 count, u32 m, u32 n, u32 width) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float total = dbias[i];
  for (u32 e = 0; e < count; e++) {
    u32 from = examples[2 * e], end = examples[2 * e + 1] < m ? examples[2 * e + 1] : m;
    float partial = 0.0f;
    for (u32 r = from; r < end; r++) partial += bf16_to_f32(dy[(u64)r * width + i]);
    if (from < end) total += partial;
  }
  dbias[i] = total;
}
