//! `ple bench`: the speed of every room on a device, or with `--e2e` of whole training steps, as a table for the eye and as JSON lines to
//! keep; `--merge` makes one table of kept lines and of what the peers' scripts wrote. Of an emulated device there is no speed to tell.

use crate::config::{Config, Gemm};
use crate::{Error, Result, log, open, origin};
use kernels::bench::{Ceilings, Timing, Work, measure, works};
use kernels::selftest::{device, is_emulated};
use runtime::{Stream, host};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

mod peers;
pub mod step;

/// FLOP/s of bf16 products that an H200's data sheet has, in TFLOP/s.
const SHEET: f64 = 989.0;

/// Runs the command.
pub fn run(c: &Config) -> Result<()> {
    if !c.merge.is_empty() {
        return merged(&c.merge.iter().map(|file| lines(file)).collect::<Result<Vec<_>>>()?.concat())
            .and_then(|t| log::print(&t));
    }
    let s = open::stream(c)?;
    if is_emulated(&s) {
        let name = s.backend().name();
        return Err(runtime::Error::NoDevice(format!(
            "{name} is emulated: wanted hardware, speeds of an emulated device say nothing"
        ))
        .into());
    }
    if c.e2e {
        return steps(c, &s);
    }
    let works: Vec<Work> =
        works(&s).into_iter().filter(|work| c.rooms.is_empty() || c.rooms.iter().any(|r| r == work.room)).collect();
    if works.is_empty() {
        return Err(Error::Usage(format!("rooms: nothing is measured of {}", c.rooms.join(", "))));
    }
    if let Some(file) = &c.json {
        log::probe(file)?;
    }
    let info = s.backend().info();
    let ceilings = Ceilings::measure(&s)?;
    let products = ceilings.products.map_or("not measured".into(), |flops| format!("{:.2} TFLOP/s", flops / 1e12));
    let (copy, cached) = (ceilings.copy / 1e9, ceilings.cached / 1e9);
    let launch = ceilings.launch.map_or(String::new(), |seconds| format!(", launch {:.2} µs", seconds * 1e6));
    let ceilings_line = format!("copy {copy:.1} GB/s, in cache {cached:.1} GB/s, products {products}{launch}");
    log::print(&format!("device {} {} {}: {ceilings_line}\n", device(&s), info.name, info.arch))?;
    let mut rows: Vec<Value> = Vec::new();
    for work in &works {
        match measure(&s, work) {
            Ok(timing) => {
                let base = rows.iter().find(|row| work.base.as_deref() == row["name"].as_str() && row["room"] == work.room);
                let row = row(&s, work, &timing, &ceilings, base);
                log::print(&text(&row))?;
                rows.push(row);
            }
            Err(runtime::Error::Unsupported { .. }) => log::print(&format!("{:<10} {:<44} no kernel\n", work.room, work.name))?,
            Err(e) => return Err(e.into()),
        }
    }
    c.json.as_ref().map_or(Ok(()), |file| keep(file, &rows))
}

