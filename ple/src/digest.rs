//! SHA-256 as lower-case hex: what names the bytes of a file or of a policy.

use crate::Result;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes that are read at once.
const BLOCK: usize = 1 << 20;

/// Takes bytes in pieces.
#[derive(Clone, Debug, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The 64 digits.
    pub fn hex(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Of bytes in memory.
pub fn sha256(bytes: &[u8]) -> String {
    let mut hasher = Hasher::default();
    hasher.update(bytes);
    hasher.hex()
}

/// Of a file.
pub fn sha256_file(path: &Path) -> Result<String> {
    let failed = |source| runtime::Error::File { path: path.to_path_buf(), action: "read", source };
    let mut file = File::open(path).map_err(failed)?;
    let (mut hasher, mut block) = (Hasher::default(), vec![0; BLOCK]);
    loop {
        match file.read(&mut block).map_err(failed)? {
            0 => return Ok(hasher.hex()),
            n => hasher.update(&block[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() -> std::io::Result<()> {
        // FIPS 180-4, and the digest of nothing.
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let folder = tempfile::tempdir()?;
        for len in [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 5] {
            let (path, bytes) = (folder.path().join("f"), vec![7; len]);
            std::fs::write(&path, &bytes)?;
            assert!(sha256_file(&path).is_ok_and(|got| got == sha256(&bytes)), "{len}");
        }
        Ok(())
    }
}
