//! What the readers of these files find: one run that stops and goes on, and the smaller files; the larger ones beside.

use super::*;
use crate::config::{Command, Config};
use runtime::{Isa, Stream};
use serde_json::json;
use std::path::PathBuf;

mod events;
mod table;

fn row(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn state() -> TrainerState {
    TrainerState::new(&Config::defaults(Command::Sft), 20, 1.5)
}

/// Steps 1 to 4 with an evaluation after the second, then the run goes on from step 2 after a stop.
fn stopped_and_resumed(folder: &Path) -> Vec<u64> {
    let step = |n: u64, loss: f64| row(json!({"loss": loss, "rewards/a,b/mean": 0.5, "ple/tau": null, "step": n, "epoch": 0.25}));
    let mut files = Telemetry::create(folder, state(), &[Report::All]).unwrap();
    files.row(&step(1, 4.0)).unwrap();
    files.row(&step(2, 3.0)).unwrap();
    files.row(&row(json!({"eval_loss": 2.5, "step": 2}))).unwrap();
    let bytes = |files: &Telemetry| files.metrics.as_ref().unwrap().bytes();
    let mark = bytes(&files);
    let kept = tempfile::tempdir().unwrap();
    files.keep(kept.path()).unwrap();
    files.row(&step(3, 99.0)).unwrap();
    files.row(&row(json!({"late": "a \"b\", c", "step": 4}))).unwrap();
    drop(files);
    let mut files = Telemetry::resume(folder, kept.path(), 0, &[Report::All]).unwrap();
    assert_eq!((files.state.global_step, bytes(&files)), (2, mark));
    files.row(&step(3, 2.0)).unwrap();
    files.row(&row(json!({"reward": 1, "kind": "x"}))).unwrap();
    files.keep(folder).unwrap();
    vec![mark, bytes(&files)]
}

/// Runs a script where Python has the module.
fn python(module: &str, script: &str, argument: &Path) -> Option<String> {
    let call = |script: &str| std::process::Command::new("python3").arg("-c").arg(script).arg(argument).output();
    if !call(&format!("import {module}")).is_ok_and(|out| out.status.success()) {
        crate::log::tell(&format!("skip: python3 has no {module}"));
        return None;
    }
    let out = call(script).unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    Some(String::from_utf8(out.stdout).unwrap())
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

/// Read by the trainer's own class and written by it again, the file is the same bytes.
#[test]
fn transformers_reads_the_state() {
    let folder = tempfile::tempdir().unwrap();
    stopped_and_resumed(folder.path());
    let path = folder.path().join(trainer_state::NAME);
    let script = "import sys\nfrom transformers.trainer_callback import TrainerState\n\
        TrainerState.load_from_json(sys.argv[1]).save_to_json(sys.argv[1] + '.again')";
    if python("transformers", script, &path).is_none() {
        return;
    }
    let again = folder.path().join("trainer_state.json.again");
    assert_eq!(std::fs::read_to_string(again).unwrap(), std::fs::read_to_string(path).unwrap());
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
