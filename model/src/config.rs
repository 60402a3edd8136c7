//! `config.json` of a Hugging Face folder, in the spellings of transformers 4 and 5, checked field by field.

mod family;
mod rope;
mod tensors;
mod window;

use family::Bias;
pub use family::{Activation, Norm};
pub(crate) use family::{Family, Positions};
pub use rope::{Rope, RopeScaling};
pub(crate) use tensors::{Role, Spec};

use crate::Result;
use crate::json::{self, Object};
use kernels::attention::MAX_HEAD_DIM;
use runtime::DType;
use std::path::Path;

/// What a model is made of; the fields keep Hugging Face's names. C hidden, L layers, H heads, K kv heads, D head dim, F ffn, V vocab.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What the family gives to all its checkpoints.
    pub(crate) family: &'static Family,
    /// V.
    pub vocab_size: usize,
    /// C.
    pub hidden_size: usize,
    /// F.
    pub intermediate_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// K, a divisor of H.
    pub num_key_value_heads: usize,
    /// D, at most 256, even where heads turn.
    pub head_dim: usize,
    /// Added to the mean square under the root.
    pub norm_eps: f64,
    /// Positions that the model was made for.
    pub max_position_embeddings: usize,
    /// Of layers that see all positions; None where positions are learned.
    pub rope: Option<Rope>,
    /// Of layers with a window, where it is another.
    pub rope_local: Option<Rope>,
    /// `[L]` last positions that a layer sees; 0 = all.
    pub windows: Vec<u32>,
    /// Scores are divided by its root.
    pub query_pre_attn_scalar: f64,
    /// Scores s become cap·tanh(s/cap); 0 = as they are.
    pub attn_logit_softcapping: f32,
    /// Logits likewise.
    pub final_logit_softcapping: f32,
    /// Of the embeddings.
    pub embedding_scale: f32,
    /// Whether the modules of each group have a bias: q, k, v; o; gate, up; down.
    pub biases: [bool; 4],
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Begins a text.
    pub bos_token_id: Option<u32>,
    /// Ids that end a text: of config.json and generation_config.json, ascending. The tokenizer's own comes on top.
    pub eos_token_ids: Vec<u32>,
    /// Of padded batches elsewhere; we pad nothing. None also for what is no id of the vocabulary, with a warning.
    pub pad_token_id: Option<u32>,
    /// What config.json says of the weights; the tensors decide.
    pub dtype: Option<DType>,
    /// Whether the head is one number per row (`score.weight` `[1, C]`) in place of the vocabulary.
    pub scalar_head: bool,
    /// What was assumed because the file does not say it.
    pub warnings: Vec<String>,
}

/// A tensor that a checkpoint must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name on disk.
    pub name: String,
    /// Rows (out features) first.
    pub shape: Vec<usize>,
}

/// A linear module that an adapter may sit on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleSpec {
    /// `model.layers.0.self_attn.q_proj`
    pub path: String,
    /// I.
    pub in_features: usize,
    /// O.
    pub out_features: usize,
}

const MOST_WIDTH: u64 = 1 << 20;
const MOST_POSITIONS: u64 = 1 << 30;

impl Config {
    /// Reads `config.json`, and `generation_config.json` beside it if there is one (its stop ids). Errors name file, field,
    /// wanted, got; a model, head or rotary type that this crate does not run is refused by name.
    pub fn from_folder(folder: &Path) -> Result<Config> {
        let path = folder.join("config.json");
        let mut config = Config::parse(&path, &json::read(&path)?)?;
        let path = folder.join("generation_config.json");
        if path.exists() {
            let map = json::parse(&path, &json::read(&path)?)?;
            let more = Object::new(&path, &map).ids("eos_token_id")?;
            config.stop_at(more);
        }
        if config.eos_token_ids.is_empty() {
            config.warnings.push("eos_token_id is in neither config.json nor generation_config.json".into());
        }
        Ok(config)
    }

