// Tiles of bf16 in shared memory, brought by asynchronous copies: 32 of a reduction in each of three stages.
#define STAGES 3
#define DEPTH 32

// 16 bytes: what one asynchronous copy brings.
struct __align__(16) Chunk {
  u16 at[8];
};

// Chunk `c` of row `r` in a tile of WIDTH chunks a row, so that eight rows' chunks lie in eight different groups of banks.
template <int WIDTH> __device__ u32 place(u32 r, u32 c) {
  if (WIDTH == 2) return 2 * r + (c ^ (r / 4 & 1));
  if (WIDTH == 4) return 4 * r + (c ^ (r / 2 & 3));
  return WIDTH * r + (c ^ (r & 7));
}

__device__ void copy(Chunk *to, const u16 *from, const u16 *aligned, bool there) { cp_async(to, there ? from : aligned, there ? 16 : 0); }

// Runs `load(stage, buffer)` ahead of `compute(stage, buffer)` for every stage; ends with all buffers free.
template <class Load, class Compute> __device__ void staged(u32 stages, Load load, Compute compute) {
  for (u32 q = 0; q + 1 < STAGES; q++) {
    if (q < stages) load(q, q);
    cp_async_commit();
  }
  for (u32 q = 0; q < stages; q++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    u32 next = q + STAGES - 1;
    if (next < stages) load(next, next % STAGES);
    cp_async_commit();
    compute(q, q % STAGES);
  }
  __syncthreads();
}
