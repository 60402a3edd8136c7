// Tiles of bf16 in shared memory, brought by asynchronous copies.

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
