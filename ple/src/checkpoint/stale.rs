//! What a kill leaves inside a single write: a file under its temporary name (see `runtime::host::write_file`).

use crate::Result;
use runtime::host;
use std::path::{Path, PathBuf};

/// Folders of a run that files are written into, beside itself and those under `adapters`.
const FOLDERS: [&str; 4] = ["", "completions", "rollouts", "best"];

/// Removes the temporary files of processes that have ended from a run's folder, and returns them. This process must not have
/// begun to write there: a file under its own number is of an earlier one that had the same.
pub fn remove_stale(output: &Path) -> Result<Vec<PathBuf>> {
    let adapters = folders(&output.join("adapters"));
    let found = FOLDERS.iter().map(|name| output.join(name)).chain(adapters).flat_map(|folder| temporary(&folder));
    let stale = found.filter(|(_, id)| *id == std::process::id() || !lives(*id)).map(|(path, _)| path);
    let remove = |path: PathBuf| match std::fs::remove_file(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(runtime::Error::File { path, action: "remove", source }.into()),
    };
    stale.map(remove).collect()
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Files under temporary names, and the processes they are of; a folder that is not there has none.
fn temporary(folder: &Path) -> Vec<(PathBuf, u32)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: std::fs::DirEntry| {
        let id = host::writer(entry.file_name().to_str()?)?;
        entry.file_type().is_ok_and(|kind| kind.is_file()).then(|| (entry.path(), id))
    };
    entries.filter_map(of).collect()
}

/// Whether there is such a process; where that cannot be known, there is.
#[cfg(unix)]
fn lives(id: u32) -> bool {
    use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
    i32::try_from(id).map_or(true, |id| kill(Pid::from_raw(id), None) != Err(Errno::ESRCH))
}

#[cfg(not(unix))]
fn lives(_: u32) -> bool {
    true
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::process::{Command, Stdio};

    #[test]
    fn what_ended_processes_left_goes_and_nothing_else() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let mut living = Command::new("cat").stdin(Stdio::piped()).spawn()?;
        let mut ended = Command::new("true").spawn()?;
        ended.wait()?;
        let (own, dead, alive) = (std::process::id(), ended.id(), living.id());
        ["adapters/iter-00000", "rollouts", "deeper"].iter().try_for_each(|name| create_dir_all(at(name)))?;
        let gone = [
            format!(".log.jsonl.{dead}.tmp"),
            format!(".run.json.{own}.tmp"),
            format!("adapters/iter-00000/.adapter_model.safetensors.{dead}.tmp"),
            format!("rollouts/.iter-00000.jsonl.{dead}.tmp"),
        ];
        let kept = [format!(".log.jsonl.{alive}.tmp"), format!("deeper/.x.{dead}.tmp"), "log.jsonl".into(), ".x.y.tmp".into()];
        gone.iter().chain(&kept).try_for_each(|name| write(at(name), "half"))?;
        create_dir_all(at(&format!(".folder.{dead}.tmp")))?;
        let mut removed = remove_stale(folder.path()).unwrap();
        removed.sort();
        let mut wanted = gone.clone().map(|name| at(&name));
        wanted.sort();
        assert_eq!(removed, wanted);
        assert!(gone.iter().all(|name| !at(name).exists()) && kept.iter().all(|name| at(name).exists()));
        assert!(at(&format!(".folder.{dead}.tmp")).exists() && remove_stale(&at("nowhere")).unwrap().is_empty());
        living.kill()?;
        living.wait().map(drop)
    }
}
