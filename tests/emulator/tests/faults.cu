// Kernels that are wrong, each in one way.
extern "C" __global__ void beyond(float *x, unsigned at) { x[at] = 1.0f; }

// Reads what another warp writes, without a barrier between.
extern "C" __global__ void hurried(float *y) {
  __shared__ float part[64];
  part[threadIdx.x] = (float)threadIdx.x;
  y[threadIdx.x] = part[63 - threadIdx.x];
}

extern "C" __global__ void patient(float *y) {
  __shared__ float part[64];
  part[threadIdx.x] = (float)threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = part[63 - threadIdx.x];
}

// Half of the block never arrives.
extern "C" __global__ void stuck(float *y) {
  if (threadIdx.x < 32) __syncthreads();
  y[threadIdx.x] = 0.0f;
}

// Lanes of one warp meet in two different shuffles.
extern "C" __global__ void divergent(float *y) {
  float v = 1.0f;
  if (threadIdx.x < 16) v = __shfl_down_sync(~0u, v, 1);
  else v = __shfl_xor_sync(~0u, v, 1);
  y[threadIdx.x] = v;
}

// Shared memory that nobody wrote.
extern "C" __global__ void unwritten(float *y) {
  __shared__ float part[64];
  y[threadIdx.x] = part[threadIdx.x];
}

// ---- of the instructions of ptx.cuh; y: [64] in pageable device memory, each kernel 64 or 128 threads

// The last copy is not waited for.
extern "C" __global__ void unwaited(float *y) {
  DYNAMIC_SHARED(tile);
  float *part = (float *)tile;
  if (threadIdx.x < 16) cp_async(part + 4 * threadIdx.x, y + 4 * threadIdx.x, 16);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  y[threadIdx.x] = part[threadIdx.x] + 1.0f;
}

// Copies that no commit closes.
extern "C" __global__ void uncommitted(float *y) {
  DYNAMIC_SHARED(tile);
  float *part = (float *)tile;
  if (threadIdx.x < 16) cp_async(part + 4 * threadIdx.x, y + 4 * threadIdx.x, 16);
  cp_async_wait<0>();
  __syncthreads();
  y[threadIdx.x] = part[threadIdx.x] + 1.0f;
}

extern "C" __global__ void copy_aslant(float *y) {
  DYNAMIC_SHARED(tile);
  cp_async(tile, y + 1, 16);
}

extern "C" __global__ void matrix_aslant(float *y) {
  DYNAMIC_SHARED(tile);
  u32 d[4];
  ldmatrix_x4(d, tile + 8);
  y[threadIdx.x] = __uint_as_float(d[0]);
}

extern "C" __global__ void matrix_elsewhere(float *y) {
  u32 d[4];
  ldmatrix_x4(d, y);
  y[threadIdx.x] = __uint_as_float(d[0]);
}

// One word beyond the dynamic shared memory.
extern "C" __global__ void beyond_shared(float *y) {
  DYNAMIC_SHARED(tile);
  ((float *)tile)[threadIdx.x + 1] = y[threadIdx.x];
}

extern "C" __global__ void uninitialised(float *y) {
  __shared__ u64 b;
  mbarrier_arrive(&b);
  y[threadIdx.x] = 0.0f;
}

// A second arrival in a phase of one whose bytes are still on their way.
extern "C" __global__ void too_many(float *y) {
  __shared__ u64 b;
  if (threadIdx.x == 0) {
    mbarrier_init(&b, 1);
    mbarrier_expect(&b, 16);
    mbarrier_arrive(&b);
  }
  y[threadIdx.x] = 0.0f;
}

// Waits for a phase that nobody ends.
extern "C" __global__ void forgotten(float *y) {
  __shared__ u64 b;
  if (threadIdx.x == 0) mbarrier_init(&b, 65);
  __syncthreads();
  mbarrier_arrive(&b);
  mbarrier_wait(&b, 0);
  y[threadIdx.x] = 0.0f;
}

extern "C" __global__ void not_a_map(float *y) {
  DYNAMIC_SHARED(tile);
  __shared__ u64 b;
  TensorMap map = {};
  mbarrier_init(&b, 1);
  tensor_load_2d(tile, &map, &b, 0, 0);
  y[threadIdx.x] = 0.0f;
}

// Ends before its copy has come: nobody waits.
extern "C" __global__ void left_behind(float *y, const __grid_constant__ TensorMap map) {
  DYNAMIC_SHARED(tile);
  __shared__ u64 b;
  if (threadIdx.x == 0) {
    mbarrier_init(&b, 1);
    mbarrier_expect(&b, 256);
    tensor_load_2d(tile, &map, &b, 0, 0);
  }
  y[threadIdx.x] = 0.0f;
}

// which: 0 as it should be, 1 without the fence, 2 without the wait.
extern "C" __global__ void product(float *y, u32 which) {
  DYNAMIC_SHARED(tile);
  for (u32 i = threadIdx.x; i < 2304; i += 128) ((u32 *)tile)[i] = 0x3f803f80;
  fence_async();
  __syncthreads();
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (which != 1) wgmma_fence();
  wgmma_bf16<0, 0>(d, tile_of(tile, 16, 1024), tile_of(tile + 8192, 16, 1024), 1);
  wgmma_commit();
  if (which != 2) wgmma_wait<0>();
  if (threadIdx.x < 64) y[threadIdx.x] = d[0];
}

// Two counts for one barrier; 128 threads.
extern "C" __global__ void two_counts(float *y) {
  bar_sync(1, threadIdx.x < 64 ? 128 : 96);
  y[threadIdx.x % 64] = 0.0f;
}

// ---- for the sanitizers: what nothing else sees

// One element beyond an array of static shared memory, in another.
extern "C" __global__ void beyond_array(float *y) {
  __shared__ float part[64], other[64];
  other[threadIdx.x] = 0.0f;
  float *volatile next = part + 1;  // what the compiler sees through, it would tell itself
  next[threadIdx.x] = y[threadIdx.x];
  y[threadIdx.x] = other[threadIdx.x] + part[63 - threadIdx.x];
}

extern "C" __global__ void shifted(float *y) { y[threadIdx.x] = (float)(1 << (threadIdx.x + 1)); }

// Every thread writes the same word: the value is right whatever comes first.
extern "C" __global__ void raced(float *y) {
  __shared__ float last;
  last = 7.0f;
  __syncthreads();
  y[threadIdx.x] = last;
}
