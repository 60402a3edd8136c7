//! What `run.json` says of where a run came from: settings, versions, machine, and the SHA-256 of every file that it reads.

use crate::config::Config;
use runtime::Stream;
use runtime::host::MappedFile;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Files of a model's or an adapter's folder that a run reads; beside them every `*.safetensors`.
const READ: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "adapter_config.json",
];

/// A file or a folder that a setting names.
struct Source {
    key: String,
    path: PathBuf,
    /// Files of a folder that a run reads, by name; none of a file.
    inner: Vec<PathBuf>,
}

impl Source {
    fn new(key: &str, path: PathBuf) -> Source {
        Source { key: key.to_string(), inner: inner(&path), path }
    }

    /// What there is to hash.
    fn paths(&self) -> &[PathBuf] {
        if self.inner.is_empty() { std::slice::from_ref(&self.path) } else { &self.inner }
    }

    /// `hashes` are those of its paths.
    fn describe(&self, hashes: impl Iterator<Item = Option<Hash>>) -> Value {
        let mut entry = json!({ "path": self.path });
        if self.inner.is_empty() {
            hashes.for_each(|hash| note(&mut entry, hash));
            return entry;
        }
        for (path, hash) in self.inner.iter().zip(hashes) {
            note(&mut entry["files"][path.file_name().unwrap_or_default().to_string_lossy().as_ref()], hash);
        }
        entry
    }
}

/// Version, settings, machine, files. A file stands under the setting that names it, with path, bytes and hash; a folder with
/// those of its files that are read. What is no regular file (a pipe) or cannot be opened has null. Files are mapped and hashed
/// side by side, a processor each; one file takes as long as its bytes (the bench `provenance` times it).
pub fn provenance(c: &Config, s: &Stream) -> Value {
    let sources = sources(c);
    let paths: Vec<&Path> = sources.iter().flat_map(|source| source.paths()).map(PathBuf::as_path).collect();
    let mut hashes = hashes(&paths).into_iter();
    let entry = |source: &Source| (source.key.clone(), source.describe(hashes.by_ref().take(source.paths().len())));
    let files: Map<String, Value> = sources.iter().map(entry).collect();
    let info = s.backend().info();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "config": c.to_json(),
        "device": format!("{} ({} threads, {})", s.backend().name(), info.cores, info.arch),
        "machine": {
            "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            "processor": info.name,
            "memory": info.memory,
            "libraries": info.found.iter().map(|(name, path)| (name.clone(), path.as_str().into())).collect::<Map<_, Value>>(),
        },
        "files": files,
    })
}

fn note(entry: &mut Value, hash: Option<Hash>) {
    let (bytes, sha256) = hash.map(|hash| (hash.bytes, hash.sha256)).unzip();
    entry["bytes"] = bytes.into();
    entry["sha256"] = sha256.into();
}

/// Everything that a run of these settings reads.
fn sources(c: &Config) -> Vec<Source> {
    let given = [
        ("model_name_or_path", &c.model_name_or_path),
        ("init_from_config", &c.init_from_config),
        ("adapter", &c.adapter),
        ("dataset_name", &c.dataset_name),
        ("eval_dataset_name", &c.eval_dataset_name),
        ("sft_dataset_name", &c.sft_dataset_name),
        ("ple_principle_file", &c.ple_principle_file),
        ("reward_model_name_or_path", &c.reward_model_name_or_path),
    ];
    let given = given.into_iter().filter_map(|(key, path)| Some(Source::new(key, path.clone()?)));
    let rewards = c.reward_funcs.iter().flat_map(|text| rewards(text));
    given.chain(rewards.map(|path| Source::new(&format!("reward_funcs {}", path.display()), path))).collect()
}

/// Files and folders that a reward is made of.
fn rewards(text: &str) -> Vec<PathBuf> {
    let text = text.strip_suffix("@unit").unwrap_or(text);
    match text.split_once(':') {
        Some(("lexicon", files)) => files.split(',').map(PathBuf::from).collect(),
        Some(("model" | "adapter", folder)) => vec![folder.into()],
        // The words of a command that are files: its program, where it is named by a path, and its script.
        Some(("exec", command)) => {
            let words = shlex::split(command).unwrap_or_default();
            words.into_iter().map(PathBuf::from).filter(|path| path.is_file()).collect()
        }
        _ => Vec::new(),
    }
}

/// The files of a folder that a run reads; none of a file.
fn inner(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let read = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        READ.contains(&name) || name.ends_with(".safetensors")
    };
    let mut files: Vec<PathBuf> = entries.filter(read).collect();
    files.sort();
    files
}

/// Length and SHA-256 of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hash {
    /// Its length.
    pub bytes: u64,
    /// In hexadecimal.
    pub sha256: String,
}

/// Of each file, in order; None for what cannot be mapped.
pub fn hashes(paths: &[&Path]) -> Vec<Option<Hash>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = paths.get(at) else { return done };
            done.push((at, hash(path)));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(paths.len());
    let mut found = vec![None; paths.len()];
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for (at, hash) in workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()) {
            found[at] = hash;
        }
    });
    found
}

fn hash(path: &Path) -> Option<Hash> {
    let file = MappedFile::open(path).ok()?;
    let sha256 = Sha256::digest(file.bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    Some(Hash { bytes: file.bytes().len() as u64, sha256 })
}
