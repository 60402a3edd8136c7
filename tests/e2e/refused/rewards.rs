//! Rewards: checkpoints and adapters that have no scalar head, commands that give nothing to go on with, rows that are no answers.

use super::{ADAPTER, Case, FILE, NUMERIC, Spoil, Stage, USAGE, absent, bytes, inside, refuse_by, refuse_words, rewrite, set};
use crate::e2e::{number, objects};
use anyhow::{Result, ensure};
use ple_tests::tiny;
use serde_json::json;

const CONFIG: &str = "adapter/adapter_config.json";
const HEAD: &str = "base_model.model.score.weight";

/// Adds `rm`, a checkpoint with a scalar head and the stage's tokenizer.
fn with_model(stage: &Stage) -> Result<()> {
    std::fs::rename(tiny::scalar()?.keep(), stage.path("rm"))?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(stage.path("model").join(name), stage.path("rm").join(name))?;
    }
    Ok(())
}

/// Gives the stage's adapter a scalar head of so many columns.
fn with_head(stage: &Stage, columns: usize) -> Result<()> {
    stage.edit(CONFIG, |config| {
        config["modules_to_save"] = json!(["classifier", "score"]);
        config["task_type"] = json!("SEQ_CLS");
    })?;
    rewrite(stage, ADAPTER, |header, data| {
        let start = data.len();
        data.extend((0..columns).flat_map(|i| (0.1 * (i as f32).sin()).to_le_bytes()));
        header.insert(HEAD.into(), json!({"dtype": "F32", "shape": [1, columns], "data_offsets": [start, data.len()]}));
    })
}

fn func(kind: &'static str, name: &'static str) -> impl Fn(&Stage) -> super::Ple {
    move |stage| {
        let call = stage.rewarded().key("model_name_or_path", stage.path("model"));
        call.key("reward_funcs", format!("{kind}:{}", inside(stage, name)))
    }
}

#[test]
fn checkpoints() -> Result<()> {
    let stage = Stage::new()?;
    with_model(&stage)?;
    func("model", "rm")(&stage).succeed()?;
    ensure!(objects(&stage.path("out.jsonl"))?.len() == 2, "rows");
    std::fs::remove_file(stage.path("out.jsonl"))?;
    let long = format!("{{\"text\": \"w1\"}}\n{{\"prompt\": \"w3\", \"completion\": \"{}\"}}\n", "w4 ".repeat(600));
    let causal = json!(["LlamaForCausalLM"]);
    let cases: Vec<Case> = vec![
        ("two labels", set("rm/config.json", "id2label", json!({"0": "a", "1": "b"})), &["config.json: id2label", "one label"]),
        ("no head", set("rm/config.json", "architectures", causal), &["config.json: architectures", "ForSequenceClassification"]),
        ("no tokenizer", absent("rm/tokenizer.json"), &["tokenizer.json"]),
        ("no weights", absent("rm/model.safetensors"), &["model.safetensors"]),
        ("a text longer than its positions", bytes("rows.jsonl", long), &["rm: row 1", "1 to 512 tokens", "got 602"]),
    ];
    refuse_by(&stage, cases, FILE, func("model", "rm"))?;
    func("model", "model")(&stage).refuse(FILE, &["model/config.json: architectures", "score head"])?;
    func("model", "none")(&stage).refuse(FILE, &["none: wanted the folder of a reward model"])?;
    stage.left_clean()
}

