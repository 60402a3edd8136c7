//! LoRA SFT steps at fixed shapes: `cargo bench -p ple --bench sft -- [15m|110m] [THREADS] [STEPS]`. Batch 8 × 256 random tokens, loss on
//! every token but the first, r 8 on all linears, AdamW, clipping: the step that the peers' scripts time; in turn with it the same step with activations made again. Prints one JSON line.

mod shapes;

use model::Keep;
use ple::method::{Example, sft::Sft};
use ple::trainer::Workspace;
use ple::{Result, pack};
use serde_json::json;

const BATCH: usize = 8;
const LENGTH: usize = 256;

fn main() -> Result<()> {
    let name = shapes::argument(0).unwrap_or_else(|| "15m".into());
    let number = |i: usize, default: usize| shapes::argument(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (threads, steps) = (number(1, 2), number(2, 4));
    let mut trainer = shapes::trainer(&name, threads)?;
    let mut ids = shapes::Ids(1);
    let limits = pack::limits(BATCH * LENGTH);
    let work = |keep| Workspace::keeping(&trainer.stream, &trainer.model, limits, keep, None);
    let mut ways = [(work(Keep::Backward)?, Vec::new()), (work(Keep::Inputs)?, Vec::new())];
    for step in 0..=steps {
        for (w, times) in &mut ways {
            let text = |_| Example { answers: vec![ids.take(LENGTH)], ..Example::default() };
            let examples: Vec<Example> = (0..BATCH).map(text).collect();
            let done = trainer.step(w, &Sft, &examples.iter().collect::<Vec<_>>())?;
            if step > 0 {
                times.push(done.seconds);
            }
        }
    }
    let [(_, times), (_, again)] = ways.map(|(w, mut times): (Workspace, Vec<f64>)| {
        times.sort_by(f64::total_cmp);
        (w, times)
    });
    let (median, checkpointed) = (times[times.len() / 2], again[again.len() / 2]);
    let [whole, inputs] = [Keep::Backward, Keep::Inputs].map(|keep| trainer.model.plan(limits, keep));
    let info = trainer.stream.backend().info();
    let row = json!({
        "bench": "ple_sft", "shape": name, "dtype": "float32", "threads": threads, "device": info.name, "arch": info.arch,
        "step_s_median": median, "step_s_all": times, "tokens_per_s": (BATCH * LENGTH) as f64 / median, "peak_rss_mb": shapes::peak_memory(),
        "checkpointed_s_median": checkpointed, "checkpointed_over_plain": checkpointed / median, "activation_bytes": [whole, inputs],
    });
    println!("RESULT {row}");
    Ok(())
}
