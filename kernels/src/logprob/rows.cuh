// Gradients of rows that entries name.
#define SCAN 256

// Calls add(entry) in every thread for each of the m entries that name `row`, in list order; `hit` is the block's own.
template <class Add> __device__ void each_entry(u32 (&hit)[SCAN], const u32 *rows, u32 m, u32 row, Add add) {
  for (u32 first = 0; first < m; first += SCAN) {
    u32 mine = first + threadIdx.x < m && rows[first + threadIdx.x] == row;
    hit[threadIdx.x] = mine;
    if (__syncthreads_or(mine))
      for (u32 i = 0; i < SCAN; i++)
        if (hit[i]) add(first + i);
    __syncthreads();
  }
}
