//! LoRA adapters in PEFT's format: `adapter_config.json`, `adapter_model.safetensors`, a short README. Host memory only.
//!
//! y = W x + b + scale · B (A x), A `[R, I]`, B `[O, R]`, both f32. With DoRA y = g ⊙ (W x + scale · B (A x)) + b, where g brings every
//! row of W + scale · B A to the length that the magnitude vector `[O]` holds.

mod config;
mod select;

pub use crate::{ModuleSpec, TensorSpec};
pub use config::{AdapterConfig, Targets};

use crate::weights::{Checkpoint, Tensor, TensorData, write_finite};
use crate::{Error, Result};
use config::Selected;
use runtime::DType;
use runtime::host::write_file;
use std::collections::BTreeSet;
use std::path::Path;

/// The Philox4x32-10 block function: (key, counter) -> four words.
pub type Philox = fn([u32; 2], [u32; 4]) -> [u32; 4];

/// One module's A and B.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterModule {
    /// Of the base module, as in [`ModuleSpec::path`].
    pub path: String,
    /// I.
    pub in_features: usize,
    /// O.
    pub out_features: usize,
    /// R.
    pub r: usize,
    /// Of the product B A.
    pub scale: f32,
    /// `[R, I]`
    pub a: Vec<f32>,
    /// `[O, R]`
    pub b: Vec<f32>,
    /// `[O]` the lengths of DoRA's rows.
    pub magnitude: Option<Vec<f32>>,
}

/// A tensor that stands in the place of the base's.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedTensor {
    /// Its name in the base, and its shape there.
    pub spec: TensorSpec,
    /// Row-major.
    pub values: Vec<f32>,
}

/// An adapter in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// What it was made with; `target_modules` is the sorted list that is written to disk.
    pub config: AdapterConfig,
    /// In the order of the base model's modules; a module that is not there carries no LoRA.
    pub modules: Vec<AdapterModule>,
    /// `[1, C]` the scalar head, if `modules_to_save` names it.
    pub score: Option<Vec<f32>>,
    /// Embedding and LM head, where `modules_to_save` names them; only [`Adapter::load_with`] takes them.
    pub saved: Vec<SavedTensor>,
}

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
const SCORE: &str = "base_model.model.score.weight";
/// Of the scalar head in the random numbers of a new adapter; modules count from 0.
const SCORE_ORDINAL: u32 = 65535;

fn key(path: &str, which: char) -> String {
    format!("base_model.model.{path}.lora_{which}.weight")
}

/// Without `.weight`, as PEFT writes it.
fn magnitude_key(path: &str) -> String {
    format!("base_model.model.{path}.lora_magnitude_vector")
}

/// A name of `modules_to_save` that is neither a scalar head nor among what was taken whole. PEFT writes "classifier" beside "score"
/// for every classifier, whatever its head is called.
fn unsaved<'a>(config: &'a AdapterConfig, saved: &[SavedTensor]) -> Option<&'a str> {
    let taken = |name: &str| saved.iter().any(|t| format!(".{}", t.spec.name).ends_with(&format!(".{name}.weight")));
    let names = config.modules_to_save.iter().map(String::as_str);
    names.into_iter().find(|name| !matches!(*name, "score" | "classifier") && !taken(name))
}

impl AdapterModule {
    /// g `[O]` of DoRA: the magnitude over the length of each row of W + scale · B A, in f64 from W `[O, I]`, rounded once. A row of
    /// length 0 has no direction and is an error. None without DoRA.
    pub fn gain(&self, weight: &[f32]) -> Result<Option<Vec<f32>>> {
        let Some(magnitude) = &self.magnitude else { return Ok(None) };
        let rows = weight.chunks_exact(self.in_features).zip(magnitude).enumerate();
        let gain = rows.map(|(o, (row, magnitude))| self.lengthen(o, *magnitude, &self.sum(o, row)).map(|g| g as f32));
        gain.collect::<Result<_>>().map(Some)
    }

    /// What brings a row of W + scale · B A to this length.
    fn lengthen(&self, o: usize, magnitude: f32, sum: &[f64]) -> Result<f64> {
        let length = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
        let gain = f64::from(magnitude) / length;
        if (gain as f32).is_finite() {
            return Ok(gain);
        }
        let text = format!("{}: row {o} of W + scale B A has length {length}, so its magnitude cannot be set", self.path);
        Err(Error::Numeric(text))
    }

    /// Row `o` `[I]` of the matrix that does what W `[O, I]` and the adapter do, DoRA included, from the row of W.
    pub(crate) fn merged(&self, o: usize, row: &[f32]) -> Result<Vec<f64>> {
        let mut sum = self.sum(o, row);
        if let Some(magnitude) = self.magnitude.as_ref().and_then(|m| m.get(o)) {
            let gain = self.lengthen(o, *magnitude, &sum)?;
            sum.iter_mut().for_each(|v| *v *= gain);
        }
        Ok(sum)
    }

