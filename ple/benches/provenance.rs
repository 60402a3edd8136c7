//! What `run.json` costs: SHA-256 of mapped files, which are in the page cache by then.

use ple::telemetry::hashes;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

const BYTES: usize = 100_000_000;

fn main() -> std::io::Result<()> {
    let folder = tempfile::tempdir()?;
    let block: Vec<u8> = (0..BYTES as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let file = |i: u32| -> std::io::Result<PathBuf> {
        let path = folder.path().join(format!("{i}.safetensors"));
        std::fs::File::create(&path)?.write_all(&block)?;
        Ok(path)
    };
    let files = [file(0)?, file(1)?];
    for count in [1, 2] {
        let paths: Vec<&Path> = files[..count].iter().map(PathBuf::as_path).collect();
        let times = (0..5).map(|_| {
            let start = Instant::now();
            assert!(hashes(&paths).iter().all(Option::is_some));
            start.elapsed().as_secs_f64()
        });
        let best = times.fold(f64::INFINITY, f64::min);
        println!("{count} × {} MB: {:.1} ms, {:.2} GB/s", BYTES / 1_000_000, best * 1e3, (count * BYTES) as f64 / best / 1e9);
    }
    Ok(())
}