/// Every shape of [`step`]; one that does not fit is said and passed over.
fn steps(c: &Config, s: &Stream) -> Result<()> {
    if s.host().is_some() {
        let why = "shapes of 0.5B and 8B are for devices (`cargo bench -p ple --bench sft` is for the CPU)";
        return Err(Error::Usage(format!("e2e: wanted a CUDA device, got {}: {why}", s.backend().name())));
    }
    if let Some(file) = &c.json {
        log::probe(file)?;
    }
    let (ceilings, mut rows) = (Ceilings::measure(s)?, Vec::new());
    for shape in &step::SHAPES {
        let name = if c.gemm == Gemm::Library { format!("{} library", shape.named()) } else { shape.named() };
        let mut tell = |bytes: usize| log::print(&format!("step       {name:<44} {:.2} GiB planned\n", gib(bytes)));
        match step::measure(s, shape, c.gemm, &mut tell) {
            Ok(measured) => {
                let row = step_row(s, &name, c.gemm, &measured, &ceilings);
                log::print(&text(&row))?;
                rows.push(row);
            }
            Err(Error::Runtime(runtime::Error::OutOfMemory { .. })) => {
                log::print(&format!("step       {name:<44} does not fit\n"))?
            }
            Err(e) => return Err(e),
        }
    }
    c.json.as_ref().map_or(Ok(()), |file| keep(file, &rows))
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// The median step, of which there is at least one. MFU is of the measured ceiling (`percent_of_products`) and of the data sheet.
fn step_row(s: &Stream, name: &str, gemm: Gemm, of: &step::Measured, ceilings: &Ceilings) -> Value {
    let (info, times) = (s.backend().info(), &of.seconds);
    let at = |i: usize| times.get(i).copied().unwrap_or(f64::NAN);
    let (median, tflops) = (at(times.len() / 2), of.flops / at(times.len() / 2) / 1e12);
    json!({
        "room": "step",
        "name": name,
        "us": log::number(median * 1e6),
        "us_best": log::number(at(0) * 1e6),
        "us_worst": log::number(at(times.len().saturating_sub(1)) * 1e6),
        "tokens_per_s": log::number(of.tokens as f64 / median),
        "tflops": log::number(tflops),
        "percent_of_products": ceilings.products.map_or(Value::Null, |most| log::number(1e14 * tflops / most)),
        "percent_of_sheet": log::number(100.0 * tflops / SHEET),
        "ceiling_tflops": ceilings.products.map_or(Value::Null, |most| log::number(most / 1e12)),
        "planned_gib": log::number(gib(of.planned)),
        "passes": times.len(),
        "dtype": "bfloat16",
        "gemm": gemm.name(),
        "device": device(s),
        "model": info.name,
        "arch": info.arch,
        "cores": info.cores,
        "version": env!("CARGO_PKG_VERSION"),
        "commit": origin::commit(),
        "date": origin::date(),
    })
}

/// One measurement with where it comes from; `base` is that of the same call without an adapter.
fn row(s: &Stream, work: &Work, timing: &Timing, ceilings: &Ceilings, base: Option<&Value>) -> Value {
    let info = s.backend().info();
    let (flops, bytes) = (work.flops / timing.median, work.bytes / timing.median);
    json!({
        "room": work.room,
        "name": work.name,
        "us": log::number(timing.median * 1e6),
        "over_base": base.map_or(Value::Null, |base| log::number(timing.median * 1e6 / float(base, "us"))),
        "us_best": log::number(timing.best * 1e6),
        "us_worst": log::number(timing.worst * 1e6),
        "tflops": log::number(flops / 1e12),
        "gbs": log::number(bytes / 1e9),
        "percent_of_copy": log::number(100.0 * bytes / ceilings.copy),
        "percent_of_products": ceilings.products.map_or(Value::Null, |most| log::number(100.0 * flops / most)),
        "ceiling_gbs": log::number(ceilings.copy / 1e9),
        "ceiling_tflops": ceilings.products.map_or(Value::Null, |most| log::number(most / 1e12)),
        "passes": timing.passes,
        "sets": timing.sets,
        "graph": timing.graph,
        "device": device(s),
        "model": info.name,
        "arch": info.arch,
        "cores": info.cores,
        "version": env!("CARGO_PKG_VERSION"),
        "commit": origin::commit(),
        "date": origin::date(),
    })
}

fn float(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or(f64::NAN)
}

fn word<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name].as_str().unwrap_or("?")
}

/// A number for the eye; a dash where there is none.
fn shown(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "-".into() }
}

fn text(row: &Value) -> String {
    let f = |name, digits| shown(float(row, name), digits);
    let over = row["over_base"].as_f64().map_or(String::new(), |ratio| format!("  {ratio:.3} of the base"));
    let over = row["tokens_per_s"].as_f64().map_or(over, |speed| format!("  {speed:.0} tokens/s"));
    format!(
        "{:<10} {:<44} {:>11} µs {:>9} TFLOP/s {:>6} % {:>8} GB/s {:>6} %{over}\n",
        word(row, "room"),
        word(row, "name"),
        f("us", 1),
        f("tflops", 3),
        f("percent_of_products", 1),
        f("gbs", 1),
        f("percent_of_copy", 1),
    )
}

/// Adds lines to a file of lines.
fn keep(file: &Path, rows: &[Value]) -> Result<()> {
    let before = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(runtime::Error::File { path: file.to_path_buf(), action: "read", source }.into()),
    };
    let added: String = rows.iter().map(|row| format!("{row}\n")).collect();
    host::write_file(file, |out| out.write_all(&before).and_then(|()| out.write_all(added.as_bytes())))?;
    Ok(())
}

