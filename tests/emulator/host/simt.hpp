// What a .cu file meets when it is compiled for the host: CUDA's keywords, built-in variables and intrinsics, each handed to
// the scheduler of the process. A block's threads are fibers of one host thread; blocks run one after another.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace simt {
struct Index {
  unsigned x, y, z;
};

// Computes the results of all lanes once the last of them has arrived.
using Collective = void (*)(const uint64_t *in, uint64_t *out, const unsigned *arg);

// The scheduler's face. Built-in variables are those of the running thread.
struct Runtime {
  Index thread, block, block_size, grid;
  unsigned char *dynamic_shared;
  void (*barrier)(const char *where);
  uint64_t (*warp)(unsigned mask, uint64_t value, unsigned arg, Collective f, const char *where);
};

// An entry point, called with the addresses of its arguments.
struct Entry {
  const char *name;
  void (*call)(void **args);
  unsigned count;
  const size_t *sizes;
};

template <auto F> struct Call;
template <class... A, void (*F)(A...)> struct Call<F> {
  static constexpr size_t sizes[sizeof...(A) + 1] = {sizeof(A)..., 0};
  template <size_t... I> static void spread(void **args, std::index_sequence<I...>) {
    F(*static_cast<std::remove_const_t<A> *>(args[I])...);
  }
  static void call(void **args) { spread(args, std::index_sequence_for<A...>{}); }
  static constexpr Entry entry(const char *name) { return {name, call, sizeof...(A), sizes}; }
};
}  // namespace simt

extern simt::Runtime *simt_runtime;

#define __global__
#define __device__ static inline
#define __host__
#define __forceinline__
#define __launch_bounds__(...)
// One block at a time runs a module, so shared memory is a section of it, poisoned before each block.
#define __shared__ static __attribute__((section("simt_shared")))

#define threadIdx (simt_runtime->thread)
#define blockIdx (simt_runtime->block)
#define blockDim (simt_runtime->block_size)
#define gridDim (simt_runtime->grid)

#define SIMT_TEXT_(x) #x
#define SIMT_TEXT(x) SIMT_TEXT_(x)
#define SIMT_HERE(what) what " in line " SIMT_TEXT(__LINE__)
#define __syncthreads() simt_runtime->barrier(SIMT_HERE("__syncthreads"))
#define __syncwarp(...) simt::lanes(~0u, 0, 0, simt::nothing, SIMT_HERE("__syncwarp"))
#define __shfl_down_sync(mask, v, by) simt::lanes(mask, v, by, simt::down, SIMT_HERE("__shfl_down_sync"))
#define __shfl_xor_sync(mask, v, by) simt::lanes(mask, v, by, simt::across, SIMT_HERE("__shfl_xor_sync"))
#define __shfl_sync(mask, v, from) simt::lanes(mask, v, from, simt::from, SIMT_HERE("__shfl_sync"))

namespace simt {
// A lane that is asked for and absent brings poison; beyond the warp a lane keeps its own value, as the hardware does.
inline void nothing(const uint64_t *, uint64_t *, const unsigned *) {}
inline void down(const uint64_t *in, uint64_t *out, const unsigned *by) {
  for (unsigned l = 0; l < 32; l++) out[l] = in[l + by[l] < 32 ? l + by[l] : l];
}
inline void across(const uint64_t *in, uint64_t *out, const unsigned *by) {
  for (unsigned l = 0; l < 32; l++) out[l] = in[(l ^ by[l]) & 31];
}
inline void from(const uint64_t *in, uint64_t *out, const unsigned *lane) {
  for (unsigned l = 0; l < 32; l++) out[l] = in[lane[l] & 31];
}
template <class T> T lanes(unsigned mask, T value, unsigned arg, Collective f, const char *where) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  word = simt_runtime->warp(mask, word, arg, f, where);
  std::memcpy(&value, &word, sizeof(T));
  return value;
}
}  // namespace simt

inline float __uint_as_float(unsigned u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline unsigned __float_as_uint(float f) {
  unsigned u;
  std::memcpy(&u, &f, 4);
  return u;
}