    /// Row `o` of W + scale · B A, from the row of W `[I]`: f64, every product and sum.
    fn sum(&self, o: usize, row: &[f32]) -> Vec<f64> {
        let mut sum: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
        for (j, b) in self.b[o * self.r..][..self.r].iter().enumerate() {
            let factor = f64::from(self.scale) * f64::from(*b);
            sum.iter_mut().zip(&self.a[j * self.in_features..]).for_each(|(w, a)| *w += factor * f64::from(*a));
        }
        sum
    }
}

impl Adapter {
    /// Whether a module's rows have lengths of their own.
    pub fn is_dora(&self) -> bool {
        self.modules.iter().any(|m| m.magnitude.is_some())
    }

    /// Reads a PEFT folder for a base model with these modules. Every tensor that the configuration asks for must be there in its
    /// shape, finite, and no other; errors name file and key. One that saves embedding or head whole is refused: they would have to
    /// be changed in the base, which others share.
    pub fn load(folder: &Path, expected: &[ModuleSpec]) -> Result<Adapter> {
        Adapter::load_with(folder, expected, &[])
    }

    /// [`Adapter::load`] that also takes whole tensors of the base if they are among `whole` (embedding and head).
    pub fn load_with(folder: &Path, expected: &[ModuleSpec], whole: &[TensorSpec]) -> Result<Adapter> {
        let mut config = AdapterConfig::from_folder(folder)?;
        let path = folder.join(TENSORS);
        if !path.exists() && folder.join("adapter_model.bin").exists() {
            return Err(Error::file(
                &path,
                "wanted safetensors, got adapter_model.bin only (a pickle, which is code; save it again)",
            ));
        }
        let selected = config.select(&folder.join(CONFIG), expected)?;
        let checkpoint = Checkpoint::open_file(&path)?;
        let mut left: BTreeSet<&str> = checkpoint.names().collect();
        let mut take = |name: &str, shape: &[usize]| {
            left.remove(name);
            let tensor = checkpoint.tensor(name)?;
            if tensor.shape == shape { read(&tensor) } else { Err(tensor.wrong_shape(shape)) }
        };
        let mut modules = Vec::with_capacity(selected.len());
        for (module, &Selected { r, scale, .. }) in modules_of(expected, &selected) {
            let a = take(&key(&module.path, 'A'), &[r, module.in_features])?;
            let b = take(&key(&module.path, 'B'), &[module.out_features, r])?;
            let magnitude = config.use_dora.then(|| take(&magnitude_key(&module.path), &[module.out_features])).transpose()?;
            modules.push(AdapterModule { a, b, magnitude, ..empty(module, r, scale) });
        }
        let mut saved = Vec::new();
        for spec in whole.iter().filter(|spec| config.saves(spec.name.strip_suffix(".weight").unwrap_or(&spec.name))) {
            saved
                .push(SavedTensor { spec: spec.clone(), values: take(&format!("base_model.model.{}", spec.name), &spec.shape)? });
        }
        if let Some(name) = unsaved(&config, &saved) {
            let wanted = "modules_to_save: wanted nothing but \"score\" here";
            let text = format!("{wanted}, got {name:?}; `ple merge` puts embedding and head into a model of their own");
            return Err(Error::file(&folder.join(CONFIG), text));
        }
        let score = if config.modules_to_save.iter().any(|m| m == "score") {
            let columns = checkpoint.tensor(SCORE)?.shape.last().copied().unwrap_or_default();
            Some(take(SCORE, &[1, columns])?)
        } else {
            None
        };
        if let Some(name) = left.first() {
            return Err(Error::file(&path, format!("tensor {name:?}: wanted no such tensor: {CONFIG} selects no module for it")));
        }
        normalise(&mut config, expected, &selected);
        Ok(Adapter { config, modules, score, saved })
    }

    /// A new adapter: A uniform in ±1/sqrt(I), B zero. Element i of module m (its index in `expected`) takes word i mod 4 of the
    /// block (i/4 low, i/4 high, m, 0) under the key (seed low, seed high ^ 1); uniform = (word >> 8) · 2^-24.
    pub fn fresh(mut config: AdapterConfig, expected: &[ModuleSpec], seed: u64, philox: Philox) -> Result<Adapter> {
        let path = Path::new("new adapter");
        if config.r == 0 || !(config.lora_alpha.is_finite() && config.lora_alpha > 0.0) {
            let got = (config.r, config.lora_alpha);
            return Err(Error::file(
                path,
                format!("r, lora_alpha: wanted a rank of at least 1 and an alpha above 0, got {got:?}"),
            ));
        }
        let selected = config.select(path, expected)?;
        let key = [seed as u32, (seed >> 32) as u32 ^ 1];
        let made = modules_of(expected, &selected).map(|(module, &Selected { index, r, scale })| {
            let bound = (1.0 / (module.in_features as f64).sqrt()) as f32;
            let elements = r * module.in_features;
            let blocks = (0..elements.div_ceil(4) as u64).map(|i| philox(key, [i as u32, (i >> 32) as u32, index as u32, 0]));
            let uniform = |word: u32| (word >> 8) as f32 * 2f32.powi(-24);
            let a = blocks.flatten().take(elements).map(|word| (2.0 * uniform(word) - 1.0) * bound).collect();
            AdapterModule { a, b: vec![0.0; module.out_features * r], ..empty(module, r, scale) }
        });
        let modules = made.collect();
        normalise(&mut config, expected, &selected);
        Ok(Adapter { config, modules, score: None, saved: Vec::new() })
    }

