//! From settings to a device, a model, its adapter and its tokenizer.

use crate::config::{Command, Config, Dtype, Gemm, Tune as Tuned};
use crate::data::{Tokens, check::Ends};
use crate::{Error, Result, identity};
use model::weights::Checkpoint;
use model::{Adapter, AdapterConfig, Lora, Targets, Tokenizer, Transformer, Tune, adapter};
use runtime::{DType, Stream};
use std::collections::BTreeSet;
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
    /// What the adapter's folder said and overruled.
    pub notes: Vec<String>,
}

/// The device of the settings.
pub fn stream(c: &Config) -> Result<Stream> {
    let s = Stream::open(&c.device, (c.threads > 0).then_some(c.threads as usize))?;
    products(c, &s)?;
    Ok(s)
}

/// The vendor's products repeat themselves and keep no law, are of bf16, and read what a frozen base was laid out for.
fn products(c: &Config, s: &Stream) -> Result<()> {
    if c.gemm == Gemm::Own {
        return Ok(());
    }
    let takes = matches!(c.command, Command::Sft | Command::Dpo | Command::Reward | Command::Logprob | Command::Bench);
    let why = if s.host().is_some() {
        "the CPU has no other products than its own".into()
    } else if !takes {
        format!("`ple {}` promises one set of bits in every batch", c.command.name())
    } else if c.tune == Tuned::Full {
        "tune full trains what the library's products have rounded".into()
    } else if c.command == Command::Bench && !c.e2e {
        "rooms are measured both ways, `--e2e` one way".into()
    } else if c.command != Command::Bench && c.dtype != Dtype::Bfloat16 {
        "the library's products are of bf16, `dtype` bfloat16".into()
    } else {
        return Ok(());
    };
    Err(Error::Usage(format!("gemm: wanted own on {}: {why}; got library", s.backend().name())))
}

/// From here on the vendor's library multiplies in this model.
pub(crate) fn through_library(s: &Stream, model: &mut Transformer) -> Result<()> {
    let wanted = |why: String| Error::Usage(format!("gemm: wanted own on {}: {why}; got library", s.backend().name()));
    model.through_library(s).map_err(|e| match e {
        model::Error::Batch(why) => wanted(why),
        model::Error::Runtime(runtime::Error::Unsupported { .. }) => wanted("no cuBLASLt that multiplies was found".into()),
        other => other.into(),
    })
}

/// Storage of the base weights; None keeps the file's. A device computes in the storage of its weights: f32, or bf16 where nothing is
/// drawn.
fn dtype(c: &Config, s: &Stream) -> Result<Option<DType>> {
    let wanted = match c.dtype {
        Dtype::Auto => None,
        Dtype::Float32 => Some(DType::F32),
        Dtype::Bfloat16 => Some(DType::Bf16),
        Dtype::Float16 => Some(DType::F16),
    };
    match (s.host(), wanted) {
        (Some(_), wanted) => Ok(wanted),
        (None, None | Some(DType::F32)) => Ok(Some(DType::F32)),
        (None, Some(DType::Bf16)) if !draws(c.command) => Ok(Some(DType::Bf16)),
        (None, Some(other)) => {
            let (name, command) = (s.backend().name(), c.command.name());
            let wanted = if draws(c.command) { "float32" } else { "float32 or bfloat16" };
            Err(Error::Usage(format!("dtype: wanted {wanted} on {name} for `ple {command}`, got {other}")))
        }
    }
}

/// Whether a command draws tokens, which devices do in f32.
fn draws(command: Command) -> bool {
    !matches!(command, Command::Sft | Command::Dpo | Command::Reward | Command::Logprob | Command::Score)
}

/// The folder that the base's configuration lies in.
fn folder(c: &Config) -> Result<PathBuf> {
    let folder = c
        .model_name_or_path
        .as_ref()
        .or(c.init_from_config.as_ref())
        .ok_or_else(|| Error::Usage("model_name_or_path: wanted a folder, got nothing".into()))?;
    if folder.is_dir() {
        return Ok(folder.clone());
    }
    Err(Error::file(folder, "wanted a model folder, got nothing there (`hf download NAME --local-dir DIR` fetches one)"))
}

/// The base's configuration and tokenizer, once its tensors are those that it should have: what is wrong with the base is told before
/// what an adapter misses in it.
fn sound(c: &Config, folder: &Path) -> Result<(model::Config, Tokenizer)> {
    let config = model::Config::from_folder(folder)?;
    if c.init_from_config.is_none() {
        Checkpoint::open(folder)?.check(&config.tensors())?;
    }
    Ok((config, Tokenizer::open(folder)?))
}

