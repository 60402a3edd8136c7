//! Files: read through a mapping, written so that a reader sees the old bytes or the new, never half.

use crate::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file mapped read-only.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
    path: PathBuf,
}

impl MappedFile {
    /// Maps a regular file.
    pub fn open(path: &Path) -> Result<MappedFile> {
        let failed = |action| move |source| Error::File { path: path.to_path_buf(), action, source };
        let file = File::open(path).map_err(failed("open"))?;
        let kind = file.metadata().map_err(failed("read the metadata"))?;
        if !kind.is_file() {
            return Err(failed("map")(std::io::Error::other("not a regular file")));
        }
        // SAFETY: the mapping is read-only; that another process truncates the file meanwhile is outside what any reader can rule out.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(failed("map"))?;
        Ok(MappedFile { map, path: path.to_path_buf() })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Writes a file under a temporary name beside it, syncs it, renames it and syncs the folder. On any error the old file is
/// as it was and the temporary one is gone.
pub fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let outcome = (|| {
        let failed = |action| move |source| Error::File { path: path.to_path_buf(), action, source };
        let mut out = std::io::BufWriter::new(File::create(&temporary).map_err(failed("create"))?);
        write(&mut out).map_err(failed("write"))?;
        let file = out.into_inner().map_err(|e| failed("write")(e.into_error()))?;
        file.sync_all().map_err(failed("sync"))?;
        std::fs::rename(&temporary, path).map_err(failed("rename"))?;
        File::open(folder).and_then(|f| f.sync_all()).map_err(failed("sync the folder of"))
    })();
    if outcome.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    outcome
}
