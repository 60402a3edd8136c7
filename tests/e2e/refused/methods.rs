//! Pairs, groups and rewards that teach nothing or do not fit: counts in the message, nothing lost.

use super::{Case, FILE, NUMERIC, Stage, USAGE, bytes, inside, refuse_by, refuse_words};
use crate::e2e::program::{Ple, ple};
use crate::e2e::{number, objects};
use anyhow::{Result, ensure};
use serde_json::json;

const ROWS: &str = "rows.jsonl";
/// Two pairs in order.
const PAIRS: &str = "{\"prompt\": \"w7 w8\", \"chosen\": \" w9 w10\", \"rejected\": \" w11\"}\n\
    {\"prompt\": \"w3\", \"chosen\": \" w4\", \"rejected\": \" w5 w6\"}\n";

/// A command that trains on rows.
fn on_rows(stage: &Stage, command: &str) -> Ple {
    let call = ple(&format!("{command} --threads 1 --max_steps 2")).key("model_name_or_path", stage.path("model"));
    call.key("dataset_name", stage.path(ROWS)).key("output_dir", stage.path("out"))
}

/// A command that samples, with the settings of a small loop.
fn sampling(stage: &Stage, command: &str) -> Ple {
    let call = ple(&format!("{command} --threads 1 --ple_iters 1 --ple_queries_per_iter 2 --max_completion_length 4"));
    let call = call.key("model_name_or_path", stage.path("model")).key("dataset_name", stage.path(ROWS));
    call.key("output_dir", stage.path("out"))
}

