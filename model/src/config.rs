//! `config.json` of a Hugging Face folder, in the spellings of transformers 4 and 5, checked field by field.

mod rope;

pub use rope::RopeScaling;

use crate::Result;
use crate::json::{self, Object};
use kernels::attention::MAX_HEAD_DIM;
use runtime::DType;
use std::path::Path;

/// What a model is made of; the fields keep Hugging Face's names. C hidden, L layers, H heads, K kv heads, D head dim, F ffn, V vocab.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
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
    /// D, even and at most 256.
    pub head_dim: usize,
    /// Added to the mean square under the root.
    pub rms_norm_eps: f64,
    /// Positions that the model was made for.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// None = plain rotary positions.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether q, k, v and o have a bias.
    pub attention_bias: bool,
    /// Whether gate, up and down have a bias.
    pub mlp_bias: bool,
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
        let scalar_head = family(&file)?;
        let mut warnings = Vec::new();
        let size = |field, most| file.integer(field, 1, most)?.ok_or_else(|| file.wrong(field, "an integer of at least 1"));
        let hidden_size = size("hidden_size", MOST_WIDTH)?;
        let (num_attention_heads, num_key_value_heads, head_dim) =
            heads(&file, hidden_size, size("num_attention_heads", 1 << 14)?)?;
        let (rope_theta, rope_scaling) = rope::read(&file, &mut warnings)?;
        let mut config = Config {
            vocab_size: size("vocab_size", 1 << 26)?,
            hidden_size,
            intermediate_size: size("intermediate_size", 4 * MOST_WIDTH)?,
            num_hidden_layers: size("num_hidden_layers", 1 << 12)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: positive(&file, "rms_norm_eps")?.unwrap_or_else(|| assumed(&mut warnings, "rms_norm_eps", 1e-6)),
            max_position_embeddings: file
                .integer("max_position_embeddings", 1, MOST_POSITIONS)?
                .unwrap_or_else(|| assumed(&mut warnings, "max_position_embeddings", 2048)),
            rope_theta,
            rope_scaling,
            attention_bias: file.boolean("attention_bias")?.unwrap_or(false),
            mlp_bias: file.boolean("mlp_bias")?.unwrap_or(false),
            tie_word_embeddings: file.boolean("tie_word_embeddings")?.unwrap_or(false),
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

    /// Every tensor that a checkpoint of this model holds, in the order in which the model runs them.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let (c, v) = (self.hidden_size, self.vocab_size);
        let mut list = vec![spec("model.embed_tokens.weight".into(), &[v, c])];
        for layer in 0..self.num_hidden_layers {
            let (attention, mlp) = self.layer(layer);
            list.push(spec(format!("model.layers.{layer}.input_layernorm.weight"), &[c]));
            attention.iter().for_each(|m| linear(&mut list, m, self.attention_bias));
            list.push(spec(format!("model.layers.{layer}.post_attention_layernorm.weight"), &[c]));
            mlp.iter().for_each(|m| linear(&mut list, m, self.mlp_bias));
        }
        list.push(spec("model.norm.weight".into(), &[c]));
        if self.scalar_head {
            list.push(spec("score.weight".into(), &[1, c]));
        } else if !self.tie_word_embeddings {
            list.push(spec("lm_head.weight".into(), &[v, c]));
        }
        list
    }

    /// Every linear module that an adapter may sit on (what PEFT calls `all-linear`), in the order in which the model runs them.
    pub fn modules(&self) -> Vec<ModuleSpec> {
        let layers = 0..self.num_hidden_layers;
        layers.map(|layer| self.layer(layer)).flat_map(|(attention, mlp)| attention.into_iter().chain(mlp)).collect()
    }

    /// q, k, v, o and gate, up, down.
    fn layer(&self, layer: usize) -> ([ModuleSpec; 4], [ModuleSpec; 3]) {
        let (c, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let module = |name: &str, in_features, out_features| ModuleSpec {
            path: format!("model.layers.{layer}.{name}_proj"),
            in_features,
            out_features,
        };
        (
            [
                module("self_attn.q", c, q),
                module("self_attn.k", c, kv),
                module("self_attn.v", c, kv),
                module("self_attn.o", q, c),
            ],
            [module("mlp.gate", c, f), module("mlp.up", c, f), module("mlp.down", f, c)],
        )
    }
}

fn spec(name: String, shape: &[usize]) -> TensorSpec {
    TensorSpec { name, shape: shape.to_vec() }
}

fn linear(list: &mut Vec<TensorSpec>, module: &ModuleSpec, bias: bool) {
    list.push(spec(format!("{}.weight", module.path), &[module.out_features, module.in_features]));
    if bias {
        list.push(spec(format!("{}.bias", module.path), &[module.out_features]));
    }
}

fn assumed<T: std::fmt::Display + Copy>(warnings: &mut Vec<String>, field: &str, value: T) -> T {
    warnings.push(format!("{field} is not in config.json; {value} is assumed, as transformers does"));
    value
}

/// Whether the head is scalar; refuses by name what is not a Llama that we run.
fn family(file: &Object) -> Result<bool> {
    if file.text("model_type")? != Some("llama") {
        return Err(file.wrong("model_type", "\"llama\", the one family supported so far"));
    }
    if file.text("hidden_act")?.is_some_and(|act| act != "silu") {
        return Err(file.wrong("hidden_act", "\"silu\""));
    }
    for field in ["sliding_window", "quantization_config"] {
        if file.get(field).is_some() {
            return Err(file.wrong(field, "null (not supported for llama)"));
        }
    }
    match file.texts("architectures")?.as_deref() {
        None | Some([]) | Some(["LlamaForCausalLM"]) => Ok(false),
        Some(["LlamaForSequenceClassification"]) => one_label(file).map(|()| true),
        Some(_) => Err(file.wrong("architectures", "[\"LlamaForCausalLM\"] or [\"LlamaForSequenceClassification\"]")),
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
fn heads(file: &Object, c: usize, h: usize) -> Result<(usize, usize, usize)> {
    let k = file.integer("num_key_value_heads", 1, 1 << 14)?.unwrap_or(h);
    if !h.is_multiple_of(k) {
        return Err(file.wrong("num_key_value_heads", format_args!("a divisor of num_attention_heads {h}")));
    }
    let d = match file.integer("head_dim", 1, 1 << 12)? {
        Some(d) => d,
        None if c.is_multiple_of(h) => c / h,
        None => {
            return Err(
                file.wrong("hidden_size", format_args!("a multiple of num_attention_heads {h}, since head_dim is not given"))
            );
        }
    };
    if !d.is_multiple_of(2) {
        return Err(file.wrong("head_dim", format_args!("an even number (it is {d} here), since rotary positions turn pairs")));
    }
    if d > MAX_HEAD_DIM {
        return Err(file.wrong("head_dim", format_args!("at most {MAX_HEAD_DIM} (it is {d} here)")));
    }
    Ok((h, k, d))
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
