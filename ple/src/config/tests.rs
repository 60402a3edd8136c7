//! Flags, files, order, refusals; random mutations of a file.

use super::*;
use std::path::Path;

const NEEDED: &str = "--model_name_or_path m --dataset_name d --output_dir o";

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_string).collect()
}

/// Settings of `ple train` with the needed keys.
fn train(flags: &str) -> Result<Config> {
    Config::parse(Command::Train, &words(&format!("{NEEDED} --reward_funcs length:8 {flags}")))
}

fn sft(flags: &str) -> Result<Config> {
    Config::parse(Command::Sft, &words(&format!("{NEEDED} {flags}")))
}

fn with_file(name: &str, bytes: impl AsRef<[u8]>, flags: &str) -> Result<Config> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    train(&format!("{flags} --config {}", path.display()))
}

#[track_caller]
fn fails<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    let text = error.to_string();
    parts.iter().for_each(|p| assert!(text.contains(p), "`{text}` should name `{p}`"));
    assert_eq!(error.exit_code(), 2, "{text}");
}

#[test]
fn defaults_of_the_methods() {
    let c = train("").unwrap();
    assert_eq!((c.batch_size(), c.ple_iters, c.ple_queries_per_iter), (64, 8, 2048));
    assert_eq!((c.lr_scheduler_type, c.learning_rate, c.lora_r, c.lora_alpha), (Scheduler::Constant, 2e-5, 8, 16.0));
    assert_eq!((c.ple_tau0, c.ple_alpha, c.ple_weight_temp, c.ple_len_norm), (0.2, 0.9, 0.2, true));
    let c = sft("").unwrap();
    assert_eq!((c.batch_size(), c.num_train_epochs, c.max_length), (8, 1.0, 1024));
    assert_eq!(c.lr_scheduler_type, Scheduler::Linear);
}

#[test]
fn both_dash_styles_switches_and_lists() {
    let c = train("--learning-rate 1e-3 --seed=7 --ple_margin 0.5 --no_ple_len_norm --quiet --dry-run false").unwrap();
    assert_eq!((c.learning_rate, c.seed, c.ple_margin, c.ple_len_norm, c.quiet, c.dry_run), (1e-3, 7, 0.5, false, true, false));
    let c = train("--reward_funcs length:4 length:6 --reward_weights 0.5 -0.5 1 --reward_calib -1 2.5 --use_rslora").unwrap();
    assert_eq!(c.reward_funcs, ["length:8", "length:4", "length:6"]);
    assert_eq!((c.reward_weights, c.use_rslora), (vec![0.5, -0.5, 1.0], true));
    assert_eq!(c.reward_calib, Calib::Fixed { mean: -1.0, std: 2.5 });
    assert_eq!(train("--seed 1 --seed 2").unwrap().seed, 2);
    assert_eq!(train("--max_steps 1e3").unwrap().max_steps, 1000);
    assert_eq!(sft("--completion_only_loss").unwrap().completion_only_loss, Some(true));
}

#[test]
fn wrong_flags_are_named() {
    fails(train("--lerning_rate 1"), &["--lerning_rate", "nearest known is `learning_rate`"]);
    fails(train("--ple_tua0 1"), &["`ple_tau0`"]);
    fails(train("--confg x"), &["`config`"]);
    fails(train("--no_seed"), &["unknown key `no_seed`"]);
    fails(train("--seed"), &["--seed", "needs a value"]);
    fails(train("--seed --quiet"), &["--seed", "needs a value"]);
    fails(train("--no_quiet=true"), &["takes no value"]);
    fails(train("stray"), &["`stray`"]);
    fails(train("-- x"), &["`--`"]);
    fails(train("--lora_r eight"), &["--lora_r", "a whole number", "\"eight\""]);
    fails(train("--lora_r 2.5"), &["--lora_r"]);
    fails(train("--lora_r -1"), &["--lora_r", "\"-1\""]);
    fails(train("--learning_rate nan"), &["--learning_rate", "a number"]);
    fails(train("--ple_rank hing"), &["--ple_rank", "one of hinge, logistic, prob_hinge, dpo"]);
    fails(train("--reward_calib 0.1 0"), &["--reward_calib", "above 0"]);
    fails(sft("--ple_tau0 0.1"), &["--ple_tau0", "ple sft", "train"]);
    fails(Command::named("trian"), &["`train`"]);
    assert_eq!(Command::named("sft").unwrap(), Command::Sft);
}

