//! `ple diff RUN_A RUN_B`: whether two runs are the same but for their times, and the first thing in which they are not: in the log
//! (the first step and field), the journals, the completions, the adapters or weights.

use crate::config::Config;
use crate::{Error, Result, log};
use model::weights::Checkpoint;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What makes a folder a run.
const LOG: &str = "log.jsonl";

/// One difference: where, and what either run has there.
#[derive(Debug, PartialEq)]
struct Difference {
    at: String,
    a: String,
    b: String,
}

impl Difference {
    fn new(at: impl Into<String>, a: impl ToString, b: impl ToString) -> Option<Difference> {
        Some(Difference { at: at.into(), a: a.to_string(), b: b.to_string() })
    }
}

/// A kind of file: its name for a reader, the folder it lies in (empty: the run's own), and whether a name in there is one.
type Kind = (&'static str, &'static str, fn(&str) -> bool);

/// In the order in which a run writes them.
const KINDS: [Kind; 5] = [
    ("log", "", |name| name == LOG),
    ("journals", "rollouts", |name| name.ends_with(".jsonl")),
    ("completions", "completions", |name| name.ends_with(".jsonl")),
    ("sampling adapters", "adapters", |name| name.ends_with("/adapter_model.safetensors")),
    ("trained weights", "", |name| name == "adapter_model.safetensors" || name == "model.safetensors"),
];

/// Runs the command; true if the runs are the same.
pub fn run(c: &Config) -> Result<bool> {
    let [a, b] = c.runs.as_slice() else {
        return Err(Error::Usage(format!("runs: wanted the folders of two runs, got {}", c.runs.len())));
    };
    for run in [a, b] {
        if !run.join(LOG).is_file() {
            return Err(Error::file(run, format!("wanted the folder of a run, which holds {LOG}; it does not")));
        }
    }
    let (mut text, mut same) = (String::new(), true);
    for (what, folder, is) in KINDS {
        let names: BTreeSet<String> = found(a, folder, is)?.union(&found(b, folder, is)?).cloned().collect();
        match first(a, b, &names)? {
            Some(Difference { at, a, b }) => {
                same = false;
                text += &format!("{what} differ: {at}\n  A  {a}\n  B  {b}\n");
            }
            None => text += &format!("{what}: the same ({} files)\n", names.len()),
        }
    }
    log::print(&text)?;
    Ok(same)
}

/// Files of a kind by their path in the run; in `adapters` one folder deeper.
fn found(run: &Path, folder: &str, is: fn(&str) -> bool) -> Result<BTreeSet<String>> {
    let (root, mut names) = (run.join(folder), BTreeSet::new());
    let list = |folder: &Path| -> Result<Vec<PathBuf>> {
        let read = || std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
        read().map_err(|source| runtime::Error::File { path: folder.to_path_buf(), action: "list", source }.into())
    };
    if !root.is_dir() {
        return Ok(names);
    }
    let mut paths = list(&root)?;
    if !folder.is_empty() {
        let deeper = paths.iter().filter(|path| path.is_dir()).map(|path| list(path)).collect::<Result<Vec<_>>>()?;
        paths.extend(deeper.into_iter().flatten());
    }
    for path in paths.iter().filter(|path| path.is_file()) {
        let name = path.strip_prefix(run).unwrap_or(path).to_string_lossy().into_owned();
        if is(&name) {
            names.insert(name);
        }
    }
    Ok(names)
}

/// The first difference among files of these names.
fn first(a: &Path, b: &Path, names: &BTreeSet<String>) -> Result<Option<Difference>> {
    for name in names {
        let (a, b) = (a.join(name), b.join(name));
        let there = [&a, &b].map(|path| if path.is_file() { "there" } else { "not there" });
        let difference = match there {
            [one, other] if one != other => Difference::new("", one, other),
            _ if name.ends_with(".jsonl") => lines(&a, &b)?,
            _ => tensors(&a, &b)?,
        };
        if let Some(Difference { at, a, b }) = difference {
            return Ok(Difference::new(if at.is_empty() { name.clone() } else { format!("{name}: {at}") }, a, b));
        }
    }
    Ok(None)
}

/// Objects of a file, one a line.
fn objects(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let failed = |source| runtime::Error::File { path: path.to_path_buf(), action: "read", source };
    let text = std::fs::read(path).map_err(failed)?;
    let parse = |(i, line): (usize, &[u8])| {
        serde_json::from_slice(line).map_err(|e| Error::file(path, format!("line {}: wanted a JSON object: {e}", i + 1)))
    };
    text.split(|b| *b == b'\n').filter(|line| !line.is_empty()).enumerate().map(parse).collect()
}

/// Whether a field is a time: of the machine, not of the run.
fn is_time(field: &str) -> bool {
    field.starts_with("time/") || field.starts_with("tok_s/") || field == "step_time"
}

