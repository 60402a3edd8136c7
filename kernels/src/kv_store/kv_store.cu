// k, v [pages, kv heads, 64, d] take the keys and values of qkv [n, (h + 2 kv heads) d]; slots [n]. One block per row, which has nothing to
// do if a later row has its slot, or if there is no such page.
#define PAGE 64

extern "C" __global__ void kv_store_forward(stored *k, stored *v, const stored *qkv, const u32 *slots, u32 n, u32 pages, u32 h, u32 heads, u32 d) {
  u32 row = blockIdx.x, slot = slots[row], later = 0;
  for (u32 m = row + 1 + threadIdx.x; m < n; m += blockDim.x)
    if (slots[m] == slot) later = 1;
  if (__syncthreads_or(later) || slot / PAGE >= pages) return;
  const stored *key = qkv + ((u64)row * (h + 2 * heads) + h) * d, *value = key + (u64)heads * d;
  for (u32 i = threadIdx.x; i < heads * d; i += blockDim.x) {
    u64 to = (((u64)(slot / PAGE) * heads + i / d) * PAGE + slot % PAGE) * d + i % d;
    k[to] = key[i], v[to] = value[i];
  }
}
