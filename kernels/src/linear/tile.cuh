// A block's tile of 64 x 64 outputs in f32, each one chain of fma in one thread, in the law's order (LAW A1): 256 threads, a thread has
// every sixteenth of 4 rows and 4 columns, so that sixteen lanes share a row and lane c has its columns c mod 16. Operands pass through
// shared memory 16 steps of the reduction at a time.
#define TILE 64
#define STEP 16

struct Tiles {
  float left[STEP][TILE + 1], right[STEP][TILE + 1];
};

// Continues every acc[i][j] over `count` steps with fma(left(row, step), right(column, step)); rows and columns count within
// the tile, those beyond `rows` and `columns` are never asked for.
template <class Left, class Right>
__device__ void chain(float (&acc)[4][4], Tiles &t, u32 count, u32 rows, u32 columns, Left left, Right right) {
  u32 row = threadIdx.x / 16, column = threadIdx.x % 16;
  for (u32 first = 0; first < count; first += STEP) {
    u32 steps = count - first < STEP ? count - first : STEP;
    for (u32 i = threadIdx.x; i < STEP * TILE; i += blockDim.x) {
      u32 s = i % STEP, r = i / STEP;
      t.left[s][r] = s < steps && r < rows ? left(r, first + s) : 0.0f;
      t.right[s][r] = s < steps && r < columns ? right(r, first + s) : 0.0f;
    }
    __syncthreads();
    for (u32 s = 0; s < steps; s++)
      for (u32 i = 0; i < 4; i++)
        for (u32 j = 0; j < 4; j++) acc[i][j] = fmaf(t.left[s][row + 16 * i], t.right[s][column + 16 * j], acc[i][j]);
    __syncthreads();
  }
}

__device__ u32 rest(u32 n, u32 from) { return n - from < TILE ? n - from : TILE; }

// The same with the left operand in shared memory, over the links of each row's own span: fma(left[link][row], right(column, link)).
// What `left` was filled with just before, and nobody reads until then, is there after the first barrier in here.
template <class Right>
__device__ void extend(float (&acc)[4][4], Tiles &t, const float (&left)[TILE][TILE + 1], u32 links, u32 columns, const u32 (&from)[4],
                       const u32 (&to)[4], Right right) {
  u32 row = threadIdx.x / 16, column = threadIdx.x % 16;
  for (u32 first = 0; first < links; first += STEP) {
    for (u32 i = threadIdx.x; i < STEP * TILE; i += blockDim.x) {
      u32 s = i / TILE, c = i % TILE;
      t.right[s][c] = first + s < links && c < columns ? right(c, first + s) : 0.0f;
    }
    __syncthreads();
    for (u32 s = 0; s < STEP; s++)
UNROLL
      for (u32 i = 0; i < 4; i++)
        if (from[i] <= first + s && first + s < to[i])
          for (u32 j = 0; j < 4; j++) acc[i][j] = fmaf(left[first + s][row + 16 * i], t.right[s][column + 16 * j], acc[i][j]);
    __syncthreads();
  }
}

// The largest of the sixteen lanes of a row; none of them is NaN.
__device__ float sixteen_largest(float v) {
  v = upper(v, __shfl_xor_sync(~0u, v, 8));
  v = upper(v, __shfl_xor_sync(~0u, v, 4));
  v = upper(v, __shfl_xor_sync(~0u, v, 2));
  return upper(v, __shfl_xor_sync(~0u, v, 1));
}
