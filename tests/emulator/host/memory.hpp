// Device memory of the stand-in: every allocation lies between pages that nobody may touch, holds poison at first, and the
// bytes between its end and the page's end are watched.
#pragma once
#include "sanitizers.hpp"
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <sys/mman.h>

class Memory {
public:
  static constexpr size_t TOTAL = size_t{4} << 30;
  size_t used = 0;

  // 0 if there is no room.
  uint64_t take(size_t bytes) {
    if (bytes > TOTAL - used) return 0;
    size_t body = (bytes + PAGE - 1) / PAGE * PAGE;
    void *map = mmap(nullptr, body + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return 0;
    char *first = static_cast<char *>(map) + PAGE;
    mprotect(first, body, PROT_READ | PROT_WRITE);
    memset(first, 0xff, body);
    uint64_t start = reinterpret_cast<uint64_t>(first) + (body - bytes) / ALIGN * ALIGN;
    blocks[start] = {first, body, bytes};
    used += bytes;
    sanitizers::forbid(first, body);
    sanitizers::allow(reinterpret_cast<void *>(start), bytes);
    return start;
  }

  bool give(uint64_t start) {
    auto found = blocks.find(start);
    if (found == blocks.end()) return false;
    used -= found->second.bytes;
    sanitizers::allow(found->second.first, found->second.body);
    munmap(found->second.first - PAGE, found->second.body + 2 * PAGE);
    blocks.erase(found);
    return true;
  }

  // Whether one allocation covers the range.
  bool covers(uint64_t p, size_t n) const {
    auto above = blocks.upper_bound(p);
    if (above == blocks.begin()) return false;
    auto &[start, block] = *--above;
    return p + n <= start + block.bytes;
  }

  // An allocation whose surroundings were written, which are then as before; empty if there is none.
  std::string overrun() {
    for (auto &[start, block] : blocks) {
      char *from = reinterpret_cast<char *>(start), *end = block.first + block.body;
      for (char *p = block.first; p < from; p++)
        if (*p != char(0xff)) return memset(block.first, 0xff, from - block.first), "write before" + near(start);
      for (char *p = from + block.bytes; p < end; p++)
        if (*p != char(0xff)) return memset(p, 0xff, end - p), "write beyond" + near(reinterpret_cast<uint64_t>(p));
    }
    return "";
  }

  // Which allocation an address lies in or after, for messages.
  std::string near(uint64_t p) const {
    auto above = blocks.upper_bound(p);
    if (above == blocks.begin()) return " all allocations";
    auto &[start, block] = *--above;
    return " an allocation of " + std::to_string(block.bytes) + " bytes, at its byte " + std::to_string(p - start);
  }

private:
  static constexpr size_t PAGE = 4096, ALIGN = 64;
  struct Block {
    char *first;
    size_t body, bytes;
  };
  std::map<uint64_t, Block> blocks;
};
