// Kernels that the gates must refuse, each for one reason, and one that they must pass.

// Sixty-four values live across a barrier, thirty-two registers a thread.
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float *y, const float *x) {
  float a[64];
#pragma unroll
  for (int i = 0; i < 64; i++) a[i] = x[threadIdx.x + 1024 * i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; i++) y[threadIdx.x + 1024 * i] = a[63 - i] * a[i];
}

// An array in local memory: its index is known when it runs.
extern "C" __global__ void indexed(float *y, const float *x, const unsigned *at) {
  float a[96];
  for (int i = 0; i < 96; i++) a[i] = x[i] * x[threadIdx.x];
  for (int i = 0; i < 96; i++) y[i] = a[at[i + threadIdx.x] % 96];
}

// 384 bytes of shared memory, few registers.
extern "C" __global__ void modest(float *y, const float *x) {
  __shared__ float s[96];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[95 - threadIdx.x] + 1.0f;
}

// A product on the tensor cores, its operands by an asynchronous copy and a matrix load.
extern "C" __global__ void tensor(float *d, const unsigned *b, const char *a) {
  __shared__ __align__(16) unsigned s[256];
  unsigned at = (unsigned)__cvta_generic_to_shared(s + threadIdx.x * 4), q[4];
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(a + threadIdx.x * 16));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 0;");
  __syncthreads();
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(q[0]), "=r"(q[1]), "=r"(q[2]), "=r"(q[3]) : "r"(at));
  float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(q[0]), "r"(q[1]), "r"(q[2]), "r"(q[3]), "r"(b[threadIdx.x]), "r"(b[threadIdx.x + 32]));
  for (int i = 0; i < 4; i++) d[threadIdx.x * 4 + i] = c[i];
}
