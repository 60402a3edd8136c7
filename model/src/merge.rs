//! The weights of a base and an adapter as one model's: W + scale·B·A (DoRA: its rows at their lengths), summed in f64 and rounded once to
//! the storage type. Written tensor by tensor into files that are named as the base's; memory holds one tensor at most.

use crate::adapter::{Adapter, AdapterModule};
use crate::header::{Stopped, write_streamed};
use crate::json::{self, Object};
use crate::weights::{Checkpoint, TensorData};
use crate::{Config, Error, Result, TensorSpec};
use half::{bf16, f16};
use runtime::DType;
use serde_json::{Value, json};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

const HEAD: &str = "lm_head.weight";
const SCORE: &str = "score.weight";
/// Last names of modules that hold a row per token or position.
const EMBEDDINGS: [&str; 3] = ["embed_tokens", "wte", "wpe"];

/// What became of one module's weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// `model.layers.0.mlp.up_proj`
    pub path: String,
    /// O·I.
    pub elements: usize,
    /// Elements whose stored value the adapter did not change: it is the base's, in the storage type of the result.
    pub unchanged: usize,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// In the order of the base's modules.
    pub modules: Vec<Share>,
    /// Tensors that the adapter holds whole.
    pub replaced: Vec<String>,
    /// Whether head and embedding were one tensor and are two now.
    pub untied: bool,
    /// Whether the language model's head gave way to a scalar one.
    pub headed: bool,
    /// Names of the files.
    pub files: Vec<String>,
}

/// Tensors of a base that an adapter may hold whole: embeddings and head, the head also where it is the embedding.
pub fn whole(config: &Config) -> Vec<TensorSpec> {
    let last = |spec: &TensorSpec| spec.name.strip_suffix(".weight").and_then(|n| n.rsplit('.').next()).map(str::to_string);
    let mut list: Vec<TensorSpec> = config.tensors();
    list.retain(|spec| last(spec).is_some_and(|n| n == "lm_head" || EMBEDDINGS.contains(&n.as_str())));
    if config.tie_word_embeddings
        && let Some(shape) = embedding(&list).map(|spec| spec.shape.clone())
    {
        list.push(TensorSpec { name: HEAD.into(), shape });
    }
    list
}

fn embedding(list: &[TensorSpec]) -> Option<&TensorSpec> {
    list.iter().find(|spec| spec.name.ends_with("embed_tokens.weight") || spec.name.ends_with("wte.weight"))
}

/// Where a tensor's values come from.
enum Source<'a> {
    /// As they are.
    Base(TensorData<'a>),
    /// W and what sits on it.
    Module(TensorData<'a>, &'a AdapterModule),
    /// The adapter's own.
    Saved(&'a [f32]),
}

/// A tensor of the result.
struct Out<'a> {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    source: Source<'a>,
}

/// The base and the adapter, looked up by the result's names.
struct Plan<'a> {
    base: &'a Checkpoint,
    adapter: &'a Adapter,
    dtype: Option<DType>,
    /// Of a tied base: the embedding's name.
    tied: Option<String>,
    untied: bool,
    headed: bool,
}

