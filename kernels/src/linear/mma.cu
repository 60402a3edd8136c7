// Linear modules in bf16 on the tensor cores. Every output is one f32 accumulator from +0 over steps of 16 of the reduction,
// ascending, one mma each, whatever the tile: TILE_M x TILE_N outputs a block, WARP_M x WARP_N a warp, 32 of the reduction in each of
// three stages. A step past the reduction's end is not made; a step that is half there has zeros. The variant RAGGED has the same bits.
#define THREADS 256
#define PARTS 4

// What the columns of the output belong to: part p has those from column[p]. bias[p]: [N_p] or null. slot[p] .. slot[p+1]: its strip. Where
// bit p of `halves` is set, columns come in eights, in turn the rounded value and what rounding lost.
struct Parts {
  const float *bias[PARTS];
  u32 column[PARTS + 1], slot[PARTS + 1], halves, count;
};

// out [m, n] = left [m, body] times right, continued by tail [m, width], columns from .. to, times the same reduction indices from `body` on.
// right: [n, ld] with the reduction along its rows or, with DOWN, [.., ld] with the reduction down them. Rows of out and left lie
// out_ld and left_ld apart.
struct Product {
  u16 *out;
  const u16 *left, *right, *tail;
  u32 m, n, body, ld, width, out_ld, left_ld, from, to;
};

struct Tiles {
  Chunk left[STAGES][TILE_M * 4], right[STAGES][TILE_N * 4];
};

__device__ u32 part_of(const Parts &parts, u32 column) {
  u32 p = 0;
  while (p + 1 < parts.count && column >= parts.column[p + 1]) p++;
  return p;
}

// Fragments of the 16 rows from `row` and the step `half`.
__device__ void left_fragment(u32 (&a)[4], const Chunk *tile, u32 row, u32 half) {
  u32 lane = threadIdx.x % 32;
  ldmatrix_x4(a, tile + place<4>(row + lane % 16, 2 * half + lane / 16));
}
// Fragments of the 16 columns from `column` and the step `half`: two of 8 columns, one after the other.
template <bool DOWN> __device__ void right_fragments(u32 (&b)[4], const Chunk *tile, u32 column, u32 half) {
  u32 lane = threadIdx.x % 32;
  if (DOWN) ldmatrix_x4_trans(b, tile + place<TILE_N / 8>(16 * half + lane % 16, column / 8 + lane / 16));
  else ldmatrix_x4(b, tile + place<4>(column + lane / 16 * 8 + lane % 8, 2 * half + lane / 8 % 2));
}

template <bool DOWN> __device__ void load(Tiles &t, const Product &p, u32 row, u32 column, u32 steps, u32 stage, u32 buffer) {
  u32 body = (p.body + 15) / 16;
  for (u32 i = threadIdx.x; i < TILE_M * 4; i += THREADS) {
    u32 r = i / 4, c = i % 4, step = 2 * stage + c / 2, at = step * 16 + c % 2 * 8, late = p.from + at - body * 16;
    bool own = step < body, there = row + r < p.m && step < steps && (!own || at < p.body);
    const u16 *from = own ? p.left + (u64)(row + r) * p.left_ld + at : p.tail + (u64)(row + r) * p.width + late;
    bring(&t.left[buffer][place<4>(r, c)], from, p.left, there ? own ? eight(at, p.body) : 8 : 0);
  }
  for (u32 i = threadIdx.x; i < TILE_N * 4; i += THREADS) {
    const u32 width = DOWN ? TILE_N / 8 : 4;
    u32 r = i / width, c = i % width, step = 2 * stage + (DOWN ? r / 16 : c / 2), at = step * 16 + (DOWN ? r % 16 : c % 2 * 8);
    u32 along = step < body ? at : p.body + p.from + at - body * 16, across = DOWN ? column + 8 * c : column + r;
    bool there = across < p.n && step < steps && (step >= body || at < p.body);
    u32 count = DOWN ? eight(across, p.n) : step < body ? eight(at, p.body) : 8;
    bring(&t.right[buffer][place<width>(r, c)], p.right + (DOWN ? (u64)along * p.ld + across : (u64)across * p.ld + along), p.right, there ? count : 0);
  }
}

