//! Runs that are killed and go on: what they leave is, byte for byte but for its times, what a run leaves that nobody disturbed.

use super::program::{Ple, ple};
use super::{Data, files, same};
use anyhow::{Context, Result, ensure};
use ple_tests::tiny::Random;
use std::path::Path;
use std::time::{Duration, Instant};

/// Kills of each kind; `PLE_LONG` asks for three times as many.
fn kills() -> usize {
    let more = if std::env::var_os("PLE_LONG").is_some() { 3 } else { 1 };
    7 * more
}

/// Both stages, several iterations, a checkpoint after every other step.
fn train(data: &Data, rows: &Path, out: &Path) -> Ple {
    let call =
        ple("train --max_prompt_length 96 --max_length 96 --learning_rate 0.001 --lr_scheduler_type linear --warmup_steps 3 \
         --ple_principle Hi --ple_iters 3 --ple_queries_per_iter 12 --ple_epochs_per_iter 2 --max_completion_length 24 \
         --per_device_train_batch_size 3 --gradient_accumulation_steps 1 --save_steps 2 --save_total_limit 2 --eval_steps 3 \
         --reward_norm sigmoid --threads 1 --resume_from_checkpoint true");
    let call = call.key("model_name_or_path", &data.model).key("dataset_name", rows).key("output_dir", out);
    call.key("sft_dataset_name", rows).key("eval_dataset_name", rows).key("reward_funcs", data.lexicon())
}

/// Whether a checkpoint is being written.
fn writing(out: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(out) else { return false };
    entries.flatten().any(|e| {
        let name = e.file_name().to_string_lossy().into_owned();
        name.starts_with(".checkpoint-") && name.ends_with(".tmp")
    })
}

/// Lines of the log that are steps.
fn steps(out: &Path) -> usize {
    let text = std::fs::read_to_string(out.join("log.jsonl")).unwrap_or_default();
    text.lines().filter(|line| line.contains("\"grad_norm\"")).count()
}

fn diff(a: &Path, b: &Path) -> Result<()> {
    let said = ple(&format!("diff {} {}", a.display(), b.display())).end()?;
    ensure!(said.code == 0, "{}{}", said.out, said.err);
    Ok(())
}

#[test]
fn a_killed_run_ends_as_the_straight_one() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (rows, straight, out) = (data.first(16, dir.path())?, dir.path().join("straight"), dir.path().join("killed"));
    let clock = Instant::now();
    train(&data, &rows, &straight).succeed()?;
    let length = clock.elapsed();
    let (mut random, mut at_random, mut in_checkpoints, mut in_updates) = (Random(7), 0, 0, 0);
    // A run that ends before its kill is begun anew in a folder of its own.
    let mut ended = 0;
    while at_random + in_checkpoints + in_updates < 3 * kills() {
        let call = train(&data, &rows, &out).begin()?;
        let (kind, before) = (random.below(3), steps(&out));
        let killed = match kind {
            0 if at_random < kills() => {
                std::thread::sleep(Duration::from_millis(u64::from(random.below(length.as_millis() as u32))));
                let killed = call.kill()?;
                at_random += usize::from(killed);
                killed
            }
            1 if in_checkpoints < kills() => {
                let killed = call.until(|| writing(&out))?.kill()?;
                in_checkpoints += usize::from(killed && writing(&out));
                killed
            }
            _ => {
                let more = 1 + random.below(3) as usize;
                let killed = call.until(|| steps(&out) >= before + more)?.kill()?;
                in_updates += usize::from(killed && in_updates < kills());
                killed
            }
        };
        if !killed {
            compare(&straight, &out)?;
            std::fs::remove_dir_all(&out)?;
            ended += 1;
            ensure!(ended < 40, "{at_random} kills at random, {in_checkpoints} in checkpoints, {in_updates} in updates");
        }
    }
    train(&data, &rows, &out).succeed()?;
    println!(
        "  {at_random} kills at random, {in_checkpoints} in checkpoints, {in_updates} in updates; {ended} runs came to an end"
    );
    compare(&straight, &out)
}

/// Adapter and journals are the same bytes; log and completions are the same but for times; no checkpoint is half.
fn compare(straight: &Path, out: &Path) -> Result<()> {
    diff(straight, out)?;
    same(straight, out, &["adapter_model.safetensors", "ple.json"])?;
    (0..3).try_for_each(|i| {
        same(straight, out, &[&format!("rollouts/iter-{i:05}.jsonl"), &format!("completions/iter-{i:05}.jsonl")])
    })?;
    ensure!(!writing(out), "left behind: {:?}", files(out)?);
    let newest = ple::checkpoint::newest(out)?;
    ensure!(newest.passed.is_empty() && newest.found.is_some(), "{newest:?}");
    Ok(())
}

/// Calls of a reward command, which writes one down for every answer.
fn asked(calls: &Path) -> usize {
    std::fs::read_to_string(calls).map_or(0, |text| text.lines().count())
}

