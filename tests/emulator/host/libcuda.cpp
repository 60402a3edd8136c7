// A stand-in for NVIDIA's driver: the functions that the runtime calls, on host memory. Work runs when it is queued, in the
// calling thread, one launch at a time; a fault stays until `emulator_clear`, as in a context of the real driver.
#include "memory.hpp"
#include "scheduler.hpp"
#include <chrono>
#include <csetjmp>
#include <csignal>
#include <dlfcn.h>
#include <elf.h>
#include <memory>
#include <mutex>
#include <unistd.h>
#define API extern "C" __attribute__((visibility("default"))) int

enum Code {
  OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
  NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719
};

namespace {
std::recursive_mutex device;
Memory memory;
simt::Scheduler scheduler;
int fault = OK;
std::string fault_text;
bool initialized = false;
thread_local bool current = false;
thread_local struct { simt::Order order = simt::Order::Forward; bool lazy = false, hostile = false; } mode;
int context_of_the_device, stream_of_the_device, pool_of_the_device;

struct Module {
  void *library;
  simt::Runtime **runtime;
  const simt::Entry *entries;
  unsigned count;
  unsigned char *shared, *shared_end;
};
struct Function {
  const Module *module;
  const simt::Entry *entry;
  unsigned most_dynamic = 48 << 10;  // more must be asked for
};
constexpr unsigned MOST_DYNAMIC = 227 << 10;
struct Event {
  std::chrono::steady_clock::time_point at;
  bool recorded = false;
};

int fail(int code, const std::string &text) {
  fault = code, fault_text = text;
  fprintf(stderr, "emulated device: %s\n", text.c_str());
  return code;
}

sigjmp_buf escape;
volatile uint64_t touched;
thread_local bool in_kernel = false;
struct sigaction before[2];

void on_fault(int signal, siginfo_t *info, void *) {
  if (in_kernel) {
    touched = reinterpret_cast<uint64_t>(info->si_addr);
    siglongjmp(escape, 1);
  }
  sigaction(signal, &before[signal == SIGBUS], nullptr);  // not a kernel's: the access is repeated and meets its old handler
}

void watch() {
  struct sigaction mine {};
  mine.sa_sigaction = on_fault, mine.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigaction(SIGSEGV, &mine, &before[0]), sigaction(SIGBUS, &mine, &before[1]);
}
void unwatch() { sigaction(SIGSEGV, &before[0], nullptr), sigaction(SIGBUS, &before[1], nullptr); }

// Dynamic shared memory of `bytes`: poison, and behind its last page nothing.
void share(unsigned bytes) {
  static char *all = static_cast<char *>(mmap(nullptr, 256 << 10, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  static unsigned open = 0;
  unsigned wanted = (bytes + 4095) / 4096 * 4096;
  if (wanted != open) {
    mprotect(all, 256 << 10, PROT_NONE);
    mprotect(all, wanted, PROT_READ | PROT_WRITE);
    open = wanted;
  }
  memset(all, 0xff, wanted);
  simt::Runtime &r = scheduler.runtime;
  r.dynamic_shared = reinterpret_cast<unsigned char *>(all), r.dynamic_end = r.dynamic_shared + bytes;
}

// Whether the rest of the last page of dynamic shared memory is still poison.
bool shared_within() {
  unsigned char *end = scheduler.runtime.dynamic_end;
  for (; reinterpret_cast<uintptr_t>(end) % 4096; end++) if (*end != 0xff) return false;
  return true;
}

// One block; whatever its threads touch that is nobody's memory ends it.
int run(const Function &f, void **args, simt::Index block, unsigned shared) {
  simt::Runtime &r = scheduler.runtime;
  r.static_shared = f.module->shared, r.static_end = f.module->shared_end;
  memset(r.static_shared, 0xff, r.static_end - r.static_shared);
  share(shared);
  if (sigsetjmp(escape, 1)) {
    in_kernel = false;
    return fail(ILLEGAL_ADDRESS, "illegal address near" + memory.near(touched) + scheduler.place());
  }
  in_kernel = true;
  std::string error = scheduler.run(*f.entry, args, block, mode.order);
  in_kernel = false;
  if (error.empty() && !shared_within()) error = "write beyond " + std::to_string(shared) + " bytes of dynamic shared memory" + scheduler.place();
  return error.empty() ? OK : fail(LAUNCH_FAILED, error);
}

// All blocks of a grid, from the first or from the last.
void run(const Function &f, void **args, simt::Index grid, unsigned threads, unsigned shared) {
  simt::Runtime &r = scheduler.runtime;
  r.lazy = mode.lazy, r.hostile = mode.hostile;
  *f.module->runtime = &r;
  r.grid = grid, r.block_size = {threads, 1, 1};
  uint64_t n = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t i = 0; i < n; i++) {
    uint64_t b = mode.order == simt::Order::Forward ? i : n - 1 - i;
    if (run(f, args, {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)}, shared)) return;
  }
  std::string error = memory.overrun();
  if (!error.empty()) fail(LAUNCH_FAILED, error + " [" + f.entry->name + "]");
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
  case 16: *v = 4; break;    // multiprocessors
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
API cuGetErrorString(int code, const char **text) {
  std::lock_guard<std::recursive_mutex> one(device);
  *text = code == fault && code != OK ? fault_text.c_str() : "an error of the emulated driver";
  return OK;
}

// ---- memory
API cuMemGetInfo_v2(size_t *free, size_t *total) { DEVICE *total = Memory::TOTAL, *free = Memory::TOTAL - memory.used; return OK; }
API cuMemAllocAsync(uint64_t *p, size_t n, void *) { DEVICE if (!n) return INVALID_VALUE; *p = memory.take(n); return *p ? OK : OUT_OF_MEMORY; }
API cuMemFreeAsync(uint64_t p, void *) { DEVICE return memory.give(p) ? OK : INVALID_VALUE; }
API cuMemcpyHtoDAsync_v2(uint64_t d, const void *s, size_t n, void *) {
  DEVICE
  if (!memory.covers(d, n)) return INVALID_VALUE;
  memcpy(reinterpret_cast<void *>(d), s, n);
  return OK;
}
API cuMemcpyDtoHAsync_v2(void *d, uint64_t s, size_t n, void *) {
  DEVICE
  if (!memory.covers(s, n)) return INVALID_VALUE;
  memcpy(d, reinterpret_cast<void *>(s), n);
  return OK;
}
API cuMemcpyDtoDAsync_v2(uint64_t d, uint64_t s, size_t n, void *) {
  DEVICE
  if (!memory.covers(s, n) || !memory.covers(d, n)) return INVALID_VALUE;
  memmove(reinterpret_cast<void *>(d), reinterpret_cast<void *>(s), n);
  return OK;
}
API cuMemsetD8Async(uint64_t d, unsigned char v, size_t n, void *) {
  DEVICE
  if (!memory.covers(d, n)) return INVALID_VALUE;
  memset(reinterpret_cast<void *>(d), v, n);
  return OK;
}

// ---- the stream and events
API cuStreamCreate(void **s, unsigned) { DEVICE *s = &stream_of_the_device; return OK; }
API cuStreamDestroy_v2(void *) { return OK; }
API cuStreamQuery(void *) { DEVICE return OK; }
API cuStreamWaitEvent(void *, void *e, unsigned) { DEVICE return e ? OK : INVALID_VALUE; }
API cuEventCreate(void **e, unsigned) { DEVICE *e = new Event; return OK; }
API cuEventDestroy_v2(void *e) { delete static_cast<Event *>(e); return OK; }
API cuEventRecord(void *e, void *) { DEVICE *static_cast<Event *>(e) = {std::chrono::steady_clock::now(), true}; return OK; }
API cuEventElapsedTime_v2(float *ms, void *a, void *b) {
  DEVICE
  auto &x = *static_cast<Event *>(a), &y = *static_cast<Event *>(b);
  if (!x.recorded || !y.recorded) return INVALID_VALUE;
  *ms = std::chrono::duration<float, std::milli>(y.at - x.at).count();
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
  if (which != 8 || value < 0 || unsigned(value) > MOST_DYNAMIC) return INVALID_VALUE;
  static_cast<Function *>(f)->most_dynamic = value;
  return OK;
}
API cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *,
                   void **args, void **) {
  DEVICE
  if (!gx || !gy || !gz || !bx || by != 1 || bz != 1 || bx > 1024 || gy > 65535 || gz > 65535) return INVALID_VALUE;
  if (shared > static_cast<Function *>(f)->most_dynamic) return INVALID_VALUE;
  watch();
  run(*static_cast<Function *>(f), args, {gx, gy, gz}, bx, shared);  // as on a device: what goes wrong in it shows at the next call
  unwatch();
  return OK;
}

// ---- for the other stand-ins: which memory there is, how tensor cores add, and work of theirs in a queue
API emulator_covers(uint64_t p, size_t n) {
  std::lock_guard<std::recursive_mutex> one(device);
  return memory.covers(p, n);
}
API emulator_is_hostile(int) { return mode.hostile; }
API emulator_enqueue(void *, void (*work)(void *), void *of) { DEVICE return work(of), OK; }

// ---- for tests
API emulator_order(int which) { mode.order = simt::Order(which); return OK; }
API emulator_lazy(int on) { mode.lazy = on; return OK; }
API emulator_hostile(int on) { mode.hostile = on; return OK; }
API emulator_clear() {
  std::lock_guard<std::recursive_mutex> one(device);
  fault = OK;
  return OK;
}
