//! What the benches share: a Llama of a named shape with random weights, random ids, and the process's peak memory.

// Each bench reads some of it.
#![allow(dead_code)]

use model::{Adapter, AdapterConfig, Lora, Targets, Transformer, Tune, adapter};
use ple::config::{Command, Config};
use ple::optim::Optimizer;
use ple::trainer::Trainer;
use ple::{Error, Result};
use runtime::{Isa, Stream, comm::Single};
use serde_json::json;

/// `config.json` of a shape.
fn config(name: &str) -> Option<serde_json::Value> {
    let of = |hidden: u32, ffn: u32, layers: u32, heads: u32| {
        json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": hidden,
            "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
            "hidden_act": "silu", "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
        })
    };
    match name {
        "15m" => Some(of(288, 768, 6, 6)),
        "110m" => Some(of(768, 2048, 12, 12)),
        _ => None,
    }
}

/// A model of this shape, `15m` or `110m`.
pub fn model(s: &Stream, name: &str) -> Result<Transformer> {
    let config = config(name).ok_or_else(|| Error::Usage(format!("shape: wanted 15m or 110m, got {name}")))?;
    let folder = std::env::temp_dir().join(format!("ple-bench-{}", std::process::id()));
    ple::checkpoint::create_folder(&folder)?;
    runtime::host::write_file(&folder.join("config.json"), |out| write!(out, "{config}"))?;
    let model = Transformer::fresh(s, &folder, runtime::DType::F32, 0)?;
    let _ = std::fs::remove_dir_all(&folder);
    Ok(model)
}

/// A trainer of a fresh adapter, r 8 on all linears, over such a model.
pub fn trainer(name: &str, threads: usize) -> Result<Trainer> {
    trainer_of(name, threads, false)
}

/// The same; `scalar` says whether the adapter has a scalar head.
pub fn trainer_of(name: &str, threads: usize, scalar: bool) -> Result<Trainer> {
    let s = Stream::cpu(threads, Isa::from_env()?);
    let mut model = model(&s, name)?;
    let config = AdapterConfig::new(8, 16.0, Targets::AllLinear);
    let disk = adapter::Adapter::fresh(config, &model.modules(), 0, kernels::sample::philox)?;
    let width = model.config.hidden_size;
    let disk = if scalar { disk.with_score(width, 0, kernels::sample::philox) } else { disk };
    let lora = Lora::upload(&s, model.base(), disk)?;
    let len = lora.arena().flat().len();
    let slot = model.add_slot(lora)?;
    debug_assert_eq!(slot, Adapter::Slot(0));
    let mut c = Config::defaults(Command::Sft);
    c.learning_rate = 1e-4;
    let optimizer = Optimizer::new(&s, len, &c, 1000)?;
    Trainer::new(s, model, Tune::Lora(0), optimizer, Box::new(Single))
}

/// Random ids that are no special tokens.
pub struct Ids(pub u32);

impl Ids {
    /// The next `n`.
    pub fn take(&mut self, n: usize) -> Vec<u32> {
        let mut one = || {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            3 + (self.0 >> 8) % 31_997
        };
        (0..n).map(|_| one()).collect()
    }
}

/// `VmHWM` in MiB, where the system tells.
pub fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap_or(f64::NAN) / 1024.0
}

/// Argument `i` behind the flags of `cargo bench`.
pub fn argument(i: usize) -> Option<String> {
    std::env::args().skip(1).filter(|a| !a.starts_with('-')).nth(i)
}
