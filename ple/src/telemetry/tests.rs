//! What the readers of these files find: every CRC, the columns, the fields, valid JSON after every event.

use super::*;
use crate::config::{Command, Config};
use runtime::{Isa, Stream};
use serde_json::json;
use std::path::PathBuf;

fn row(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

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

fn state() -> TrainerState {
    TrainerState::new(&Config::defaults(Command::Sft), 20, 1.5)
}

/// Steps 1 to 4 with an evaluation after the second, then the run goes on from step 2 after a stop.
fn stopped_and_resumed(folder: &Path) -> Vec<u64> {
    let step = |n: u64, loss: f64| row(json!({"loss": loss, "rewards/a,b/mean": 0.5, "ple/tau": null, "step": n, "epoch": 0.25}));
    let mut files = Telemetry::create(folder, state()).unwrap();
    files.row(&step(1, 4.0)).unwrap();
    files.row(&step(2, 3.0)).unwrap();
    files.row(&row(json!({"eval_loss": 2.5, "step": 2}))).unwrap();
    let mark = files.metrics();
    files.state.write(folder).unwrap();
    files.row(&step(3, 99.0)).unwrap();
    files.row(&row(json!({"late": "a \"b\", c", "step": 4}))).unwrap();
    drop(files);
    let kept = TrainerState::read(folder).unwrap();
    assert_eq!(kept.global_step, 2);
    let mut files = Telemetry::resume(folder, kept, mark).unwrap();
    assert_eq!(files.metrics(), mark);
    files.row(&step(3, 2.0)).unwrap();
    files.row(&row(json!({"reward": 1, "kind": "x"}))).unwrap();
    files.state.write(folder).unwrap();
    vec![mark, files.metrics()]
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

/// Runs a script where Python has the module.
fn python(module: &str, script: &str, argument: &Path) -> Option<String> {
    let call = |script: &str| std::process::Command::new("python3").arg("-c").arg(script).arg(argument).output();
    if !call(&format!("import {module}")).is_ok_and(|out| out.status.success()) {
        eprintln!("skip: python3 has no {module}");
        return None;
    }
    let out = call(script).unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    Some(String::from_utf8(out.stdout).unwrap())
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

#[test]
fn the_table_grows_and_is_cut_back() {
    let folder = tempfile::tempdir().unwrap();
    let marks = stopped_and_resumed(folder.path());
    let text = std::fs::read_to_string(folder.path().join(METRICS)).unwrap();
    let wanted = "loss,\"rewards/a,b/mean\",ple/tau,step,epoch,eval_loss,late,reward,kind\n\
        4.0,0.5,,1,0.25\n3.0,0.5,,2,0.25\n,,,2,,2.5\n2.0,0.5,,3,0.25,,\n,,,,,,,1,x\n";
    assert_eq!(text, wanted);
    let header = text.lines().next().unwrap().len() as u64 + 1;
    assert_eq!(marks[1] + header, text.len() as u64);
    assert_eq!(&text[header as usize..(header + marks[0]) as usize], "4.0,0.5,,1,0.25\n3.0,0.5,,2,0.25\n,,,2,,2.5\n");
}

#[test]
fn pandas_reads_the_table() {
    let folder = tempfile::tempdir().unwrap();
    stopped_and_resumed(folder.path());
    let script = "import sys, pandas\nt = pandas.read_csv(sys.argv[1])\n\
        print(t.shape, t['loss'].tolist(), t['step'].count(), t['eval_loss'].dropna().tolist(), t['kind'].iloc[-1], sep='|')";
    let Some(said) = python("pandas", script, &folder.path().join(METRICS)) else { return };
    assert_eq!(said.trim(), "(5, 9)|[4.0, 3.0, nan, 2.0, nan]|4|[2.5]|x");
}

#[test]
fn a_table_cannot_go_on_where_no_row_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.csv");
    let resume = |text: &str, rows| {
        std::fs::write(&path, text).unwrap();
        Metrics::resume(&path, rows).map_err(|e| (e.exit_code(), e.to_string()))
    };
    assert!(resume("\"a\"\"\n,b\",c\n1,2\n3,4\n", 4).is_ok());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "\"a\"\"\n,b\",c\n1,2\n");
    for (text, rows, said) in [
        ("a\n1\n2\n", 3, "m.csv: wanted whole rows of 3 bytes to go on after, got 4 bytes of rows"),
        ("a\n1\n", 4, "got 2 bytes"),
        ("a\n1\n", u64::MAX, "got 2 bytes"),
        ("a\n", 1, "got 0 bytes"),
        ("a", 1, "line 1: wanted names of columns"),
        ("", 1, "line 1"),
        ("\"a\n1\n", 1, "line 1"),
    ] {
        let (code, error) = resume(text, rows).unwrap_err();
        assert!(code == 3 && error.contains(said), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    std::fs::remove_file(&path).unwrap();
    assert!(Metrics::resume(&path, 4).is_err_and(|e| e.exit_code() == 3));
    assert_eq!(Metrics::resume(&path, 0).unwrap().bytes(), 0);
}

#[test]
fn names_with_quotes_and_line_ends_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.csv");
    let mut table = Metrics::create(&path).unwrap();
    table.row(&row(json!({"a \"b\"": 1, "c\nd": [1, 2], "é,": true}))).unwrap();
    let rows = table.bytes();
    drop(table);
    let mut again = Metrics::resume(&path, rows).unwrap();
    again.row(&row(json!({"é,": false, "c\nd": 3}))).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, "\"a \"\"b\"\"\",\"c\nd\",\"é,\"\n1,\"[1,2]\",true\n,3,false\n");
}

#[test]
fn the_state_has_the_fields_of_the_trainer_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    stopped_and_resumed(folder.path());
    let text = std::fs::read_to_string(folder.path().join(trainer_state::NAME)).unwrap();
    let found: Value = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> = found.as_object().unwrap().keys().map(String::as_str).collect();
    let wanted = "best_global_step best_metric best_model_checkpoint epoch eval_steps global_step is_hyper_param_search \
        is_local_process_zero is_world_process_zero log_history logging_steps max_steps num_input_tokens_seen num_train_epochs \
        save_steps stateful_callbacks total_flos train_batch_size trial_name trial_params";
    assert_eq!(names, wanted.split_whitespace().collect::<Vec<_>>());
    assert_eq!((&found["global_step"], &found["max_steps"], &found["num_train_epochs"]), (&json!(3), &json!(20), &json!(2)));
    let steps: Vec<&Value> = found["log_history"].as_array().unwrap().iter().map(|row| &row["step"]).collect();
    assert_eq!(steps, [&json!(1), &json!(2), &json!(2), &json!(3), &Value::Null]);
    assert!(text.starts_with("{\n  \"best_global_step\": null,\n") && text.ends_with("\n}\n"), "{text}");
    let mut state = TrainerState::read(folder.path()).unwrap();
    state.best(0.5, Path::new("o/checkpoint-3"));
    state.write(folder.path()).unwrap();
    let again = TrainerState::read(folder.path()).unwrap();
    assert_eq!((again.best_global_step, again.best_metric), (Some(3), Some(0.5)));
    assert_eq!(again, state);
    std::fs::write(folder.path().join(trainer_state::NAME), "{\"epoch\": \"x\"}").unwrap();
    let error = TrainerState::read(folder.path()).unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("trainer_state.json"), "{error}");
}