impl<'a> Plan<'a> {
    fn new(base: &'a Checkpoint, config: &Config, adapter: &'a Adapter, dtype: Option<DType>) -> Result<Plan<'a>> {
        let whole = whole(config);
        let tied = embedding(&whole).filter(|_| config.tie_word_embeddings && !config.scalar_head).map(|spec| spec.name.clone());
        let headed = adapter.score.is_some() && !config.scalar_head;
        let mut plan = Plan { base, adapter, dtype, tied, untied: false, headed };
        if let (Some(embedding), false) = (plan.tied.clone(), headed) {
            let values = |name: &str| match plan.saved(name) {
                Some(values) => Ok(values.to_vec()),
                None => base.tensor(&embedding).map(|t| t.to_f32()),
            };
            let touched = plan.saved(HEAD).is_some() || plan.saved(&embedding).is_some();
            plan.untied = touched && values(HEAD)? != values(&embedding)?;
        }
        Ok(plan)
    }

    fn saved(&self, name: &str) -> Option<&'a [f32]> {
        self.adapter.saved.iter().find(|t| t.spec.name == name).map(|t| t.values.as_slice())
    }

    /// The tensor of the result that has the name of one of the base's.
    fn of(&self, name: &str) -> Result<Option<Out<'a>>> {
        if name == HEAD && (self.headed || self.tied.is_some()) {
            return Ok(None);
        }
        let tensor = self.base.tensor(name)?;
        let dtype = self.dtype.unwrap_or(tensor.dtype);
        let module = || self.adapter.modules.iter().find(|m| name.strip_suffix(".weight") == Some(&m.path));
        let source = if let Some(values) = self.saved(name) {
            Source::Saved(values)
        } else if let Some(score) = self.adapter.score.as_deref().filter(|_| name == SCORE) {
            let shape = [1, score.len()];
            if tensor.shape == shape { Source::Saved(score) } else { return Err(tensor.wrong_shape(&shape)) }
        } else if let Some(m) = module() {
            let shape = [m.out_features, m.in_features];
            if tensor.shape == shape { Source::Module(tensor, m) } else { return Err(tensor.wrong_shape(&shape)) }
        } else {
            Source::Base(tensor)
        };
        Ok(Some(Out { name: name.into(), dtype, shape: tensor.shape.to_vec(), source }))
    }

    /// Tensors that the base has not, and the base's beside which they are written.
    fn more(&self) -> Result<Vec<(String, Out<'a>)>> {
        let mut list = Vec::new();
        if let (Some(embedding), true) = (&self.tied, self.untied) {
            let tensor = self.base.tensor(embedding)?;
            let source = self.saved(HEAD).map_or(Source::Base(tensor), Source::Saved);
            let dtype = self.dtype.unwrap_or(tensor.dtype);
            list.push((embedding.clone(), Out { name: HEAD.into(), dtype, shape: tensor.shape.to_vec(), source }));
        }
        if let (Some(score), true) = (&self.adapter.score, self.headed) {
            let last = self.base.names().last().unwrap_or_default().to_string();
            let dtype = self.dtype.unwrap_or(self.base.tensor(&last)?.dtype);
            list.push((last, Out { name: SCORE.into(), dtype, shape: vec![1, score.len()], source: Source::Saved(score) }));
        }
        Ok(list)
    }

    /// The files of the result.
    fn files(&self) -> Result<Vec<(String, Vec<Out<'a>>)>> {
        let mut more = self.more()?;
        let mut files = Vec::new();
        for (path, names) in self.base.files() {
            let mut list = Vec::new();
            for name in names {
                list.extend(self.of(name)?);
                let beside = more.iter().position(|(beside, _)| beside == name);
                list.extend(beside.map(|at| more.remove(at).1));
            }
            files.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), list));
        }
        Ok(files)
    }
}