template <bool DOWN> __device__ void product(Tiles &tiles, const Product &p, const Parts &parts) {
  const u32 across = TILE_N / WARP_N;
  u32 row = blockIdx.x * TILE_M, column = blockIdx.y * TILE_N, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 down = warp / across * WARP_M, right = warp % across * WARP_N;
  u32 steps = (p.body + 15) / 16 + (p.to - p.from) / 16;
  float acc[WARP_M / 16][WARP_N / 8][4] = {};
  staged((steps + 1) / 2, [&](u32 q, u32 buffer) { load<DOWN>(tiles, p, row, column, steps, q, buffer); },
         [&](u32 q, u32 buffer) {
UNROLL
           for (u32 half = 0; half < 2; half++) {
             if (2 * q + half >= steps) break;
             u32 a[WARP_M / 16][4];
UNROLL
             for (u32 i = 0; i < WARP_M / 16; i++) left_fragment(a[i], tiles.left[buffer], down + 16 * i, half);
UNROLL
             for (u32 j = 0; j < WARP_N / 16; j++) {
               u32 both[4];
               right_fragments<DOWN>(both, tiles.right[buffer], right + 16 * j, half);
               u32 b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
UNROLL
               for (u32 i = 0; i < WARP_M / 16; i++)
UNROLL
                 for (u32 e = 0; e < 2; e++) mma_bf16(acc[i][2 * j + e], a[i], b[e]);
             }
           }
         });
UNROLL
  for (u32 j = 0; j < WARP_N / 8; j++) {
    u32 c = column + right + 8 * j + lane % 4 * 2;
    if (c >= p.n) continue;
    u32 part = part_of(parts, c);
#if RAGGED
UNROLL
    for (u32 e = 0; e < 4; e++) {
      u32 r = row + down + lane / 4 + 8 * (e / 2), own = c + e % 2;
      if (r >= p.m || own >= p.n) continue;
      u32 q = part_of(parts, own), at = own - parts.column[q];
      float value = parts.bias[q] ? acc[0][j][e] + parts.bias[q][at] : acc[0][j][e];
      if ((parts.halves >> q & 1) && at / 8 % 2) value -= bf16_to_f32(f32_to_bf16(value));
      p.out[(u64)r * p.out_ld + own] = f32_to_bf16(value);
    }
    continue;
#endif
    const float *bias = parts.bias[part] ? parts.bias[part] + (c - parts.column[part]) : nullptr;
    bool lost = (parts.halves >> part & 1) && (c - parts.column[part]) / 8 % 2;
UNROLL
    for (u32 i = 0; i < WARP_M / 16; i++)
UNROLL
      for (u32 e = 0; e < 2; e++) {
        u32 r = row + down + 16 * i + lane / 4 + 8 * e;
        if (r >= p.m) continue;
        float low = acc[i][j][2 * e], high = acc[i][j][2 * e + 1];
        if (bias) low += bias[0], high += bias[1];
        if (lost) low -= bf16_to_f32(f32_to_bf16(low)), high -= bf16_to_f32(f32_to_bf16(high));
        *(u32 *)(p.out + (u64)r * p.out_ld + c) = pack_bf16(low, high);
      }
  }
}

// y [m, n] of x [m, k] and w [n, ld]; s [m, width] continues each part's columns over its own strip.
extern "C" __launch_bounds__(THREADS) __global__ void linear_mma_forward(u16 *y, const u16 *x, const u16 *w, const u16 *s,
                                                                         const __grid_constant__ Parts parts, u32 m, u32 n, u32 k,
                                                                         u32 ld, u32 width, u32 y_ld, u32 x_ld) {
  __shared__ Tiles tiles;
  u32 first = blockIdx.y * TILE_N, last = first + TILE_N < n ? first + TILE_N - 1 : n - 1;
  Product p = {y, x, w, s, m, n, k, ld, width, y_ld, x_ld, parts.slot[part_of(parts, first)], parts.slot[part_of(parts, last) + 1]};
  product<false>(tiles, p, parts);
}

// dx [m, k] of dy [m, n] and w [n + width, ld], continued over ds [m, width] and the rows under w.
extern "C" __launch_bounds__(THREADS) __global__ void linear_mma_backward(u16 *dx, const u16 *dy, const u16 *w, const u16 *ds,
                                                                          const __grid_constant__ Parts parts, u32 m, u32 k, u32 n,
                                                                          u32 ld, u32 width, u32 dx_ld, u32 dy_ld) {
  __shared__ Tiles tiles;
  Product p = {dx, dy, w, ds, m, k, n, ld, width, dx_ld, dy_ld, 0, width};
  product<true>(tiles, p, parts);
}
