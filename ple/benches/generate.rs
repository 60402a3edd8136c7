//! Sampling at fixed shapes: `cargo bench -p ple --bench generate -- [15m|110m] [BATCH] [THREADS] [PROMPT]`. Random f32 weights, prompts
//! of PROMPT (32) random ids, 128 new tokens each, temperature 1, top-p 0.9, no stop id: what the peers' scripts time. Prints one
//! JSON line.

mod shapes;

use kernels::sample::Sampling;
use model::{Adapter, CacheLimits, KvCache, Request, SampleKey, Settings, generate};
use ple::Result;
use runtime::{Isa, Stream};
use serde_json::json;
use std::ops::ControlFlow;
use std::time::Instant;

const NEW: usize = 128;
const REPEATS: usize = 5;

fn main() -> Result<()> {
    let name = shapes::argument(0).unwrap_or_else(|| "15m".into());
    let number = |i: usize, default: usize| shapes::argument(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (batch, threads, prompt) = (number(1, 1), number(2, 2), number(3, 32));
    let s = Stream::cpu(threads, Isa::from_env()?);
    let model = shapes::model(&s, &name)?;
    let positions = prompt + NEW;
    let limits = CacheLimits { pages: batch * positions.div_ceil(64), prefill_tokens: batch * prompt, batch, positions };
    let mut kv = KvCache::new(&s, &model, limits, false, None)?;
    let mut ids = shapes::Ids(1);
    let key = |row: usize| SampleKey { row: row as u32, ..SampleKey::default() };
    let requests: Vec<Request> = (0..batch).map(|row| Request { prompt: ids.take(prompt), key: key(row) }).collect();
    let mut times = Vec::new();
    for repeat in 0..=REPEATS {
        let settings = Settings {
            sampling: Sampling { top_p: 0.9, ..Sampling::default() },
            max_new_tokens: NEW,
            seed: repeat as u64,
            ..Settings::default()
        };
        let clock = Instant::now();
        let out = generate(&s, &model, &mut kv, &requests, &settings, Adapter::Off, &mut |_, _| ControlFlow::Continue(()))?;
        if repeat > 0 {
            times.push(clock.elapsed().as_secs_f64());
        }
        debug_assert!(out.iter().all(|answer| answer.ids.len() == NEW));
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let info = s.backend().info();
    let row = json!({
        "bench": format!("ple_generate_b{batch}"), "shape": name, "dtype": "float32", "threads": threads, "prompt": prompt,
        "device": info.name, "arch": info.arch, "step_s_median": median, "step_s_all": times,
        "tokens_per_s": (batch * NEW) as f64 / median, "ms_per_token_step": 1e3 * median / NEW as f64,
        "peak_rss_mb": shapes::peak_memory(),
    });
    println!("RESULT {row}");
    Ok(())
}
