// A stand-in for NVIDIA's driver: the functions that the runtime calls, on host memory. Work runs in the thread that queues it or
// waits for it, one launch at a time; a fault stays until `emulator_clear`, as in a context of the real driver.
#include "launch.hpp"
#include "queue.hpp"
#include <dlfcn.h>
#include <elf.h>
#include <mutex>
#include <set>
#include <unistd.h>
#define API extern "C" __attribute__((visibility("default"))) int

enum Code {
  OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
  NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
  CAPTURE_ISOLATION = 905, COOPERATIVE_LAUNCH_TOO_LARGE = 720, INVALID_CLUSTER_SIZE = 912
};
constexpr unsigned MULTIPROCESSORS = 4;

namespace {
std::recursive_mutex device;
Memory memory;
Launcher launcher(memory);
int fault = OK;
std::string fault_text;
bool initialized = false;
thread_local bool current = false;
thread_local Mode mode;
int context_of_the_device, pool_of_the_device;
std::set<Queue *> queues;
std::map<char *, size_t> pinned;

int fail(int code, const std::string &text) {
  fault = code, fault_text = text;
  fprintf(stderr, "emulated device: %s\n", text.c_str());
  return code;
}

Queue &queue(void *q) { return *static_cast<Queue *>(q); }
Event &event(void *e) { return *static_cast<Event *>(e); }
char *bytes(uint64_t p) { return reinterpret_cast<char *>(p); }

// After a fault nothing that was queued happens.
void put(void *q, Work work) {
  queue(q).put([work = std::move(work)] { if (!fault) work(); }, mode.lazy_queues);
}
void drain() { for (Queue *q : queues) q->drain(); }

// Waits and allocations break a capture.
int refuse(Queue &q) { return q.broken = true, CAPTURE_UNSUPPORTED; }

bool is_pinned(const void *p, size_t n) {
  auto above = pinned.upper_bound(static_cast<char *>(const_cast<void *>(p)));
  if (above == pinned.begin()) return false;
  auto &[start, length] = *--above;
  return static_cast<const char *>(p) + n <= start + length;
}
}  // namespace

#define DEVICE                                     \
  std::lock_guard<std::recursive_mutex> one(device); \
  if (fault) return fault;                         \
  if (!current) return INVALID_CONTEXT;

// ---- the device
API cuInit(unsigned) { initialized = true; return OK; }
API cuDriverGetVersion(int *v) { *v = 13000; return OK; }
API cuDeviceGetCount(int *n) { *n = 1; return initialized ? OK : NOT_INITIALIZED; }
API cuDeviceGet(int *d, int i) { *d = 0; return i == 0 ? OK : INVALID_DEVICE; }
API cuDeviceGetName(char *name, int len, int) { snprintf(name, len, "host (emulated)"); return OK; }
API cuDeviceTotalMem_v2(size_t *bytes, int) { *bytes = Memory::TOTAL; return OK; }
API cuDeviceGetAttribute(int *v, int which, int) {
  switch (which) {
  case 16: *v = MULTIPROCESSORS; break;
  case 75: *v = 9; break;    // compute capability
  case 76: *v = 0; break;
  case 115: *v = 1; break;   // memory pools
  default: return INVALID_VALUE;
  }
  return OK;
}
API cuDeviceGetDefaultMemPool(void **p, int) { *p = &pool_of_the_device; return OK; }
API cuMemPoolSetAttribute(void *, int, void *) { return OK; }
API cuDevicePrimaryCtxRetain(void **c, int) { *c = &context_of_the_device; return OK; }
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxSetCurrent(void *c) { current = c == &context_of_the_device; return OK; }
API cuCtxSynchronize() { DEVICE drain(); return fault; }
API cuGetErrorString(int code, const char **text) {
  std::lock_guard<std::recursive_mutex> one(device);
  *text = code == fault && code != OK ? fault_text.c_str() : "an error of the emulated driver";
  return OK;
}

