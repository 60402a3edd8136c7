// A stack of its own for every thread of a block, and the switch between them. System V on x86-64: what a function must keep is
// pushed, the stack pointer exchanged, what the other one kept is popped.
#pragma once
#include "sanitizers.hpp"
#include <cstddef>
#include <sys/mman.h>

extern "C" void simt_switch(void **save, void *load);
asm(R"(
.text
.hidden simt_switch
.globl simt_switch
.type simt_switch,@function
simt_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size simt_switch,.-simt_switch
)");

namespace simt {
class Fiber {
public:
  static constexpr size_t STACK = 256 << 10, GUARD = 4096;

  // The next switch to it calls `entry`, which begins with arrive() and must not return.
  void prepare(void (*entry)()) {
    if (!stack) {
      void *map = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      stack = static_cast<char *>(map);
      mprotect(stack, GUARD, PROT_NONE);
      bottom = stack + GUARD, size = STACK - GUARD;
      static size_t made = 0;
      shift = made++ * 17 * 64 % (32 << 10);
      if (__tsan_create_fiber) detector = __tsan_create_fiber(0);
    }
    sanitizers::allow(bottom, size);
    // Stacks lie a power of two apart; without a shift of its own all of them would share a few lines of the caches.
    void **top = reinterpret_cast<void **>(stack + STACK - 16 - shift);
    *--top = nullptr;  // where `entry` would return to
    *--top = reinterpret_cast<void *>(entry);
    for (int kept = 0; kept < 6; kept++) *--top = nullptr;
    pointer = top;
  }

  // `forever` where it is not to be switched to again before the next prepare.
  void leave_for(Fiber &other, bool forever = false) {
    came_from = this;
    if (!stack && __tsan_get_current_fiber) detector = __tsan_get_current_fiber();
    if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(forever ? nullptr : &fake, other.bottom, other.size);
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(other.detector, 1);  // 1: a switch orders nothing
    simt_switch(&pointer, other.pointer);
    arrive(fake);
  }

  // Tells where the one who switched has its stack.
  static void arrive(void *fake = nullptr) {
    if (!__sanitizer_finish_switch_fiber) return;
    Fiber &from = *came_from;
    if (from.stack) __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
    else __sanitizer_finish_switch_fiber(fake, &from.bottom, &from.size);
  }

private:
  static inline Fiber *came_from = nullptr;
  char *stack = nullptr;
  void *pointer = nullptr, *detector = nullptr, *fake = nullptr;
  const void *bottom = nullptr;
  size_t size = 0, shift = 0;
};
}  // namespace simt
