//! Whole runs on disks and clocks that misbehave. A library stands between the program and the C library (`calls.c`, compiled by
//! the test); the program is the one that users have.

mod clocks;
mod disks;

use super::program::Ple;
use super::refused::Stage;
use super::{files, program};
use anyhow::{Context, Result, ensure};
use ple_tests::data::say;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The library in a folder of its own; None, after saying so, where there is no C compiler.
fn library() -> Result<Option<(TempDir, PathBuf)>> {
    let folder = tempfile::tempdir()?;
    let (source, library) = (folder.path().join("calls.c"), folder.path().join("calls.so"));
    std::fs::write(&source, include_str!("calls.c"))?;
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
    match compiler.output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            say("skip: no cc on PATH: no run met a full disk or a clock that jumps");
            Ok(None)
        }
        Err(e) => Err(e.into()),
        Ok(output) => {
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(Some((folder, library)))
        }
    }
}

/// Both stages, two iterations, checkpoints, evaluations, the best of them at the end.
fn train(stage: &Stage, out: &Path) -> Ple {
    let call = stage.train().key("output_dir", out).key("sft_dataset_name", stage.path("rows.jsonl"));
    call.key("eval_dataset_name", stage.path("rows.jsonl")).and(
        "--ple_iters 2 --ple_queries_per_iter 4 --ple_epochs_per_iter 2 --ple_empty keep --num_train_epochs 2 --learning_rate 0.01 \
         --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --save_steps 2 --save_total_limit 2 --eval_steps 2 \
         --load_best_model_at_end --resume_from_checkpoint true",
    )
}

/// Files that hold times, or paths of their own folder; what else they say is compared by `ple diff`.
fn timed(name: &str) -> bool {
    let state = ["log.jsonl", "metrics.csv", "run.json", "trainer_state.json", "ple_state.json"];
    name.starts_with("runs/") || state.contains(&name.rsplit('/').next().unwrap_or(name))
}

/// The same files are there, of the same bytes but for times.
fn compare(straight: &Path, out: &Path) -> Result<()> {
    let names = |folder: &Path| -> Result<Vec<String>> {
        Ok(files(folder)?.into_iter().filter(|name| !name.starts_with("runs/")).collect())
    };
    let (wanted, got) = (names(straight)?, names(out)?);
    let other: Vec<_> = wanted.iter().filter(|n| !got.contains(n)).chain(got.iter().filter(|n| !wanted.contains(n))).collect();
    ensure!(other.is_empty(), "{other:?} are there in one of the runs only");
    for name in wanted.iter().filter(|name| !timed(name)) {
        let read = |folder: &Path| std::fs::read(folder.join(name)).context(name.clone());
        ensure!(read(straight)? == read(out)?, "{name} differs from the straight run's");
    }
    let said = program::ple(&format!("diff {} {}", straight.display(), out.display())).end()?;
    ensure!(said.code == 0, "{}{}", said.out, said.err);
    Ok(())
}
