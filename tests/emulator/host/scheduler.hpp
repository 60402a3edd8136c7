// One block at a time: a fiber per thread, warp and block rendezvous, three orders of running, a report instead of a hang.
#pragma once
#include "fiber.hpp"
#include "simt.hpp"
#include <deque>
#include <string>
#include <vector>

namespace simt {
enum class Order { Forward, Reverse, Shuffle };

class Scheduler {
public:
  Runtime runtime{};

  Scheduler() {
    threads.reserve(1024);  // of a block at most; fibers never move
    runtime.barrier = [](unsigned number, unsigned count, bool vote, const Place &at) { return self->barrier(number, count, vote, at); };
    runtime.warp = [](unsigned mask, void *operands, Collective f, const Place &at) { self->collective(mask, operands, f, at); };
    runtime.issue = [](Later kind, std::function<void()> work) { self->issue(kind, std::move(work)); };
    runtime.commit = [](Later kind) { self->current->groups[kind].emplace_back(std::move(self->current->open[kind])); };
    runtime.wait = [](Later kind, unsigned keep) { self->wait(kind, keep); };
    runtime.bulk = [](void *barrier, std::function<void()> work) { self->bulk(barrier, std::move(work)); };
    runtime.land = [](void *barrier) { self->land(barrier); };
    runtime.spin = [](const Place &at) { self->spin(at); };
    runtime.moved = [] { self->idle = 0; };
    runtime.release = sanitizers::release;
    runtime.acquire = sanitizers::acquire;
    runtime.fail = [](const char *why, const Place &at) { self->fail(text(at) + ": " + why); };
  }

  // Runs a block; the empty string, or what went wrong in it.
  std::string run(const Entry &entry, void **args, Index block, Order order) {
    self = this;
    this->entry = &entry, this->args = args, this->order = order;
    runtime.block = block;
    unsigned n = runtime.block_size.x;
    while (threads.size() < n) threads.emplace_back();
    count = live = n, runnable = idle = 0, error.clear(), spinning.clear(), flying.clear();
    warps.assign((n + 31) / 32, Warp{});
    for (Barrier &b : barriers) b = Barrier{};
    for (unsigned i = 0; i < n; i++) start(i);
    sanitizers::release(&live);
    enter(*pick());
    home.leave_for(current->fiber);
    sanitizers::acquire(&home);
    if (error.empty() && !flying.empty()) error = "the block ends before a tensor copy that it started";
    return error.empty() ? error : error + place();
  }

  // Where the running thread is, for messages.
  std::string place() const {
    return " [" + std::string(entry->name) + " block " + std::to_string(runtime.block.x) + " thread " + std::to_string(runtime.thread.x) + "]";
  }

private:
  using Group = std::vector<std::function<void()>>;
  struct Thread {
    Fiber fiber;
    unsigned index;
    bool done;
    Place where;
    bool fenced;
    Group open[LATER];
    std::deque<Group> groups[LATER];
  };
  struct Warp {
    unsigned ready = 0, arrived = 0;
    Collective f = nullptr;
    Place where{};
    void *operands[32] = {};
  };
  struct Barrier {
    unsigned wanted = 0;
    bool vote = false, answer = false;
    unsigned arrived = 0, lanes[32] = {};  // how many, and which of each warp
  };
  static inline Scheduler *self = nullptr;

  const Entry *entry = nullptr;
  void **args = nullptr;
  Order order = Order::Forward;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[16];
  unsigned count = 0, live = 0, runnable = 0;  // bit w of runnable: warp w has a lane that is ready
  unsigned idle = 0;                           // vain looks since anything moved
  std::deque<Thread *> spinning;
  std::deque<std::pair<void *, std::function<void()>>> flying;
  uint64_t random = 1;
  std::string error;
  Thread *current = nullptr;
  Fiber home;

  static std::string text(const Place &at) { return std::string(at.what) + " in " + at.file + ":" + std::to_string(at.line); }

  void start(unsigned i) {
    Thread &t = threads[i];
    t.index = i, t.where = {"its start", "", 0}, t.fenced = t.done = false;
    for (unsigned kind = 0; kind < LATER; kind++) t.open[kind].clear(), t.groups[kind].clear();
    t.fiber.prepare([] {
      Fiber::arrive();
      sanitizers::acquire(&self->live);
      self->entry->call(self->args);
      self->finish();
    });
    ready(i / 32, 1u << i % 32);
  }

  void finish() {
    sanitizers::release(&home);
    current->done = true, live--;
    next(true);
  }

  // These lanes of a warp may go on.
  void ready(unsigned warp, unsigned lanes) {
    if (lanes) warps[warp].ready |= lanes, runnable |= 1u << warp;
  }

  void enter(Thread &t) { current = &t, runtime.thread = {t.index, 0, 0}, runtime.fenced = &t.fenced; }

