//! Flags and settings files: refused by name before anything is read or written.

use super::{DEVICE, Stage, USAGE, inside, refuse_words};
use crate::e2e::program::ple;
use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

#[test]
fn flags() -> Result<()> {
    let stage = Stage::new()?;
    let cases: &[(&str, &[&str])] = &[
        ("--learning_rat 1", &["--learning_rat: unknown key", "`learning_rate`"]),
        ("--lerning-rate 1", &["--lerning-rate: unknown key", "`learning_rate`"]),
        ("--learning_rate", &["--learning_rate: needs a value"]),
        ("--learning_rate fast", &["--learning_rate: wanted a number", "fast"]),
        ("--learning_rate -1", &["learning_rate: wanted at least 0", "-1"]),
        ("--learning_rate nan", &["--learning_rate: wanted a number"]),
        ("--learning_rate inf", &["--learning_rate: wanted a number"]),
        ("--adam_beta1 1", &["adam_beta1: wanted from 0 to below 1", "got 1"]),
        ("--lora_dropout 0.1", &["lora_dropout: wanted 0", "not supported yet", "0.1"]),
        ("--lora_r 0", &["lora_r: wanted at least 1"]),
        ("--lora_r -8", &["--lora_r: wanted a whole number", "-8"]),
        ("--lora_r 4294967296", &["--lora_r: wanted a whole number", "4294967296"]),
        ("--lora_alpha 1e300", &["lora_alpha: wanted one whose scale fits f32"]),
        ("--lora_target_modules w_pack", &["lora_target_modules: wanted at least one linear module", "w_pack"]),
        ("--tune half", &["--tune: wanted", "lora", "full", "half"]),
        ("--lr_scheduler_type step", &["--lr_scheduler_type: wanted", "cosine", "step"]),
        ("--dtype int8", &["--dtype: wanted", "bfloat16", "int8"]),
        ("--preset hhh", &["preset: wanted one of", "`hhh`", "`hh`"]),
        ("--max_steps -2", &["max_steps: wanted -1 or at least 0"]),
        ("--num_train_epochs 0", &["num_train_epochs: wanted above 0"]),
        ("--threads 100000", &["threads: wanted at most 1024", "100000"]),
        ("--max_tokens_per_micro_batch 0", &["max_tokens_per_micro_batch: wanted at least 1"]),
        ("--use_dora", &["--use_dora", "DoRA is not supported"]),
        ("--trust_remote_code true", &["--trust_remote_code", "no code to trust"]),
        ("--load_in_4bit", &["--load_in_4bit", "quantisation"]),
        ("--ple_tau0 0.2", &["--ple_tau0: not a setting of `ple sft`", "train"]),
        ("--tune full --adapter x", &["adapter: wanted none with tune full"]),
        ("--init_from_config x", &["either it or init_from_config", "2 of them"]),
        ("more", &["unexpected argument `more`"]),
        ("-v", &["unexpected argument `-v`"]),
    ];
    refuse_words(|| stage.sft(), cases)?;
    ensure!(!stage.path("out").exists(), "a refused run left its folder");
    Ok(())
}

#[test]
fn flags_of_ple() -> Result<()> {
    let stage = Stage::new()?;
    let cases: &[(&str, &[&str])] = &[
        ("--ple_tau 1", &["unknown key `ple_tau`", "`ple_tau0`"]),
        ("--ple_tau0 0", &["ple_tau0: wanted above 0"]),
        ("--ple_alpha 1.1", &["ple_alpha: wanted above 0 and at most 1", "1.1"]),
        ("--ple_weight_temp 0", &["ple_weight_temp: wanted above 0"]),
        ("--ple_rank hing", &["--ple_rank: wanted", "hinge", "hing"]),
        ("--ple_iters 0", &["ple_iters: wanted at least 1"]),
        ("--max_completion_length 512", &["max_completion_length: wanted below the model's 512 positions"]),
        ("--kv_cache_tokens 100", &["kv_cache_tokens: wanted 0 or at least", "got 100"]),
        ("--max_num_seqs 0", &["max_num_seqs: wanted at least 1"]),
        ("--temperature -1", &["temperature: wanted above 0", "-1"]),
        ("--temperature 1e300", &["temperature: wanted above 0", "f32"]),
        ("--temperature 1e-300", &["temperature: wanted above 0", "f32"]),
        ("--top_p 0", &["top_p: wanted above 0"]),
        ("--repetition_penalty 1e300", &["repetition_penalty: wanted above 0", "f32"]),
        ("--min_p 2", &["min_p: wanted from 0 to 1"]),
        ("--reward_funcs lexikon:x", &["reward_funcs: unknown reward", "`lexicon:`"]),
        ("--reward_funcs lexicon:", &["reward_funcs: wanted lexicon:POSITIVE"]),
        ("--reward_funcs length:0", &["reward_funcs: wanted length:N"]),
        ("--reward_weights 1 2", &["reward_weights: wanted one per reward, 1, got 2"]),
        ("--reward_calib 1,x", &["--reward_calib: wanted"]),
        ("--ple_principle_file x", &["ple_principle: wanted either it or ple_principle_file"]),
        ("--tune full --ple_rank dpo", &["tune: wanted lora"]),
    ];
    refuse_words(|| stage.train(), cases)?;
    ensure!(!stage.path("out").exists(), "a refused run left its folder");
    Ok(())
}

