//! TensorBoard's files, by a reader of our own that checks every CRC and by TensorBoard itself.

use super::*;

/// An event as the file has it, with every CRC checked.
#[derive(Debug, PartialEq)]
enum Event {
    Version(String),
    Start { step: u64 },
    Scalars { step: u64, values: Vec<(String, f32)> },
}

/// Reads `(field, wire type, number or bytes)` of a message.
fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(data: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let value = match key & 7 {
            0 => varint(&mut data).to_le_bytes().to_vec(),
            wire => {
                let length = match wire {
                    1 => 8,
                    2 => varint(&mut data) as usize,
                    5 => 4,
                    other => panic!("wire type {other}"),
                };
                let (value, rest) = data.split_at(length);
                data = rest;
                value.to_vec()
            }
        };
        found.push((key >> 3, value));
    }
    found
}

fn event(data: &[u8]) -> Event {
    let found = fields(data);
    let of = |number| found.iter().find(|(field, _)| *field == number).map(|(_, value)| value.as_slice());
    let time = f64::from_le_bytes(of(1).unwrap().try_into().unwrap());
    assert!(time > 1.6e9, "{time}");
    let step = u64::from_le_bytes(of(2).unwrap().try_into().unwrap());
    let scalar = |value: &[u8]| {
        let parts = fields(value);
        assert_eq!((parts[0].0, parts[1].0), (1, 2));
        (String::from_utf8(parts[0].1.clone()).unwrap(), f32::from_le_bytes(parts[1].1.clone().try_into().unwrap()))
    };
    match (of(3), of(7), of(5)) {
        (Some(version), None, None) => Event::Version(String::from_utf8(version.to_vec()).unwrap()),
        (None, Some([8, 1]), None) => Event::Start { step },
        (None, None, Some(summary)) => {
            Event::Scalars { step, values: fields(summary).iter().map(|(_, value)| scalar(value)).collect() }
        }
        other => panic!("{other:?}"),
    }
}

fn events(path: &Path) -> Vec<Event> {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut found) = (bytes.as_slice(), Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let crc = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        assert_eq!(crc(8), tensorboard::masked(tensorboard::crc32c(&rest[..8])));
        assert_eq!(crc(12 + length), tensorboard::masked(tensorboard::crc32c(&rest[12..12 + length])));
        found.push(event(&rest[12..12 + length]));
        rest = &rest[16 + length..];
    }
    found
}

fn event_files(run: &Path) -> Vec<PathBuf> {
    let entries = |path: &Path| std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let mut files: Vec<PathBuf> = entries(&run.join("runs")).iter().flat_map(|folder| entries(folder)).collect();
    files.sort();
    files
}

#[test]
fn crc_by_the_known_answers() {
    for (text, crc) in [(&b"123456789"[..], 0xe306_9283), (b"", 0), (&[0; 32], 0x8a91_36aa), (&[0xff; 32], 0x62a8_ab43)] {
        assert_eq!(tensorboard::crc32c(text), crc);
    }
    assert_eq!(tensorboard::masked(0), 0xa282_ead8);
}

#[test]
fn stamps_of_folders() {
    for (seconds, text) in [
        (0, "Jan01_00-00-00"),
        (951_782_399, "Feb28_23-59-59"),
        (951_782_400, "Feb29_00-00-00"),
        (1_709_251_200, "Mar01_00-00-00"),
        (1_795_417_830, "Nov23_07-10-30"),
        (4_107_542_400, "Mar01_00-00-00"),
    ] {
        assert_eq!(tensorboard::stamp(seconds), text, "{seconds}");
    }
}

#[test]
fn events_of_a_run_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    stopped_and_resumed(folder.path());
    let files = event_files(folder.path());
    assert_eq!(files.len(), 2, "{files:?}");
    let name = files[0].file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("events.out.tfevents.1") && name.ends_with(".0"), "{name}");
    let scalars = |step, values: &[(&str, f32)]| Event::Scalars {
        step,
        values: values.iter().map(|(name, value)| ((*name).to_string(), *value)).collect(),
    };
    let train = |step, loss| scalars(step, &[("train/loss", loss), ("train/rewards/a,b/mean", 0.5), ("train/epoch", 0.25)]);
    let version = || Event::Version("brain.Event:2".into());
    let first = [version(), train(1, 4.0), train(2, 3.0), scalars(2, &[("eval/loss", 2.5)]), train(3, 99.0)];
    assert_eq!(events(&files[0]), first);
    let second = [version(), Event::Start { step: 3 }, train(3, 2.0), scalars(3, &[("train/reward", 1.0)])];
    assert_eq!(events(&files[1]), second);
}

#[test]
fn a_later_file_sorts_behind_under_any_clock() {
    let folder = tempfile::tempdir().unwrap();
    let first = tensorboard::Events::create(folder.path()).unwrap();
    let future = first.path().with_file_name("events.out.tfevents.9000000000.other.1.0");
    std::fs::rename(first.path(), &future).unwrap();
    let next = tensorboard::Events::resume(folder.path(), 7).unwrap();
    assert_eq!(next.path().parent(), future.parent());
    assert!(next.path().file_name() > future.file_name(), "{:?}", next.path());
    let bare = tempfile::tempdir().unwrap();
    let made = tensorboard::Events::resume(bare.path(), 7).unwrap();
    assert_eq!(events(made.path()), [Event::Version("brain.Event:2".into())]);
}

#[test]
fn tensorboard_itself_reads_the_events() {
    let folder = tempfile::tempdir().unwrap();
    stopped_and_resumed(folder.path());
    let runs = event_files(folder.path())[0].parent().unwrap().to_path_buf();
    let script = "import sys, json\n\
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n\
        a = EventAccumulator(sys.argv[1]); a.Reload()\n\
        print(json.dumps({t: [[e.step, e.value] for e in a.Scalars(t)] for t in a.Tags()['scalars']}))";
    let Some(said) = python("tensorboard", script, &runs) else { return };
    let found: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(found["train/loss"], json!([[1, 4.0], [2, 3.0], [3, 2.0]]), "the row cut off is gone: {found}");
    assert_eq!(found["eval/loss"], json!([[2, 2.5]]));
    assert_eq!(found["train/rewards/a,b/mean"].as_array().unwrap().len(), 3);
}
