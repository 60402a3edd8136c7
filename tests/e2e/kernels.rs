//! `ple selftest` and `ple bench`: the kernels of a device, on the CPU and on the emulated one.

use super::program::ple;
use super::{number, objects};
use anyhow::{Context, Result, ensure};
use ple::command::bench::step;
use ple::config::Gemm;
use serde_json::Value;

const USAGE: i32 = 2;
const FILE: i32 = 3;
const DEVICE: i32 = 4;

#[test]
fn selftest_tells_of_each_room_in_lines_and_as_json() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("selftest.json");
    let said = ple("selftest --device cpu --threads 2 --rooms rope adamw --seed 5").key("json", &file).succeed()?;
    for line in ["seed 5", "room rope cpu shapes ", "room adamw cpu shapes ", "2 rooms right, 0 wrong, 0 without kernels"] {
        ensure!(said.out.contains(line), "{}", said.out);
    }
    let report: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let rooms = report["rooms"].as_array().context("rooms")?;
    ensure!(report["device"] == "cpu" && report["seed"] == 5 && rooms.len() == 2, "{report}");
    for room in rooms {
        ensure!(room["passed"] == true && room["failures"] == serde_json::json!([]), "{room}");
        for count in ["shapes", "law", "repeat", "poison", "canaries"] {
            ensure!(number(room, count)? > 0.0, "{count}: {room}");
        }
    }
    ple("selftest --device cpu --rooms rope ropes").refuse(USAGE, &["rooms: wanted one of", "adamw", "got ropes"])?;
    ple("selftest --device cpu --conformance").refuse(USAGE, &["out: wanted the file"])?;
    ple("selftest --device cpu --json /proc/none/x.json").refuse(FILE, &["/proc/none/x.json", "cannot create"])
}

#[test]
fn on_cuda_selftest_passes_and_bench_has_no_speed_to_tell() -> Result<()> {
    let (Some(made), folder) = (emulator::libraries(), tempfile::tempdir()?) else { return Ok(()) };
    let said = ple("selftest --device cuda:0 --rooms rope").libraries(made).succeed()?;
    ensure!(said.out.contains("room rope cuda:0 (emulated) shapes "), "{}", said.out);
    let file = folder.path().join("dump.json");
    let said = ple("selftest --device cuda:0 --conformance").key("out", &file).libraries(made).succeed()?;
    ensure!(said.out.contains("records of cuda:0 (emulated)") && file.is_file(), "{}", said.out);
    let kept = folder.path().join("bench.jsonl");
    let call = ple("bench --device cuda:0").key("json", &kept).libraries(made);
    call.refuse(DEVICE, &["cuda:0 is emulated", "wanted hardware"])?;
    let steps = ple("bench --device cuda:0 --e2e").key("json", &kept).libraries(made);
    steps.refuse(DEVICE, &["cuda:0 is emulated", "wanted hardware"])?;
    ensure!(!kept.exists(), "a refused bench leaves nothing");
    ple("bench --device cpu --e2e").refuse(USAGE, &["e2e: wanted a CUDA device", "got cpu"])?;
    Ok(())
}

#[test]
fn bench_measures_and_merges() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [one, other] = ["one.jsonl", "other.jsonl"].map(|name| folder.path().join(name));
    for file in [&one, &one, &other] {
        ple("bench --device cpu --threads 1 --rooms rope").key("json", file).succeed()?;
    }
    let rows = objects(&one)?;
    ensure!(rows.len() == 2, "lines are added: {rows:?}");
    for row in &rows {
        for field in ["us", "gbs", "percent_of_copy", "ceiling_gbs", "ceiling_tflops", "passes", "sets"] {
            ensure!(number(row, field)? > 0.0, "{field}: {row}");
        }
        ensure!(row["room"] == "rope" && row["device"] == "cpu" && row["date"].is_string() && row["model"].is_string(), "{row}");
    }
    let merged = ple("bench").key("merge", &one).and(&other.display().to_string()).succeed()?.out;
    ensure!(merged.lines().count() == 3 && merged.contains("| rope forward f32"), "{merged}");
    ple("bench").key("merge", folder.path().join("none")).refuse(FILE, &["none", "cannot read"])?;
    ple("bench --device cpu --rooms ropes").refuse(USAGE, &["rooms: nothing is measured of ropes"])
}

/// What `--e2e` measures, at a size that the emulated device bears: steps run, are counted, and fit the plan that was told before.
#[test]
fn on_cuda_steps_are_measured_at_a_tiny_shape() -> Result<()> {
    let Some(cuda) = emulator::cuda() else { return Ok(()) };
    cuda.mode(emulator::Mode::PAIRS[0]);
    let (shape, mut told) = (step::Shape { name: "tiny", batch: 2, length: 32 }, 0);
    let measured = step::measure(&cuda.stream, &shape, Gemm::Own, &mut |bytes| {
        told = bytes;
        Ok(())
    })?;
    // 73,728 weights in two layers' modules, a head of 32,768, and attention of 4 heads of 16.
    let flops = 4.0 * (73_728.0 + 32_768.0) * 64.0 + 3.0 * 4.0 * 64.0 * 16.0 * 64.0 * 2.0;
    ensure!(measured.flops == flops && measured.tokens == 64, "{} FLOPs, wanted {flops}", measured.flops);
    ensure!(measured.planned == told && told > 0, "{told} bytes told");
    ensure!(measured.seconds.len() == 6 && measured.seconds.iter().all(|s| *s > 0.0), "{:?}", measured.seconds);
    let uniform = 512f64.ln();
    ensure!(measured.losses.iter().all(|l| (l - uniform).abs() < 0.5), "{:?}", measured.losses);
    let library = step::measure(&cuda.stream, &shape, Gemm::Library, &mut |_| Ok(()))?;
    let near = library.losses.iter().zip(&measured.losses).all(|(a, b)| (a - b).abs() < 5e-2);
    ensure!(near && library.planned > measured.planned, "{:?} in {} bytes", library.losses, library.planned);
    let unknown = step::Shape { name: "70b", ..shape };
    ensure!(step::measure(&cuda.stream, &unknown, Gemm::Own, &mut |_| Ok(())).is_err_and(|e| e.to_string().contains("got 70b")));
    Ok(())
}
