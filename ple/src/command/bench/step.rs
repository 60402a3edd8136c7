//! `ple bench --e2e`: whole steps of LoRA training at fixed shapes, with weights that repeat a block of noise and random ids. A step is
//! forward, loss, backward, clipping and AdamW over one micro-batch; every token but a row's first is one of the loss.
//!
//! Useful FLOPs of a step, as for frozen weights: 4 for each weight of a module and token, 4·C·V for each loss row, and three times the
//! causal half of attention's 4·H·D a pair of positions. The adapter's own are not counted.

use crate::config::{Command, Config, Gemm};
use crate::memory::{Needs, Planned};
use crate::method::{Example, sft::Sft};
use crate::optim::Optimizer;
use crate::trainer::{Trainer, Workspace};
use crate::{Error, Result, open};
use kernels::bench::noise;
use model::{AdapterConfig, Keep, Lora, Targets, Transformer, Tune, adapter};
use runtime::{DType, Stream, comm::Single};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// What a step is measured of.
pub struct Shape {
    /// As peers name it.
    pub name: &'static str,
    /// Rows of a step.
    pub batch: usize,
    /// Tokens of a row.
    pub length: usize,
}

impl Shape {
    /// Of its row; the peers' rows of the same call get the same.
    pub fn named(&self) -> String {
        named(self.name, self.batch, self.length)
    }
}

/// The call of a step.
pub(super) fn named(shape: &str, batch: usize, length: usize) -> String {
    format!("{shape} LoRA {batch}x{length} bf16")
}

/// The shapes of the peers' scripts, at their batches and at one that fills the device.
pub const SHAPES: [Shape; 4] = [
    Shape { name: "qwen2.5-0.5b", batch: 8, length: 1024 },
    Shape { name: "qwen2.5-0.5b", batch: 64, length: 1024 },
    Shape { name: "llama3-8b", batch: 4, length: 1024 },
    Shape { name: "llama3-8b", batch: 16, length: 1024 },
];

/// Rank and factor of the adapter, on every linear module.
const RANK: usize = 8;
const ALPHA: f64 = 16.0;
/// Steps before the measured ones; measured ones; and the time after which no further one begins.
const WARM: usize = 2;
const STEPS: usize = 6;
const MOST: Duration = Duration::from_secs(25);
/// What repeats in the weights: a prime, so that rows differ.
const BLOCK: usize = 1_048_573;

/// What was measured.
pub struct Measured {
    /// Seconds of each step, ascending.
    pub seconds: Vec<f64>,
    /// Useful FLOPs of a step.
    pub flops: f64,
    /// Computed tokens of a step.
    pub tokens: usize,
    /// Bytes on the device as planned before the first step.
    pub planned: usize,
    /// Loss of each step.
    pub losses: Vec<f64>,
}

/// `config.json` of a shape; `tiny` has no peer.
fn config(name: &str) -> Option<Value> {
    let mut of = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": false, "eos_token_id": 2
    });
    let other = match name {
        "llama3-8b" => json!({}),
        "qwen2.5-0.5b" => json!({
            "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true
        }),
        "tiny" => json!({
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 512, "max_position_embeddings": 512
        }),
        _ => return None,
    };
    other.as_object()?.iter().for_each(|(key, value)| of[key] = value.clone());
    Some(of)
}

/// Useful FLOPs of a step over `batch` rows of `length` tokens, all of them loss rows.
fn flops(c: &model::Config, modules: usize, batch: usize, length: usize) -> f64 {
    let tokens = (batch * length) as f64;
    let head = (c.vocab_size * c.hidden_size) as f64;
    let attention = 4.0 * tokens * (length as f64 / 2.0) * (c.num_attention_heads * c.head_dim * c.num_hidden_layers) as f64;
    4.0 * (modules as f64 + head) * tokens + 3.0 * attention
}

/// Trains for some steps at a shape; `tell` gets the planned memory before the first. bf16 on a device, f32 on the CPU, which has own
/// products alone.
pub fn measure(s: &Stream, shape: &Shape, gemm: Gemm, tell: &mut dyn FnMut(usize) -> Result<()>) -> Result<Measured> {
    let text = config(shape.name).ok_or_else(|| Error::Usage(format!("e2e: wanted a known shape, got {}", shape.name)))?;
    let config = model::Config::parse(Path::new(shape.name), &text.to_string())?;
    let modules = config.modules();
    let disk =
        adapter::Adapter::fresh(AdapterConfig::new(RANK, ALPHA, Targets::AllLinear), &modules, 0, kernels::sample::philox)?;
    let weights: usize = modules.iter().map(|m| m.in_features * m.out_features).sum();
    let (batch, length) = (shape.batch, shape.length);
    let flops = flops(&config, weights, batch, length);
    let values: Vec<f32> = noise(BLOCK, 7).into_iter().map(|v| 0.02 * 3f32.sqrt() * v).collect();
    let dtype = if s.host().is_some() { DType::F32 } else { DType::Bf16 };
    let vocabulary = config.vocab_size;
    let mut model = Transformer::repeating(s, config, dtype, &disk, &values)?;
    if gemm == Gemm::Library {
        open::through_library(s, &mut model)?;
    }
    let lora = Lora::upload(s, model.base(), disk)?;
    let words = lora.arena().flat().len();
    model.add_slot(lora)?;
    let limits = model::Limits { tokens: batch * length, loss_rows: batch * length, segments: 2 * batch, examples: batch };
    let needs = Needs { limits, pages: 0, path: length + 1, optimizers: 1 };
    let planned = Planned::of(s, &model, Tune::Lora(0), needs, Keep::Backward)?.total();
    tell(planned)?;
    let settings = Config { learning_rate: 1e-4, ..Config::defaults(Command::Sft) };
    let optimizer = Optimizer::new(s, words, &settings, (WARM + STEPS) as u64)?;
    let mut trainer = Trainer::new(s.clone(), model, Tune::Lora(0), optimizer, Box::new(Single))?;
    let mut w = Workspace::new(s, &trainer.model, limits, None)?;
    let mut ids = noise(batch * (length + 1) * (WARM + STEPS), 11)
        .into_iter()
        .map(|v| 3 + ((v + 1.0) * 0.5 * (vocabulary - 4) as f32) as u32);
    let (mut seconds, mut losses, start) = (Vec::new(), Vec::new(), Instant::now());
    for step in 0..WARM + STEPS {
        if !seconds.is_empty() && start.elapsed() > MOST {
            break;
        }
        let mut take = |n: usize| ids.by_ref().take(n).collect::<Vec<u32>>();
        let row = |row: usize| Example { row: row as u32, prompt: take(1), answers: vec![take(length)], ..Example::default() };
        let examples: Vec<Example> = (0..batch).map(row).collect();
        let done = trainer.step(&mut w, &Sft, &examples.iter().collect::<Vec<_>>())?;
        losses.push(done.loss);
        if done.tokens != batch * length {
            return Err(Error::Usage(format!("e2e: wanted {} tokens in a step, got {}", batch * length, done.tokens)));
        }
        if step >= WARM {
            seconds.push(done.seconds);
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(Measured { seconds, flops, tokens: batch * length, planned, losses })
}