// ---- memory
API cuMemGetInfo_v2(size_t *free, size_t *total) { DEVICE *total = Memory::TOTAL, *free = Memory::TOTAL - memory.used; return OK; }
API cuMemAllocAsync(uint64_t *p, size_t n, void *q) {
  DEVICE
  if (queue(q).capture) return refuse(queue(q));
  if (!n) return INVALID_VALUE;
  if (!(*p = memory.take(n))) drain(), *p = memory.take(n);
  return *p ? OK : OUT_OF_MEMORY;
}
API cuMemFreeAsync(uint64_t p, void *q) {
  DEVICE
  if (!memory.covers(p, 1)) return INVALID_VALUE;
  put(q, [=] { memory.give(p); });
  return OK;
}
API cuMemHostAlloc(void **p, size_t n, unsigned) {
  DEVICE
  *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096);
  if (!*p) return OUT_OF_MEMORY;
  memset(*p, 0xff, n);
  pinned[static_cast<char *>(*p)] = n;
  return OK;
}
API cuMemFreeHost(void *p) {
  std::lock_guard<std::recursive_mutex> one(device);
  drain();
  if (!pinned.erase(static_cast<char *>(p))) return INVALID_VALUE;
  free(p);
  return OK;
}
// The driver has read pageable memory when it returns; pinned memory it reads when the queue comes to it.
API cuMemcpyHtoDAsync_v2(uint64_t d, const void *s, size_t n, void *q) {
  DEVICE
  if (!memory.covers(d, n)) return INVALID_VALUE;
  if (is_pinned(s, n)) return put(q, [=] { memcpy(bytes(d), s, n); }), OK;
  if (queue(q).capture) return refuse(queue(q));
  auto *from = static_cast<const char *>(s);
  put(q, [d, kept = std::string(from, n)] { memcpy(bytes(d), kept.data(), kept.size()); });
  return OK;
}
// A copy to pageable memory is complete when the call returns.
API cuMemcpyDtoHAsync_v2(void *d, uint64_t s, size_t n, void *q) {
  DEVICE
  if (!memory.covers(s, n)) return INVALID_VALUE;
  bool later = is_pinned(d, n);
  if (!later && queue(q).capture) return refuse(queue(q));
  put(q, [=] { memcpy(d, bytes(s), n); });
  if (!later) queue(q).drain();
  return fault;
}
API cuMemcpyDtoDAsync_v2(uint64_t d, uint64_t s, size_t n, void *q) {
  DEVICE
  if (!memory.covers(s, n) || !memory.covers(d, n)) return INVALID_VALUE;
  put(q, [=] { memmove(bytes(d), bytes(s), n); });
  return OK;
}
API cuMemsetD8Async(uint64_t d, unsigned char v, size_t n, void *q) {
  DEVICE
  if (!memory.covers(d, n)) return INVALID_VALUE;
  put(q, [=] { memset(bytes(d), v, n); });
  return OK;
}

// ---- streams and events
API cuStreamCreate(void **s, unsigned) { DEVICE auto *q = new Queue; queues.insert(q); *s = q; return OK; }
API cuStreamDestroy_v2(void *q) {
  std::lock_guard<std::recursive_mutex> one(device);
  queue(q).drain();
  queues.erase(static_cast<Queue *>(q));
  return delete static_cast<Queue *>(q), OK;
}
API cuStreamQuery(void *q) {
  DEVICE
  if (queue(q).capture) return refuse(queue(q));
  queue(q).drain();
  return fault;
}
API cuStreamWaitEvent(void *q, void *e, unsigned) {
  DEVICE
  Event moment = event(e);
  if (!moment) return OK;  // never recorded
  if (bool(queue(q).capture) != moment->captured) return queue(q).broken = true, CAPTURE_ISOLATION;
  put(q, [=] { moment->reach(); });
  return OK;
}
API cuEventCreate(void **e, unsigned) { DEVICE *e = new Event; return OK; }
API cuEventDestroy_v2(void *e) { delete static_cast<Event *>(e); return OK; }
API cuEventRecord(void *e, void *q) {
  DEVICE
  auto moment = event(e) = std::make_shared<Moment>(Moment{&queue(q), bool(queue(q).capture)});
  queue(q).put([=] { moment->at = std::chrono::steady_clock::now(), moment->past = true; }, mode.lazy_queues);
  return OK;
}
API cuEventQuery(void *e) {
  DEVICE
  Event moment = event(e);
  if (!moment) return OK;
  if (moment->captured) return CAPTURE_UNSUPPORTED;
  moment->reach();
  return fault ? fault : moment->past ? OK : NOT_READY;
}
API cuEventElapsedTime_v2(float *ms, void *a, void *b) {
  DEVICE
  Event x = event(a), y = event(b);
  if (!x || !y) return INVALID_VALUE;
  if (!x->past || !y->past) return NOT_READY;
  *ms = std::chrono::duration<float, std::milli>(y->at - x->at).count();
  return OK;
}

