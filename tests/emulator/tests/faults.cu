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