    /// Reads the text of a `config.json`; `path` is for errors.
    pub fn parse(path: &Path, text: &str) -> Result<Config> {
        let map = json::parse(path, text)?;
        let file = Object::new(path, &map);
        let (family, scalar_head) = family(&file)?;
        let (fields, mut warnings) = (&family.fields, Vec::new());
        let size = |field, most| file.integer(field, 1, most)?.ok_or_else(|| file.wrong(field, "an integer of at least 1"));
        let hidden_size = size(fields.hidden_size, MOST_WIDTH)?;
        let num_hidden_layers = size(fields.num_hidden_layers, 1 << 12)?;
        let (num_attention_heads, num_key_value_heads, head_dim) =
            heads(&file, family, hidden_size, size(fields.num_attention_heads, 1 << 14)?)?;
        let (rope, rope_local) = rope::read(&file, family, &mut warnings)?;
        let mut config = Config {
            family,
            vocab_size: size("vocab_size", 1 << 26)?,
            hidden_size,
            intermediate_size: feed_forward(&file, family, hidden_size)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            norm_eps: epsilon(&file, family, &mut warnings)?,
            max_position_embeddings: positions(&file, family, &mut warnings)?,
            rope,
            rope_local,
            windows: window::read(&file, family, num_hidden_layers, &mut warnings)?,
            query_pre_attn_scalar: capped(&file, family, "query_pre_attn_scalar")?.unwrap_or(head_dim as f64),
            attn_logit_softcapping: capped(&file, family, "attn_logit_softcapping")?.unwrap_or(0.0) as f32,
            final_logit_softcapping: capped(&file, family, "final_logit_softcapping")?.unwrap_or(0.0) as f32,
            embedding_scale: if family.scaled_embeddings { (hidden_size as f64).sqrt() as f32 } else { 1.0 },
            biases: biases(&file, family)?,
            tie_word_embeddings: file.boolean("tie_word_embeddings")?.unwrap_or(family.tied),
            bos_token_id: file.id("bos_token_id")?,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
            dtype: dtype(&file)?,
            scalar_head,
            warnings,
        };
        config.stop_at(file.ids("eos_token_id")?);
        config.pad_with(&file);
        Ok(config)
    }

    fn stop_at(&mut self, ids: Vec<u32>) {
        self.eos_token_ids.extend(ids);
        self.eos_token_ids.sort_unstable();
        self.eos_token_ids.dedup();
        let (known, all) = (self.vocab_size, &self.eos_token_ids);
        if let Some(id) = all.iter().find(|id| **id as usize >= known) {
            self.warnings.push(format!("eos_token_id {id} is outside the vocabulary of {known} and never comes"));
        }
    }

    /// Nothing here pads, so an id that is none (-1 is common) is no reason to refuse the model.
    fn pad_with(&mut self, file: &Object) {
        let known = self.vocab_size;
        self.pad_token_id = file.id("pad_token_id").ok().flatten().filter(|id| (*id as usize) < known);
        if let (None, Some(got)) = (self.pad_token_id, file.get("pad_token_id")) {
            let got = json::got(Some(got));
            self.warnings.push(format!("pad_token_id: wanted an id below {known}, got {got}; nothing is padded here"));
        }
    }

    /// `model_type`.
    pub fn model_type(&self) -> &'static str {
        self.family.model_type
    }

    /// What `architectures` calls it with its scalar head; None with an LM head.
    pub fn classifier(&self) -> Option<&'static str> {
        self.scalar_head.then_some(self.family.architectures[1])
    }

    /// How its rows are normed.
    pub fn norm(&self) -> Norm {
        self.family.norm
    }

    /// What stands between the two halves of its MLP.
    pub fn activation(&self) -> Activation {
        self.family.activation
    }

    /// Columns of the MLP's first half: 2F where half of them gate the others, else F.
    pub(crate) fn inner_width(&self) -> usize {
        if self.family.activation.gated() { 2 * self.intermediate_size } else { self.intermediate_size }
    }
}

fn assumed<T: std::fmt::Display + Copy>(warnings: &mut Vec<String>, field: &str, value: T) -> T {
    warnings.push(format!("{field} is not in config.json; {value} is assumed, as transformers does"));
    value
}

/// The family, and whether the head is scalar; refuses by name what does not run here.
fn family(file: &Object) -> Result<(&'static Family, bool)> {
    let name = file.text("model_type")?;
    let found = family::FAMILIES.into_iter().find(|f| Some(f.model_type) == name);
    let family = found.ok_or_else(|| file.wrong("model_type", family::known()))?;
    let (field, names) = family.act;
    if file.text(field)?.is_some_and(|act| !names.contains(&act)) {
        let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        return Err(file.wrong(field, names.join(" or ")));
    }
    if file.get("quantization_config").is_some() {
        return Err(file.wrong("quantization_config", "null (quantized checkpoints are not supported)"));
    }
    for (field, value) in family.fixed {
        if file.boolean(field)?.is_some_and(|got| got != *value) {
            return Err(file.wrong(field, format_args!("{value} (nothing else is supported for {})", family.model_type)));
        }
    }
    let [causal, classifier] = family.architectures;
    match file.texts("architectures")?.as_deref() {
        None | Some([]) => Ok((family, false)),
        Some([name]) if *name == causal => Ok((family, false)),
        Some([name]) if *name == classifier => one_label(file).map(|()| (family, true)),
        Some(_) => Err(file.wrong("architectures", format_args!("[{causal:?}] or [{classifier:?}]"))),
    }
}

