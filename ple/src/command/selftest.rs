//! `ple selftest`: every room's kernels on a device against the portable CPU, one line a room. With `--conformance` instead what each
//! instruction wrapper does there, raw: goldens for the emulator's twins, if the device is hardware.

use crate::config::Config;
use crate::{Error, Result, log, open, origin};
use kernels::conformance;
use kernels::selftest::{Effort, ROOMS, Room, Row, device, run as check};
use runtime::{DType, Stream, host};
use serde_json::{Value, json};
use std::path::Path;

/// Runs the command; true if nothing is wrong and the device has a kernel of at least one room.
pub fn run(c: &Config) -> Result<bool> {
    let rooms = chosen(&c.rooms)?;
    if let Some(file) = c.json.iter().chain(&c.out).next() {
        log::probe(file)?;
    }
    match (c.conformance, &c.out) {
        (true, Some(file)) => return dump(c, file),
        (true, None) => return Err(Error::Usage("out: wanted the file that --conformance writes, got nothing".into())),
        (false, Some(_)) => return Err(Error::Usage("out: wanted --conformance beside it".into())),
        (false, None) => {}
    }
    let s = open::stream(c)?;
    // The CPU stores activations in f32 alone.
    let rooms = rooms.into_iter().filter(|room| room.stored == DType::F32 || s.host().is_none());
    let info = s.backend().info();
    log::print(&format!("device {} {} {}, seed {}\n", device(&s), info.name, info.arch, c.seed))?;
    let mut rows = Vec::new();
    for room in rooms {
        let row = check(room, &s, Effort::of(&s), c.seed)?;
        let failures: String = row.failures.iter().map(|text| format!("  {text}\n")).collect();
        log::print(&format!("{row}\n{failures}"))?;
        rows.push(row);
    }
    if let Some(file) = &c.json {
        let report = report(c, &s, &rows);
        host::write_file(file, |out| writeln!(out, "{report:#}"))?;
    }
    let wrong = rows.iter().filter(|row| !row.passed() && !row.is_absent()).count();
    let (absent, all) = (rows.iter().filter(|row| row.is_absent()).count(), rows.len());
    log::print(&format!("{} rooms right, {wrong} wrong, {absent} without kernels\n", all - wrong - absent))?;
    Ok(wrong == 0 && absent < all)
}

fn dump(c: &Config, file: &Path) -> Result<bool> {
    let s = open::stream(c)?;
    let records = conformance::dump(&s)?;
    conformance::write(file, &s, &records)?;
    let answers: String = conformance::answers(&records).iter().map(|answer| format!("{answer}\n")).collect();
    log::print(&format!("{answers}{}: {} records of {}\n", file.display(), records.len(), device(&s)))?;
    Ok(true)
}

/// The lines of the table of these names, all if there are none; a room's name is all of its lines.
fn chosen(names: &[String]) -> Result<Vec<&'static Room>> {
    let of = |room: &Room, name: &str| room.name == name || room.name.split('/').next() == Some(name);
    if let Some(name) = names.iter().find(|name| !ROOMS.iter().any(|room| of(room, name))) {
        let known = ROOMS.iter().map(|room| room.name).collect::<Vec<_>>().join(", ");
        return Err(Error::Usage(format!("rooms: wanted one of {known}, got {name}")));
    }
    Ok(ROOMS.iter().filter(|room| names.is_empty() || names.iter().any(|name| of(room, name))).collect())
}

fn report(c: &Config, s: &Stream, rows: &[Row]) -> Value {
    let info = s.backend().info();
    let row = |row: &Row| {
        json!({
            "room": row.room,
            "shapes": row.shapes,
            "law": row.law,
            "repeat": row.repeat,
            "poison": row.poison,
            "canaries": row.canaries,
            "worst": log::number(row.worst),
            "absent": row.absent,
            "passed": row.passed(),
            "failures": row.failures,
        })
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": origin::commit(),
        "date": origin::date(),
        "device": device(s),
        "model": info.name,
        "arch": info.arch,
        "libraries": info.found.iter().map(|(name, version)| (name.clone(), version.as_str().into())).collect::<serde_json::Map<_, Value>>(),
        "seed": c.seed,
        "rooms": rows.iter().map(row).collect::<Vec<_>>(),
    })
}
