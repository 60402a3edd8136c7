// Launches of the stand-in: a module's entry points, the modes they run in, one grid at a time.
#pragma once
#include "memory.hpp"
#include "scheduler.hpp"
#include <csetjmp>
#include <csignal>
#include <memory>

struct Mode {
  simt::Order order = simt::Order::Forward;
  bool lazy = false, hostile = false, lazy_queues = false;
};

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
  static constexpr unsigned MOST_DYNAMIC = 227 << 10;
};

// A launch with arguments of its own, each aligned for anything.
struct Launch {
  Function function;
  simt::Index grid;
  unsigned threads, shared;
  Mode mode;
  struct alignas(64) Unit {
    unsigned char bytes[64];
  };
  std::vector<std::vector<Unit>> args;

  Launch(const Function &f, simt::Index grid, unsigned threads, unsigned shared, const Mode &mode, void **from)
      : function(f), grid(grid), threads(threads), shared(shared), mode(mode) {
    for (unsigned i = 0; i < f.entry->count; i++) {
      args.emplace_back((f.entry->sizes[i] + sizeof(Unit) - 1) / sizeof(Unit));
      memcpy(args.back().data(), from[i], f.entry->sizes[i]);
    }
  }
};

class Launcher {
public:
  explicit Launcher(Memory &memory) : memory(memory) {}

  // Runs it; what went wrong, or nothing. `illegal` says that it was an address.
  std::string run(Launch &l, bool &illegal) {
    simt::Runtime &r = scheduler.runtime;
    r.lazy = l.mode.lazy, r.hostile = l.mode.hostile;
    *l.function.module->runtime = &r;
    r.grid = l.grid, r.block_size = {l.threads, 1, 1};
    std::vector<void *> args;
    for (auto &arg : l.args) args.push_back(arg.data());
    uint64_t n = uint64_t{l.grid.x} * l.grid.y * l.grid.z;
    watch();
    std::string error;
    for (uint64_t i = 0; i < n && error.empty(); i++) {
      uint64_t b = l.mode.order == simt::Order::Forward ? i : n - 1 - i;
      simt::Index block = {unsigned(b % l.grid.x), unsigned(b / l.grid.x % l.grid.y), unsigned(b / l.grid.x / l.grid.y)};
      error = run(l, args.data(), block, illegal);
    }
    unwatch();
    if (error.empty() && !(error = memory.overrun()).empty()) error += " [" + std::string(l.function.entry->name) + "]";
    return error;
  }

private:
  Memory &memory;
  simt::Scheduler scheduler;
  static inline sigjmp_buf escape;
  static inline volatile uint64_t touched;
  static inline thread_local bool in_kernel = false;
  static inline struct sigaction before[2];

  static void on_fault(int signal, siginfo_t *info, void *) {
    if (in_kernel) {
      touched = reinterpret_cast<uint64_t>(info->si_addr);
      siglongjmp(escape, 1);
    }
    sigaction(signal, &before[signal == SIGBUS], nullptr);  // not a kernel's: the access is repeated and meets its old handler
  }
  static void watch() {
    struct sigaction mine {};
    mine.sa_sigaction = on_fault, mine.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaction(SIGSEGV, &mine, &before[0]), sigaction(SIGBUS, &mine, &before[1]);
  }
  static void unwatch() { sigaction(SIGSEGV, &before[0], nullptr), sigaction(SIGBUS, &before[1], nullptr); }

  // One block; whatever its threads touch that is nobody's memory ends it.
  std::string run(Launch &l, void **args, simt::Index block, bool &illegal) {
    simt::Runtime &r = scheduler.runtime;
    const Module &m = *l.function.module;
    r.static_shared = m.shared, r.static_end = m.shared_end;
    memset(m.shared, 0xff, m.shared_end - m.shared);
    share(l.shared);
    if (sigsetjmp(escape, 1)) {
      in_kernel = false, illegal = true;
      return "illegal address near" + memory.near(touched) + scheduler.place();
    }
    in_kernel = true;
    std::string error = scheduler.run(*l.function.entry, args, block, l.mode.order);
    in_kernel = false;
    if (error.empty() && !shared_within()) error = "write beyond " + std::to_string(l.shared) + " bytes of dynamic shared memory" + scheduler.place();
    return error;
  }

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
  bool shared_within() const {
    unsigned char *end = scheduler.runtime.dynamic_end;
    for (; reinterpret_cast<uintptr_t>(end) % 4096; end++) if (*end != 0xff) return false;
    return true;
  }
};
