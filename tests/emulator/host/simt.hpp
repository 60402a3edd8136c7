// What a .cu file meets when it is compiled for the host: CUDA's keywords, built-in variables and intrinsics, each handed to
// the scheduler of the process. A block's threads are fibers of one host thread; blocks run one after another.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

namespace simt {
struct Index {
  unsigned x, y, z;
};

// Where in a source a thread calls the device's machinery, and what it calls.
struct Place {
  const char *what, *file;
  unsigned line;
};

// Does the work of all lanes once the last of them has arrived: each lane brings its operands, inputs and outputs alike; those of
// lanes that do not exist are null.
using Collective = void (*)(void *const *operands);

// What is queued by a thread and completes later, by kind.
enum Later { Copies, Products, LATER };

// The scheduler's face. Built-in variables are those of the running thread.
struct Runtime {
  Index thread, block, block_size, grid;
  unsigned char *dynamic_shared, *dynamic_end, *static_shared, *static_end;
  // Whether what is asynchronous completes as late as its waits allow, and whether tensor cores add in the other order.
  bool lazy, hostile;
  bool *fenced;  // the running thread's: wgmma.fence came since its products were last waited for
  void (*barrier)(unsigned number, unsigned threads, const Place &);
  void (*warp)(unsigned mask, void *operands, Collective f, const Place &);
  void (*issue)(Later kind, std::function<void()> work);
  void (*commit)(Later kind);
  // Completes all groups but the newest `keep`.
  void (*wait)(Later kind, unsigned keep);
  // Work that a barrier in shared memory counts; land completes it.
  void (*bulk)(void *barrier, std::function<void()> work);
  void (*land)(void *barrier);
  // The thread looked in vain and looks again when no other can go on; moved says that somebody's looking may now end.
  void (*spin)(const Place &);
  void (*moved)();
  // For the race detector: what the one thread did before its release, the other knows after its acquire.
  void (*release)(void *of);
  void (*acquire)(void *of);
  void (*fail)(const char *why, const Place &);
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

#define SIMT 1
#define __global__
#define __device__ static inline
#define __host__
#define __forceinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// One block at a time runs a module, so shared memory is a section of it, poisoned before each block.
#define __shared__ static __attribute__((section("simt_shared")))

#define threadIdx (simt_runtime->thread)
#define blockIdx (simt_runtime->block)
#define blockDim (simt_runtime->block_size)
#define gridDim (simt_runtime->grid)

#define SIMT_HERE(what) simt::Place{what, __FILE__, __LINE__}
#define __syncthreads() simt_runtime->barrier(0, blockDim.x, SIMT_HERE("__syncthreads"))
#define __syncwarp(...) simt_runtime->warp(~0u, nullptr, simt::nothing, SIMT_HERE("__syncwarp"))
#define __shfl_down_sync(mask, v, by) simt::shuffle(mask, v, by, simt::from_below, SIMT_HERE("__shfl_down_sync"))
#define __shfl_xor_sync(mask, v, by) simt::shuffle(mask, v, by, simt::from_across, SIMT_HERE("__shfl_xor_sync"))
#define __shfl_sync(mask, v, lane) simt::shuffle(mask, v, lane, simt::from_lane, SIMT_HERE("__shfl_sync"))

namespace simt {
inline void nothing(void *const *) {}

struct Shuffle {
  uint64_t in, out;
  unsigned arg;
};
// A lane that is asked for and absent brings poison; beyond the warp a lane keeps its own value, as the hardware does.
template <class F> void shuffled(void *const *operands, F source) {
  for (unsigned l = 0; l < 32; l++) {
    auto *mine = static_cast<Shuffle *>(operands[l]);
    if (!mine) continue;
    auto *asked = static_cast<Shuffle *>(operands[source(l, mine->arg)]);
    mine->out = asked ? asked->in : ~uint64_t{0};
  }
}
inline void from_below(void *const *all) { shuffled(all, [](unsigned l, unsigned by) { return l + by < 32 ? l + by : l; }); }
inline void from_across(void *const *all) { shuffled(all, [](unsigned l, unsigned by) { return (l ^ by) & 31; }); }
inline void from_lane(void *const *all) { shuffled(all, [](unsigned, unsigned lane) { return lane & 31; }); }
template <class T> T shuffle(unsigned mask, T value, unsigned arg, Collective f, const Place &at) {
  static_assert(sizeof(T) <= 8);
  Shuffle s{0, 0, arg};
  std::memcpy(&s.in, &value, sizeof(T));
  simt_runtime->warp(mask, &s, f, at);
  std::memcpy(&value, &s.out, sizeof(T));
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

struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#include "twins.hpp"
#include "hopper.hpp"