/// transformers takes 2 labels where the file names none.
fn one_label(file: &Object) -> Result<()> {
    let labels = match (file.object("id2label")?, file.integer("num_labels", 1, MOST_WIDTH)?) {
        (Some(map), _) => map.keys().count(),
        (None, Some(n)) => n,
        (None, None) => 2,
    };
    if labels == 1 { Ok(()) } else { Err(file.wrong("id2label", "exactly one label, a scalar head")) }
}

/// (H, K, D).
fn heads(file: &Object, family: &Family, c: usize, h: usize) -> Result<(usize, usize, usize)> {
    let given = |field, most| match file.integer(field, 1, most)? {
        None if !family.derived => {
            Err(file.wrong(field, format_args!("an integer from 1 to {most}, which {} needs", family.model_type)))
        }
        other => Ok(other),
    };
    let k = given("num_key_value_heads", 1 << 14)?.unwrap_or(h);
    if !h.is_multiple_of(k) {
        let heads = family.fields.num_attention_heads;
        return Err(file.wrong("num_key_value_heads", format_args!("a divisor of {heads} {h}")));
    }
    let d = match given("head_dim", 1 << 12)? {
        Some(d) => d,
        None if c.is_multiple_of(h) => c / h,
        None => {
            let (width, heads) = (family.fields.hidden_size, family.fields.num_attention_heads);
            return Err(file.wrong(width, format_args!("a multiple of {heads} {h}, since head_dim is not given")));
        }
    };
    if family.positions != Positions::Learned && !d.is_multiple_of(2) {
        return Err(file.wrong("head_dim", format_args!("an even number (it is {d} here), since rotary positions turn pairs")));
    }
    if d > MAX_HEAD_DIM {
        return Err(file.wrong("head_dim", format_args!("at most {MAX_HEAD_DIM} (it is {d} here)")));
    }
    Ok((h, k, d))
}

/// F; 4·C where it may be absent.
fn feed_forward(file: &Object, family: &Family, c: usize) -> Result<usize> {
    let field = family.fields.intermediate_size;
    match file.integer(field, 1, 4 * MOST_WIDTH)? {
        None if field == "n_inner" => Ok(4 * c),
        other => other.ok_or_else(|| file.wrong(field, "an integer of at least 1")),
    }
}

fn epsilon(file: &Object, family: &Family, warnings: &mut Vec<String>) -> Result<f64> {
    let field = family.fields.norm_eps;
    let usual = if family.norm == Norm::Layer { 1e-5 } else { 1e-6 };
    Ok(positive(file, field)?.unwrap_or_else(|| assumed(warnings, field, usual)))
}

/// P. transformers' own default for an absent field differs between families and releases; only Llama's has stayed.
fn positions(file: &Object, family: &Family, warnings: &mut Vec<String>) -> Result<usize> {
    let field = family.fields.max_position_embeddings;
    match file.integer(field, 1, MOST_POSITIONS)? {
        None if family.model_type == "llama" => Ok(assumed(warnings, field, 2048)),
        other => other.ok_or_else(|| file.wrong(field, "an integer of at least 1")),
    }
}

fn biases(file: &Object, family: &Family) -> Result<[bool; 4]> {
    let mut biases = [false; 4];
    for (to, bias) in biases.iter_mut().zip(family.biases) {
        *to = match bias {
            Bias::Never => false,
            Bias::Always => true,
            Bias::If(field) => file.boolean(field)?.unwrap_or(false),
        };
    }
    Ok(biases)
}

/// A number above 0, in f32 too, that only families with softcaps have.
fn capped(file: &Object, family: &Family, field: &str) -> Result<Option<f64>> {
    if !family.softcaps {
        return Ok(None);
    }
    match positive(file, field)? {
        Some(x) if !(x as f32).is_normal() => Err(file.wrong(field, "a number that f32 holds")),
        other => Ok(other),
    }
}

fn positive(file: &Object, field: &str) -> Result<Option<f64>> {
    match file.number(field)? {
        Some(x) if x <= 0.0 => Err(file.wrong(field, "a number above 0")),
        other => Ok(other),
    }
}

fn dtype(file: &Object) -> Result<Option<DType>> {
    let field = if file.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    match file.text(field)?.map(|t| t.strip_prefix("torch.").unwrap_or(t)) {
        None | Some("auto") => Ok(None),
        Some("float32") => Ok(Some(DType::F32)),
        Some("bfloat16") => Ok(Some(DType::Bf16)),
        Some("float16") => Ok(Some(DType::F16)),
        Some(_) => Err(file.wrong(field, "\"float32\", \"bfloat16\" or \"float16\"")),
    }
}

#[cfg(test)]
mod tests;
