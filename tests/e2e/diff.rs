//! `ple diff`: runs that are the same but for their times, and the first thing in which they are not.

use super::program::{Said, ple};
use anyhow::{Result, ensure};
use ple::journal::{Head, Journal, Key, Rewarded, Sampled};
use ple_tests::tiny;
use runtime::{DType, Isa, Stream};
use std::path::{Path, PathBuf};

/// A folder as a run leaves it; `seconds` is what two runs never share.
fn run(folder: &Path, seconds: f64) -> Result<PathBuf> {
    std::fs::create_dir_all(folder.join("completions"))?;
    let line = |step: u32| {
        let loss = 1.0 / f64::from(step);
        format!(
            "{{\"iteration\":0,\"step\":{step},\"loss\":{loss},\"step_time\":{seconds},\"time/train\":{seconds},\"tok_s/train\":{seconds}}}\n"
        )
    };
    std::fs::write(folder.join("log.jsonl"), (1..=3).map(line).collect::<String>())?;
    std::fs::write(folder.join("completions/iter-00000.jsonl"), "{\"row\":4,\"side\":1,\"sample\":0,\"completion\":\"yes\"}\n")?;
    let [adapter, answers, rewards] = ["adapter", "answers", "rewards"].map(|name| ple::digest::sha256(name.as_bytes()));
    let head = Head { iteration: 0, adapter, answers, rewards, seed: 42 };
    let (mut journal, ..) = Journal::open(&folder.join("rollouts"), &head)?;
    let key = Key { row: 4, side: 1, sample: 0 };
    let logps = vec![-0.5, -1.0];
    journal.append_samples(&[Sampled { key, ids: vec![7, 2], logps: logps.clone(), sampling_logps: logps, finished: true }])?;
    journal.append_rewards(&[Rewarded { key, reward: 0.5, parts: vec![0.5] }])?;
    journal.finish()?;
    let base = tiny::folder(true, DType::F32)?;
    let (model, _) = tiny::load(&Stream::cpu(1, Isa::detect()), base.path())?;
    tiny::adapter(&model, 2, 5).save(folder)?;
    tiny::adapter(&model, 2, 4).save(&folder.join("adapters/iter-00000"))?;
    Ok(folder.to_path_buf())
}

fn diff(a: &Path, b: &Path) -> Result<Said> {
    ple(&format!("diff {} {}", a.display(), b.display())).end()
}

/// A file, its text, the text in its place, and what is said then.
type Change = (&'static str, &'static str, &'static str, &'static [&'static str]);

const CHANGES: [Change; 6] = [
    (
        "log.jsonl",
        "\"step\":2,\"loss\":0.5",
        "\"step\":2,\"loss\":0.25",
        &["log differ", "(iteration 0 step 2): loss", "A  0.5\n", "B  0.25\n"],
    ),
    ("log.jsonl", "\"step\":3,", "\"step\":3,\"kl\":1,", &["(iteration 0 step 3): kl", "A  nothing\n", "B  1\n"]),
    (
        "rollouts/iter-00000.jsonl",
        "\"ids\":[7,2]",
        "\"ids\":[7,3]",
        &["journals differ", "(row 4 side 1 sample 0): ids[1]", "A  2\n", "B  3\n"],
    ),
    ("rollouts/iter-00000.jsonl", "\"reward\":0.5", "\"reward\":0.75", &["line 3 (row 4 side 1 sample 0): reward"]),
    (
        "completions/iter-00000.jsonl",
        "yes",
        "no",
        &["completions differ", "(row 4 side 1 sample 0): completion", "\"yes\"", "\"no\""],
    ),
    ("log.jsonl", "\"iteration\":0,\"step\":3", "\"iteration\":1,\"step\":3", &["line 3", "iteration\n"]),
];

#[test]
fn the_first_difference_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (a, b) = (run(&dir.path().join("a"), 0.5)?, run(&dir.path().join("b"), 0.25)?);
    let said = diff(&a, &b)?;
    ensure!(said.code == 0 && said.out.matches("the same").count() == 5 && said.err.is_empty(), "{said:?}");
    for (name, before, after, words) in CHANGES {
        let (path, text) = (b.join(name), std::fs::read_to_string(b.join(name))?);
        ensure!(text.contains(before), "{name} has no {before}");
        std::fs::write(&path, text.replacen(before, after, 1))?;
        let said = diff(&a, &b)?;
        ensure!(said.code == 1 && words.iter().all(|word| said.out.contains(word)), "{name}, {after}: {said:?}");
        ensure!(said.out.matches("differ: ").count() == 1, "{said:?}");
        std::fs::write(&path, text)?;
    }
    for name in ["adapter_model.safetensors", "adapters/iter-00000/adapter_model.safetensors"] {
        let (path, bytes) = (b.join(name), std::fs::read(b.join(name))?);
        let mut changed = bytes.clone();
        // The last byte holds the sign of the last number.
        *changed.last_mut().unwrap_or(&mut 0) ^= 0x80;
        std::fs::write(&path, changed)?;
        let said = diff(&a, &b)?;
        ensure!(said.code == 1 && said.out.contains(&format!("{name}: base_model.model.model.layers.1")), "{said:?}");
        std::fs::remove_file(&path)?;
        let said = diff(&a, &b)?;
        ensure!(said.code == 1 && said.out.contains(&format!("{name}\n  A  there\n  B  not there\n")), "{said:?}");
        std::fs::write(&path, bytes)?;
    }
    ensure!(diff(&a, &b)?.code == 0, "what was changed back still differs");
    Ok(())
}

#[test]
fn what_is_no_run_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let a = run(&dir.path().join("a"), 0.5)?;
    for (b, code, word) in [(dir.path().join("none"), 3, "log.jsonl"), (a.join("completions"), 3, "log.jsonl")] {
        let said = diff(&a, &b)?;
        ensure!(said.code == code && said.err.contains(word) && said.err.contains(&b.display().to_string()), "{said:?}");
    }
    for words in ["diff".to_string(), format!("diff {}", a.display()), format!("diff {0} {0} {0}", a.display())] {
        let said = ple(&words).end()?;
        ensure!(said.code == 2 && said.err.contains("runs: wanted the folders of two runs"), "{said:?}");
    }
    std::fs::write(dir.path().join("log.jsonl"), "{\"step\":1\n")?;
    let said = diff(&a, dir.path())?;
    ensure!(said.code == 3 && said.err.contains("log.jsonl: line 1"), "{said:?}");
    Ok(())
}
