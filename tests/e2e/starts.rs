//! What answers at once: version, help, doctor. Times are printed, never asserted.

use super::program::ple;
use anyhow::{Result, ensure};
use ple_tests::data::say;
use serde_json::Value;
use std::time::Instant;

#[test]
fn version_help_and_doctor() -> Result<()> {
    let said = ple("--version").succeed()?;
    ensure!(said.out == format!("ple {}\n", env!("CARGO_PKG_VERSION")), "{}", said.out);
    for help in ["--help", "-h", "help"] {
        let said = ple(help).succeed()?;
        ensure!(["train", "sft", "logprob", "doctor"].iter().all(|name| said.out.contains(name)), "{}", said.out);
    }
    let keys = [
        ("train", ["--ple_tau0", "--reward_funcs", "--learning_rate"]),
        ("sft", ["--tune", "--init_from_config", "--max_length"]),
        ("logprob", ["--output_file", "--adapter", "--max_tokens_per_micro_batch"]),
        ("doctor", ["--device", "--threads", "--log_format"]),
    ];
    for (name, keys) in keys {
        let said = ple(name).and("--help").succeed()?;
        ensure!(keys.iter().all(|key| said.out.contains(key)), "{}", said.out);
    }
    let report: Value = serde_json::from_str(&ple("doctor --json").succeed()?.out)?;
    ensure!(report["version"] == env!("CARGO_PKG_VERSION") && report["device"]["name"] == "cpu", "{report}");
    let one: Value = serde_json::from_str(&ple("doctor --json --threads 1").simd("portable").succeed()?.out)?;
    ensure!(one["simd"]["used"] == "portable" && one["device"]["cores"] == 1, "{one}");
    ensure!(ple("doctor").succeed()?.out.contains(env!("CARGO_PKG_VERSION")), "doctor does not name its version");
    Ok(())
}

#[test]
fn starts() -> Result<()> {
    for words in ["--version", "train --help", "sft --help", "logprob --help", "doctor", "doctor --json"] {
        let mut times = Vec::new();
        for _ in 0..5 {
            let start = Instant::now();
            ple(words).succeed()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        say(&format!("start ple {words}: {:.1} ms, median of 5", times[2]));
    }
    Ok(())
}
