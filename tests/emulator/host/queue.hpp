// Queues of the stand-in. In the eager mode work runs when it is queued; in the lazy mode when somebody waits for it, so that what
// was not waited for is not there. A queue that is being captured keeps its work for a graph.
#pragma once
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

using Work = std::function<void()>;

struct Graph {
  std::vector<Work> work;
};

struct Queue {
  std::deque<Work> pending;
  std::unique_ptr<Graph> capture;
  bool broken = false;  // the capture met what cannot be captured

  void put(Work work, bool lazy) {
    if (capture) return capture->work.push_back(std::move(work));
    pending.push_back(std::move(work));
    if (!lazy) drain();
  }
  void drain() { while (!pending.empty()) step(); }
  void step() {
    Work work = std::move(pending.front());
    pending.pop_front();
    work();
  }
};

// One recording of an event.
struct Moment {
  Queue *queue;
  bool captured, past = false;
  std::chrono::steady_clock::time_point at{};

  // Runs its queue until it is past.
  void reach() { while (!past && !queue->pending.empty()) queue->step(); }
};
using Event = std::shared_ptr<Moment>;
