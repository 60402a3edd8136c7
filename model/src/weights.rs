//! Checkpoints on disk: one `model.safetensors`, or shards and their index. Files are mapped; nothing is copied until asked.

use crate::header::{self, Entry};
use crate::json::{self, Object};
use crate::{Error, Result, TensorSpec};
use half::f16;
use runtime::DType;
use runtime::host::MappedFile;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use crate::header::{Tensor, write_safetensors, write_with_metadata};

/// The tensors of a model or adapter, by name.
#[derive(Debug)]
pub struct Checkpoint {
    /// The one file, or the index.
    path: PathBuf,
    files: Vec<MappedFile>,
    /// Name -> file and place in it.
    tensors: BTreeMap<String, (usize, Entry)>,
    /// Of the one file; empty for shards.
    metadata: BTreeMap<String, String>,
}

/// A tensor as it lies in its file.
#[derive(Clone, Copy, Debug)]
pub struct TensorData<'a> {
    /// Its name on disk.
    pub name: &'a str,
    /// The file it lies in.
    pub path: &'a Path,
    /// F32, Bf16 or F16.
    pub dtype: DType,
    /// Rows first.
    pub shape: &'a [usize],
    /// Little-endian elements, at any alignment.
    pub bytes: &'a [u8],
}

/// What all tensors of a GPT-2 are in, but for its heads.
pub const PREFIX: &str = "transformer.";

impl Checkpoint {
    /// Opens `model.safetensors` of a folder or, without one, the shards that `model.safetensors.index.json` names. Every header
    /// is checked; errors name file and field.
    pub fn open(folder: &Path) -> Result<Checkpoint> {
        let (single, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
        if single.exists() || !index.exists() {
            if !single.exists() && folder.join("pytorch_model.bin").exists() {
                return Err(Error::file(
                    &single,
                    "wanted safetensors, got pytorch_model.bin only (a pickle, which is code; convert it)",
                ));
            }
            return Checkpoint::open_file(&single);
        }
        Checkpoint::sharded(index)
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        let file = MappedFile::open(path)?;
        let header::Header { metadata, entries } = header::read(path, file.bytes())?;
        let tensors = entries.into_iter().map(|(name, entry)| (name, (0, entry))).collect();
        Ok(Checkpoint { path: path.to_path_buf(), files: vec![file], tensors, metadata })
    }

    fn sharded(index: PathBuf) -> Result<Checkpoint> {
        let map = json::parse(&index, &json::read(&index)?)?;
        let object = Object::new(&index, &map);
        let weight_map = object.object("weight_map")?.ok_or_else(|| object.wrong("weight_map", "an object of tensor -> file"))?;
        let (mut files, mut entries, mut known) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut tensors = BTreeMap::new();
        for (name, shard) in weight_map.keys() {
            let Some(shard) = shard.as_str().filter(|s| plain_name(s)) else {
                return Err(weight_map.wrong(name, "the name of a file in the same folder"));
            };
            let at = match known.get(shard) {
                Some(at) => *at,
                None => {
                    let path = index.with_file_name(shard);
                    if !path.is_file() {
                        return Err(weight_map.wrong(name, "a file that is in the folder"));
                    }
                    let file = MappedFile::open(&path)?;
                    entries.push(header::read(&path, file.bytes())?.entries);
                    files.push(file);
                    known.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            let entry = entries.get_mut(at).and_then(|e: &mut BTreeMap<_, _>| e.remove(name));
            tensors.insert(name.clone(), (at, entry.ok_or_else(|| weight_map.wrong(name, "a shard that holds this tensor"))?));
        }
        for (file, left) in files.iter().zip(&entries) {
            if let Some(name) = left.keys().next() {
                return Err(Error::file(
                    file.path(),
                    format!("tensor {name:?}: wanted it at this file in the weight_map of {}", index.display()),
                ));
            }
        }
        Ok(Checkpoint { path: index, files, tensors, metadata: BTreeMap::new() })
    }

    /// The file, or the index of the shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every file with the names of its tensors, ascending; an index names no file without one.
    pub fn files(&self) -> Vec<(&Path, Vec<&str>)> {
        let mut files: Vec<(&Path, Vec<&str>)> = self.files.iter().map(|f| (f.path(), Vec::new())).collect();
        for (name, (at, _)) in &self.tensors {
            files[*at].1.push(name);
        }
        files
    }

    /// A string of the file's metadata; a sharded checkpoint has none.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(String::as_str)
    }

    /// Names of all tensors, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// GPT-2's first files leave out the name of what all their tensors are in.
    fn find(&self, name: &str) -> Option<(&String, &(usize, Entry))> {
        let short = || self.tensors.get_key_value(name.strip_prefix(PREFIX)?);
        self.tensors.get_key_value(name).or_else(short)
    }

    /// A tensor by name, `transformer.` in front or not. One that is absent, or stored in anything but F32, BF16 or F16, is an error.
    pub fn tensor(&self, name: &str) -> Result<TensorData<'_>> {
        let missing = || Error::file(&self.path, format!("tensor {name:?}: wanted, but it is not there"));
        let (name, (at, entry)) = self.find(name).ok_or_else(missing)?;
        let file = self.files.get(*at).ok_or_else(missing)?;
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::Bf16,
            Dtype::F16 => DType::F16,
            other => {
                return Err(Error::file(file.path(), format!("tensor {name:?}: dtype: wanted F32, BF16 or F16, got {other}")));
            }
        };
        let bytes = file.bytes().get(entry.bytes.clone()).ok_or_else(missing)?;
        Ok(TensorData { name, path: file.path(), dtype, shape: &entry.shape, bytes })
    }

