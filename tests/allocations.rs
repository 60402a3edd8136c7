//! Counts what a thread allocates on the host while it asks for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Allocations of one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub calls: usize,
    /// Bytes of the largest.
    pub largest: usize,
    /// Most bytes held at once of what was allocated meanwhile.
    pub peak: usize,
    /// Bytes held now: below 0 where what was there before is given back.
    held: isize,
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

/// `bytes` more, after which `given` are given back: a block that moves is there twice for a moment.
fn note(bytes: usize, given: usize) {
    // A thread that is ending has no counter any more.
    let _ = COUNT.try_with(|cell| {
        if let Some(Count { calls, largest, peak, held }) = cell.get() {
            let held = held + bytes as isize;
            let (calls, largest) = (calls + usize::from(bytes > 0), largest.max(bytes));
            cell.set(Some(Count { calls, largest, peak: peak.max(held.max(0) as usize), held: held - given as isize }));
        }
    });
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.realloc(p, layout, size) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        note(0, layout.size());
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
    let ((), two) = of(|| {
        drop(vec![0u8; 3000]);
        drop((vec![0u8; 1000], vec![0u8; 1500]));
    });
    assert_eq!((two.calls, two.peak), (3, 3000));
    let (longer, grown) = of(|| {
        let mut v = Vec::<u8>::with_capacity(100);
        v.reserve_exact(300);
        v
    });
    assert_eq!((grown.peak, longer.capacity()), (400, 300));
}
