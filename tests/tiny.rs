//! Tiny model folders and adapters, so that law and fault tests need no data: random weights large enough that attention is
//! sharp, sizes that fill no vector, panel or page evenly.

use anyhow::{Context, Result};
use model::adapter::{Adapter as HostAdapter, AdapterModule};
use model::{Adapter, AdapterConfig, Lora, ModuleSpec, Targets, Transformer};
use runtime::{DType, Stream};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use std::path::Path;
use tempfile::TempDir;

/// V.
pub const VOCABULARY: u32 = 323;
/// Longest path.
pub const POSITIONS: usize = 512;

/// SplitMix64: enough randomness for weights and ids.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform below `n`.
    pub fn below(&mut self, n: u32) -> u32 {
        (self.bits() % u64::from(n)) as u32
    }
    /// Uniform in -1..1.
    pub fn symmetric(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    /// Ids of a text.
    pub fn ids(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(VOCABULARY)).collect()
    }
    /// A shuffled range.
    pub fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        (1..n).rev().for_each(|i| order.swap(i, self.below(i as u32 + 1) as usize));
        order
    }
}

/// `config.json` of the tiny model: 2 layers, GQA 4:2, C 40, D 16, F 72.
pub fn config(tied: bool) -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 40,
        "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2
    })
}

fn spread(name: &str) -> f32 {
    match name {
        name if name.contains("embed") || name.contains("wte") => 1.0,
        name if name.contains("q_proj") || name.contains("k_proj") || name.contains("c_attn.weight") => 0.6,
        name if name.contains("lm_head") => 0.5,
        _ => 0.25,
    }
}

/// Writes a folder with random weights, stored as `dtype`.
pub fn folder(tied: bool, dtype: DType) -> Result<TempDir> {
    of(&config(tied), dtype)
}

/// The same in f32 with a scalar head in place of the vocabulary.
pub fn scalar() -> Result<TempDir> {
    let mut config = config(false);
    config["architectures"] = json!(["LlamaForSequenceClassification"]);
    config["id2label"] = json!({"0": "LABEL_0"});
    of(&config, DType::F32)
}

