//! Page-locked host memory.

use std::fmt;

/// Gives a device's page-locked memory back, after every copy that still uses it.
pub type Release = Box<dyn Fn(*mut u8) + Send + Sync>;

/// Host memory that device copies can read and write while the host goes on. Zeroed at first; copies are over when it is dropped.
pub struct Pinned(Memory);

enum Memory {
    /// A host without devices has no other.
    Plain(Box<[u8]>),
    Locked {
        start: *mut u8,
        len: usize,
        release: Release,
    },
}

// SAFETY: the memory has one owner; the release may be called from any thread.
unsafe impl Send for Pinned {}
// SAFETY: shared references only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Ordinary memory, for hosts whose copies wait.
    pub fn plain(len: usize) -> Pinned {
        Pinned(Memory::Plain(vec![0; len].into_boxed_slice()))
    }

    /// Memory that a device's driver locked, zeroed here.
    ///
    /// # Safety
    /// `start` covers `len` bytes that nothing else uses until `release` has been called with it.
    pub unsafe fn locked(start: *mut u8, len: usize, release: Release) -> Pinned {
        // SAFETY: the caller's promise.
        unsafe { start.write_bytes(0, len) };
        Pinned(Memory::Locked { start, len, release })
    }

    /// The bytes. What a queued copy writes is there once its event has come.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Memory::Plain(bytes) => bytes,
            // SAFETY: the promise of `locked`.
            Memory::Locked { start, len, .. } => unsafe { std::slice::from_raw_parts(*start, *len) },
        }
    }

    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Plain(bytes) => bytes,
            // SAFETY: as in `bytes`, and this is the one owner.
            Memory::Locked { start, len, .. } => unsafe { std::slice::from_raw_parts_mut(*start, *len) },
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Memory::Locked { start, release, .. } = &self.0 {
            release(*start);
        }
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if matches!(self.0, Memory::Plain(_)) { "plain" } else { "locked" };
        write!(f, "Pinned({kind}, {} bytes)", self.bytes().len())
    }
}