#[test]
fn commands() -> Result<()> {
    ple("").refuse(USAGE, &["wanted a command", "train", "logprob"])?;
    ple("trian").refuse(USAGE, &["unknown command `trian`", "`train`"])?;
    ple("logprobs").refuse(USAGE, &["unknown command `logprobs`", "`logprob`"])?;
    ple("logprob").refuse(USAGE, &["model_name_or_path: wanted the folder of a model"])?;
    ple("sft --model_name_or_path m").refuse(USAGE, &["dataset_name: wanted a file of rows"])?;
    ple("sft --model_name_or_path m --dataset_name d").refuse(USAGE, &["output_dir: wanted the folder to write"])?;
    ple("train --model_name_or_path m --dataset_name d --output_dir o")
        .refuse(USAGE, &["reward_funcs: wanted at least one reward"])?;
    ple("logprob --model_name_or_path m --dataset_name d").refuse(USAGE, &["output_file: wanted the file to write"])?;
    ple("doctor --jsn").refuse(USAGE, &["--jsn: unknown key"])?;
    ple("sft").key("model_name_or_path", OsStr::from_bytes(b"\xff")).refuse(USAGE, &["UTF-8"])
}

#[test]
fn devices() -> Result<()> {
    let stage = Stage::new()?;
    stage.sft().and("--device tpu:0").refuse(DEVICE, &["no device: tpu:0", "cpu"])?;
    stage.sft().simd("sse2").refuse(DEVICE, &["PLE_SIMD=sse2", "portable"])?;
    stage.score().and("--max_tokens_per_micro_batch 4294967295").refuse(DEVICE, &["out of memory", "bytes"])
}

#[test]
fn settings_files() -> Result<()> {
    let stage = Stage::new()?;
    let cases: &[(&[u8], &[&str])] = &[
        (b"seed: 1\nlearning_rat: 1\n", &["bad.yaml:2: learning_rat: unknown key", "`learning_rate`"]),
        (b"ple: {tau: 1}\n", &["bad.yaml:1: ple_tau: unknown key", "`ple_tau0`"]),
        (b"seed: one\n", &["bad.yaml:1: seed: wanted a whole number", "one"]),
        (b"\nlora_r: [8]\n", &["bad.yaml:2: lora_r: wanted a whole number"]),
        (b"quiet: maybe\n", &["bad.yaml:1: quiet: wanted true or false"]),
        (b"seed: 1\nseed: 2\n", &["bad.yaml: line 2", "seed"]),
        (b"seed: [1\n", &["bad.yaml: line"]),
        (b"- seed\n", &["bad.yaml: line 1", "mapping"]),
        (b"just words\n", &["bad.yaml: line 1", "mapping"]),
        (b"seed: 1\nrun_name: \xff\n", &["bad.yaml: line 2", "UTF-8"]),
        (b"seed: &a [*a]\n", &["bad.yaml"]),
        (b"lora_dropout: 0.1\n", &["lora_dropout: wanted 0", "0.1"]),
        (b"fp16: true\n", &["bad.yaml:1: fp16", "refused"]),
        (b"? {a: b}\n: 1\n", &["bad.yaml"]),
    ];
    for (text, words) in cases {
        stage.write("bad.yaml", text)?;
        let call = stage.sft().key("config", stage.path("bad.yaml"));
        call.refuse(USAGE, words).with_context(|| String::from_utf8_lossy(text).into_owned())?;
    }
    stage.write("bad.yaml", vec![b'#'; 2 << 20])?;
    stage.sft().key("config", stage.path("bad.yaml")).refuse(USAGE, &["bad.yaml: wanted a settings file of at most"])?;
    stage.sft().key("config", stage.path("none.yaml")).refuse(USAGE, &["none.yaml: cannot open"])?;
    stage.sft().and(&format!("--config {}", inside(&stage, "model"))).refuse(USAGE, &["model: cannot read"])?;
    ensure!(!stage.path("out").exists(), "a refused run left its folder");
    Ok(())
}
