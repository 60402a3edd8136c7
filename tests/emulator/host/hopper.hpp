// The twins of what came with sm_90: barriers in shared memory that count arrivals and bytes, tensor copies, products of four
// warps whose operands lie in shared memory.
#pragma once

// A barrier's word is atomic on the hardware.
#define ATOMIC __attribute__((no_sanitize("thread"), noinline))

namespace simt {
// A barrier's 64 bits. Poison is none: nothing expects 2^20 - 1 arrivals.
struct Arrivals {
  uint64_t phase : 1, expected : 20, missing : 20, bytes : 23;  // bytes are counted around the middle
  static constexpr uint64_t NONE = 1 << 22;
};
static_assert(sizeof(Arrivals) == 8);

ATOMIC inline Arrivals &arrivals(u64 *b, const Place &at) {
  in_shared(b, 8, 8, at);
  auto *a = reinterpret_cast<Arrivals *>(b);
  if (a->expected == 0xfffff) simt_runtime->fail("an mbarrier that nobody initialised", at);
  return *a;
}
ATOMIC inline void settle(Arrivals &a) {
  simt_runtime->moved();
  if (a.missing == 0 && a.bytes == Arrivals::NONE) a.phase ^= 1, a.missing = a.expected;
}
ATOMIC inline void arrive(u64 *b, u32 bytes, const Place &at) {
  Arrivals &a = arrivals(b, at);
  simt_runtime->release(b);
  if (a.missing == 0) simt_runtime->fail("more arrivals than the phase expects", at);
  a.bytes += bytes, a.missing -= 1;
  settle(a);
}

TWIN(mbarrier_init, "mbarrier.init", "", "b64", "")
ATOMIC inline void mbarrier_init(const Place &at, u64 *b, u32 count) {
  in_shared(b, 8, 8, at);
  if (count == 0 || count >= 0xfffff) simt_runtime->fail("wanted 1 to 2^20 - 2 arrivals", at);
  *reinterpret_cast<Arrivals *>(b) = Arrivals{0, count, count, Arrivals::NONE};
  simt_runtime->release(b);
}
TWIN(mbarrier_arrive, "mbarrier.arrive", "", "b64", "")
inline void mbarrier_arrive(const Place &at, u64 *b) { arrive(b, 0, at); }
TWIN(mbarrier_expect, "mbarrier.arrive.expect_tx", "", "b64", "")
inline void mbarrier_expect(const Place &at, u64 *b, u32 bytes) { arrive(b, bytes, at); }
TWIN(mbarrier_try_wait, "mbarrier.try_wait.parity", "", "b64", "")
ATOMIC inline void mbarrier_try_wait(const Place &at, u32 &done, u64 *b, u32 parity) {
  done = arrivals(b, at).phase != (parity & 1);
  if (!done) simt_runtime->land(b), done = arrivals(b, at).phase != (parity & 1);
  if (!done) simt_runtime->spin(at);
  else simt_runtime->acquire(b);
}
// Ordering between the two ways to shared memory is not emulated: there is one.
TWIN(fence_mbarrier_init, "fence.mbarrier_init", "", "", "")
inline void fence_mbarrier_init(const Place &) {}
TWIN(fence_async, "fence.proxy.async", "", "", "")
inline void fence_async(const Place &) {}

// The driver's stand-in writes this into the 128 bytes of a tensor map.
struct Tensor {
  static constexpr u32 MADE_HERE = 0x504d4154;
  u32 made, rank, element, swizzled;
  uint64_t base, extent[3], stride[2];
  u32 box[3];
};

// The box at `corner`, innermost first; what lies outside of the tensor is zero. 16-byte units are exchanged inside 128-byte rows by
// the row's number in its kilobyte.
inline void copy_box(const Tensor &t, unsigned char *to, const int *corner) {
  u32 row = t.box[0] * t.element;
  for (u32 z = 0; z < t.box[2]; z++)
    for (u32 y = 0; y < t.box[1]; y++)
      for (u32 x = 0; x < t.box[0]; x++) {
        uintptr_t at = reinterpret_cast<uintptr_t>(to) + size_t{z * t.box[1] + y} * row + x * t.element;
        if (t.swizzled) at ^= (at >> 7 & 7) << 4;
        int64_t from[3] = {corner[0] + int64_t{x}, corner[1] + int64_t{y}, corner[2] + int64_t{z}};
        bool inside = true;
        for (int i = 0; i < 3; i++) inside = inside && from[i] >= 0 && from[i] < int64_t(t.extent[i]);
        auto *there = reinterpret_cast<char *>(t.base) + (inside ? from[2] * t.stride[1] + from[1] * t.stride[0] + from[0] * t.element : 0);
        if (inside) std::memcpy(reinterpret_cast<void *>(at), there, t.element);
        else std::memset(reinterpret_cast<void *>(at), 0, t.element);
      }
}
ATOMIC inline void landed(u64 *b, u32 bytes) {
  Arrivals &a = *reinterpret_cast<Arrivals *>(b);
  simt_runtime->release(b);
  a.bytes -= bytes;
  settle(a);
}
inline void tensor_load(const Place &at, u32 rank, void *to, const void *map, u64 *b, int x, int y, int z) {
  Tensor t;
  std::memcpy(&t, map, sizeof t);
  if (t.made != Tensor::MADE_HERE) simt_runtime->fail("a tensor map that the driver did not make", at);
  if (t.rank != rank) simt_runtime->fail("a tensor map of another rank", at);
  u32 bytes = t.box[0] * t.box[1] * t.box[2] * t.element;
  in_shared(to, bytes, 128, at);
  arrivals(b, at);
  simt_runtime->bulk(b, [=] {
    int corner[3] = {x, y, z};
    copy_box(t, static_cast<unsigned char *>(to), corner);
    landed(b, bytes);
  });
}
TWIN(tensor_load_2d, "cp.async.bulk.tensor", "2d", "", "tile")
inline void tensor_load_2d(const Place &at, void *to, const void *map, u64 *b, int x, int y) { tensor_load(at, 2, to, map, b, x, y, 0); }
TWIN(tensor_load_3d, "cp.async.bulk.tensor", "3d", "", "tile")
inline void tensor_load_3d(const Place &at, void *to, const void *map, u64 *b, int x, int y, int z) {
  tensor_load(at, 3, to, map, b, x, y, z);
}

template <bool TRANSPOSED> void stmatrix_of_warp(void *const *operands) {
  for (unsigned m = 0; m < 4; m++)
    for (unsigned l = 0; l < 32; l++)
      for (unsigned e = 0; e < 2; e++) {
        unsigned r = l / 4, c = l % 4 * 2 + e;
        if (TRANSPOSED) std::swap(r, c);
        auto *row = const_cast<u16 *>(static_cast<const u16 *>(static_cast<Matrices *>(operands[8 * m + r])->row));
        row[c] = half_of(&static_cast<Matrices *>(operands[l])->d[m], e);
      }
}
template <bool TRANSPOSED> void stmatrix(const Place &at, void *row, const u32 (&s)[4]) {
  in_shared(row, 16, 16, at);
  Matrices m{const_cast<u32 *>(s), row};
  simt_runtime->warp(~0u, &m, stmatrix_of_warp<TRANSPOSED>, at);
}
TWIN(stmatrix_x4, "stmatrix", "m8n8.x4", "b16", "")
TWIN(stmatrix_x4_trans, "stmatrix", "m8n8.x4", "b16", "trans")
inline void stmatrix_x4(const Place &at, void *row, const u32 (&s)[4]) { stmatrix<false>(at, row, s); }
inline void stmatrix_x4_trans(const Place &at, void *row, const u32 (&s)[4]) { stmatrix<true>(at, row, s); }

TWIN(wgmma_fence, "wgmma.fence", "", "", "")
inline void wgmma_fence(const Place &at) { *simt_runtime->fenced = true, simt_runtime->warp(~0u, nullptr, nothing, at); }
TWIN(wgmma_commit, "wgmma.commit_group", "", "", "")
inline void wgmma_commit(const Place &at) { simt_runtime->commit(Products), simt_runtime->warp(~0u, nullptr, nothing, at); }
TWIN(wgmma_wait, "wgmma.wait_group", "", "", "")
inline void wgmma_wait(const Place &at, unsigned keep) {
  simt_runtime->wait(Products, keep);
  *simt_runtime->fenced = false;
  simt_runtime->warp(~0u, nullptr, nothing, at);
}

// Element (i, k) of the tile that a descriptor names, i over rows of A or columns of B. Both majors have 128-byte rows, eight to a kilobyte, their
// 16-byte units exchanged by the row's number: rows of 64 k for one i each, or, transposed, of 64 i for one k each.
inline float of_tile(uint64_t tile, unsigned i, unsigned k, bool transposed) {
  u32 start = (tile & 0x3fff) << 4, leading = (tile >> 16 & 0x3fff) << 4, stride = (tile >> 32 & 0x3fff) << 4;
  u32 at = start + (transposed ? i / 64 * leading + k / 8 * stride + k % 8 * 128 + i % 64 * 2 : i / 8 * stride + i % 8 * 128 + k * 2);
  at ^= (at >> 7 & 7) << 4;
  u16 v = 0xffff;
  if (simt_runtime->dynamic_shared + at + 2 <= simt_runtime->dynamic_end) std::memcpy(&v, simt_runtime->dynamic_shared + at, 2);
  return wide(v);
}
inline void swizzled(uint64_t tile, const Place &at) {
  if (tile >> 62 != 1) simt_runtime->fail("only tiles with 128-byte swizzle are emulated", at);
  if (tile >> 49 & 7) simt_runtime->fail("only tiles whose pattern starts at a kilobyte are emulated", at);
}

// A lane's part of D[64, N]: rows g and g + 8 of its warp's sixteen, g = lane / 4, columns 8 j + 2 (lane mod 4) and the next.
template <unsigned N, class A> void product(float *d, A a, uint64_t b, bool onto, bool b_transposed, bool hostile) {
  for (unsigned j = 0; j < N / 8; j++)
    for (unsigned e = 0; e < 2; e++) {
      float column[16];
      for (unsigned k = 0; k < 16; k++) column[k] = of_tile(b, j * 8 + simt_runtime->thread.x % 4 * 2 + e, k, b_transposed);
      for (unsigned half = 0; half < 2; half++) {
        float &to = d[j * 4 + half * 2 + e];
        to = step(onto ? to : 0.0f, [&](unsigned k) { return a[half][k]; }, [&](unsigned k) { return column[k]; }, hostile);
      }
    }
}
struct Rows {
  float at[2][16];
  const float *operator[](unsigned half) const { return at[half]; }
};
inline void issue_product(const Place &at, std::function<void()> work) {
  if (simt_runtime->block_size.x % 128) simt_runtime->fail("wants blocks of whole groups of four warps", at);
  if (!*simt_runtime->fenced) simt_runtime->fail("no wgmma.fence since the registers were last free", at);
  simt_runtime->warp(~0u, nullptr, nothing, at);
  simt_runtime->issue(Products, std::move(work));
}
template <unsigned N> void wgmma_ss(const Place &at, float (&d)[N / 2], uint64_t a, uint64_t b, u32 onto, int ta, int tb) {
  swizzled(a, at), swizzled(b, at);
  float *to = d;
  issue_product(at, [=] {
    Rows rows;
    unsigned lane = simt_runtime->thread.x % 32, first = simt_runtime->thread.x / 32 % 4 * 16 + lane / 4;
    for (unsigned half = 0; half < 2; half++)
      for (unsigned k = 0; k < 16; k++) rows.at[half][k] = of_tile(a, first + half * 8, k, ta);
    product<N>(to, rows, b, onto, tb, simt_runtime->hostile);
  });
}

// A in registers lies as for mma: a lane holds a quarter of its two rows, so the warp puts them together.
struct Quarters {
  const u32 *a;
  Rows rows;
};
inline void rows_of_warp(void *const *operands) {
  for (unsigned l = 0; l < 32; l++)
    for (unsigned half = 0; half < 2; half++)
      for (unsigned k = 0; k < 16; k++) {
        auto *owner = static_cast<Quarters *>(operands[l / 4 * 4 + k % 8 / 2]);
        static_cast<Quarters *>(operands[l])->rows.at[half][k] = wide(half_of(&owner->a[half + k / 8 * 2], k % 2));
      }
}
template <unsigned N> void wgmma_rs(const Place &at, float (&d)[N / 2], const u32 (&a)[4], uint64_t b, u32 onto, int tb) {
  swizzled(b, at);
  Quarters q{a, {}};
  simt_runtime->warp(~0u, &q, rows_of_warp, at);
  float *to = d;
  Rows rows = q.rows;
  issue_product(at, [=] { product<N>(to, rows, b, onto, tb, simt_runtime->hostile); });
}
#define WGMMA_TWINS(N)                                                                                                      \
  inline void wgmma_ss_n##N(const Place &at, float (&d)[N / 2], uint64_t a, uint64_t b, u32 onto, int ta, int tb) { \
    wgmma_ss<N>(at, d, a, b, onto, ta, tb);                                                                                 \
  }                                                                                                                         \
  inline void wgmma_rs_n##N(const Place &at, float (&d)[N / 2], const u32 (&a)[4], uint64_t b, u32 onto, int tb) {       \
    wgmma_rs<N>(at, d, a, b, onto, tb);                                                                                     \
  }
TWIN(wgmma_ss_n8, "wgmma.mma_async", "m64n8k16", "f32.bf16.bf16", "")
TWIN(wgmma_rs_n8, "wgmma.mma_async", "m64n8k16", "f32.bf16.bf16", "")
WGMMA_TWINS(8)
TWIN(wgmma_ss_n64, "wgmma.mma_async", "m64n64k16", "f32.bf16.bf16", "")
TWIN(wgmma_rs_n64, "wgmma.mma_async", "m64n64k16", "f32.bf16.bf16", "")
WGMMA_TWINS(64)
TWIN(wgmma_ss_n128, "wgmma.mma_async", "m64n128k16", "f32.bf16.bf16", "")
TWIN(wgmma_rs_n128, "wgmma.mma_async", "m64n128k16", "f32.bf16.bf16", "")
WGMMA_TWINS(128)
TWIN(wgmma_ss_n256, "wgmma.mma_async", "m64n256k16", "f32.bf16.bf16", "")
TWIN(wgmma_rs_n256, "wgmma.mma_async", "m64n256k16", "f32.bf16.bf16", "")
WGMMA_TWINS(256)
}  // namespace simt