// ---- graphs
API cuStreamBeginCapture_v2(void *q, int) {
  DEVICE
  if (queue(q).capture) return INVALID_VALUE;
  queue(q).capture = std::make_unique<Graph>(), queue(q).broken = false;
  return OK;
}
API cuStreamEndCapture(void *q, void **out) {
  std::lock_guard<std::recursive_mutex> one(device);
  if (!queue(q).capture) return INVALID_VALUE;
  Graph *graph = queue(q).capture.release();
  *out = nullptr;
  if (queue(q).broken || fault) return delete graph, fault ? fault : CAPTURE_INVALIDATED;
  return *out = graph, OK;
}
API cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long) { DEVICE *out = new Graph(*static_cast<Graph *>(graph)); return OK; }
API cuGraphDestroy(void *graph) { delete static_cast<Graph *>(graph); return OK; }
API cuGraphExecDestroy(void *graph) { delete static_cast<Graph *>(graph); return OK; }
API cuGraphLaunch(void *graph, void *q) {
  DEVICE
  for (const Work &work : static_cast<Graph *>(graph)->work) put(q, work);
  return OK;
}

// ---- modules: the image is a shared object of the host, loaded from memory
API cuModuleLoadData(void **out, const void *image) {
  DEVICE
  auto *head = static_cast<const Elf64_Ehdr *>(image);
  if (memcmp(head->e_ident, ELFMAG, SELFMAG) || head->e_type != ET_DYN) return INVALID_IMAGE;
  size_t length = head->e_shoff + size_t{head->e_shentsize} * head->e_shnum;
  int file = memfd_create("kernels", MFD_CLOEXEC);  // stays open: the loader knows objects by name, and the number is the name
  if (write(file, image, length) != ssize_t(length)) return INVALID_IMAGE;
  void *library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return fprintf(stderr, "emulated device: %s\n", dlerror()), INVALID_IMAGE;
  auto describe = reinterpret_cast<void (*)(Module *)>(dlsym(library, "simt_module"));
  if (!describe) return INVALID_IMAGE;
  auto *module = new Module{library, nullptr, nullptr, 0, nullptr, nullptr};
  describe(module);
  *out = module;
  return OK;
}
API cuModuleGetFunction(void **out, void *m, const char *name) {
  DEVICE
  auto *module = static_cast<Module *>(m);
  for (unsigned i = 0; i < module->count; i++)
    if (!strcmp(module->entries[i].name, name)) return *out = new Function{module, &module->entries[i]}, OK;
  return NOT_FOUND;
}
API cuModuleUnload(void *) { return OK; }
API cuFuncGetParamInfo(void *f, size_t i, size_t *offset, size_t *size) {
  auto *entry = static_cast<Function *>(f)->entry;
  if (i >= entry->count) return INVALID_VALUE;
  *offset = 0, *size = entry->sizes[i];
  return OK;
}
API cuFuncSetAttribute(void *f, int which, int value) {
  DEVICE
  if (which != 8 || value < 0 || unsigned(value) > Function::MOST_DYNAMIC) return INVALID_VALUE;
  static_cast<Function *>(f)->most_dynamic = value;
  return OK;
}
// What a launch is given: 1 to 8 blocks of a cluster along x, and whether all blocks must be resident at once.
struct Attribute {
  int id;
  char pad[4];
  union {
    unsigned words[16];
    int cooperative;
  };
};
struct Config {
  unsigned grid[3], block[3], shared;
  void *queue;
  Attribute *attributes;
  unsigned count;
};

