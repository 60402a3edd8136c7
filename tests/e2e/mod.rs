//! The program as a user calls it: every command in a process of its own, what it leaves behind, and what it refuses.

mod baselines;
mod browser;
mod chats;
mod demo;
mod diff;
mod edges;
mod evaluates;
mod families;
mod generates;
mod identities;
mod inspects;
#[cfg(target_os = "linux")]
mod interposed;
mod journals;
mod kernels;
mod merges;
mod program;
mod refused;
mod report;
#[cfg(target_os = "linux")]
mod resumes;
mod rewards;
mod runs;
mod scores;
mod settings;
mod sft;
#[cfg(target_os = "linux")]
mod signals;
mod starts;
mod stops;
mod terminal;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use ple_tests::data::shared;
use runtime::Isa;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A real checkpoint, real dialogues, real word lists.
struct Data {
    model: PathBuf,
    /// The same weights in bf16.
    bf16: PathBuf,
    /// Raw HH rows.
    dialogues: PathBuf,
    positive: PathBuf,
    negative: PathBuf,
}

impl Data {
    /// None, after saying what is absent.
    fn find() -> Option<Data> {
        Some(Data {
            model: shared("data/models/stories260k")?,
            bf16: shared("data/models/stories260k-bf16")?,
            dialogues: shared("data/hh/helpful-base.jsonl")?,
            positive: shared("data/lexicon/opinion_positive-words.txt")?,
            negative: shared("data/lexicon/opinion_negative-words.txt")?,
        })
    }

    /// Writes the first `n` dialogues into `folder` as a file of their own.
    fn first(&self, n: usize, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("first-{n}.jsonl"));
        let text = std::fs::read_to_string(&self.dialogues)?;
        std::fs::write(&path, text.lines().take(n).flat_map(|line| [line, "\n"]).collect::<String>())?;
        Ok(path)
    }

    fn lexicon(&self) -> String {
        format!("lexicon:{},{}", self.positive.display(), self.negative.display())
    }
}

/// The objects of a JSONL file.
fn objects(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_string())).collect()
}

/// A copy of a model's folder in `folder`, with a chat template.
fn with_template(model: &Path, folder: &Path, template: &str) -> Result<PathBuf> {
    let to = folder.join("chatty");
    std::fs::create_dir_all(&to)?;
    for name in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(model.join(name), to.join(name)).with_context(|| name.to_string())?;
    }
    std::fs::write(to.join("chat_template.jinja"), template)?;
    Ok(to)
}

/// Turns with their roles; an answer ends with the end token.
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}\
    {{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

/// A field that must be a finite number.
fn number(row: &Value, name: &str) -> Result<f64> {
    row[name].as_f64().filter(|x| x.is_finite()).with_context(|| format!("{name}: wanted a number, got {} in {row}", row[name]))
}

/// A list of numbers as f32 bits.
fn bits(row: &Value, name: &str) -> Result<Vec<u32>> {
    let list = row[name].as_array().with_context(|| format!("{name}: wanted a list in {row}"))?;
    list.iter().map(|x| Ok((x.as_f64().context("wanted a number")? as f32).to_bits())).collect()
}

/// Files of two runs must be the same bytes.
fn same(a: &Path, b: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let read = |folder: &Path| std::fs::read(folder.join(name)).with_context(|| folder.join(name).display().to_string());
        ensure!(read(a)? == read(b)?, "{name} differs between {} and {}", a.display(), b.display());
    }
    Ok(())
}

/// Every file under a folder, by its path in it, sorted.
fn files(folder: &Path) -> Result<Vec<String>> {
    let (mut found, mut left) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next)? {
            let path = entry?.path();
            match path.is_dir() {
                true => left.push(path),
                false => found.push(path.strip_prefix(folder)?.to_string_lossy().into_owned()),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Instruction sets to force, best last; the portable one is slow and only where there is no other.
fn vectors() -> Vec<Isa> {
    let all = Isa::all();
    if all.len() > 1 { all.into_iter().skip(1).collect() } else { all }
}

/// A compressed copy of a file beside it.
fn zipped(path: &Path) -> Result<PathBuf> {
    let target = path.with_extension("jsonl.gz");
    let mut out = GzEncoder::new(std::fs::File::create(&target)?, Compression::fast());
    out.write_all(&std::fs::read(path)?)?;
    out.finish()?;
    Ok(target)
}