  // Any bit, or the lowest, or the highest.
  unsigned choose(unsigned bits) {
    if (order == Order::Forward) return __builtin_ctz(bits);
    if (order == Order::Reverse) return 31 - __builtin_clz(bits);
    random = random * 6364136223846793005u + 1442695040888963407u;
    for (unsigned skip = (random >> 33) % __builtin_popcount(bits); skip > 0; skip--) bits &= bits - 1;
    return __builtin_ctz(bits);
  }

  // Forward and reverse let the lowest or highest warp run as far as it can, lane by lane: as far apart as warps may drift.
  Thread *pick() {
    if (!runnable) return look_again();
    idle = 0;
    unsigned w = choose(runnable), lane = choose(warps[w].ready);
    if (!(warps[w].ready &= ~(1u << lane))) runnable &= ~(1u << w);
    return &threads[w * 32 + lane];
  }

  // Threads that spin run only when no other can, in turn; each gets several looks before it is a deadlock.
  Thread *look_again() {
    if (spinning.empty() || idle++ > 4 * count) return nullptr;
    Thread *t = spinning.front();
    spinning.pop_front();
    return t;
  }

  void spin(const Place &at) {
    spinning.push_back(current);
    park(at);
  }

  void bulk(void *barrier, std::function<void()> work) {
    if (runtime.lazy) flying.emplace_back(barrier, std::move(work));
    else work();
  }

  void land(void *barrier) {
    for (size_t i = 0; i < flying.size();) {
      if (flying[i].first != barrier) {
        i++;
        continue;
      }
      auto work = std::move(flying[i].second);
      flying.erase(flying.begin() + i);
      work();
    }
  }

  // Leaves the running thread for the next one, or for home if there is none.
  void next(bool forever = false) {
    Thread *from = current, *to = error.empty() ? pick() : nullptr;
    if (to == from) return enter(*to);
    if (to) return enter(*to), from->fiber.leave_for(to->fiber, forever);
    if (live > 0 && error.empty()) error = deadlock();
    from->fiber.leave_for(home, forever || !error.empty());
  }

  void park(const Place &at) {
    current->where = at;
    next();
  }

  void fail(const std::string &text) {
    error = text;
    next();
  }

  bool barrier(unsigned number, unsigned wanted, bool vote, const Place &at) {
    Barrier &b = barriers[number];
    if (b.arrived && b.wanted != wanted) fail(text(at) + ": other threads wait for another number of threads");
    b.wanted = wanted, b.vote |= vote;
    sanitizers::release(&b);
    b.lanes[current->index / 32] |= 1u << current->index % 32;
    if (++b.arrived < wanted) {
      park(at);
    } else {
      b.answer = b.vote, b.vote = false, b.arrived = 0;
      for (unsigned w = 0; w < warps.size(); w++) ready(w, std::exchange(b.lanes[w], 0));
      next();
    }
    sanitizers::acquire(&b);
    return b.answer;
  }

  void collective(unsigned mask, void *operands, Collective f, const Place &at) {
    unsigned lane = current->index % 32, base = current->index - lane;
    Warp &w = warps[base / 32];
    unsigned exist = count - base >= 32 ? ~0u : (1u << (count - base)) - 1;
    if (mask != ~0u) fail(text(at) + ": only whole warps are emulated");
    if (w.arrived && (w.f != f || w.where.line != at.line || (w.where.file != at.file && strcmp(w.where.file, at.file)))) fail(divergent(w, lane, at));
    w.f = f, w.where = at, w.operands[lane] = operands, w.arrived |= 1u << lane;
    sanitizers::release(&w);
    if (w.arrived != exist) return park(at), sanitizers::acquire(&w);
    w.arrived = 0;
    sanitizers::acquire(&w);
    f(w.operands);
    sanitizers::release(&w);
    ready(base / 32, exist & ~(1u << lane));
  }

  static std::string divergent(const Warp &w, unsigned lane, const Place &at) {
    char lanes[16];
    snprintf(lanes, sizeof lanes, "0x%08x", w.arrived);
    return "divergent warp collective: " + text(at) + " of lane " + std::to_string(lane) + " vs " + text(w.where) + " of lanes " + lanes;
  }

  void issue(Later kind, std::function<void()> work) {
    if (runtime.lazy) current->open[kind].push_back(std::move(work));
    else work();
  }

  void wait(Later kind, unsigned keep) {
    auto &groups = current->groups[kind];
    for (; groups.size() > keep; groups.pop_front())
      for (auto &work : groups.front()) work();
  }

  std::string deadlock() const {
    std::string all = "deadlock: ";
    unsigned shown = 0;
    for (unsigned i = 0; i < count; i++)
      if (!threads[i].done && shown++ < 3) all += "thread " + std::to_string(i) + " waits at " + text(threads[i].where) + "; ";
    return all + std::to_string(count - live) + " of " + std::to_string(count) + " threads are done";
  }
};
}  // namespace simt
