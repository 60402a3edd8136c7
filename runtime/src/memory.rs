//! How much memory of a device is handed out, and how much it ever was.

use std::sync::atomic::{AtomicU64, Ordering};

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What [`crate::Backend::alloc`] has handed out and not got back.
    pub used: u64,
    /// The most that it ever was.
    pub peak: u64,
    /// What is left, by the device's word; on the CPU of the machine's memory, or of the control group's limit, beside `used`. None where
    /// nobody knows.
    pub free: Option<u64>,
}

/// Counts what a device hands out, from any thread.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    used: AtomicU64,
    peak: AtomicU64,
}

impl Meter {
    /// After an allocation.
    pub fn take(&self, bytes: usize) {
        let used = self.used.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        self.peak.fetch_max(used, Ordering::Relaxed);
    }

    /// Before it is given back.
    pub fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// What it counted, beside what is left of it.
    pub fn memory(&self, free: impl FnOnce(u64) -> Option<u64>) -> Memory {
        let used = self.used.load(Ordering::Relaxed);
        Memory { used, peak: self.peak.load(Ordering::Relaxed), free: free(used) }
    }
}

/// The least limit that the control group sets to this process; None without one.
pub fn limit() -> Option<u64> {
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    files.iter().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
}

#[cfg(test)]
mod tests {
    use crate::{Isa, Stream};

    #[test]
    fn the_peak_is_the_most_at_once() {
        let s = Stream::cpu(1, Isa::portable());
        let memory = || s.backend().memory();
        let one = s.zeros::<f32>(1000).unwrap();
        drop(s.zeros::<u32>(500).unwrap());
        let two = s.zeros::<f32>(250).unwrap();
        assert_eq!((memory().used, memory().peak), (5000, 6000));
        assert!(memory().free.is_none_or(|free| free + 5000 <= s.backend().info().memory));
        drop((one, two));
        assert_eq!((memory().used, memory().peak), (0, 6000));
        assert!(s.zeros::<u32>(usize::MAX / 16).is_err() && memory().used == 0);
    }
}
