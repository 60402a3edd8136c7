//! Places that cannot be written: what was there stays, and nothing half-written does.

use super::{FILE, Stage};
use crate::e2e::files;
use anyhow::{Result, ensure};

#[test]
fn places_that_are_no_folder() -> Result<()> {
    let stage = Stage::new()?;
    let below = stage.path("rows.jsonl/out");
    let words = &["rows.jsonl/out", "cannot create"];
    stage.sft().key("output_dir", &below).refuse(FILE, words)?;
    stage.train().key("output_dir", &below).refuse(FILE, words)?;
    stage.score().key("output_file", &below).refuse(FILE, words)?;
    stage.score().key("output_file", stage.path("none/out.jsonl")).refuse(FILE, &["none/out.jsonl", "cannot create"])?;
    stage.score().key("output_file", stage.path("model")).refuse(FILE, &["model", "cannot create", "directory"])?;
    stage.sft().key("output_dir", stage.path("rows.jsonl")).refuse(FILE, &["rows.jsonl", "cannot create"])?;
    stage.left_clean()
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;
    use std::os::unix::fs::symlink;

    /// `/proc` is read-only for everybody, root too.
    #[test]
    fn a_read_only_folder() -> Result<()> {
        let stage = Stage::new()?;
        stage.sft().and("--output_dir /proc/ple-tests").refuse(FILE, &["/proc/ple-tests", "cannot create"])?;
        stage.train().and("--output_dir /proc/ple-tests").refuse(FILE, &["/proc/ple-tests", "cannot create"])?;
        stage.score().and("--output_file /proc/ple-tests.jsonl").refuse(FILE, &["/proc/ple-tests.jsonl", "cannot create"])
    }

    #[test]
    fn a_full_disk_under_the_log() -> Result<()> {
        for name in ["log.jsonl", "completions/iter-00000.jsonl"] {
            let stage = Stage::new()?;
            std::fs::create_dir_all(stage.path("out/completions"))?;
            symlink("/dev/full", stage.path("out").join(name))?;
            stage.train().refuse(FILE, &[name, "cannot write", "No space left"])?;
            stage.left_clean()?;
        }
        Ok(())
    }

    /// A limit on the length of any file stands for a disk that fills while the result is written.
    #[test]
    fn a_full_disk_under_the_result() -> Result<()> {
        let stage = Stage::new()?;
        stage.sft().and("--max_steps 1 --report_to none").succeed()?;
        let (before, mut there) = (stage.read("out/adapter_model.safetensors")?, files(&stage.path("out"))?);
        // It says that a run has ended, which the next one has not.
        there.retain(|name| name != "trainer_state.json");
        stage
            .sft()
            .and("--max_steps 2 --seed 9 --report_to none")
            .limited(8)
            .refuse(FILE, &["adapter_model.safetensors", "cannot write", "File too large"])?;
        ensure!(stage.read("out/adapter_model.safetensors")? == before, "the file that was there is another");
        ensure!(files(&stage.path("out"))? == there, "left behind: {:?}", files(&stage.path("out"))?);
        stage.write("rows.jsonl", "{\"text\": \"w3 w4 w5 w6 w7 w8\"}\n".repeat(400))?;
        stage.write("out.jsonl", "what was there\n")?;
        stage.score().limited(8).refuse(FILE, &["out.jsonl", "cannot write", "File too large"])?;
        ensure!(stage.read("out.jsonl")? == b"what was there\n", "the file that was there is another");
        stage
            .sft()
            .and("--tune full --max_steps 1 --report_to none")
            .key("output_dir", stage.path("full"))
            .limited(100)
            .refuse(FILE, &["model.safetensors", "cannot write", "File too large"])?;
        ensure!(files(&stage.path("full"))? == ["log.jsonl", "run.json"], "left behind: {:?}", files(&stage.path("full"))?);
        Ok(())
    }

    /// A reader who leaves ends no run.
    #[test]
    fn a_closed_pipe() -> Result<()> {
        let stage = Stage::new()?;
        let said = stage.sft().and("--max_steps 3 --log_format json").unread()?;
        ensure!(said.code == 0 && stage.path("out/adapter_model.safetensors").exists(), "{said:?}");
        Ok(())
    }
}
