// The strips beside rows of activations, a thread to eight columns. to: [m, width] in rows ld apart; from: [m, width]. Rows start at 16 bytes.
extern "C" __global__ void linear_strip(u16 *to, const u16 *from, u64 chunks, u32 width, u32 ld) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= chunks) return;
  u64 row = 8 * i / width;
  *(uint4 *)(to + row * ld + 8 * i % width) = *(const uint4 *)(from + 8 * i);
}