    /// Whether exactly these tensors are there, in these shapes. Left out of the comparison: the frequencies and masks that old files
    /// carry along, and `lm_head.weight` beside a tied embedding (the embedding is the head then).
    pub fn check(&self, specs: &[TensorSpec]) -> Result<()> {
        for spec in specs {
            let tensor = self.tensor(&spec.name)?;
            if tensor.shape != spec.shape {
                return Err(tensor.wrong_shape(&spec.shape));
            }
        }
        let wanted: std::collections::BTreeSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
        let tied = !wanted.contains("lm_head.weight") && !wanted.contains("score.weight");
        let kept = |name: &str| ["rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"].iter().any(|end| name.ends_with(end));
        let allowed = |name: &str| kept(name) || (tied && name == "lm_head.weight");
        let short = |name: &str| {
            let long = format!("{PREFIX}{name}");
            wanted.contains(long.as_str()) && !self.tensors.contains_key(&long)
        };
        for (name, (at, entry)) in &self.tensors {
            if !wanted.contains(name.as_str()) && !allowed(name) && !short(name) {
                let path = self.files.get(*at).map_or(self.path.as_path(), MappedFile::path);
                return Err(Error::file(
                    path,
                    format!("tensor {name:?}: wanted no such tensor, got one of shape {:?}", entry.shape),
                ));
            }
        }
        Ok(())
    }
}

/// [`write_safetensors`] of what was trained: a tensor that is not finite is an error and nothing is written.
pub(crate) fn write_finite(path: &Path, tensors: &[Tensor]) -> Result<()> {
    for (name, dtype, shape, bytes) in tensors {
        let tensor = TensorData { name, path, dtype: *dtype, shape, bytes };
        tensor.check_finite().map_err(|e| Error::Numeric(format!("not written: {e}")))?;
    }
    write_safetensors(path, tensors)
}

/// Whether a shard's name stays inside its folder on every system.
fn plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && !name.contains("..") && !name.contains(['/', '\\', ':', '\0'])
}

impl TensorData<'_> {
    /// The error of a tensor whose shape is not the wanted one.
    pub(crate) fn wrong_shape(&self, wanted: &[usize]) -> Error {
        Error::file(self.path, format!("tensor {:?}: shape: wanted {wanted:?}, got {:?}", self.name, self.shape))
    }

    /// The elements widened to f32, exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::Bf16 => {
                self.bytes.as_chunks().0.iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)).collect()
            }
            DType::F16 => self.bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            _ => self.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        }
    }

    /// [`Error::File`] with the first index at which the tensor is NaN or infinite.
    pub fn check_finite(&self) -> Result<()> {
        let half = |exponent: u16| move |b: &[u8; 2]| u16::from_le_bytes(*b) & exponent == exponent;
        let bad = match self.dtype {
            DType::Bf16 => first(self.bytes.as_chunks().0, half(0x7f80)),
            DType::F16 => first(self.bytes.as_chunks().0, half(0x7c00)),
            _ => first(self.bytes.as_chunks().0, |b| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000),
        };
        match bad {
            Some(at) => Err(Error::file(
                self.path,
                format!("tensor {:?}: wanted finite numbers, got NaN or infinity at element {at}", self.name),
            )),
            None => Ok(()),
        }
    }
}

/// The first element that is bad. Blocks are folded without a branch, which vectorises; only a bad block is searched.
fn first<const W: usize>(elements: &[[u8; W]], bad: impl Fn(&[u8; W]) -> bool) -> Option<usize> {
    let block = elements.chunks(4096).position(|block| block.iter().fold(false, |any, e| any | bad(e)))?;
    elements.iter().skip(block * 4096).position(bad).map(|at| block * 4096 + at)
}

#[cfg(test)]
mod tests;