#[test]
fn a_trace_is_json_after_every_event() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    let read = || serde_json::from_slice::<Vec<Value>>(&std::fs::read(&path).unwrap()).unwrap();
    let trace = Trace::create(&path).unwrap();
    assert_eq!(read().len(), 1);
    {
        let mut outer = trace.span("rollout").with("iteration", 3);
        drop(trace.span("reward"));
        assert_eq!(read().len(), 2);
        outer.note("tokens", 17);
    }
    let events = read();
    let of = |i: usize, key: &str| events[i][key].as_f64().unwrap();
    assert_eq!((&events[1]["name"], &events[2]["name"]), (&json!("reward"), &json!("rollout")));
    assert_eq!((&events[2]["ph"], &events[2]["args"]), (&json!("X"), &json!({"iteration": 3, "tokens": 17})));
    assert!(of(1, "ts") >= of(2, "ts") && of(1, "ts") + of(1, "dur") <= of(2, "ts") + of(2, "dur"), "{events:?}");
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| (0..50).for_each(|_| drop(trace.span("step")))))));
    assert_eq!(read().len(), 203);
    trace.finish().unwrap();
    drop(Trace::off().span("step").with("a", 1));
    assert!(Trace::off().finish().is_ok());
}

#[cfg(target_os = "linux")]
#[test]
fn a_trace_that_cannot_be_written_is_told() {
    let error = Trace::create(Path::new("/dev/full")).map(|_| ()).unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("/dev/full"), "{error}");
    assert!(Trace::create(Path::new("/no/such/folder/t.json")).is_err());
}

#[test]
fn provenance_names_what_a_run_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("model")).unwrap();
    for (name, text) in [
        ("rows.jsonl", "abc"),
        ("good.txt", ""),
        ("model/config.json", "{}"),
        ("model/a.safetensors", "abc"),
        ("model/README.md", "not read"),
        ("model/tokenizer.json", "abc"),
    ] {
        std::fs::write(at(name), text).unwrap();
    }
    let mut c = Config::defaults(Command::Train);
    c.model_name_or_path = Some(at("model"));
    c.dataset_name = Some(at("rows.jsonl"));
    c.ple_principle_file = Some("/no/such/file".into());
    c.reward_funcs = vec![format!("lexicon:{},{}@unit", at("good.txt").display(), at("bad.txt").display()), "length:3".into()];
    let found = provenance(&c, &Stream::cpu(1, Isa::portable()));
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let files = &found["files"];
    assert_eq!(files["dataset_name"], json!({"path": at("rows.jsonl"), "bytes": 3, "sha256": ABC}));
    let model = &files["model_name_or_path"]["files"];
    assert_eq!(model.as_object().unwrap().keys().collect::<Vec<_>>(), ["a.safetensors", "config.json", "tokenizer.json"]);
    assert_eq!((&model["a.safetensors"]["sha256"], &model["tokenizer.json"]["sha256"]), (&json!(ABC), &json!(ABC)));
    assert_eq!(files["ple_principle_file"], json!({"path": "/no/such/file", "bytes": null, "sha256": null}));
    assert_eq!(files[format!("reward_funcs {}", at("good.txt").display())]["sha256"], EMPTY);
    assert_eq!(files[format!("reward_funcs {}", at("bad.txt").display())]["sha256"], Value::Null);
    assert_eq!(files.as_object().unwrap().len(), 5);
    assert_eq!((&found["version"], &found["config"]["command"]), (&json!(env!("CARGO_PKG_VERSION")), &json!("train")));
    assert_eq!(found["device"], "cpu (1 threads, portable)");
}