/// `config.json` of a tiny model of every other family, of odd sizes and windows that end inside pages.
pub fn families() -> Vec<serde_json::Value> {
    let like = |model_type: &str, architecture: &str, more: serde_json::Value| {
        let mut config = config(true);
        config["model_type"] = json!(model_type);
        config["architectures"] = json!([architecture]);
        more.as_object().into_iter().flatten().for_each(|(field, value)| config[field] = value.clone());
        config
    };
    let gemma = json!({"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24, "sliding_window": 70,
        "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0, "sliding_window_pattern": 2});
    let mut gemma3 = gemma.clone();
    gemma3["rope_local_base_freq"] = json!(1e3);
    vec![
        like("llama", "LlamaForCausalLM", json!({"attention_bias": true, "mlp_bias": true})),
        like("mistral", "MistralForCausalLM", json!({"sliding_window": 67, "tie_word_embeddings": false})),
        like("qwen2", "Qwen2ForCausalLM", json!({"use_sliding_window": true, "sliding_window": 65, "max_window_layers": 1})),
        like("qwen3", "Qwen3ForCausalLM", json!({"head_dim": 22})),
        json!({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 44, "n_inner": 72, "n_layer": 2, "n_head": 4,
            "n_positions": POSITIONS, "vocab_size": VOCABULARY, "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": 2}),
        like("gemma2", "Gemma2ForCausalLM", gemma),
        like("gemma3_text", "Gemma3ForCausalLM", gemma3),
    ]
}

/// The one of `model_type`; GPT-2's heads are as wide as tensor cores take them.
pub fn family(model_type: &str) -> Result<serde_json::Value> {
    let found = families().into_iter().rev().find(|config| config["model_type"] == model_type);
    let mut config = found.with_context(|| format!("no tiny {model_type}"))?;
    if model_type == "gpt2" {
        (config["n_embd"], config["n_head"]) = (json!(48), json!(3));
    }
    Ok(config)
}

/// Writes a folder with random weights for a configuration, stored as `dtype`.
pub fn of(config: &serde_json::Value, dtype: DType) -> Result<TempDir> {
    scaled(config, dtype, 1.0)
}

/// The same with every matrix times `scale`: below 1 attention is no longer sharp and logits spread as little as before training.
pub fn scaled(config: &serde_json::Value, dtype: DType, scale: f32) -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("config.json"), config.to_string())?;
    let config = model::Config::from_folder(dir.path())?;
    let mut random = Random(7);
    let mut rows: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for spec in config.tensors() {
        let n: usize = spec.shape.iter().product();
        let norm = spec.name.contains("norm") || spec.name.ends_with("ln_1.weight") || spec.name.ends_with("ln_2.weight");
        let value = |r: f32| if norm { 1.0 + 0.3 * r } else { scale * spread(&spec.name) * r };
        let values: Vec<f32> = (0..n).map(|_| value(random.symmetric())).collect();
        let bytes = match dtype {
            DType::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            DType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        rows.push((spec.name, spec.shape, bytes));
    }
    let stored = match dtype {
        DType::Bf16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    };
    write(&dir.path().join("model.safetensors"), stored, &rows)?;
    Ok(dir)
}

/// Gives a folder a tokenizer of words `w3`, `w4`, … with blanks between them, which puts `<s>` before a text; `</s>` ends one.
pub fn words(folder: &Path) -> Result<()> {
    let words =
        (0..VOCABULARY).map(|i| (["<unk>", "<s>", "</s>"].get(i as usize).map_or(format!("w{i}"), |w| w.to_string()), json!(i)));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "post_processor": {"type": "TemplateProcessing", "pair": [], "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": words.collect::<serde_json::Map<_, _>>()},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    Ok(std::fs::write(folder.join("tokenizer_config.json"), r#"{"bos_token": "<s>", "eos_token": "</s>"}"#)?)
}

/// Writes tensors of one type.
pub fn write(path: &Path, dtype: Dtype, rows: &[(String, Vec<usize>, Vec<u8>)]) -> Result<()> {
    let views: Vec<(&str, TensorView<'_>)> = rows
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(dtype, shape.clone(), bytes)?)))
        .collect::<Result<_>>()?;
    Ok(safetensors::serialize_to_file(views, None, path)?)
}

/// An adapter on every linear module, with neither A nor B zero.
pub fn adapter(model: &Transformer, r: usize, seed: u64) -> HostAdapter {
    adapter_on(&model.modules(), r, seed)
}

/// The same on these modules.
pub fn adapter_on(modules: &[ModuleSpec], r: usize, seed: u64) -> HostAdapter {
    let mut random = Random(seed);
    let config = AdapterConfig::new(r, 2.0 * r as f64, Targets::AllLinear);
    let module = |m: &ModuleSpec, random: &mut Random| AdapterModule {
        path: m.path.clone(),
        in_features: m.in_features,
        out_features: m.out_features,
        r,
        scale: 2.0,
        a: (0..r * m.in_features).map(|_| 0.2 * random.symmetric()).collect(),
        b: (0..m.out_features * r).map(|_| 0.1 * random.symmetric()).collect(),
        magnitude: None,
    };
    let modules = modules.iter().map(|m| module(m, &mut random)).collect();
    HostAdapter { config, modules, score: None, saved: Vec::new() }
}

/// Loads a folder and puts an adapter of rank 8 into its first slot.
pub fn load(s: &Stream, folder: &Path) -> Result<(Transformer, Adapter)> {
    load_as(s, folder, None)
}

/// The same with the base in this storage.
pub fn load_as(s: &Stream, folder: &Path, dtype: Option<DType>) -> Result<(Transformer, Adapter)> {
    let disk = adapter_on(&model::Config::from_folder(folder)?.modules(), 8, 11);
    let mut model = Transformer::load_for(s, folder, dtype, &disk)?;
    let lora = Lora::upload(s, model.base(), disk)?;
    let slot = model.add_slot(lora)?;
    Ok((model, slot))
}
