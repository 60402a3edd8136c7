//! What is shown reads back; what is at fault is named; a file of TRL's becomes one of ours.

use super::*;
use crate::config::{Config, Key};
use serde_json::{Value, json};

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_string).collect()
}

/// A value of the key's type that is not the one it has.
fn other(key: &Key, config: &Config) -> Value {
    let words: Vec<Value> = (key.wanted)().trim_start_matches("one of ").split(", ").map(Value::from).collect();
    let odd = "no \"way\": # [x], {y}\\ \n\t\u{1}\u{85}\u{2028}\u{feff}é😀 ";
    let tried = [
        json!(!(key.get)(config).as_bool().unwrap_or(false)),
        json!([0.1, 2.5e-300]),
        json!([odd, "null", "1e5", "", " x", "-", "~", "0x10", "a: b", "#", "'", "2024-01-01"]),
        json!(odd),
        json!(3.0e-7),
        json!(u64::MAX),
        json!(-12345678901_i64),
        json!(77),
    ];
    let mut probe = config.clone();
    let fits = |value: &&Value| (key.set)(&mut probe, value) && (key.get)(&probe) != (key.get)(config);
    tried.iter().chain(&words).find(fits).unwrap_or_else(|| panic!("{}: no other value", key.name)).clone()
}

/// The settings of what `show` printed.
fn again(command: Command, text: &str) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shown.yaml");
    std::fs::write(&path, text).unwrap();
    let read = Resolved::read(command, &["--config".into(), path.display().to_string()]).unwrap();
    assert!(read.faults.is_empty() && read.config.notes.is_empty(), "{text}\n{:?} {:?}", read.faults, read.config.notes);
    Config { given: Vec::new(), ..read.config }
}

fn shown(config: &Config) -> String {
    let mut resolved = Resolved::read(config.command, &[]).unwrap();
    resolved.config = config.clone();
    resolved.yaml()
}

#[test]
fn every_key_of_every_command_reads_back() {
    for command in Command::ALL {
        let keys: Vec<&Key> = KEYS.iter().filter(|key| key.belongs_to(command)).collect();
        let mut all = Config::defaults(command);
        for key in keys.iter().filter(|key| key.name != "preset") {
            let mut one = Config::defaults(command);
            let value = other(key, &one);
            assert!((key.set)(&mut one, &value) && (key.set)(&mut all, &value));
            let shown = shown(&one);
            assert_eq!(again(command, &shown), one, "{shown}");
        }
        let shown = shown(&all);
        assert_eq!(shown.lines().count(), keys.len(), "{shown}");
        assert_eq!(again(command, &shown), all, "{shown}");
    }
}

#[test]
fn each_value_says_where_it_is_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    std::fs::write(&path, "preset: [imdb, literal]\n\nlora-r: 4\nple: {tau0: 0.5}\nbf16: true\nseed: 1\n").unwrap();
    let path = path.display();
    let text = show(Command::Train, &words(&format!("--config {path} --seed=2 --no_ple_len_norm"))).unwrap();
    for line in [
        "# ple train".to_string(),
        format!("preset: [imdb, literal]  # {path}:1"),
        format!("lora_r: 4  # {path}:3"),
        format!("ple_tau0: 0.5  # {path}:4"),
        "max_completion_length: 48  # preset imdb".to_string(),
        "ple_weight_temp: 1.0  # preset literal".to_string(),
        "seed: 2  # --seed".to_string(),
        "ple_len_norm: false  # --no_ple_len_norm".to_string(),
        "lr_scheduler_type: constant  # default".to_string(),
        "adapter: null  # default".to_string(),
        format!("# {path}:5: bf16: ignored: dtype decides"),
        "# not a run yet: model_name_or_path: wanted either it or init_from_config, got 0 of them".to_string(),
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    let ready = show(Command::Doctor, &[]).unwrap();
    assert!(ready.starts_with("# ple doctor\ndevice: auto  # default\n") && !ready.contains("not a run"), "{ready}");
    let error = show(Command::Train, &words("--seed x")).unwrap_err();
    assert!(error.to_string().contains("--seed"), "{error}");
}