fn lines(a: &Path, b: &Path) -> Result<Option<Difference>> {
    let (a, b) = (objects(a)?, objects(b)?);
    for (i, (one, other)) in a.iter().zip(&b).enumerate() {
        let fields = one.keys().chain(other.keys().filter(|key| !one.contains_key(*key))).filter(|key| !is_time(key));
        // A checksum differs because of something else.
        let (checksums, fields): (Vec<&String>, Vec<&String>) = fields.partition(|key| *key == "crc");
        for field in fields.into_iter().chain(checksums) {
            if let Some(Difference { at, a, b }) = values(one.get(field), other.get(field)) {
                return Ok(Difference::new(format!("line {}{}: {field}{at}", i + 1, place(one)), a, b));
            }
        }
    }
    let count = |n: usize| format!("{n} lines");
    Ok(if a.len() == b.len() { None } else { Difference::new("", count(a.len()), count(b.len())) })
}

/// What names a line for a reader: ` (iteration 1 step 7)`.
fn place(line: &Map<String, Value>) -> String {
    let names = ["iteration", "step", "row", "side", "sample"];
    let said: Vec<String> = names.iter().filter_map(|name| Some(format!("{name} {}", line.get(*name)?))).collect();
    if said.is_empty() { String::new() } else { format!(" ({})", said.join(" ")) }
}

/// The first difference of two values; a list's names the index.
fn values(a: Option<&Value>, b: Option<&Value>) -> Option<Difference> {
    if a == b {
        return None;
    }
    if let (Some(Value::Array(a)), Some(Value::Array(b))) = (a, b) {
        let at = (0..a.len().max(b.len())).find(|i| a.get(*i) != b.get(*i))?;
        return Difference::new(format!("[{at}]"), shown(a.get(at)), shown(b.get(at)));
    }
    Difference::new("", shown(a), shown(b))
}

/// A value, cut at 200 characters.
fn shown(value: Option<&Value>) -> String {
    value.map_or("nothing".into(), |value| value.to_string().chars().take(200).collect())
}

/// The first element in which two files of tensors differ, bit for bit.
fn tensors(a: &Path, b: &Path) -> Result<Option<Difference>> {
    let (a, b) = (Checkpoint::open_file(a)?, Checkpoint::open_file(b)?);
    let names: BTreeSet<&str> = a.names().chain(b.names()).collect();
    for name in names {
        let there = [&a, &b].map(|file| if file.names().any(|n| n == name) { "there" } else { "not there" });
        if there[0] != there[1] {
            return Ok(Difference::new(name, there[0], there[1]));
        }
        let (one, other) = (a.tensor(name)?, b.tensor(name)?);
        if (one.dtype, one.shape) != (other.dtype, other.shape) {
            let kind = |t: &model::weights::TensorData| format!("{} {:?}", t.dtype, t.shape);
            return Ok(Difference::new(name, kind(&one), kind(&other)));
        }
        if one.bytes != other.bytes {
            let (x, y) = (one.to_f32(), other.to_f32());
            let at = x.iter().zip(&y).position(|(x, y)| x.to_bits() != y.to_bits()).unwrap_or_default();
            return Ok(Difference::new(format!("{name}[{at}]"), shown_f32(&x, at), shown_f32(&y, at)));
        }
    }
    Ok(None)
}

fn shown_f32(values: &[f32], at: usize) -> String {
    values.get(at).map_or("nothing".into(), f32::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_field_that_is_no_time_is_named() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::Usage(e.to_string()))?;
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        let put = |path: &Path, text: &str| runtime::host::write_file(path, |out| out.write_all(text.as_bytes()));
        let cases = [
            (
                "{\"step\":1,\"loss\":0.5,\"step_time\":1,\"tok_s/train\":2}\n",
                "{\"step\":1,\"loss\":0.5,\"step_time\":3}\n",
                None,
            ),
            ("{\"step\":1,\"loss\":0.5}\n", "{\"step\":1,\"loss\":0.25}\n", Some(("line 1 (step 1): loss", "0.5", "0.25"))),
            ("{\"step\":1}\n", "{\"step\":1,\"kl\":null}\n", Some(("line 1 (step 1): kl", "nothing", "null"))),
            ("{\"step\":1}\n{\"step\":2}\n", "{\"step\":1}\n", Some(("", "2 lines", "1 lines"))),
            ("{\"crc\":\"1\",\"ids\":[1,2]}\n", "{\"crc\":\"2\",\"ids\":[1,2,3]}\n", Some(("line 1: ids[2]", "nothing", "3"))),
        ];
        for (one, other, wanted) in cases {
            put(&a, one)?;
            put(&b, other)?;
            let wanted = wanted.and_then(|(at, a, b)| Difference::new(at, a, b));
            assert_eq!(lines(&a, &b)?, wanted, "{one} {other}");
        }
        put(&b, "{\"step\":1}\n{\"step\":")?;
        let error = lines(&a, &b).map_err(|e| (e.exit_code(), e.to_string()));
        assert!(error.is_err_and(|(code, text)| code == 3 && text.contains("b: line 2: wanted a JSON object")));
        Ok(())
    }
}