#[test]
fn files_in_order_under_flags_over_presets() {
    let yaml = "# comment\npreset: imdb\nlora-r: 4\nlearning_rate: 2e-4\nple: {tau0: 0.3, len_norm: false}\nreward:\n  calib: [0, 1]\n\
        reward_weights: [0.5]\nmax_steps: -1\nenv: {A: b}\nvllm_mode: x\n";
    let c = with_file("a.yaml", yaml, "--lora_r 16").unwrap();
    assert_eq!((c.lora_r, c.learning_rate, c.ple_tau0, c.ple_len_norm), (16, 2e-4, 0.3, false));
    assert_eq!((c.max_completion_length, c.reward_norm), (48, Norm::None));
    assert_eq!(c.reward_calib, Calib::Fixed { mean: 0.0, std: 1.0 });
    assert_eq!(c.notes.len(), 2, "{:?}", c.notes);
    assert!(c.notes[0].contains("a.yaml:10: env") && c.notes[1].contains("vllm_mode"), "{:?}", c.notes);
    let c = with_file("a.yaml", "preset: [hh, literal]\nmax_completion_length: 9", "").unwrap();
    assert_eq!((c.max_completion_length, c.ple_weight_temp, c.reward_norm), (9, 1.0, Norm::None));
    let c =
        with_file("a.json", r#"{"seed": 5, "ple": {"iters": 2}, "adapter": null, "output_file": "x"}"#, "--preset tldr").unwrap();
    assert_eq!((c.seed, c.ple_iters, c.max_completion_length, c.adapter), (5, 2, 53, None));
    assert!(c.notes[0].contains("output_file") && c.notes[0].contains("logprob"), "{:?}", c.notes);
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["1.yaml", "2.yaml"].map(|n| folder.path().join(n));
    std::fs::write(&one, "seed: 1\nlora_r: 2\n").unwrap();
    std::fs::write(&two, "seed: 2\n").unwrap();
    let c = train(&format!("--config {} --config {}", one.display(), two.display())).unwrap();
    assert_eq!((c.seed, c.lora_r), (2, 2));
    let c = with_file("empty.yaml", "# nothing\n\n", "").unwrap();
    assert_eq!(c.seed, 42);
}

#[test]
fn wrong_files_name_file_and_line() {
    let file = |text: &str| with_file("a.yaml", text, "");
    fails(file("seed: 1\nlerning_rate: 2\n"), &["a.yaml:2", "lerning_rate", "`learning_rate`"]);
    fails(file("seed: 1\n\nlora_r: eight\n"), &["a.yaml:3: lora_r", "a whole number", "eight"]);
    fails(file("seed: [1, 2]\n"), &["a.yaml:1: seed", "[1,2]"]);
    fails(file("seed: {a: 1}\n"), &["a.yaml:1: seed"]);
    fails(file("ple: {tau: 1}\n"), &["ple_tau", "a.yaml:1"]);
    fails(file("ple: 3\n"), &["a.yaml:1: ple", "unknown key"]);
    fails(file("learning_rate: .nan\n"), &["a.yaml: line 1", ".nan"]);
    fails(file("seed: 1\nseed: 2\n"), &["a.yaml", "line 2", "seed"]);
    fails(file("a: [1\n"), &["a.yaml", "line"]);
    fails(file("- 1\n- 2\n"), &["a.yaml", "mapping"]);
    fails(file("just text\n"), &["a.yaml", "mapping"]);
    fails(file("preset: imbd\n"), &["preset", "imbd", "`imdb`"]);
    fails(with_file("a.yaml", b"seed: 1\nx: \xff\n", ""), &["a.yaml", "line 2", "UTF-8"]);
    fails(with_file("a.yaml", vec![b'a'; 1 << 21], ""), &["a.yaml", "1048576"]);
    fails(with_file("a.yaml", "[".repeat(100_000), ""), &["a.yaml"]);
    fails(train("--config /nonexistent/x.yaml"), &["/nonexistent/x.yaml", "cannot open"]);
    fails(train("--config /"), &["/"]);
}

#[test]
fn refused_or_ignored_by_name() {
    fails(train("--lora_dropout 0.1"), &["lora_dropout", "0.1"]);
    fails(train("--use_dora"), &["--use_dora", "DoRA"]);
    fails(train("--trust_remote_code true"), &["--trust_remote_code", "no code to trust"]);
    fails(train("--load_in_4bit"), &["--load_in_4bit", "quantisation"]);
    fails(train("--optim sgd"), &["--optim", "adamw_torch"]);
    fails(with_file("a.yaml", "quantization_config: {bits: 4}", ""), &["a.yaml:1", "quantisation"]);
    let c =
        train("--no_use_dora --packing --attn_implementation sdpa --optim adamw_torch --dataloader_num_workers 4 --bf16 false --no_push_to_hub --quiet")
            .unwrap();
    assert_eq!((c.notes.len(), c.quiet), (5, true), "{:?}", c.notes);
    let c = sft("--max_seq_length 77").unwrap();
    assert_eq!(c.max_length, 77);
    assert!(c.notes[0].contains("max_length"));
    let c =
        with_file("a.yaml", "use_dora: false\nhub_token: x\ndeepspeed: {stage: 2}\nresume_from_checkpoint: null", "").unwrap();
    assert_eq!(c.notes.len(), 2, "{:?}", c.notes);
}

#[test]
fn checkpointing_is_a_switch_of_three_ways() {
    let of = |flags: &str| sft(flags).map(|c| c.gradient_checkpointing);
    for (flags, wanted) in [
        ("", Checkpointing::Auto),
        ("--gradient_checkpointing", Checkpointing::On),
        ("--gradient_checkpointing true --seed 1", Checkpointing::On),
        ("--no_gradient_checkpointing", Checkpointing::Off),
        ("--gradient_checkpointing=false", Checkpointing::Off),
        ("--gradient_checkpointing --gradient_checkpointing auto", Checkpointing::Auto),
    ] {
        assert_eq!(of(flags).unwrap(), wanted, "{flags}");
    }
    assert_eq!(with_file("a.yaml", "gradient_checkpointing: true", "").unwrap().gradient_checkpointing, Checkpointing::On);
    fails(with_file("a.yaml", "gradient_checkpointing: some", ""), &["gradient_checkpointing", "auto, true or false", "some"]);
    fails(train("--quiet auto"), &["quiet", "true or false", "auto"]);
    let c = sft("--gradient_checkpointing").unwrap();
    assert_eq!(c.to_json()["gradient_checkpointing"], true);
    assert_eq!(sft("").unwrap().to_json()["gradient_checkpointing"], "auto");
}

#[test]
fn start_up_validation() {
    let cases = [
        ("--ple_tau0 0", "ple_tau0"),
        ("--ple_alpha 1.1", "ple_alpha"),
        ("--ple_alpha 0", "ple_alpha"),
        ("--ple_weight_temp 0", "ple_weight_temp"),
        ("--ple_weight proportional --reward_norm bt", "ple_weight"),
        ("--ple_weight proportional --reward_norm none --reward_weights 2", "ple_weight"),
        ("--ple_rank dpo --tune full", "tune"),
        ("--ple_kl_coef 0.1 --tune full", "tune"),
        ("--ple_rank prob_hinge --no_ple_len_norm", "ple_rank"),
        ("--reward_weights 1 2", "reward_weights"),
        ("--reward_funcs lenght:3", "`length:`"),
        ("--reward_funcs length:0", "length:N"),
        ("--reward_funcs lexicon:", "lexicon:POSITIVE"),
        ("--ple_principle a --ple_principle_file b", "ple_principle"),
        ("--top_p 0", "top_p"),
        ("--temperature -1", "temperature"),
        ("--lora_r 0", "lora_r"),
        ("--adam_beta2 1", "adam_beta2"),
        ("--init_from_config x", "init_from_config"),
        ("--max_steps -2", "max_steps"),
    ];
    cases.iter().for_each(|(flags, name)| fails(train(flags), &[name]));
    fails(Config::parse(Command::Train, &words(NEEDED)), &["reward_funcs"]);
    fails(Config::parse(Command::Sft, &[]), &["model_name_or_path"]);
    fails(Config::parse(Command::Logprob, &words("--model_name_or_path m --dataset_name d")), &["output_file"]);
    assert!(Config::parse(Command::Doctor, &[]).is_ok());
    assert!(train("--ple_weight proportional").is_ok());
    assert!(train("--ple_weight proportional --reward_norm sigmoid --reward_weights 2").is_ok());
    let from_config = "--init_from_config c --dataset_name d --output_dir o";
    fails(Config::parse(Command::Sft, &words(from_config)), &["tune"]);
    assert!(Config::parse(Command::Sft, &words(&format!("{from_config} --tune full"))).is_ok());
}

#[test]
fn the_effective_settings_read_back() {
    let c = train("--ple_tau0 0.25 --reward_calib 0 1 --adapter a --preset imdb --ple_principle p").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    let mut json = c.to_json();
    assert_eq!(json["command"], "train");
    assert_eq!((json["ple_tau0"].as_f64(), json.get("output_file")), (Some(0.25), None));
    json.as_object_mut().unwrap().shift_remove("command");
    std::fs::write(&path, json.to_string()).unwrap();
    let again = Config::parse(Command::Train, &words(&format!("--config {}", path.display()))).unwrap();
    assert_eq!(Config { given: c.given.clone(), ..again }, c);
}

#[test]
fn help_names_every_key_once() {
    for command in Command::ALL {
        let text = help(command);
        for key in KEYS {
            let count = text.matches(&format!("  --{} ", key.name)).count();
            assert_eq!(count, usize::from(key.belongs_to(command)), "{} {}", command.name(), key.name);
        }
    }
    assert!(help(Command::Train).contains("[constant; one of linear"));
    let names: std::collections::HashSet<_> = KEYS.iter().map(|k| k.name).collect();
    assert_eq!(names.len(), KEYS.len());
    assert!(KEYS.iter().all(|k| !other::knows(k.name)));
}

#[test]
fn nearest_by_edits() {
    assert_eq!(nearest::distance("kitten", "sitting"), 3);
    assert_eq!(nearest::distance("ab", "ba"), 1);
    assert_eq!(nearest::distance("", "abc"), 3);
    assert_eq!(nearest::nearest("warmup_step", KEYS.iter().map(|k| k.name)), "warmup_steps");
}

#[test]
fn mutated_files_never_panic() {
    let yaml =
        b"seed: 1\nple: {tau0: 0.2, alpha: 0.9}\nreward_funcs: [length:3]\nlearning_rate: 2e-5\nname: &a \"x\\n\"\nother: *a\n\
        text: |\n  many\n  lines\nlora_alpha: 0x10\nenv:\n  - a\n  - ? b\n    : c\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.yaml");
    let mut random = crate::data::tests::Random::new(9);
    let (mut refused, rounds) = (0, if std::env::var_os("PLE_LONG").is_some() { 2400 } else { 400 });
    for _ in 0..rounds {
        let bytes = random.mutate(yaml);
        std::fs::write(&path, &bytes).unwrap();
        refused += u32::from(file_config(&path).is_err());
    }
    assert!(refused * 8 > rounds * 5, "{refused} of {rounds}");
}

fn file_config(path: &Path) -> Result<Config> {
    train(&format!("--config {}", path.display()))
}

#[test]
fn settings_of_the_supervised_command_alone_are_refused_or_noted() {
    fails(train("--logging_steps 2"), &["--logging_steps", "not a setting of `ple train`"]);
    assert!(sft("--logging_steps 2").is_ok());
    let c = with_file("c.yaml", "logging_steps: 2\nlora_r: 4\n", "--lora_alpha 8").unwrap();
    assert!(c.notes.iter().any(|n| n.contains("logging_steps")), "{:?}", c.notes);
    assert!(c.given.contains(&"lora_r") && c.given.contains(&"lora_alpha") && !c.given.contains(&"use_rslora"));
}
