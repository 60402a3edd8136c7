//! The program itself: its arguments, its terminal, and one short run.
#![cfg(target_os = "linux")]

use serde_json::Value;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn ple(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ple"));
    command.args(arguments.split_whitespace());
    command
}

fn full() -> std::io::Result<Stdio> {
    Ok(File::options().write(true).open("/dev/full")?.into())
}

/// A pipe that nobody reads.
fn broken() -> std::io::Result<Stdio> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    Ok(writer.into())
}

#[test]
fn an_argument_of_other_bytes_is_named() -> Outcome {
    let out = ple("sft").arg(std::ffi::OsStr::from_bytes(b"--seed=\xff")).output()?;
    let said = String::from_utf8(out.stderr)?;
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("argument 2: wanted UTF-8") && !said.contains("panicked"), "{said}");
    Ok(())
}

#[test]
fn what_cannot_be_printed_is_an_error_unless_the_reader_has_gone() -> Outcome {
    for arguments in ["--help", "--version", "sft --help", "doctor", "doctor --json", "config show", "completions bash"] {
        let out = ple(arguments).stdout(full()?).output()?;
        let said = String::from_utf8(out.stderr)?;
        assert_eq!(out.status.code(), Some(3), "{arguments}: {said}");
        assert!(said.contains("standard output"), "{arguments}: {said}");
        assert_eq!(ple(arguments).stdout(broken()?).status()?.code(), Some(0), "{arguments}");
    }
    // With no place for its error either, the exit code still tells.
    assert_eq!(ple("nothing").stderr(full()?).status()?.code(), Some(2));
    Ok(())
}

/// What `ple config show` prints, `ple config check` takes; a key of another command is told, an unknown one refused.
#[test]
fn settings_are_shown_checked_and_translated() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("shown.yaml");
    let flags = "--model_name_or_path m --dataset_name d --output_dir o --lora_r 3";
    let shown = ple(&format!("config show --command sft {flags}")).output()?;
    let text = String::from_utf8(shown.stdout)?;
    assert!(shown.status.success() && text.contains("lora_r: 3  # --lora_r\n") && !text.contains("not a run"), "{text}");
    std::fs::write(&path, &text)?;
    let out = ple("config check").arg(&path).args(["--command", "sft"]).output()?;
    let said = String::from_utf8(out.stdout)?;
    assert!(out.status.success() && said.starts_with("ok"), "{said}{}", String::from_utf8_lossy(&out.stderr));
    let again = ple("config show --command sft --config").arg(&path).output()?;
    let plain = |text: &str| text.lines().map(|line| line.split("  # ").next().unwrap_or(line).to_string()).collect::<Vec<_>>();
    assert_eq!(plain(&String::from_utf8(again.stdout)?), plain(&text));
    std::fs::write(&path, "learning_rate: 1e-4\nbf16: true\nzorg: 1\n")?;
    let out = ple("config from-trl").arg(&path).output()?;
    let (text, said) = (String::from_utf8(out.stdout)?, String::from_utf8(out.stderr)?);
    assert!(text.contains("learning_rate: 0.0001  # line 1\n") && text.contains("bf16: dtype decides"), "{text}");
    assert!(out.status.code() == Some(2) && said.contains("line 3: zorg: unknown"), "{said}");
    assert_eq!(ple("config check").arg(&path).output()?.status.code(), Some(2));
    Ok(())
}

fn model() -> Option<PathBuf> {
    let root = std::env::var("PLE_SHARED").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").into());
    let path = Path::new(&root).join("data/models/stories260k");
    if !path.exists() {
        eprintln!("skip: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn lines(path: &Path) -> Result<Vec<Value>, Box<dyn std::error::Error>> {
    std::fs::read_to_string(path)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Three queries drawn five times an iteration; the terminal takes nothing and the run goes on.
#[test]
fn a_run_outlives_its_terminal_and_labels_repeated_rows_apart() -> Outcome {
    let Some(model) = model() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let (rows, out) = (folder.path().join("rows.jsonl"), folder.path().join("out"));
    let row = |text: &str| format!("{{\"prompt\": \"{text}\"}}\n");
    std::fs::write(&rows, ["Once upon a time", "A dog", "The sun"].map(row).concat())?;
    let settings = "--reward_funcs length:8 --ple_principle Hi --ple_iters 3 --ple_queries_per_iter 5 --max_completion_length 12 \
        --ple_tau0 0.1 --ple_worse skip --max_steps 2 --per_device_train_batch_size 64 --reward_norm sigmoid --max_tokens_per_micro_batch 256";
    let run = ple("train")
        .arg("--model_name_or_path")
        .arg(&model)
        .arg("--dataset_name")
        .arg(&rows)
        .arg("--output_dir")
        .arg(&out)
        .args(settings.split_whitespace())
        .stdout(full()?)
        .output()?;
    assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    let state: Value = serde_json::from_slice(&std::fs::read(out.join("ple.json"))?)?;
    assert_eq!((&state["iterations"], &state["steps"]), (&2.into(), &2.into()));
    for i in 0..2 {
        assert!(out.join(format!("adapters/iter-{i:05}/adapter_model.safetensors")).is_file());
        labelled(&lines(&out.join(format!("completions/iter-{i:05}.jsonl")))?)?;
    }
    assert!(!out.join("adapters/iter-00002").exists());
    let log = lines(&out.join("log.jsonl"))?;
    assert!(log.iter().all(|l| l["rewards/length:8/mean"].is_f64() && l["time/train"].is_f64()), "{log:?}");
    assert!(log[1]["num_tokens"].as_u64() > log[0]["num_tokens"].as_u64());
    Ok(())
}

/// Each pair's branch and weights follow from its own rewards, wherever in the file its row stands.
fn labelled(answers: &[Value]) -> Outcome {
    assert_eq!(answers.len(), 10);
    let number = |v: &Value| v.as_f64().ok_or("a number");
    for pair in answers.chunks(2) {
        assert_eq!(pair[0]["row"], pair[1]["row"]);
        assert_eq!(pair[0]["branch"], pair[1]["branch"]);
        let delta = number(&pair[1]["reward"])? - number(&pair[0]["reward"])?;
        match pair[0]["branch"].as_str() {
            Some("ranked") => assert!(delta > 0.0, "{pair:?}"),
            Some("weighted") => {
                let heavier = number(&pair[1]["weight"])? - number(&pair[0]["weight"])?;
                assert!(heavier * delta >= 0.0 && (delta == 0.0) == (heavier == 0.0), "{pair:?}");
            }
            // Worse by more than tau, or with an empty answer.
            _ => assert!(pair[0]["branch"].is_null()),
        }
    }
    Ok(())
}
