//! `ple_state.json`: how far a run is, and the SHA-256 of every file beside it. It carries its own digest, and only the very
//! bytes that its contents render to are accepted.

use crate::digest::sha256;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path};

/// What this program writes, and the only one it reads.
const VERSION: u64 = 1;

/// SHA-256 of files by name.
pub(super) type Digests = BTreeMap<String, String>;

/// What is trained at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Supervised rows.
    Sft,
    /// Iterations of PLE.
    Ple,
}

/// What cannot be made again once the policy has moved on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drawn {
    /// [`super::fingerprint`] of the policy that drew the answers.
    pub policy: String,
    /// The gap measured then: largest, mean, share.
    pub gap: [f64; 3],
}

/// How far a run is. Positions count what is done, so they name what comes next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimizer steps of the whole run: the number of the folder.
    pub step: u64,
    /// What is trained.
    pub stage: Stage,
    /// Of PLE; 0 in the supervised stage.
    pub iteration: u32,
    /// Pass over the rows, or over the iteration's pairs.
    pub epoch: u32,
    /// Optimizer batches done in this epoch.
    pub position: u64,
    /// Steps of this stage's optimizer: where its schedule stands.
    pub schedule_step: u64,
    /// Steps of this stage's whole schedule.
    pub schedule_total: u64,
    /// Tokens trained in this stage.
    pub tokens: u64,
    /// [`crate::method::Method::state`] from before the labels of `iteration`.
    pub method: Value,
    /// Whether the evaluation that is due after the last step is in the log.
    pub evaluated: bool,
    /// Of the iteration whose examples are being trained.
    pub drawn: Option<Drawn>,
    /// Bytes of each append-only file, by its path in the run's folder.
    pub lengths: BTreeMap<String, u64>,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u64,
    state: State,
    files: Digests,
    sha256: String,
}

/// The text of the file.
pub(super) fn text(state: &State, files: &Digests) -> String {
    let mut document = json!({ "version": VERSION, "state": state, "files": files });
    document["sha256"] = sha256(format!("{document:#}").as_bytes()).into();
    format!("{document:#}\n")
}

/// The reverse of [`text`]; anything else is refused.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<(State, Digests)> {
    let fault = |text: String| Error::file(path, text);
    let value: Value = serde_json::from_slice(bytes).map_err(|e| fault(format!("not valid JSON: {e}")))?;
    if value["version"] != VERSION {
        return Err(fault(format!("version: wanted {VERSION}, got {}", value["version"])));
    }
    let document: Document = serde_json::from_value(value).map_err(|e| fault(e.to_string()))?;
    let wanted = text(&document.state, &document.files);
    if wanted.as_bytes() != bytes {
        let got = document.sha256;
        return Err(fault(format!("sha256: wanted the digest of what the file says, got {got}: it was changed or damaged")));
    }
    Ok((document.state, document.files))
}

/// Bytes of the named files of a run's folder; a file that is not there has none.
pub fn lengths<'a>(output: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<BTreeMap<String, u64>> {
    let one = |name: &'a str| {
        let path = output.join(name);
        match std::fs::metadata(&path) {
            Ok(file) => Ok((name.to_string(), file.len())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok((name.to_string(), 0)),
            Err(source) => Err(runtime::Error::File { path, action: "read the metadata of", source }.into()),
        }
    };
    names.into_iter().map(one).collect()
}

/// Cuts the append-only files of a run's folder to the lengths that a state names, so that what was written after the checkpoint
/// is written again. A file that is shorter has lost what the state counts on: an error, and no file is cut.
pub fn cut(output: &Path, lengths: &BTreeMap<String, u64>) -> Result<()> {
    let mut files = Vec::new();
    for (name, wanted) in lengths {
        let path = output.join(name);
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || !inside {
            return Err(Error::file(output, format!("lengths: wanted paths inside the run's folder, got {name:?}")));
        }
        let failed = |action| {
            let path = path.clone();
            move |source| runtime::Error::File { path, action, source }
        };
        if *wanted == 0 && !path.exists() {
            continue;
        }
        let file = File::options().write(true).open(&path).map_err(failed("open"))?;
        let got = file.metadata().map_err(failed("read the metadata of"))?.len();
        if got < *wanted {
            return Err(Error::file(&path, format!("wanted at least the {wanted} bytes of the checkpoint, got {got}")));
        }
        files.push((path, file, *wanted));
    }
    for (path, file, length) in files {
        let failed = |source| runtime::Error::File { path: path.clone(), action: "cut", source };
        file.set_len(length).and_then(|()| file.sync_all()).map_err(failed)?;
    }
    Ok(())
}