/// Writes the weights of `base`, a checkpoint that has been checked against `config`, and `adapter` into the folder `out`, which is
/// there. `dtype` None keeps each tensor's own. A result that is not finite in its storage type is an error. Before each tensor `progress`
/// hears how many are done, and may say to stop.
pub fn merge(
    base: &Checkpoint,
    config: &Config,
    adapter: &Adapter,
    dtype: Option<DType>,
    out: &Path,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Merged> {
    if config.fan_in_fan_out() {
        let family = config.model_type();
        return Err(Error::file(
            base.path(),
            format!("modules: wanted matrices [out, in] to merge into, got {family}'s [in, out]"),
        ));
    }
    let plan = Plan::new(base, config, adapter, dtype)?;
    let files = plan.files()?;
    let replaced = adapter.saved.iter().map(|t| t.spec.name.clone()).chain(adapter.score.iter().map(|_| SCORE.to_string()));
    let mut merged = Merged { replaced: replaced.collect(), untied: plan.untied, headed: plan.headed, ..Merged::default() };
    let mut done = 0;
    for (name, tensors) in &files {
        let entries: Vec<_> = tensors.iter().map(|t| (t.name.clone(), t.dtype, t.shape.clone())).collect();
        write_streamed(&out.join(name), &[], &entries, |i, out| {
            if progress(done).is_break() {
                return Err(Error::Interrupted.into());
            }
            done += 1;
            merged.modules.extend(write(&tensors[i], out)?);
            Ok(())
        })?;
        merged.files.push(name.clone());
    }
    let order: Vec<&str> = adapter.modules.iter().map(|m| m.path.as_str()).collect();
    merged.modules.sort_by_key(|share| order.iter().position(|path| *path == share.path));
    if merged.modules.len() < adapter.modules.len() {
        let absent = adapter.modules.iter().find(|m| merged.modules.iter().all(|s| s.path != m.path));
        let name = absent.map_or("", |m| &m.path);
        return Err(Error::file(base.path(), format!("tensor {:?}: wanted for the adapter, got none", format!("{name}.weight"))));
    }
    index(base, &files, out)?;
    Ok(merged)
}

/// Writes one tensor; of a module comes back what became of it.
fn write(tensor: &Out, out: &mut dyn Write) -> std::result::Result<Option<Share>, Stopped> {
    match &tensor.source {
        Source::Base(data) if data.dtype == tensor.dtype => out.write_all(data.bytes)?,
        Source::Base(data) => out.write_all(&stored(tensor, data.to_f32().into_iter().map(f64::from))?)?,
        Source::Saved(values) => out.write_all(&stored(tensor, values.iter().map(|v| f64::from(*v)))?)?,
        Source::Module(data, module) => {
            let mut share = Share { path: module.path.clone(), elements: 0, unchanged: 0 };
            for (o, bytes) in data.bytes.chunks_exact(module.in_features * data.dtype.size()).enumerate() {
                let row = TensorData { bytes, ..*data }.to_f32();
                let before = stored(tensor, row.iter().map(|v| f64::from(*v)))?;
                let after = stored(tensor, module.merged(o, &row)?.into_iter())?;
                let size = tensor.dtype.size();
                share.elements += row.len();
                share.unchanged += before.chunks_exact(size).zip(after.chunks_exact(size)).filter(|(a, b)| a == b).count();
                out.write_all(&after)?;
            }
            return Ok(Some(share));
        }
    }
    Ok(None)
}

/// Values in the tensor's storage type, each rounded once.
fn stored(tensor: &Out, values: impl Iterator<Item = f64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for value in values {
        let finite = match tensor.dtype {
            DType::Bf16 => {
                let x = bf16::from_f32(odd(value));
                bytes.extend(x.to_le_bytes());
                x.is_finite()
            }
            DType::F16 => {
                let x = f16::from_f32(odd(value));
                bytes.extend(x.to_le_bytes());
                x.is_finite()
            }
            _ => {
                let x = value as f32;
                bytes.extend(x.to_le_bytes());
                x.is_finite()
            }
        };
        if !finite {
            return Err(Error::Numeric(format!(
                "not written: tensor {:?}: {value} is not finite in {}",
                tensor.name, tensor.dtype
            )));
        }
    }
    Ok(bytes)
}

/// f32 of a value on its way to 16 bits, rounded to odd: what is then rounded to nearest is as if rounded once, since f32 has two bits
/// more than both need.
fn odd(value: f64) -> f32 {
    let near = value as f32;
    if !near.is_finite() || f64::from(near) == value || near.to_bits() & 1 == 1 {
        return near;
    }
    // The other neighbour of an even one is odd.
    let outward = f64::from(near).abs() < value.abs();
    match near.to_bits() & 0x7fff_ffff {
        0 => f32::from_bits(1).copysign(value as f32),
        _ => f32::from_bits(if outward { near.to_bits() + 1 } else { near.to_bits() - 1 }),
    }
}

/// The index of a sharded base, with what has come and gone.
fn index(base: &Checkpoint, files: &[(String, Vec<Out>)], out: &Path) -> Result<()> {
    let path = base.path();
    if path.extension().is_none_or(|e| e != "json") {
        return Ok(());
    }
    let text = json::read(path)?;
    let mut map = json::parse(path, &text)?;
    let before = Object::new(path, &map).object("weight_map")?.map_or(0, |m| m.keys().count());
    let all = || files.iter().flat_map(|(file, list)| list.iter().map(move |t| (file, t)));
    let elements = |t: &Out| t.shape.iter().product::<usize>();
    let size: usize = all().map(|(_, t)| elements(t) * t.dtype.size()).sum();
    let mut names: Vec<(&str, &str)> = all().map(|(file, t)| (t.name.as_str(), file.as_str())).collect();
    names.sort_unstable();
    let same = names.len() == before && map.get("metadata").is_some_and(|m| m["total_size"] == json!(size));
    if !same {
        let mut metadata = map.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
        metadata.insert("total_size".into(), json!(size));
        if metadata.contains_key("total_parameters") {
            metadata.insert("total_parameters".into(), json!(all().map(|(_, t)| elements(t)).sum::<usize>()));
        }
        map.insert("metadata".into(), Value::Object(metadata));
        map.insert("weight_map".into(), Value::Object(names.into_iter().map(|(n, f)| (n.into(), json!(f))).collect()));
    }
    let text = if same { text } else { format!("{:#}\n", Value::Object(map)) };
    Ok(runtime::host::write_file(&out.join("model.safetensors.index.json"), |out| out.write_all(text.as_bytes()))?)
}

#[cfg(test)]
mod tests;