impl Opened {
    /// For training: a fresh adapter unless one is given; under full tuning f32 weights, or on a device their bf16 copies beside them.
    pub fn for_training(c: &Config) -> Result<Opened> {
        let (stream, folder) = (stream(c)?, folder(c)?);
        if c.tune == Tuned::Full {
            return Opened::base(c, stream, folder, true, None, None);
        }
        let (config, tokenizer) = sound(c, &folder)?;
        let (modules, mut notes) = (config.modules(), Vec::new());
        let disk = match &c.adapter {
            Some(own) => {
                identity::check(&folder, own)?;
                let disk = adapter::Adapter::load(own, &modules)?;
                trainable(own, &disk.config)?;
                notes = overruled(c, own, &disk.config, &modules);
                disk
            }
            None => fresh(c, &modules, config.fan_in_fan_out())?,
        };
        let disk = if c.command == Command::Reward { scored(c, config.hidden_size, disk)? } else { disk };
        let mut opened = Opened::base(c, stream, folder, false, Some(&disk), Some(tokenizer))?;
        opened.notes.extend(notes);
        opened.policy = opened.insert(disk)?;
        opened.tune = Tune::Lora(0);
        Ok(opened)
    }

    /// For scoring: the adapter only if one is given.
    pub fn for_scoring(c: &Config) -> Result<Opened> {
        let (stream, folder) = (stream(c)?, folder(c)?);
        let Some(own) = &c.adapter else { return Opened::base(c, stream, folder, false, None, None) };
        let (config, tokenizer) = sound(c, &folder)?;
        identity::check(&folder, own)?;
        let disk = adapter::Adapter::load(own, &config.modules())?;
        let mut opened = Opened::base(c, stream, folder, false, Some(&disk), Some(tokenizer))?;
        opened.notes.extend(disk.config.warnings.iter().cloned());
        opened.policy = opened.insert(disk)?;
        Ok(opened)
    }

    /// Model and tokenizer, which may be open already; slots will hold adapters like `disk`.
    fn base(
        c: &Config,
        stream: Stream,
        folder: PathBuf,
        full: bool,
        disk: Option<&adapter::Adapter>,
        tokenizer: Option<Tokenizer>,
    ) -> Result<Opened> {
        let dtype = dtype(c, &stream)?;
        let tuned = dtype.unwrap_or(DType::F32);
        let mut model = match (&c.init_from_config, disk) {
            (Some(_), _) => Transformer::fresh(&stream, &folder, tuned, c.seed)?,
            _ if full && c.command == Command::Reward => {
                Transformer::load_scalar(&stream, &folder, tuned, c.seed, kernels::sample::philox)?
            }
            _ if full => Transformer::load_full(&stream, &folder, tuned)?,
            (None, Some(disk)) => Transformer::load_for(&stream, &folder, dtype, disk)?,
            (None, None) => Transformer::load(&stream, &folder, dtype)?,
        };
        if c.gemm == Gemm::Library {
            through_library(&stream, &mut model)?;
        }
        let mut tokenizer = tokenizer.map_or_else(|| Tokenizer::open(&folder), Ok)?;
        fits(&folder, tokenizer.vocab_size(), model.config.vocab_size)?;
        let notes = end_from(&mut tokenizer, &model.config).into_iter().collect();
        Ok(Opened { stream, model: Some(model), tokenizer, folder, policy: Adapter::Off, tune: Tune::Full, notes })
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
        identity::check(&self.folder, folder)?;
        let disk = adapter::Adapter::load(folder, &self.model()?.modules())?;
        self.insert(disk)
    }

    /// Puts an adapter into a slot of its own.
    pub fn insert(&mut self, disk: adapter::Adapter) -> Result<Adapter> {
        let model = self.model.as_mut().ok_or_else(taken)?;
        Ok(model.add_slot(Lora::upload(&self.stream, model.base(), disk)?)?)
    }