#[test]
fn no_answer_and_no_reward_is_paid_twice() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (rows, out, calls) = (data.first(40, dir.path())?, dir.path().join("out"), dir.path().join("calls"));
    let script = dir.path().join("reward.sh");
    std::fs::write(&script, format!("while read -r line; do echo x >> {}; echo ${{#line}}; done\n", calls.display()))?;
    let call = || {
        let call = ple(
            "train --max_prompt_length 96 --ple_principle Hi --ple_iters 1 --ple_queries_per_iter 96 --max_completion_length 8 \
             --threads 1 --resume_from_checkpoint true",
        );
        let call = call.key("model_name_or_path", &data.model).key("dataset_name", &rows).key("output_dir", &out);
        call.key("reward_funcs", format!("exec:sh {}", script.display()))
    };
    // The first 64 answers are scored and in the journal.
    let journal = out.join("rollouts/iter-00000.jsonl");
    let rewards = || std::fs::read_to_string(&journal).map_or(0, |text| text.matches("\"reward\"").count());
    ensure!(call().begin()?.until(|| rewards() >= 64)?.kill()?, "the run had ended before it was killed");
    // The killed run's reward process may outlive it by the lines that it was given.
    let mut before = asked(&calls);
    loop {
        std::thread::sleep(std::time::Duration::from_millis(300));
        match asked(&calls) {
            now if now == before => break,
            now => before = now,
        }
    }
    let held = rewards();
    ensure!(held >= 64, "{held} rewards");
    call().succeed()?;
    let all = asked(&calls);
    ensure!(all - before <= 192 - held, "{all} rewards were asked for in all, {before} before the kill, {held} of them held");
    ensure!(rewards() == 192, "{} rewards in the journal", rewards());
    // Other settings draw other answers: what is in the journal is not theirs.
    std::fs::read_dir(&out)?
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("checkpoint-"))
        .try_for_each(|e| std::fs::remove_dir_all(e.path()))?;
    let said = call().and("--temperature 0.5").succeed()?;
    ensure!(said.out.contains("iter-00000.jsonl is of another run") && asked(&calls) == all + 192, "{}", said.out);
    Ok(())
}

#[test]
fn supervised_runs_go_on_and_damaged_checkpoints_are_passed_over() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let rows = data.first(30, dir.path())?;
    let call = |out: &Path| {
        let call = ple("sft --max_length 96 --learning_rate 0.001 --max_steps 9 --save_steps 2 --eval_steps 3 --threads 1");
        call.key("model_name_or_path", &data.model)
            .key("dataset_name", &rows)
            .key("eval_dataset_name", &rows)
            .key("output_dir", out)
    };
    let (straight, out) = (dir.path().join("straight"), dir.path().join("out"));
    call(&straight).succeed()?;
    call(&out).succeed()?;
    same(&straight, &out, &["adapter_model.safetensors"])?;
    // Of a run that has ended the checkpoints go with the rest; of one that has not they are a reason to refuse.
    call(&out).succeed()?;
    diff(&straight, &out)?;
    std::fs::remove_file(out.join("trainer_state.json"))?;
    call(&out).refuse(2, &["output_dir", "checkpoint-8", "--resume_from_checkpoint true"])?;
    for (name, damage) in [("adapter_model.safetensors", true), ("ple_state.json", false)] {
        let path = out.join("checkpoint-8").join(name);
        let bytes = std::fs::read(&path)?;
        let mut worse = bytes.clone();
        match damage {
            true => *worse.last_mut().context("a byte")? ^= 1,
            false => worse.truncate(bytes.len() / 2),
        }
        std::fs::write(&path, worse)?;
        let said = call(&out).and("--resume_from_checkpoint true").succeed()?;
        ensure!(said.out.contains("checkpoint-8 is passed over") && said.out.contains("goes on after step 6"), "{}", said.out);
        same(&straight, &out, &["adapter_model.safetensors"])?;
        diff(&straight, &out)?;
    }
    let folder = out.join("checkpoint-4");
    call(&out).key("resume_from_checkpoint", &folder).succeed()?;
    diff(&straight, &out)?;
    std::fs::write(folder.join("optimizer.safetensors"), b"")?;
    call(&out).key("resume_from_checkpoint", &folder).refuse(3, &["checkpoint-4", "optimizer.safetensors", "sha256"])?;
    let fresh = dir.path().join("fresh");
    let said = call(&fresh).and("--resume_from_checkpoint true").succeed()?;
    ensure!(said.out.contains("no whole checkpoint") && said.out.contains("starts at step 0"), "{}", said.out);
    diff(&straight, &fresh)
}

#[test]
fn a_run_once_more_is_the_same_on_the_same_files_only() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (rows, first) = (data.first(16, dir.path())?, dir.path().join("first"));
    train(&data, &rows, &first).succeed()?;
    let again = |run: &Path, name: &str| ple(&format!("rerun {}", run.display())).key("output_dir", dir.path().join(name));
    again(&first, "second").succeed()?;
    diff(&first, &dir.path().join("second"))?;
    same(&first, &dir.path().join("second"), &["adapter_model.safetensors"])?;
    let run = first.join("run.json");
    let text = std::fs::read_to_string(&run)?;
    std::fs::write(&run, text.replacen("\"ple_iters\": 3", "\"ple_iters\": \"three\"", 1))?;
    again(&run, "none").refuse(3, &["run.json", "config.ple_iters", "three"])?;
    std::fs::write(&run, &text)?;
    std::fs::write(&rows, std::fs::read_to_string(&rows)?.replacen("Human", "Woman", 1))?;
    again(&run, "none").refuse(3, &["run.json", "files.", "wanted what the run has read"])?;
    ple("rerun").refuse(2, &["runs"])?;
    ensure!(!dir.path().join("none").exists(), "a refused run left a folder");
    Ok(())
}