#[test]
fn adapters() -> Result<()> {
    let stage = Stage::new()?;
    func("adapter", "adapter")(&stage).refuse(FILE, &["adapter: modules_to_save: wanted `score`", "got none"])?;
    let head = |columns: usize| -> Spoil { Box::new(move |stage| with_head(stage, columns)) };
    let two: Spoil = Box::new(|stage| {
        with_head(stage, 80)?;
        rewrite(stage, ADAPTER, |header, _| header[HEAD]["shape"] = json!([2, 40]))
    });
    let cases: Vec<Case> = vec![
        ("another width", head(39), &["adapter: base_model.model.score.weight: wanted the base's 40 columns, got 39"]),
        ("two labels", two, &["adapter_model.safetensors", "score.weight", "got [2, 40]"]),
    ];
    refuse_by(&stage, cases, FILE, func("adapter", "adapter"))?;
    func("adapter", "none")(&stage).refuse(FILE, &["none/adapter_config.json"])?;
    with_head(&stage, 40)?;
    stage
        .rewarded()
        .key("reward_funcs", format!("adapter:{}", inside(&stage, "adapter")))
        .refuse(USAGE, &["model_name_or_path"])?;
    let full = stage.train().and("--tune full --reward_funcs").and(&format!("adapter:{}", inside(&stage, "adapter")));
    full.refuse(USAGE, &["tune: wanted lora with an adapter: reward"])?;
    stage.left_clean()?;
    // In order it scores, and trains on its own base.
    func("adapter", "adapter")(&stage).succeed()?;
    let rewards: Vec<f64> = objects(&stage.path("out.jsonl"))?.iter().map(|row| number(row, "reward")).collect::<Result<_>>()?;
    ensure!(rewards.len() == 2 && rewards[0] != rewards[1], "{rewards:?}");
    stage.train().key("reward_funcs", format!("adapter:{}", inside(&stage, "adapter"))).succeed()?;
    ensure!(stage.path("out/adapter_model.safetensors").exists(), "no adapter");
    Ok(())
}

#[test]
fn settings() -> Result<()> {
    let stage = Stage::new()?;
    let cases: &[(&str, &[&str])] = &[
        ("", &["reward_funcs: wanted at least one reward"]),
        ("--reward_funcs regexp:a", &["unknown reward", "`regex:`"]),
        ("--reward_funcs regex:(", &["reward_funcs: wanted regex:PATTERN", "`regex:(`"]),
        ("--reward_funcs contains:a contains:a", &["reward_funcs: wanted each reward once, got contains:a"]),
        ("--reward_funcs contains:a --reward_weights 1 2", &["reward_weights: wanted one per reward, 1, got 2"]),
        ("--reward_funcs contains:a --reward_timeout 0", &["reward_timeout: wanted seconds above 0"]),
        ("--reward_funcs contains:a --reward_timeout 1e300", &["reward_timeout: wanted seconds above 0"]),
        ("--reward_funcs contains:a --adapter a", &["adapter: wanted none"]),
        ("--reward_funcs model:", &["reward_funcs: wanted model:DIR"]),
        ("--reward_funcs exec:", &["reward_funcs: wanted exec:COMMAND"]),
    ];
    refuse_words(|| stage.rewarded(), cases)?;
    let back = stage.rewarded().key("reward_funcs", "regex:(a|b|ab)*(?=c)\\1d");
    stage.write("rows.jsonl", json!({"text": "ab".repeat(500)}).to_string())?;
    back.refuse(USAGE, &["regex:", "row 0: wanted a pattern that ends within 1000000 steps"])?;
    stage.left_clean()
}