#[test]
fn pairs() -> Result<()> {
    let stage = Stage::new()?;
    let equal = PAIRS.replace(" w11", " w9 w10").replace(" w5 w6", " w4");
    let dialogues = r#"{"chosen": "\n\nHuman: w3\n\nAssistant: w4", "rejected": "\n\nHuman: w5\n\nAssistant: w6"}"#;
    let long = format!("{{\"prompt\": \"{}\", \"chosen\": \"w4\", \"rejected\": \"w5\"}}", "w3 ".repeat(2000));
    let unpaired = r#"{"prompt": "w3", "completion": " w4", "label": true}"#;
    for command in ["dpo", "reward"] {
        let cases: Vec<Case> = vec![
            ("chosen as rejected", bytes(ROWS, &equal), &["rows.jsonl: no row is left: 2 were left out", "2 with equal answers"]),
            ("prompts that differ", bytes(ROWS, dialogues), &["no row is left", "1 without a common prompt"]),
            ("all too long", bytes(ROWS, &long), &["no row is left", "1 too long"]),
            ("unpaired rows", bytes(ROWS, unpaired), &["rows.jsonl: line 1", "unpaired rows (completion and label)"]),
            ("answers alone", bytes(ROWS, r#"{"prompt": "w3", "completion": " w4"}"#), &["wanted chosen and rejected"]),
            ("half a pair", bytes(ROWS, r#"{"prompt": "w3", "chosen": " w4"}"#), &["field rejected: wanted a string, got none"]),
            ("nothing", bytes(ROWS, ""), &["rows.jsonl: wanted at least one row, got none"]),
        ];
        refuse_by(&stage, cases, FILE, |stage| on_rows(stage, command))?;
    }
    // What is left is trained, and what is not is counted.
    stage.write(ROWS, format!("{PAIRS}{equal}{dialogues}\n"))?;
    let said = on_rows(&stage, "dpo").succeed()?;
    ensure!(said.out.contains("2 rows, 3 left out (1 without a common prompt"), "{}", said.out);
    Ok(())
}

#[test]
fn settings() -> Result<()> {
    let stage = Stage::new()?;
    stage.write(ROWS, PAIRS)?;
    refuse_words(
        || on_rows(&stage, "dpo"),
        &[
            ("--tune full", &["tune: wanted lora where a reference is needed", "a full-weight run with dpo"]),
            ("--loss_type nll", &["loss_type: wanted one of sigmoid, hinge, ipo, robust, sigmoid_norm, got nll"]),
            ("--loss_type hinge --label_smoothing 0.1", &["label_smoothing: wanted 0 but for"]),
            ("--loss_type robust --label_smoothing 0.5", &["label_smoothing: wanted from 0 to below 0.5"]),
            ("--beta 0", &["beta: wanted above 0"]),
            ("--num_generations 2", &["not a setting of `ple dpo`"]),
            ("--metric_for_best_model reward", &["metric_for_best_model"]),
        ],
    )?;
    let coefficient: &[(&str, &[&str])] =
        &[("--center_rewards_coefficient -1", &["center_rewards_coefficient: wanted at least 0"])];
    refuse_words(|| on_rows(&stage, "reward"), coefficient)?;
    for command in ["rloo", "grpo"] {
        refuse_words(
            || sampling(&stage, command).and("--reward_funcs length:3"),
            &[
                ("--num_generations 1", &["num_generations: wanted at least 2: a group of one has nothing to be compared with"]),
                ("--temperature 0.7", &["temperature: wanted 1"]),
                ("--beta 0.1 --tune full", &["tune: wanted lora where a reference is needed"]),
                ("--epsilon 1", &["epsilon"]),
            ],
        )?;
    }
    refuse_words(
        || stage.train(),
        &[
            ("--recipe release --tune full", &["tune: wanted lora", "recipe release"]),
            ("--recipe release --num_generations 1", &["num_generations: wanted at least 2"]),
            ("--recipe release --release_top_frac 2", &["release_top_frac: wanted shares from 0 to 1, got 2"]),
            ("--num_generations 4", &["num_generations: wanted 1 with recipe ple"]),
        ],
    )?;
    stage.left_clean()
}

#[test]
fn rewards_that_tell_nothing_apart() -> Result<()> {
    let stage = Stage::new()?;
    stage.write(ROWS, PAIRS)?;
    // The pair of a query whose answers are worth the same is none; with no pair left the recipe stops, its answers are kept.
    let release = || sampling(&stage, "train --recipe release --num_generations 3").key("reward_funcs", constant_reward());
    release().refuse(NUMERIC, &["no pair survives in iteration 0", "of 2 queries 2 have answers of equal reward"])?;
    ensure!(objects(&stage.path("out/completions/iter-00000.jsonl"))?.len() == 6, "answers lost");
    ensure!(!stage.path("out/adapter_model.safetensors").exists(), "an adapter of no step");
    for command in ["rloo --beta 0 --num_generations 2", "grpo --num_generations 2"] {
        let said = sampling(&stage, command).key("reward_funcs", constant_reward()).succeed()?;
        for part in ["every reward is 0.5", "all rewards are equal in each of 2 groups", "no step was taken"] {
            ensure!(said.out.contains(part), "{command}: wanted {part:?} in {}", said.out);
        }
        ensure!(objects(&stage.path("out/completions/iter-00000.jsonl"))?.len() == 4, "{command}: answers lost");
    }
    let said = sampling(&stage, "raft --num_generations 2").key("reward_funcs", constant_reward()).succeed()?;
    ensure!(said.out.contains("every reward is 0.5"), "{}", said.out);
    Ok(())
}

/// A command that finds every answer as good as any other: a reward model that has learnt nothing.
fn constant_reward() -> &'static str {
    "exec:sh -c 'while read -r line; do echo 0.5; done'"
}

#[test]
fn reward_checkpoints_without_their_head() -> Result<()> {
    let stage = Stage::new()?;
    stage.write(ROWS, PAIRS)?;
    on_rows(&stage, "reward").succeed()?;
    std::fs::rename(stage.path("out"), stage.path("rm"))?;
    let by = |stage: &Stage| sampling(stage, "raft").key("reward_funcs", format!("adapter:{}", inside(stage, "rm")));
    by(&stage).succeed()?;
    let log = objects(&stage.path("out/log.jsonl"))?;
    ensure!(number(&log[0], "reward_std")? > 0.0, "a reward model of its head alone");
    std::fs::remove_dir_all(stage.path("out"))?;
    let cases: Vec<Case> = vec![
        (
            "a head that its configuration does not name",
            Box::new(|stage: &Stage| stage.edit("rm/adapter_config.json", |c| c["modules_to_save"] = json!(null))),
            &["score.weight", "wanted no such tensor"],
        ),
        (
            "a head that is not there",
            Box::new(|stage: &Stage| {
                super::rewrite(stage, "rm/adapter_model.safetensors", |header, _| {
                    header.shift_remove("base_model.model.score.weight");
                })
            }),
            &["rm/adapter_model.safetensors"],
        ),
    ];
    refuse_by(&stage, cases, FILE, by)?;
    let plain = sampling(&stage, "rloo").key("reward_funcs", format!("adapter:{}", inside(&stage, "adapter")));
    plain.refuse(FILE, &["adapter: modules_to_save: wanted `score`", "got none"])?;
    stage.train().and("--tune full").key("reward_funcs", format!("adapter:{}", inside(&stage, "rm"))).refuse(USAGE, &["tune"])
}
