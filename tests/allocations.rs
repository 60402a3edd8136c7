//! Counts what a thread allocates on the host while it asks for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Allocations of one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub calls: usize,
    /// Bytes of the largest.
    pub largest: usize,
}

thread_local! {
    static COUNT: Cell<Option<Count>> = const { Cell::new(None) };
}

/// What `work` allocates on this thread.
pub fn of<T>(work: impl FnOnce() -> T) -> (T, Count) {
    COUNT.set(Some(Count::default()));
    let out = work();
    (out, COUNT.replace(None).unwrap_or_default())
}

struct Counting;

fn note(bytes: usize) {
    // A thread that is ending has no counter any more.
    let _ = COUNT.try_with(|cell| {
        if let Some(count) = cell.get() {
            cell.set(Some(Count { calls: count.calls + 1, largest: count.largest.max(bytes) }));
        }
    });
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(p, layout, size) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn counts_what_this_thread_allocates() {
    let ((), none) = of(|| {});
    let (v, one) = of(|| vec![0u8; 1000]);
    assert_eq!((none.calls, one.calls, one.largest, v.len()), (0, 1, 1000, 1000));
}
