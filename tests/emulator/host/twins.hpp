// The twins: what the instructions of ptx.cuh do, in plain C++. Each says which instruction it stands for (op, shape, types,
// layout), which a test compares with the text that the hardware gets. Operands come in the order of %0, %1, ...
//
// How a tensor core adds inside one step of 16 is not known before hardware tells. Here it is a choice: the chain of the law
// (fma by ascending k onto the accumulator), and in the hostile mode another one (the products in f64 by descending k, then the
// accumulator, rounded toward zero), so that nothing leans on either.
#pragma once

#define TWIN(name, op, shape, types, layout)

namespace simt {
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = unsigned long long;

inline float wide(u16 bf16) { return __uint_as_float(u32{bf16} << 16); }
inline u16 half_of(const u32 *pairs, unsigned i) { return u16(pairs[i / 2] >> 16 * (i % 2)); }

// The bytes must lie in the block's shared memory.
inline void in_shared(const void *p, size_t bytes, unsigned align, const Place &at) {
  auto *from = static_cast<const unsigned char *>(p), *end = from + bytes;
  const Runtime &r = *simt_runtime;
  bool inside = (from >= r.static_shared && end <= r.static_end) || (from >= r.dynamic_shared && end <= r.dynamic_end);
  if (!inside) r.fail("an address outside of shared memory", at);
  if (reinterpret_cast<uintptr_t>(p) % align) r.fail("a misaligned address in shared memory", at);
}

// d + sum of a[k] b[k] over one step of K.
template <unsigned K = 16, class A, class B> float step(float d, A a, B b, bool hostile) {
  if (!hostile) {
    for (unsigned k = 0; k < K; k++) d = fmaf(a(k), b(k), d);
    return d;
  }
  double sum = 0;
  for (unsigned k = K; k-- > 0;) sum += double(a(k)) * b(k);
  sum += d;
  float near = float(sum);
  return std::isfinite(near) && std::fabs(double(near)) > std::fabs(sum) ? std::nextafterf(near, 0.0f) : near;
}

TWIN(mma_bf16, "mma", "m16n8k16", "f32.bf16.bf16.f32", "row.col")
TWIN(mma_bf16_k8, "mma", "m16n8k8", "f32.bf16.bf16.f32", "row.col")
struct Mma {
  float *d;
  const u32 *a, *b;
};
template <unsigned K> void mma_of_warp(void *const *operands) {
  float a[16][K], b[8][K];
  for (unsigned l = 0; l < 32; l++) {
    auto &m = *static_cast<Mma *>(operands[l]);
    unsigned g = l / 4, t = l % 4 * 2;
    for (unsigned r = 0; r < K / 4; r++)
      for (unsigned e = 0; e < 2; e++) a[g + r % 2 * 8][t + e + r / 2 * 8] = wide(half_of(&m.a[r], e));
    for (unsigned r = 0; r < K / 8; r++)
      for (unsigned e = 0; e < 2; e++) b[g][t + e + r * 8] = wide(half_of(&m.b[r], e));
  }
  for (unsigned l = 0; l < 32; l++)
    for (unsigned i = 0; i < 4; i++) {
      float &d = static_cast<Mma *>(operands[l])->d[i];
      unsigned row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
      d = step<K>(d, [&](unsigned k) { return a[row][k]; }, [&](unsigned k) { return b[column][k]; }, simt_runtime->hostile);
    }
}
inline void mma_bf16(const Place &at, float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  Mma m{d, a, b};
  simt_runtime->warp(~0u, &m, mma_of_warp<16>, at);
}
inline void mma_bf16_k8(const Place &at, float (&d)[4], const u32 (&a)[2], const u32 (&b)[1]) {
  Mma m{d, a, b};
  simt_runtime->warp(~0u, &m, mma_of_warp<8>, at);
}

// N matrices of 8 rows with 8 elements of 16 bits; lane 8 m + r brings the address of row r of matrix m.
struct Matrices {
  u32 *d;
  const void *row;
};
template <unsigned N, bool TRANSPOSED> void ldmatrix_of_warp(void *const *operands) {
  for (unsigned m = 0; m < N; m++) {
    u16 in[8][8];
    for (unsigned r = 0; r < 8; r++) std::memcpy(in[r], static_cast<Matrices *>(operands[8 * m + r])->row, 16);
    for (unsigned l = 0; l < 32; l++) {
      unsigned r = l / 4, c = l % 4 * 2;
      u32 low = TRANSPOSED ? in[c][r] : in[r][c], high = TRANSPOSED ? in[c + 1][r] : in[r][c + 1];
      static_cast<Matrices *>(operands[l])->d[m] = low | high << 16;
    }
  }
}
template <unsigned N, bool TRANSPOSED> void ldmatrix(const Place &at, u32 (&d)[N], const void *row) {
  if (simt_runtime->thread.x % 32 < 8 * N) in_shared(row, 16, 16, at);
  Matrices m{d, row};
  simt_runtime->warp(~0u, &m, ldmatrix_of_warp<N, TRANSPOSED>, at);
}
TWIN(ldmatrix_x1, "ldmatrix", "m8n8.x1", "b16", "")
TWIN(ldmatrix_x2, "ldmatrix", "m8n8.x2", "b16", "")
TWIN(ldmatrix_x4, "ldmatrix", "m8n8.x4", "b16", "")
inline void ldmatrix_x1(const Place &at, u32 (&d)[1], const void *row) { ldmatrix<1, false>(at, d, row); }
inline void ldmatrix_x2(const Place &at, u32 (&d)[2], const void *row) { ldmatrix<2, false>(at, d, row); }
inline void ldmatrix_x4(const Place &at, u32 (&d)[4], const void *row) { ldmatrix<4, false>(at, d, row); }
TWIN(ldmatrix_x1_trans, "ldmatrix", "m8n8.x1", "b16", "trans")
TWIN(ldmatrix_x2_trans, "ldmatrix", "m8n8.x2", "b16", "trans")
TWIN(ldmatrix_x4_trans, "ldmatrix", "m8n8.x4", "b16", "trans")
inline void ldmatrix_x1_trans(const Place &at, u32 (&d)[1], const void *row) { ldmatrix<1, true>(at, d, row); }
inline void ldmatrix_x2_trans(const Place &at, u32 (&d)[2], const void *row) { ldmatrix<2, true>(at, d, row); }
inline void ldmatrix_x4_trans(const Place &at, u32 (&d)[4], const void *row) { ldmatrix<4, true>(at, d, row); }

TWIN(cp_async, "cp.async", "16", "", "")
inline void cp_async(const Place &at, void *to, const void *from, unsigned bytes) {
  in_shared(to, 16, 16, at);
  if (reinterpret_cast<uintptr_t>(from) % 16) simt_runtime->fail("a misaligned address in global memory", at);
  if (bytes > 16) simt_runtime->fail("more than 16 bytes", at);
  simt_runtime->issue(Copies, [=] {
    unsigned char line[16] = {};
    std::memcpy(line, from, bytes);
    std::memcpy(to, line, 16);
  });
}
TWIN(cp_async_commit, "cp.async.commit_group", "", "", "")
inline void cp_async_commit(const Place &) { simt_runtime->commit(Copies); }
TWIN(cp_async_wait, "cp.async.wait_group", "", "", "")
inline void cp_async_wait(const Place &, unsigned keep) { simt_runtime->wait(Copies, keep); }

// To the nearest, ties to even; any NaN becomes 0x7fff.
inline u16 narrow(float f) {
  u32 u = __float_as_uint(f);
  return f != f ? 0x7fff : u16((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
TWIN(cvt_bf16x2, "cvt", "", "bf16x2.f32", "rn")
inline void cvt_bf16x2(const Place &, u32 &d, float high, float low) { d = u32{narrow(high)} << 16 | narrow(low); }
TWIN(cvt_bf16, "cvt", "", "bf16.f32", "rn")
inline void cvt_bf16(const Place &, unsigned short &d, float f) { d = narrow(f); }

TWIN(bar_sync, "bar", "", "", "")
inline void bar_sync(const Place &at, unsigned number, unsigned threads) {
  if (number > 15 || threads % 32 || threads > simt_runtime->block_size.x) simt_runtime->fail("no such barrier", at);
  simt_runtime->barrier(number, threads, false, at);
}
}  // namespace simt
