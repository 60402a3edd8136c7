//! From settings to a device, a model, its adapter and its tokenizer.

use crate::config::{Config, Dtype, Tune as Tuned};
use crate::data::Tokens;
use crate::{Error, Result};
use model::{Adapter, AdapterConfig, Lora, Targets, Tokenizer, Transformer, Tune, adapter};
use runtime::{DType, Stream};
use std::path::{Path, PathBuf};

/// Everything that is opened once.
pub struct Opened {
    /// The queue everything runs on.
    pub stream: Stream,
    /// The model with its adapter slots, until a trainer takes it.
    model: Option<Transformer>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Where both came from.
    pub folder: PathBuf,
    /// Off without an adapter.
    pub policy: Adapter,
    /// What is trained.
    pub tune: Tune,
}

/// The device of the settings.
pub fn stream(c: &Config) -> Result<Stream> {
    Ok(Stream::open(&c.device, (c.threads > 0).then_some(c.threads as usize))?)
}

fn dtype(c: &Config) -> Option<DType> {
    match c.dtype {
        Dtype::Auto => None,
        Dtype::Float32 => Some(DType::F32),
        Dtype::Bfloat16 => Some(DType::Bf16),
        Dtype::Float16 => Some(DType::F16),
    }
}

impl Opened {
    /// For training: a fresh adapter unless one is given; f32 weights under full tuning.
    pub fn for_training(c: &Config) -> Result<Opened> {
        let mut opened = Opened::base(c, c.tune == Tuned::Full)?;
        if c.tune == Tuned::Lora {
            let modules = opened.model()?.modules();
            let disk = match &c.adapter {
                Some(folder) => adapter::Adapter::load(folder, &modules)?,
                None => fresh(c, &modules)?,
            };
            opened.policy = opened.slot(disk)?;
            opened.tune = Tune::Lora(0);
        }
        Ok(opened)
    }

    /// For scoring: the adapter only if one is given.
    pub fn for_scoring(c: &Config) -> Result<Opened> {
        let mut opened = Opened::base(c, false)?;
        if let Some(folder) = &c.adapter {
            opened.policy = opened.add_slot(folder)?;
        }
        Ok(opened)
    }

    fn base(c: &Config, full: bool) -> Result<Opened> {
        let stream = stream(c)?;
        let folder = c
            .model_name_or_path
            .as_ref()
            .or(c.init_from_config.as_ref())
            .ok_or_else(|| Error::Usage("model_name_or_path: wanted a folder, got nothing".into()))?
            .clone();
        if !folder.is_dir() {
            return Err(Error::file(
                &folder,
                "wanted a model folder, got nothing there (`hf download NAME --local-dir DIR` fetches one)",
            ));
        }
        let model = match c.init_from_config {
            Some(_) => Transformer::fresh(&stream, &folder, c.seed)?,
            None => Transformer::load(&stream, &folder, if full { Some(DType::F32) } else { dtype(c) })?,
        };
        let tokenizer = Tokenizer::open(&folder)?;
        Ok(Opened { stream, model: Some(model), tokenizer, folder, policy: Adapter::Off, tune: Tune::Full })
    }

    /// The model. An error once a trainer has taken it.
    pub fn model(&self) -> Result<&Transformer> {
        self.model.as_ref().ok_or_else(taken)
    }

    /// Hands the model over.
    pub fn take_model(&mut self) -> Result<Transformer> {
        self.model.take().ok_or_else(taken)
    }

    /// Loads an adapter folder into a slot of its own.
    pub fn add_slot(&mut self, folder: &Path) -> Result<Adapter> {
        let disk = adapter::Adapter::load(folder, &self.model()?.modules())?;
        self.slot(disk)
    }

    fn slot(&mut self, disk: adapter::Adapter) -> Result<Adapter> {
        let model = self.model.as_mut().ok_or_else(taken)?;
        Ok(model.add_slot(Lora::upload(&self.stream, model.base(), disk)?)?)
    }

    /// Ids after which an answer ends: every id that configuration or tokenizer call an end.
    pub fn stop(&self, config: &model::Config) -> Vec<u32> {
        let mut stop = config.eos_token_ids.clone();
        stop.extend(self.tokenizer.eos);
        stop.sort_unstable();
        stop.dedup();
        stop
    }
}

fn taken() -> Error {
    Error::Usage("the model is with the trainer".into())
}

/// A new adapter; what is wrong with it is wrong with the settings.
fn fresh(c: &Config, modules: &[model::ModuleSpec]) -> Result<adapter::Adapter> {
    adapter::Adapter::fresh(adapter_config(c), modules, c.seed, kernels::sample::philox).map_err(|e| match e {
        model::Error::File { text, .. } if text.starts_with("lora_") => Error::Usage(text),
        model::Error::File { text, .. } => Error::Usage(format!("lora_{text}")),
        other => other.into(),
    })
}

fn adapter_config(c: &Config) -> AdapterConfig {
    let targets = match c.lora_target_modules.as_slice() {
        [one] if one == "all-linear" => Targets::AllLinear,
        names => Targets::List(names.to_vec()),
    };
    let mut config = AdapterConfig::new(c.lora_r as usize, c.lora_alpha, targets);
    config.use_rslora = c.use_rslora;
    config.base_model_name_or_path = c.model_name_or_path.as_ref().map(|p| p.to_string_lossy().into_owned());
    config
}

impl Tokens for Tokenizer {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        Ok(Tokenizer::encode(self, text, special)?)
    }
    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        Ok(Tokenizer::decode(self, ids, skip_special)?)
    }
    fn eos(&self) -> Option<u32> {
        self.eos
    }
}