// As on a device: what goes wrong in a kernel shows at the next call. Blocks run one after another here, those of a cluster too, so a
// kernel whose blocks wait for each other is a deadlock; clusters and cooperative launches are held to the driver's rules only.
API cuLaunchKernelEx(const Config *config, void *f, void **args, void **) {
  DEVICE
  auto [gx, gy, gz] = config->grid;
  auto [bx, by, bz] = config->block;
  if (!gx || !gy || !gz || !bx || by != 1 || bz != 1 || bx > 1024 || gy > 65535 || gz > 65535) return INVALID_VALUE;
  auto &function = *static_cast<Function *>(f);
  if (config->shared > function.most_dynamic) return INVALID_VALUE;
  for (unsigned i = 0; i < config->count; i++) {
    const Attribute &a = config->attributes[i];
    if (a.id == 4) {  // CLUSTER_DIMENSION
      if (!a.words[0] || a.words[0] > 8 || a.words[1] != 1 || a.words[2] != 1 || gx % a.words[0]) return INVALID_CLUSTER_SIZE;
    } else if (a.id == 2) {  // COOPERATIVE
      uint64_t resident = uint64_t{MULTIPROCESSORS} * (2048 / ((bx + 31) / 32 * 32));
      if (a.cooperative && uint64_t{gx} * gy * gz > resident) return COOPERATIVE_LAUNCH_TOO_LARGE;
    } else return INVALID_VALUE;
  }
  auto launch = std::make_shared<Launch>(function, simt::Index{gx, gy, gz}, bx, config->shared, mode, args);
  put(config->queue, [=] {
    bool illegal = false;
    std::string error = launcher.run(*launch, illegal);
    if (!error.empty()) fail(illegal ? ILLEGAL_ADDRESS : LAUNCH_FAILED, error);
  });
  return OK;
}

// The rules of the manual for tiled maps of two or three dimensions without interleaving.
API cuTensorMapEncodeTiled(void *out, int dtype, unsigned rank, void *base, const uint64_t *extents, const uint64_t *strides,
                           const unsigned *box, const unsigned *steps, int interleave, int swizzle, int, int) {
  static const unsigned sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
  if (dtype < 0 || dtype > 9 || rank < 2 || rank > 3 || interleave || (swizzle && swizzle != 3)) return INVALID_VALUE;
  simt::Tensor t{simt::Tensor::MADE_HERE, rank, sizes[dtype], swizzle == 3, reinterpret_cast<uint64_t>(base), {1, 1, 1}, {0, 0}, {1, 1, 1}};
  if (t.base % 16 || box[0] * t.element % 16 || (t.swizzled && box[0] * t.element > 128)) return INVALID_VALUE;
  for (unsigned i = 0; i < rank; i++) {
    if (!extents[i] || extents[i] > 1ull << 32 || !box[i] || box[i] > 256 || steps[i] != 1) return INVALID_VALUE;
    t.extent[i] = extents[i], t.box[i] = box[i];
    if (i + 1 < rank && (strides[i] % 16 || strides[i] >= 1ull << 40)) return INVALID_VALUE;
    if (i + 1 < rank) t.stride[i] = strides[i];
  }
  memset(out, 0, 128);
  memcpy(out, &t, sizeof t);
  return OK;
}

// ---- for the other stand-ins: which memory there is, how tensor cores add, and work of theirs in a queue
API emulator_covers(uint64_t p, size_t n) {
  std::lock_guard<std::recursive_mutex> one(device);
  return memory.covers(p, n);
}
API emulator_is_hostile(int) { return mode.hostile; }
API emulator_enqueue(void *q, void (*work)(void *), void *of, void (*release)(void *)) {
  std::shared_ptr<void> held(of, release);
  DEVICE
  put(q, [=] { work(held.get()); });
  return OK;
}

// ---- for tests
API emulator_order(int which) { mode.order = simt::Order(which); return OK; }
API emulator_lazy(int on) { mode.lazy = on; return OK; }
API emulator_hostile(int on) { mode.hostile = on; return OK; }
API emulator_lazy_queues(int on) { mode.lazy_queues = on; return OK; }
API emulator_clear() {
  std::lock_guard<std::recursive_mutex> one(device);
  drain();
  fault = OK;
  return OK;
}
// libcuda.cpp has the twins' types, which ask for a running block; here none runs.
simt::Runtime *simt_runtime;