    /// Gives it a scalar head of `width` columns, uniform with standard deviation 0.02, where it has none. Random numbers as for A,
    /// under the tensor ordinal 65535.
    pub fn with_score(mut self, width: usize, seed: u64, philox: Philox) -> Adapter {
        self.score.get_or_insert_with(|| fresh_score(width, seed, philox));
        self.config.modules_to_save = vec!["score".into()];
        self.config.task_type = Some("SEQ_CLS".into());
        self
    }

    /// Writes the folder (made if absent), tensors first; each file appears whole or not at all. Numbers that are not finite are
    /// an error.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let failed = |source| runtime::Error::File { path: folder.to_path_buf(), action: "create", source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        write_finite(&folder.join(TENSORS), &self.tensors())?;
        write_file(&folder.join(CONFIG), |out| out.write_all(self.config.text().as_bytes()))?;
        write_file(&folder.join("README.md"), |out| out.write_all(self.readme().as_bytes()))?;
        Ok(())
    }

    /// Every tensor with its name on disk.
    fn tensors(&self) -> Vec<Tensor<'_>> {
        let mut tensors: Vec<Tensor> = Vec::with_capacity(2 * self.modules.len() + 1);
        for m in &self.modules {
            tensors.push((key(&m.path, 'A'), DType::F32, vec![m.r, m.in_features], bytemuck::cast_slice(&m.a)));
            tensors.push((key(&m.path, 'B'), DType::F32, vec![m.out_features, m.r], bytemuck::cast_slice(&m.b)));
            if let Some(magnitude) = &m.magnitude {
                tensors.push((magnitude_key(&m.path), DType::F32, vec![m.out_features], bytemuck::cast_slice(magnitude)));
            }
        }
        for SavedTensor { spec, values } in &self.saved {
            let name = format!("base_model.model.{}", spec.name);
            tensors.push((name, DType::F32, spec.shape.clone(), bytemuck::cast_slice(values)));
        }
        if let Some(score) = &self.score {
            tensors.push((SCORE.into(), DType::F32, vec![1, score.len()], bytemuck::cast_slice(score)));
        }
        tensors
    }

    fn readme(&self) -> String {
        let base = self.config.base_model_name_or_path.as_deref().unwrap_or("unknown");
        let (r, alpha) = (self.config.r, self.config.lora_alpha);
        format!(
            "---\nbase_model: {}\nlibrary_name: peft\n---\n\nA LoRA adapter (rank {r}, alpha {alpha}, {} modules) in PEFT's format, written by PLE.\n",
            serde_json::Value::from(base),
            self.modules.len()
        )
    }
}

/// A new scalar head `[C]`.
pub(crate) fn fresh_score(width: usize, seed: u64, philox: Philox) -> Vec<f32> {
    let (key, bound) = ([seed as u32, (seed >> 32) as u32 ^ 1], 0.02 * 3f32.sqrt());
    let words = (0..width.div_ceil(4) as u32).flat_map(|i| philox(key, [i, 0, SCORE_ORDINAL, 0]));
    let uniform = |word: u32| (word >> 8) as f32 * 2f32.powi(-24);
    words.take(width).map(|word| (2.0 * uniform(word) - 1.0) * bound).collect()
}

fn read(tensor: &TensorData) -> Result<Vec<f32>> {
    tensor.check_finite()?;
    Ok(tensor.to_f32())
}

fn empty(module: &ModuleSpec, r: usize, scale: f32) -> AdapterModule {
    let ModuleSpec { path, in_features, out_features } = module.clone();
    AdapterModule { path, in_features, out_features, r, scale, a: Vec::new(), b: Vec::new(), magnitude: None }
}

fn modules_of<'a>(expected: &'a [ModuleSpec], selected: &'a [Selected]) -> impl Iterator<Item = (&'a ModuleSpec, &'a Selected)> {
    selected.iter().filter_map(|s| expected.get(s.index).map(|m| (m, s)))
}

/// Names what was selected as PLE writes it: the sorted last names where they select just these modules, else the full paths.
fn normalise(config: &mut AdapterConfig, expected: &[ModuleSpec], selected: &[Selected]) {
    let last = |m: &ModuleSpec| m.path.rsplit('.').next().unwrap_or_default().to_string();
    let names: BTreeSet<String> = modules_of(expected, selected).map(|(m, _)| last(m)).collect();
    let covered = expected.iter().filter(|m| names.contains(&last(m))).count();
    let paths = || modules_of(expected, selected).map(|(m, _)| m.path.clone()).collect();
    let names = if covered == selected.len() { names } else { paths() };
    config.target_modules = Targets::List(names.into_iter().collect());
    (config.exclude_modules, config.layers_to_transform, config.layers_pattern) = (None, Vec::new(), Vec::new());
}

#[cfg(test)]
mod tests;
