//! TensorBoard's event files: `runs/<time>_<host>/events.out.tfevents.<unix s>.<host>.<pid>.<n>`, scalars only.
//!
//! A record is the length as u64, the masked CRC-32C of those 8 bytes, an `Event` in protobuf, its masked CRC-32C, all little
//! endian. Tags are those of the Hugging Face trainer: `eval/x` for the metric `eval_x`, `train/x` for any other. A record is
//! written in one call, so that a reader beside the run sees whole rows.

use crate::Result;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What every event file's name begins with.
const PREFIX: &str = "events.out.tfevents.";

/// The first record of a file says that it is of this version.
const VERSION: &[u8] = b"brain.Event:2";

/// An event file being written.
#[derive(Debug)]
pub struct Events {
    out: File,
    path: PathBuf,
}

impl Events {
    /// A new folder under `runs` of the run's folder, with the first file in it.
    pub fn create(run: &Path) -> Result<Events> {
        let (seconds, host) = (unix_time() as u64, host());
        let folder = run.join("runs").join(format!("{}_{host}", stamp(seconds)));
        crate::checkpoint::create_folder(&folder)?;
        Events::open(&folder, seconds, &host)
    }

    /// A new file beside the newest one of the run. It opens with the mark after which TensorBoard drops what earlier files say
    /// of `step` and later steps. Its name sorts behind theirs even if the clock was set back.
    pub fn resume(run: &Path, step: u64) -> Result<Events> {
        let Some((folder, newest)) = newest(&run.join("runs")) else { return Events::create(run) };
        let mut events = Events::open(&folder, (unix_time() as u64).max(newest + 1), &host())?;
        let start = [0x08, 0x01]; // SessionLog { status: START }
        events.append(&event(step, Some((7, &start))))?;
        Ok(events)
    }

    fn open(folder: &Path, seconds: u64, host: &str) -> Result<Events> {
        let mut n = 0;
        let (out, path) = loop {
            let path = folder.join(format!("{PREFIX}{seconds}.{host}.{}.{n}", std::process::id()));
            match File::create_new(&path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => n += 1,
                Err(source) => return Err(runtime::Error::File { path, action: "create", source }.into()),
                Ok(out) => break (out, path),
            }
        };
        let mut events = Events { out, path };
        events.append(&event(0, Some((3, VERSION))))?;
        Ok(events)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One event with every number of a log row but its step; other fields have no place here.
    pub fn row(&mut self, step: u64, row: &Map<String, Value>) -> Result<()> {
        let mut summary = Vec::new();
        for (name, value) in row.iter().filter(|(name, _)| *name != "step") {
            let Some(number) = value.as_f64() else { continue };
            let tag = name.strip_prefix("eval_").map_or_else(|| format!("train/{name}"), |rest| format!("eval/{rest}"));
            let mut scalar = Vec::new();
            bytes(&mut scalar, 1, tag.as_bytes());
            scalar.push(2 << 3 | 5);
            scalar.extend((number as f32).to_le_bytes());
            bytes(&mut summary, 1, &scalar);
        }
        if summary.is_empty() { Ok(()) } else { self.append(&event(step, Some((5, &summary)))) }
    }

    fn append(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(crc32c(&length)).to_le_bytes());
        record.extend(data);
        record.extend(masked(crc32c(data)).to_le_bytes());
        let failed = |source| runtime::Error::File { path: self.path.clone(), action: "write", source };
        Ok(self.out.write_all(&record).map_err(failed)?)
    }
}

/// `Event { wall_time, step, one more field }`.
fn event(step: u64, field: Option<(u8, &[u8])>) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend(unix_time().to_le_bytes());
    out.push(2 << 3);
    varint(&mut out, step);
    if let Some((number, value)) = field {
        bytes(&mut out, number, value);
    }
    out
}

/// A field of bytes, a text or a message.
fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// Seven bits a byte, lowest first; the top bit says that more follow.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// CRC-32C (Castagnoli), reflected; a row of the log is far too short for a table of bytes to pay.
pub(super) fn crc32c(data: &[u8]) -> u32 {
    let bit = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !data.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

/// A CRC as records hold it, so that a CRC over data with CRCs in it stays one.
pub(super) fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Folder and time of the newest event file under `runs`.
fn newest(runs: &Path) -> Option<(PathBuf, u64)> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let seconds = |name: &str| name.strip_prefix(PREFIX)?.split('.').next()?.parse::<u64>().ok();
    let of = |folder: PathBuf| {
        let newest = entries(&folder).filter_map(|file| seconds(file.file_name().to_str()?)).max();
        newest.map(|newest| (folder, newest))
    };
    entries(runs).filter_map(|folder| of(folder.path())).max_by_key(|(_, seconds)| *seconds)
}

/// Seconds since 1970; 0 for a clock that is set before.
fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// This machine's name, in letters that a file name may have.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '-' };
    let name: String = name.unwrap_or_default().trim().chars().map(plain).collect();
    if name.is_empty() { "host".to_string() } else { name }
}

/// `Nov23_07-10-30` in universal time. Days are counted from the first of March, with the leap day the last of a year.
pub(super) fn stamp(seconds: u64) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, time) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let in_era = days % 146_097;
    let year = (in_era - in_era / 1_460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * in_year + 2) / 153;
    let day = in_year - (153 * from_march + 2) / 5 + 1;
    let month = MONTHS[(from_march as usize + 2) % 12];
    format!("{month}{day:02}_{:02}-{:02}-{:02}", time / 3600, time / 60 % 60, time % 60)
}