    /// The tokens at both ends of what is trained.
    pub fn ends(&self) -> Result<Ends> {
        Ends::of(&self.tokenizer, self.tokenizer.bos, self.stop(&self.model()?.config))
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

/// The adapter with a scalar head as wide as the model.
fn scored(c: &Config, wanted: usize, disk: adapter::Adapter) -> Result<adapter::Adapter> {
    let got = disk.score.as_ref().map(Vec::len);
    match (got, &c.adapter) {
        (Some(got), Some(folder)) if got != wanted => {
            let text = format!("base_model.model.score.weight: wanted the base's {wanted} columns, got {got}");
            Err(Error::file(folder, text))
        }
        _ => Ok(disk.with_score(wanted, c.seed, kernels::sample::philox)),
    }
}

fn taken() -> Error {
    Error::Usage("the model is with the trainer".into())
}

/// Every id of the tokenizer has a row in the embedding.
pub(crate) fn fits(folder: &Path, tokens: usize, rows: usize) -> Result<()> {
    if tokens <= rows {
        return Ok(());
    }
    Err(Error::file(folder, format!("wanted a tokenizer of at most vocab_size = {rows} tokens (config.json), got {tokens}")))
}

/// Gives a tokenizer that names no end the lowest of the ids that config.json and generation_config.json name, and says so: training
/// texts end with it.
pub(crate) fn end_from(tokenizer: &mut Tokenizer, config: &model::Config) -> Option<String> {
    if tokenizer.eos.is_some() {
        return None;
    }
    tokenizer.eos = config.eos_token_ids.iter().copied().find(|id| (*id as usize) < config.vocab_size);
    let id = tokenizer.eos?;
    let token = tokenizer.token(id).unwrap_or_default();
    Some(format!("eos_token is not in tokenizer_config.json: answers end with {id} {token:?}, the eos_token_id of the model"))
}

/// Whether an adapter that runs can also go on being trained.
fn trainable(folder: &Path, config: &AdapterConfig) -> Result<()> {
    let file = folder.join("adapter_config.json");
    if config.use_dora {
        return Err(Error::file(&file, "use_dora: wanted false, got true: a DoRA adapter can be run and merged, not trained"));
    }
    if config.lora_dropout == 0.0 {
        return Ok(());
    }
    let text = format!(
        "lora_dropout: wanted 0, got {}: dropout is not supported; set lora_dropout to 0 in {} to go on without it",
        config.lora_dropout,
        file.display()
    );
    Err(Error::file(&file, text))
}

/// A line per setting that was given and that the adapter's folder says otherwise, after what is odd about the folder.
fn overruled(c: &Config, folder: &Path, disk: &AdapterConfig, modules: &[model::ModuleSpec]) -> Vec<String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_string();
    let wanted: BTreeSet<String> = match c.lora_target_modules.as_slice() {
        [one] if one == "all-linear" => modules.iter().map(|m| last(&m.path)).collect(),
        names => names.iter().cloned().collect(),
    };
    let targets = match &disk.target_modules {
        Targets::List(names) => names.iter().cloned().collect(),
        other => BTreeSet::from([format!("{other:?}")]),
    };
    let list = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    let pairs = [
        ("lora_r", c.lora_r.to_string(), disk.r.to_string()),
        ("lora_alpha", c.lora_alpha.to_string(), disk.lora_alpha.to_string()),
        ("lora_target_modules", list(&wanted), list(&targets)),
        ("use_rslora", c.use_rslora.to_string(), disk.use_rslora.to_string()),
    ];
    let others = pairs.into_iter().filter(|(key, given, own)| c.given.contains(key) && given != own);
    let line = |(key, given, own)| format!("{key}: taken from {}, {own}; {given} has no effect", folder.display());
    disk.warnings.iter().cloned().chain(others.map(line)).collect()
}

/// A new adapter; what is wrong with it is wrong with the settings.
fn fresh(c: &Config, modules: &[model::ModuleSpec], fan_in_fan_out: bool) -> Result<adapter::Adapter> {
    let config = AdapterConfig { fan_in_fan_out, ..adapter_config(c) };
    adapter::Adapter::fresh(config, modules, c.seed, kernels::sample::philox).map_err(|e| match e {
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
    fn template(&self) -> Result<Option<model::Template>> {
        Ok(Tokenizer::template(self)?)
    }
    fn encode_marked(&self, text: &str, marked: &[std::ops::Range<usize>]) -> Result<(Vec<u32>, Vec<bool>)> {
        Ok(Tokenizer::encode_marked(self, text, marked)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Command;

    fn modules() -> Vec<model::ModuleSpec> {
        ["a.q_proj", "a.v_proj"].map(|path| model::ModuleSpec { path: path.into(), in_features: 4, out_features: 4 }).to_vec()
    }

    fn disk() -> AdapterConfig {
        AdapterConfig::new(4, 16.0, Targets::List(vec!["q_proj".into()]))
    }

    #[test]
    fn what_the_adapter_overrules_is_said() -> Result<()> {
        let words = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        let given =
            "--model_name_or_path m --dataset_name d --output_dir o --lora_r 8 --lora_alpha 16 --lora_target_modules v_proj";
        let c = Config::parse(Command::Sft, &words(given))?;
        let mut config = disk();
        config.warnings = vec!["odd".into()];
        let notes = overruled(&c, Path::new("A"), &config, &modules());
        let wanted = [
            "odd",
            "lora_r: taken from A, 4; 8 has no effect",
            "lora_target_modules: taken from A, q_proj; v_proj has no effect",
        ];
        assert_eq!(notes, wanted);
        assert_eq!(overruled(&Config::defaults(Command::Sft), Path::new("A"), &disk(), &modules()), Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn dropout_and_too_small_a_vocabulary_are_refused() {
        assert!(trainable(Path::new("A"), &disk()).is_ok());
        let dora = trainable(Path::new("A"), &AdapterConfig { use_dora: true, ..disk() }).map_err(|e| e.to_string());
        assert!(dora.is_err_and(|t| t.contains("A/adapter_config.json: use_dora: wanted false, got true")));
        let dropping = AdapterConfig { lora_dropout: 0.1, ..disk() };
        let text = trainable(Path::new("A"), &dropping).map_err(|e| e.to_string());
        assert!(text.is_err_and(|t| t.contains("got 0.1") && t.contains("set lora_dropout to 0 in A/adapter_config.json")));
        assert!(fits(Path::new("M"), 512, 512).is_ok());
        let text = fits(Path::new("M"), 513, 512).map_err(|e| e.to_string());
        assert!(text.is_err_and(|t| t.starts_with("M: ") && t.contains("512") && t.contains("513")));
    }
}
