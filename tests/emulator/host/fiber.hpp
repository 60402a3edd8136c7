// A stack of its own for every thread of a block, and the switch between them. System V on x86-64: what a function must keep is
// pushed, the stack pointer exchanged, what the other one kept is popped.
#pragma once
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

  // The next switch to it calls `entry`, which must not return.
  void prepare(void (*entry)()) {
    if (!stack) {
      void *map = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      stack = static_cast<char *>(map);
      mprotect(stack, GUARD, PROT_NONE);
    }
    void **top = reinterpret_cast<void **>(stack + STACK - 16);
    *--top = nullptr;  // where `entry` would return to
    *--top = reinterpret_cast<void *>(entry);
    for (int kept = 0; kept < 6; kept++) *--top = nullptr;
    pointer = top;
  }

  void leave_for(Fiber &other) { simt_switch(&pointer, other.pointer); }

private:
  char *stack = nullptr;
  void *pointer = nullptr;
};
}  // namespace simt
