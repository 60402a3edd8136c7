// One block at a time: a fiber per thread, warp and block rendezvous, three orders of running, a report instead of a hang.
#pragma once
#include "simt.hpp"
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

namespace simt {
enum class Order { Forward, Reverse, Shuffle };

class Scheduler {
public:
  Runtime runtime{};

  Scheduler() {
    runtime.barrier = [](const char *where) { self->barrier(where); };
    runtime.warp = [](unsigned mask, uint64_t value, unsigned arg, Collective f, const char *where) {
      return self->collective(mask, value, arg, f, where);
    };
  }

  // Runs a block; the empty string, or what went wrong in it.
  std::string run(const Entry &entry, void **args, Index block, Order order) {
    self = this;
    this->entry = &entry, this->args = args, this->order = order;
    runtime.block = block;
    unsigned n = runtime.block_size.x;
    threads.resize(n);
    warps.assign((n + 31) / 32, Warp{});
    arrived = 0, live = n, error.clear();
    for (unsigned i = 0; i < n; i++) start(i);
    for (Thread *next; live > 0 && error.empty();) {
      if (!(next = pick())) {
        error = deadlock();
        break;
      }
      enter(*next);
      swapcontext(&home, &next->context);
    }
    return error.empty() ? error : error + place();
  }

  // Where the running thread is, for messages.
  std::string place() const {
    return " [" + std::string(entry->name) + " block " + std::to_string(runtime.block.x) + " thread " + std::to_string(runtime.thread.x) + "]";
  }

private:
  enum class State { Ready, Waiting, Done };
  struct Thread {
    ucontext_t context;
    char *stack = nullptr;
    unsigned index;
    State state;
    const char *where;
  };
  struct Warp {
    unsigned arrived = 0, arg[32];
    Collective f = nullptr;
    const char *where = nullptr;
    uint64_t in[32], out[32];
  };
  static constexpr size_t STACK = 64 << 10;
  static inline Scheduler *self = nullptr;

  const Entry *entry = nullptr;
  void **args = nullptr;
  Order order = Order::Forward;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned arrived = 0, live = 0;
  uint64_t random = 1;
  std::string error;
  Thread *current = nullptr;
  ucontext_t home;

  void start(unsigned i) {
    Thread &t = threads[i];
    if (!t.stack) t.stack = static_cast<char *>(mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    t.index = i, t.state = State::Ready, t.where = "its start";
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack, t.context.uc_stack.ss_size = STACK, t.context.uc_link = &home;
    makecontext(&t.context, [] {
      self->entry->call(self->args);
      self->current->state = State::Done, self->live--;
    }, 0);
  }

  void enter(Thread &t) { current = &t, runtime.thread = {t.index, 0, 0}; }

  // Forward and reverse let the lowest or highest warp run as far as it can, lane by lane: as far apart as warps may drift.
  Thread *pick() {
    unsigned n = threads.size(), from = 0;
    if (order == Order::Shuffle) random = random * 6364136223846793005u + 1442695040888963407u, from = (random >> 33) % n;
    for (unsigned i = 0; i < n; i++) {
      Thread &t = threads[order == Order::Reverse ? n - 1 - i : (from + i) % n];
      if (t.state == State::Ready) return &t;
    }
    return nullptr;
  }

  void park(const char *where) {
    Thread *me = current;
    me->state = State::Waiting, me->where = where;
    swapcontext(&me->context, &home);
  }

  void fail(const std::string &text) {
    error = text;
    swapcontext(&current->context, &home);
  }

  void barrier(const char *where) {
    if (++arrived < threads.size()) return park(where);
    arrived = 0;
    for (Thread &t : threads) if (t.state == State::Waiting) t.state = State::Ready;
  }

  uint64_t collective(unsigned mask, uint64_t value, unsigned arg, Collective f, const char *where) {
    unsigned lane = current->index % 32, base = current->index - lane;
    Warp &w = warps[base / 32];
    unsigned exist = threads.size() - base >= 32 ? ~0u : (1u << (threads.size() - base)) - 1;
    if (mask != ~0u) fail(std::string(where) + ": only whole warps are emulated");
    if (w.arrived && w.f != f) fail(std::string("divergent warp: ") + where + " meets " + w.where);
    if (!w.arrived) for (uint64_t &in : w.in) in = ~uint64_t{0};
    w.f = f, w.where = where, w.arrived |= 1u << lane, w.in[lane] = value, w.arg[lane] = arg;
    if (w.arrived != exist) {
      park(where);
      return w.out[lane];
    }
    for (unsigned l = 0; l < 32; l++) if (!(w.arrived >> l & 1)) w.arg[l] = 0;
    for (unsigned l = 0; l < 32; l++) w.out[l] = w.in[l];
    f(w.in, w.out, w.arg);
    for (unsigned l = 0; l < 32; l++) if ((w.arrived >> l & 1) && l != lane) threads[base + l].state = State::Ready;
    w.arrived = 0;
    return w.out[lane];
  }

  std::string deadlock() const {
    std::string text = "deadlock: ";
    unsigned shown = 0;
    for (const Thread &t : threads)
      if (t.state == State::Waiting && shown++ < 3) text += "thread " + std::to_string(t.index) + " waits at " + t.where + "; ";
    return text + std::to_string(threads.size() - live) + " of " + std::to_string(threads.size()) + " threads are done";
  }
};
}  // namespace simt
