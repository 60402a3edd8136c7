//! The best evaluation and early stopping of `ple train`, also where a run goes on before or after its best.

use super::program::Ple;
use super::refused::Stage;
use super::{number, objects, same};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;

/// Evaluations in a row that may be no better.
const PATIENCE: usize = 2;

fn train(stage: &Stage, out: &Path) -> Ple {
    stage.train().key("output_dir", out).key("eval_dataset_name", stage.path("held.jsonl")).and(
        "--ple_iters 9 --ple_queries_per_iter 4 --ple_epochs_per_iter 2 --ple_empty keep --max_completion_length 6 \
         --learning_rate 0.003 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --save_steps 1 --save_total_limit 0 \
         --eval_steps 1 --reward_funcs contains:8",
    )
}

/// Values of an evaluation's metric, by step; the one before the first step is not judged.
fn evaluations(out: &Path, metric: &str) -> Result<Vec<(u64, f64)>> {
    let rows = objects(&out.join("log.jsonl"))?.into_iter().filter(|row| row.get(metric).is_some() && row["step"] != 0);
    rows.map(|row| Ok((row["step"].as_u64().context("step")?, number(&row, metric)?))).collect()
}

fn state(out: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(out.join("trainer_state.json"))?)?)
}

#[test]
fn a_run_stops_early_and_ends_with_its_best() -> Result<()> {
    let (stage, dir) = (Stage::new()?, tempfile::tempdir()?);
    let at = |name: &str| dir.path().join(name);
    let row = |i: u32| format!("{{\"prompt\": \"w{}\", \"completion\": \" w{}\"}}\n", 5 + i, 40 + i);
    stage.write("held.jsonl", (0..24).map(row).collect::<String>())?;
    for (metric, greater) in [("eval_loss", false), ("eval_reward", true)] {
        let run = at(metric);
        let call = |out: &Path| {
            let call = train(&stage, out).and("--load_best_model_at_end").key("metric_for_best_model", metric);
            call.key("early_stopping_patience", PATIENCE.to_string())
        };
        let said = call(&run).succeed()?;
        let found = evaluations(&run, metric)?;
        let better = |a: f64, b: f64| if greater { a > b } else { a < b };
        let best = found.iter().copied().reduce(|best, one| if better(one.1, best.1) { one } else { best }).context("none")?;
        let last = found.last().context("an evaluation")?.0;
        println!("  {metric}: best {best:?} of {found:?}");
        ensure!(best.0 > 1 && last == best.0 + PATIENCE as u64 && last < 36, "{metric}: best {best:?} of {found:?}");
        ensure!(said.out.contains("has not become better 2 times in a row"), "{}", said.out);
        let kept = state(&run)?;
        ensure!(kept["best_global_step"] == best.0 && kept["best_metric"] == best.1 && kept["global_step"] == last, "{kept}");
        // What is left is what a run has that ends there.
        let short = at(&format!("{metric}-short"));
        train(&stage, &short).key("max_steps", best.0.to_string()).succeed()?;
        same(&run, &run.join("best"), &["adapter_model.safetensors"])?;
        same(&run, &short, &["adapter_model.safetensors"])?;

        // Gone on before the best, at it, after it: judged as if nothing had happened.
        for step in [best.0 - 1, best.0, best.0 + 1] {
            let checkpoint = run.join(format!("checkpoint-{step}"));
            let said = call(&run).key("resume_from_checkpoint", &checkpoint).succeed()?;
            ensure!(evaluations(&run, metric)? == found && said.out.contains("2 times in a row"), "{step}: {}", said.out);
            let again = state(&run)?;
            for name in ["best_global_step", "best_metric", "best_model_checkpoint", "global_step"] {
                ensure!(again[name] == kept[name], "{step}: {name} is {}", again[name]);
            }
            same(&run, &short, &["adapter_model.safetensors"])?;
            same(&run.join("best"), &short, &["adapter_model.safetensors"])?;
        }
    }
    Ok(())
}