#[test]
fn every_fault_of_a_file_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    let checked = |text: &str, more: &str| {
        std::fs::write(&path, text).unwrap();
        check(Command::Sft, &words(&format!("{} {more}", path.display()))).map_err(|e| (e.exit_code(), e.to_string()))
    };
    let whole = "model_name_or_path: m\ndataset_name: d\n";
    assert!(checked(whole, "--output_dir o").unwrap().ends_with("a.yaml: 3 settings of `ple sft`\n"));
    let said = checked(&format!("{whole}packing: true\noutput_dir: o\n"), "").unwrap();
    assert!(said.starts_with("note  ") && said.contains("a.yaml:3: packing: ignored"), "{said}");
    let (code, said) = checked(&format!("{whole}lerning_rate: 1\nlora_r: x\nuse_dora: true\n"), "").unwrap_err();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((code, lines.len()), (2, 4), "{said}");
    for (line, part) in lines.iter().zip([":3: unknown key", ":4: lora_r", ":5: use_dora", "output_dir: wanted"]) {
        assert!(line.replace("lerning_rate: ", "").contains(part), "{part}: {said}");
    }
    assert!(check(Command::Sft, &words("--seed 1")).unwrap_err().to_string().contains("got none"));
    assert_eq!(check(Command::Sft, &words("/no/such.yaml")).unwrap_err().exit_code(), 2);
}

#[test]
fn a_file_of_trl_is_translated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trl.yaml");
    let trl = "model_name_or_path: ./m\ntorch_dtype: bfloat16\ndataset_name: d.jsonl\nlearning_rate: 1.0e-5\nvllm_mode: server\n\
        max_new_tokens: 53\ndataset_train_split: train\nlabel_smoothing: 0.1\nreward_weights: [1, 0.5]\nreport_to: [tensorboard]\n";
    std::fs::write(&path, trl).unwrap();
    let found = Translated::read(Command::Train, &path).unwrap();
    assert_eq!(
        found.kept,
        "model_name_or_path: ./m  # line 1\ndtype: bfloat16  # line 2, was torch_dtype\ndataset_name: d.jsonl  # line 3\n\
         learning_rate: 0.00001  # line 4\nmax_completion_length: 53  # line 6, was max_new_tokens\nreward_weights: [1.0, 0.5]  # line 9\nreport_to: [tensorboard]  # line 10\n"
            .replace("0.00001", &json!(1e-5).to_string())
    );
    assert_eq!(
        found.ignored,
        [
            "line 5: vllm_mode: answers are generated here",
            "line 7: dataset_train_split: this value changes nothing",
            "line 8: label_smoothing: not a setting of `ple train` (of: dpo)",
        ]
    );
    let c = again(Command::Train, &found.text());
    assert_eq!((c.learning_rate, c.max_completion_length, c.reward_weights), (1e-5, 53, vec![1.0, 0.5]));
    std::fs::write(&path, "learning_rate: fast\nuse_dora: true\nlerning_rate: 1\n").unwrap();
    let found = Translated::read(Command::Train, &path).unwrap();
    assert_eq!((found.kept.as_str(), found.refused.len()), ("", 3));
    assert!(found.refused[0].starts_with("line 1: learning_rate: wanted a number"), "{:?}", found.refused);
    assert!(found.refused[2].contains("nearest known is `learning_rate`"), "{:?}", found.refused);
    assert!(found.text().lines().all(|line| line.starts_with("# ")), "{}", found.text());
}

#[test]
fn mutated_files_are_told_not_panicked_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.yaml");
    let yaml =
        b"seed: 1\nple: {tau0: 0.2, alpha: 0.9}\nreward_funcs: [length:3]\ntorch_dtype: bfloat16\nenv: {a: b}\nuse_dora: false\n";
    let mut random = crate::data::tests::Random::new(5);
    let mut found = [0, 0, 0];
    for _ in 0..300 {
        std::fs::write(&path, random.mutate(yaml)).unwrap();
        let checked = check(Command::Train, &[path.display().to_string()]);
        match Translated::read(Command::Train, &path) {
            Ok(translated) if translated.refused.is_empty() => {
                again(Command::Train, &translated.text());
                found[0] += 1;
            }
            Ok(_) => found[1] += 1,
            Err(_) => found[2] += 1,
        }
        assert!(checked.is_err(), "no model is named");
    }
    assert!(found[0] > 0 && found[1] > 20 && found[2] > 20, "{found:?}");
}

#[test]
fn the_command_is_a_word_like_any_other() {
    let of = |text: &str| command(&words(text)).map(|(c, rest)| (c, rest.join(" "))).map_err(|e| e.to_string());
    assert_eq!(of("show --seed 1"), Ok((Command::Train, "show --seed 1".into())));
    assert_eq!(of("show --command sft --seed 1"), Ok((Command::Sft, "show --seed 1".into())));
    assert_eq!(of("--command=score check a"), Ok((Command::Score, "check a".into())));
    assert!(of("show --command").unwrap_err().contains("needs a value"));
    assert!(of("show --command trian").unwrap_err().contains("`train`"));
    assert!(of("show --command completions").unwrap_err().contains("reads settings"));
    for argv in ["", "shwo", "from-trl", "from-trl a b"] {
        let error = run(&words(argv)).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("wanted"), "{argv}: {error}");
    }
}