#[test]
fn rows_that_are_no_answers() -> Result<()> {
    let stage = Stage::new()?;
    let cases = || -> Vec<Case> {
        vec![
            ("absent", absent("rows.jsonl"), &["rows.jsonl: cannot open"]),
            ("nothing", bytes("rows.jsonl", "\n"), &["rows.jsonl: wanted at least one row"]),
            ("a query", bytes("rows.jsonl", r#"{"prompt": "w3"}"#), &["line 1: field completion: wanted a string beside prompt"]),
            ("no query", bytes("rows.jsonl", r#"{"completion": "w3"}"#), &["line 1: field prompt: wanted a string beside"]),
            (
                "turns",
                bytes("rows.jsonl", r#"{"prompt": [], "completion": "w3"}"#),
                &["line 1: a row of messages: wanted model_name_or_path, the folder whose chat template renders them"],
            ),
            (
                "other fields",
                bytes("rows.jsonl", "{\"text\": \"a\"}\n{\"a\": 1, \"b\": 2}\n"),
                &["line 2: fields: wanted", "[a, b]"],
            ),
        ]
    };
    refuse_by(&stage, cases(), FILE, |stage| stage.rewarded().key("reward_funcs", "contains:w9"))?;
    let counted: Vec<Case> = vec![
        ("nothing that counts", bytes("rows.jsonl", r#"{"text": "w3"}"#), &["line 1: field ids", "model_name_or_path"]),
        (
            "no list",
            bytes("rows.jsonl", r#"{"text": "w3", "ids": 3}"#),
            &["line 1: field ids: wanted a list of ids, got a number"],
        ),
    ];
    refuse_by(&stage, counted, FILE, |stage| stage.rewarded().key("reward_funcs", "length:9"))?;
    // An empty answer is an answer.
    stage.write("rows.jsonl", r#"{"prompt": "w3", "completion": ""}"#)?;
    stage.rewarded().key("reward_funcs", "contains:w9").succeed().map(drop)
}

#[test]
fn commands() -> Result<()> {
    let stage = Stage::new()?;
    let with = |body: &str| -> Result<String> {
        stage.write("reward.sh", body)?;
        Ok(format!("exec:sh {}", inside(&stage, "reward.sh")))
    };
    let nan = with("read -r l; echo 1; while read -r l; do echo nan; done")?;
    stage.rewarded().key("reward_funcs", &nan).refuse(NUMERIC, &["row 1: wanted a finite reward, got NaN from exec:sh"])?;
    stage.train().key("reward_funcs", &nan).refuse(NUMERIC, &["not finite", "ple_max_nonfinite"])?;
    for (body, words) in [
        ("echo no room >&2; exit 9", ["after a restart", "exit status: 9", "no room"]),
        ("while read -r l; do echo good; done", ["after a restart", "wanted a number", "good"]),
        ("read -r l; echo 1; exit 0", ["after a restart", "got 1", "exit status: 0"]),
        ("sleep 600", ["after a restart", "within reward_timeout 1 s", "killed"]),
    ] {
        let func = with(body)?;
        stage.rewarded().and("--reward_timeout 1").key("reward_funcs", &func).refuse(FILE, &words)?;
        stage.train().and("--reward_timeout 1").key("reward_funcs", &func).refuse(FILE, &words)?;
    }
    stage.rewarded().key("reward_funcs", "exec:./none").refuse(FILE, &["./none: reward exec:./none: cannot start"])?;
    stage.left_clean()?;
    // All equal is no error: every pair is imitated.
    let flat = with("while read -r l; do echo 0.5; done")?;
    let said = stage.train().key("reward_funcs", &flat).succeed()?;
    ensure!(said.out.contains("at its floor"), "{}", said.out);
    Ok(())
}

/// A signal while a command keeps the run waiting: the run and the command end.
#[test]
#[cfg(target_os = "linux")]
fn an_interrupted_wait() -> Result<()> {
    let stage = Stage::new()?;
    stage.write("reward.sh", format!("read -r l; echo $$ > {}; sleep 600", inside(&stage, "pid")))?;
    let call = stage.rewarded().key("reward_funcs", format!("exec:sh {}", inside(&stage, "reward.sh")));
    let start = std::time::Instant::now();
    let said = call.begin()?.wait_until(|| stage.path("pid").exists())?.signal("INT")?;
    ensure!(said.code == 130 && said.err.contains("interrupted"), "{said:?}");
    ensure!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    let pid = String::from_utf8(stage.read("pid")?)?;
    ensure!(!std::path::Path::new("/proc").join(pid.trim()).exists(), "process {pid} lives on");
    stage.left_clean()
}
