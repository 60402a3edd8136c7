// The hooks of AddressSanitizer and ThreadSanitizer, which a test preloads. The stand-ins are not instrumented, only kernels are; where no
// sanitizer is loaded its functions are null and nothing happens.
#pragma once
#include <cstddef>
#include <cstring>

extern "C" {
#define WEAK __attribute__((weak))
WEAK void __sanitizer_start_switch_fiber(void **fake, const void *bottom, size_t size);
WEAK void __sanitizer_finish_switch_fiber(void *fake, const void **bottom, size_t *size);
WEAK void __asan_poison_memory_region(const volatile void *, size_t);
WEAK void __asan_unpoison_memory_region(const volatile void *, size_t);
WEAK void *__tsan_get_current_fiber();
WEAK void *__tsan_create_fiber(unsigned flags);
WEAK void __tsan_switch_to_fiber(void *fiber, unsigned flags);
WEAK void __tsan_acquire(void *);
WEAK void __tsan_release(void *);
#undef WEAK
}

namespace sanitizers {
inline void forbid(const void *p, size_t n) { if (__asan_poison_memory_region) __asan_poison_memory_region(p, n); }
inline void allow(const void *p, size_t n) { if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(p, n); }
inline void acquire(void *of) { if (__tsan_acquire) __tsan_acquire(of); }
inline void release(void *of) { if (__tsan_release) __tsan_release(of); }

// Fills memory in which something may be forbidden; a call of memset would be looked at.
__attribute__((optimize("no-tree-loop-distribute-patterns"))) inline void poison(unsigned char *from, unsigned char *to) {
  if (!__asan_poison_memory_region) return (void)memset(from, 0xff, to - from);
  for (; from < to; from++) *from = 0xff;
}
}  // namespace sanitizers