fn lines(file: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|source| runtime::Error::File { path: file.to_path_buf(), action: "read", source })?;
    if let Some(rows) = peers::rows(file, &text)? {
        return Ok(rows);
    }
    let parse = |(i, line): (usize, &str)| {
        let value: Value =
            serde_json::from_str(line).map_err(|e| Error::file(file, format!("line {}: wanted a JSON object: {e}", i + 1)))?;
        for field in ["room", "name", "model", "date"] {
            if !value[field].is_string() {
                return Err(Error::file(file, format!("line {}: {field}: wanted a text, got {}", i + 1, value[field])));
            }
        }
        Ok(value)
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

/// A table with a block for each call and in it a line for each device and commit, in the order of the files. A later line of the same
/// call, device and commit replaces an earlier one.
fn merged(rows: &[Value]) -> Result<String> {
    let mut order: Vec<(String, BTreeMap<usize, &Value>)> = Vec::new();
    let mut sources: Vec<(String, String)> = Vec::new();
    for row in rows {
        let source = (word(row, "model").to_string(), word(row, "commit").to_string());
        let column = sources.iter().position(|known| *known == source).unwrap_or_else(|| {
            sources.push(source);
            sources.len() - 1
        });
        let call = format!("{} {}", word(row, "room"), word(row, "name"));
        match order.iter_mut().find(|(known, _)| *known == call) {
            Some((_, found)) => {
                found.insert(column, row);
            }
            None => order.push((call, BTreeMap::from([(column, row)]))),
        }
    }
    let mut table = String::from(
        "| call | device | commit | date | µs | TFLOP/s | % of products | GB/s | % of copy | of the base | tokens/s |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (call, found) in order {
        for row in found.values() {
            let f = |name, digits| shown(float(row, name), digits);
            let day = word(row, "date").split('T').next().unwrap_or("?");
            table += &format!(
                "| {call} | {} | {} | {day} | {} | {} | {} | {} | {} | {} | {} |\n",
                word(row, "model"),
                word(row, "commit"),
                f("us", 1),
                f("tflops", 3),
                f("percent_of_products", 1),
                f("gbs", 1),
                f("percent_of_copy", 1),
                f("over_base", 3),
                f("tokens_per_s", 0),
            );
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_added_and_merged_into_one_table() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::Usage(e.to_string()))?;
        let [a, b] = ["a.jsonl", "b.jsonl"].map(|name| folder.path().join(name));
        let row = |name: &str, model: &str, us: f64| {
            json!({"room": "rope", "name": name, "us": us, "tflops": null, "gbs": 2.0, "percent_of_copy": 50.0, "model": model,
                "commit": "abc", "date": "2026-11-25T10:00:00Z"})
        };
        keep(&a, &[row("x", "one", 1.0)])?;
        keep(&a, &[row("x", "one", 3.0), row("y", "one", 4.0)])?;
        keep(&b, &[row("x", "other", 2.0)])?;
        let all = [lines(&a)?, lines(&b)?].concat();
        assert_eq!(all.len(), 4);
        let table = merged(&all)?;
        let body: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(body[0], "| rope x | one | abc | 2026-11-25 | 3.0 | - | - | 2.0 | 50.0 | - | - |");
        assert_eq!(body[1], "| rope x | other | abc | 2026-11-25 | 2.0 | - | - | 2.0 | 50.0 | - | - |");
        assert!(body.len() == 3 && body[2].starts_with("| rope y | one | abc |"));
        let peer = r#"{"script": "g1_sft", "torch": "2.11", "peft": "0.19", "gpu": "one", "rows": [
            {"cell": "llama3-8b peft-default", "shape": "llama3-8b", "batch": 4, "length": 1024, "step_ms": 500.0, "tokens_per_s": 8192.0,
             "model_tflops": 270.0, "peak_gib": 60.0}, {"cell": "x", "error": "OutOfMemory"}]}"#;
        host::write_file(&b, |out| out.write_all(peer.as_bytes()))?;
        let ours = json!({"room": "step", "name": step::SHAPES[2].named(), "us": 250000.0, "tokens_per_s": 16384.0, "model": "one",
            "commit": "abc", "date": "2026-11-29"});
        let table = merged(&[vec![ours], lines(&b)?].concat())?;
        let body: Vec<&str> = table.lines().skip(2).collect();
        assert!(body.len() == 2 && body[0].ends_with("| 16384 |"), "{table}");
        let wanted = "| step llama3-8b LoRA 4x1024 bf16 | one | torch 2.11 peft 0.19 peft-default | ? | 500000.0 | 270.000 |";
        assert!(body[1].starts_with(wanted) && body[1].ends_with("| 8192 |"), "{table}");
        host::write_file(&b, |out| out.write_all(br#"{"script": "g1_sft", "rows": [{"cell": 1}]}"#))?;
        let error = lines(&b).map_err(|e| e.to_string());
        assert!(error.is_err_and(|text| text.contains("rows[0]: cell: wanted a text, got 1")));
        for (text, wanted) in
            [("{\"room\":", "line 1: wanted a JSON object"), ("{\"room\": \"x\"}", "line 1: name: wanted a text")]
        {
            host::write_file(&b, |out| out.write_all(text.as_bytes()))?;
            let error = lines(&b).map_err(|e| (e.exit_code(), e.to_string()));
            assert!(error.is_err_and(|(code, text)| code == 3 && text.contains(wanted)));
        }
        Ok(())
    }
}
