//! LoRA SFT steps at fixed shapes: `cargo bench -p ple --bench sft -- [15m|110m] [THREADS] [STEPS]`. Batch 8 × 256 random tokens, loss on
//! every token but the first, r 8 on all linears, AdamW, clipping: the step that the peers' scripts time. Prints one JSON line.

use model::{Adapter, AdapterConfig, Lora, Targets, Transformer, Tune, adapter};
use ple::config::{Command, Config};
use ple::method::{Example, sft::Sft};
use ple::optim::Optimizer;
use ple::trainer::{Trainer, Workspace};
use ple::{Error, Result, pack};
use runtime::{Isa, Stream, comm::Single};
use serde_json::json;

const BATCH: usize = 8;
const LENGTH: usize = 256;

fn shape(name: &str) -> Option<serde_json::Value> {
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

fn trainer(name: &str, threads: usize) -> Result<Trainer> {
    let shape = shape(name).ok_or_else(|| Error::Usage(format!("shape: wanted 15m or 110m, got {name}")))?;
    let folder = std::env::temp_dir().join(format!("ple-bench-{}", std::process::id()));
    ple::checkpoint::create_folder(&folder)?;
    runtime::host::write_file(&folder.join("config.json"), |out| write!(out, "{shape}"))?;
    let s = Stream::cpu(threads, Isa::from_env()?);
    let mut model = Transformer::fresh(&s, &folder, 0)?;
    let _ = std::fs::remove_dir_all(&folder);
    let config = AdapterConfig::new(8, 16.0, Targets::AllLinear);
    let disk = adapter::Adapter::fresh(config, &model.modules(), 0, kernels::sample::philox)?;
    let lora = Lora::upload(&s, model.base(), disk)?;
    let len = lora.arena().flat().len();
    let slot = model.add_slot(lora)?;
    debug_assert_eq!(slot, Adapter::Slot(0));
    let mut c = Config::defaults(Command::Sft);
    c.learning_rate = 1e-4;
    let optimizer = Optimizer::new(&s, len, &c, 1000)?;
    Trainer::new(s, model, Tune::Lora(0), optimizer, Box::new(Single))
}

/// `VmHWM` in MiB, where the system tells.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap_or(f64::NAN) / 1024.0
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let name = args.first().map_or("15m", String::as_str);
    let number = |i: usize, default: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (threads, steps) = (number(1, 2), number(2, 4));
    let mut trainer = trainer(name, threads)?;
    let mut id = 1u32;
    let mut random = || {
        id = id.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        3 + (id >> 8) % 31_997
    };
    let mut w = Workspace::new(&trainer.stream, &trainer.model, pack::limits(BATCH * LENGTH), None)?;
    let mut times = Vec::new();
    for step in 0..=steps {
        let text = |_| Example { answers: vec![(0..LENGTH).map(|_| random()).collect()], ..Example::default() };
        let examples: Vec<Example> = (0..BATCH).map(text).collect();
        let done = trainer.step(&mut w, &Sft, &examples.iter().collect::<Vec<_>>())?;
        if step > 0 {
            times.push(done.seconds);
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let info = trainer.stream.backend().info();
    let row = json!({
        "bench": "ple_sft", "shape": name, "dtype": "float32", "threads": threads, "device": info.name, "arch": info.arch,
        "step_s_median": median, "step_s_all": times, "tokens_per_s": (BATCH * LENGTH) as f64 / median, "peak_rss_mb": peak_memory(),
    });
    println!("RESULT {row}");
    Ok(())
}
