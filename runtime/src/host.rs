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
/// as it was and the temporary one is gone. A link stays: the file behind it is written. What is no regular file (a pipe, a
/// terminal, `/dev/null`) takes the bytes as they come; a folder is an error.
pub fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let failed = |source| Error::File { path: path.to_path_buf(), action: "write", source };
    let link = std::fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
    match std::fs::metadata(path) {
        Ok(kind) if kind.is_dir() => Err(failed(std::io::Error::other("wanted a file, got a folder"))),
        Ok(kind) if !kind.is_file() => through(path, write).map_err(failed),
        Ok(_) if link => beside(&path.canonicalize().map_err(failed)?, write),
        // A link to what is not there yet; a circle of links is another error than this.
        Err(e) if link && e.kind() == std::io::ErrorKind::NotFound => {
            beside(&folder_of(path).join(std::fs::read_link(path).map_err(failed)?), write)
        }
        _ => beside(path, write),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn through(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::new(File::options().write(true).open(path)?);
    write(&mut out)?;
    out.flush()
}

/// `.NAME.PID.tmp`, under which this process writes a file before it has its name.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    folder_of(path).join(format!(".{name}.{}.tmp", std::process::id()))
}

/// The process that writes, or wrote, under such a temporary name; none under any other.
pub fn writer(name: &str) -> Option<u32> {
    let (of, digits) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    digits.parse().ok().filter(|id: &u32| !of.is_empty() && id.to_string() == digits)
}

fn beside(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let (folder, temporary) = (folder_of(path), temporary(path));
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, symlink};

    #[test]
    fn only_a_regular_file_is_replaced() {
        let folder = std::env::temp_dir().join(format!("ple-host-{}", std::process::id()));
        fs::create_dir_all(folder.join("real")).unwrap();
        let put = |path: &Path, text: &str| write_file(path, |out| out.write_all(text.as_bytes()));
        let (file, link, early) = (folder.join("real/file"), folder.join("link"), folder.join("early"));
        put(&file, "old").unwrap();
        symlink("real/file", &link).unwrap();
        put(&link, "new").unwrap();
        symlink("real/later", &early).unwrap();
        put(&early, "made").unwrap();
        assert_eq!((fs::read_to_string(&file).unwrap().as_str(), fs::read_link(&link).is_ok()), ("new", true));
        assert_eq!(
            (fs::read_to_string(folder.join("real/later")).unwrap().as_str(), fs::read_link(&early).is_ok()),
            ("made", true)
        );
        assert_eq!(fs::read_dir(folder.join("real")).unwrap().count(), 2, "temporary files are left");
        let text = put(&folder.join("real"), "x").unwrap_err().to_string();
        assert!(text.contains("real: cannot write: wanted a file, got a folder"), "{text}");
        put(Path::new("/dev/null"), "nothing").unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_temporary_name_says_whose_it_is() {
        let name = temporary(Path::new("a/log.jsonl"));
        assert_eq!(name.parent(), Some(Path::new("a")));
        assert_eq!(name.file_name().and_then(|n| writer(n.to_str()?)), Some(std::process::id()));
        let others = [
            "log.jsonl",
            ".log.jsonl.7",
            ".7.tmp",
            "..7.tmp",
            ".a.07.tmp",
            ".a.+7.tmp",
            ".a.x.tmp",
            "a.7.tmp",
            ".checkpoint-7.tmp",
        ];
        assert!(others.iter().all(|name| writer(name).is_none()));
    }

    #[test]
    fn an_error_leaves_the_old_bytes() {
        let path = std::env::temp_dir().join(format!("ple-old-{}", std::process::id()));
        write_file(&path, |out| out.write_all(b"old")).unwrap();
        assert!(write_file(&path, |out| out.write_all(b"half").and(Err(std::io::Error::other("no more")))).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        fs::remove_file(path).unwrap();
    }
}
