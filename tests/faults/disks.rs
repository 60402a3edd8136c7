//! Disks that do not take what is written: a full one, a folder that cannot be written, a file where a folder should be.

use super::refused;
use anyhow::{Result, ensure};
use model::adapter::Adapter as HostAdapter;
use ple_tests::data::say;
use ple_tests::tiny;
use runtime::{DType, Isa, Stream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Everything that writes a folder, and the files it writes.
type Save<'a> = (&'static str, &'a dyn Fn(&Path) -> model::Result<()>, &'static [&'static str]);

fn with_saves(run: impl Fn(&[Save<'_>]) -> Result<()>) -> Result<()> {
    let folder = tiny::folder(true, DType::F32)?;
    let s = Stream::cpu(1, Isa::detect());
    let (model, _) = tiny::load(&s, folder.path())?;
    let adapter: HostAdapter = tiny::adapter(&model, 4, 1);
    run(&[
        ("an adapter", &|path| adapter.save(path), &["adapter_model.safetensors", "adapter_config.json"]),
        ("a model", &|path| model.base().save(&s, path), &["model.safetensors"]),
    ])
}

/// The name under which a file is written before it is renamed.
fn temporary(folder: &Path, file: &str) -> PathBuf {
    folder.join(format!(".{file}.{}.tmp", std::process::id()))
}

fn files(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        files.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), std::fs::read(&path)?));
    }
    files.sort();
    Ok(files)
}

/// The temporary file leads to a device without space.
#[test]
fn a_full_disk_leaves_the_old_file() -> Result<()> {
    if !Path::new("/dev/full").exists() {
        say("skip: /dev/full is not there");
        return Ok(());
    }
    with_saves(|saves| {
        for (what, save, written) in saves {
            for file in *written {
                let folder = tempfile::tempdir()?;
                save(folder.path())?;
                let before = files(folder.path())?;
                std::os::unix::fs::symlink("/dev/full", temporary(folder.path(), file))?;
                refused(&format!("{what}, {file}"), save(folder.path()), &[file, "write", "No space left"])?;
                ensure!(files(folder.path())? == before, "{what}, {file}: the folder is not as it was");
                save(folder.path())?;
            }
        }
        Ok(())
    })
}

#[test]
fn folders_that_cannot_be_written() -> Result<()> {
    with_saves(|saves| {
        for (what, save, written) in saves {
            let base = tempfile::tempdir()?;
            let file = base.path().join("file");
            std::fs::write(&file, "not a folder")?;
            refused(&format!("{what} into a file"), save(&file), &["file"])?;
            refused(&format!("{what} below a file"), save(&file.join("deeper")), &["file/deeper"])?;
            ensure!(std::fs::read(&file)? == b"not a folder", "{what}: the file has changed");
            refused(&format!("{what} into /proc"), save(Path::new("/proc/ple-tests")), &["/proc/ple-tests"])?;

            let taken = base.path().join("taken");
            std::fs::create_dir_all(taken.join(written[0]).join("a folder"))?;
            refused(&format!("{what} over a folder"), save(&taken), &[written[0], "wanted a file, got a folder"])?;

            let locked = base.path().join("locked");
            std::fs::create_dir(&locked)?;
            std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o555))?;
            if std::fs::write(locked.join("probe"), "").is_ok() {
                say("skip: this user may write into read-only folders");
                continue;
            }
            refused(&format!("{what} into a read-only folder"), save(&locked), &["locked", "create", "Permission denied"])?;
        }
        Ok(())
    })
}

/// A run dir that lies on a real disk: what was saved can be read back, and only final names are there.
#[test]
fn what_was_saved_reads_back() -> Result<()> {
    let source = tiny::folder(true, DType::F32)?;
    let s = Stream::cpu(1, Isa::detect());
    let (model, _) = tiny::load(&s, source.path())?;
    let out = tempfile::tempdir()?;
    let path = out.path().join("a/b");
    let adapter = tiny::adapter(&model, 4, 1);
    adapter.save(&path)?;
    let back = HostAdapter::load(&path, &model.modules())?;
    ensure!(back.modules == adapter.modules, "the adapter reads back differently");
    model.base().save(&s, &path)?;
    std::fs::copy(source.path().join("config.json"), path.join("config.json"))?;
    let names: Vec<String> = files(&path)?.into_iter().map(|(name, _)| name).collect();
    ensure!(names.iter().all(|n| !n.starts_with('.')), "left behind: {names:?}");
    let original = std::fs::read(source.path().join("model.safetensors"))?;
    let (a, b) = (safetensors::SafeTensors::deserialize(&original)?, std::fs::read(path.join("model.safetensors"))?);
    let b = safetensors::SafeTensors::deserialize(&b)?;
    for (name, tensor) in a.tensors() {
        ensure!(b.tensor(&name)?.data() == tensor.data(), "{name} reads back differently");
    }
    ensure!(a.len() == b.len(), "{} tensors became {}", a.len(), b.len());
    Ok(())
}
