//! Tests only: where the shared data lies, and seeded damage to files.

use std::path::PathBuf;

/// A path of the shared folder (`PLE_SHARED`, default beside the checkout); None, loudly, where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var("PLE_SHARED").unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").into());
    let found = PathBuf::from(root).join(path);
    if found.exists() {
        return Some(found);
    }
    let required = std::env::var("PLE_REQUIRE").is_ok_and(|v| v.split(',').any(|what| what == "shared"));
    assert!(!required, "{} is absent, and PLE_REQUIRE asks for it", found.display());
    eprintln!("skip: {} is absent (set PLE_SHARED)", found.display());
    None
}

/// The folders under a path of the shared folder whose name begins so, sorted.
pub fn folders(path: &str, prefix: &str) -> Vec<PathBuf> {
    let Some(root) = shared(path) else { return Vec::new() };
    let entries = std::fs::read_dir(root).unwrap().map(|e| e.unwrap());
    let mut list: Vec<_> = entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix)).map(|e| e.path()).collect();
    list.sort();
    list
}

/// A linear congruential generator.
pub struct Lcg(pub u64);

impl Lcg {
    /// A number below n.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % n as u64) as usize
    }

    /// One to four bytes changed, swapped for JSON's own or cut away, or the end cut off.
    pub fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        for _ in 0..1 + self.below(4) {
            let at = self.below(out.len().max(1));
            match self.below(8) {
                _ if out.is_empty() => {}
                0 => out.truncate(at),
                1 => out[at] ^= 1 << self.below(8),
                2 => out[at] = self.below(256) as u8,
                3 => drop(out.remove(at)),
                4 => out.insert(at, b"0123456789-.eE\"[]{},:"[self.below(21)]),
                _ => out[at] = b"0123456789-.eE\"[]{},:"[self.below(21)],
            }
        }
        out
    }
}
