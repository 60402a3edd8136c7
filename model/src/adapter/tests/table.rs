//! Every adapter and every configuration of the shared folder, and what becomes of it.

use super::super::*;
use super::module;
use crate::shared::{folders, shared};
use crate::{Config, Result};
use std::collections::BTreeMap;

/// What is expected of a file.
enum Outcome {
    /// It selects so many modules, of this rank and scale.
    Loads(usize, usize, f32),
    /// The key, and what is wrong with it.
    Refused(&'static str),
}
use Outcome::{Loads, Refused};

const METHOD: &str = "peft_type: wanted \"LORA\", the one method supported, got";
const NOWHERE: &str = "target_modules: wanted \"all-linear\", a regular expression or a list of names, got null";

/// Two layers of a Llama-like model: q, k, v, o, gate, up, down.
fn llama() -> Vec<ModuleSpec> {
    let names = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"];
    (0..2).flat_map(|l| names.map(|name| module(&format!("model.layers.{l}.{name}_proj"), 4, 4))).collect()
}

/// Twelve layers of `names` under `transformer.h`, each of (in, out) features.
fn gpt(names: &[(&str, usize, usize)]) -> Vec<ModuleSpec> {
    (0..12).flat_map(|l| names.iter().map(move |(n, i, o)| module(&format!("transformer.h.{l}.{n}"), *i, *o))).collect()
}

/// Compares every file under a folder with its row; a file without a row and a row without a file are faults.
fn walk(folder: &str, rows: &[(&str, Outcome)], read: impl Fn(&Path) -> Result<Vec<(usize, f32)>>) {
    let found = folders(folder, "");
    if found.is_empty() {
        return;
    }
    let mut left: BTreeMap<&str, &Outcome> = rows.iter().map(|(name, outcome)| (*name, outcome)).collect();
    let (mut loaded, mut refused) = (0, 0);
    for path in &found {
        let name = path.file_name().unwrap().to_string_lossy();
        let outcome = left.remove(&*name).unwrap_or_else(|| panic!("{folder}/{name} has no row in the table"));
        match (outcome, read(path)) {
            (Loads(count, r, scale), Ok(modules)) => {
                assert_eq!((modules.len(), modules[0]), (*count, (*r, *scale)), "{name}");
                assert!(modules.iter().all(|m| *m == modules[0]), "{name}");
                loaded += 1;
            }
            (Refused(why), Err(error)) => {
                assert!(error.to_string().contains(why), "{name}: wanted {why:?}, got {error}");
                refused += 1;
            }
            (Loads(..), Err(error)) => panic!("{name}: wanted it to load, got {error}"),
            (Refused(why), Ok(_)) => panic!("{name}: wanted {why:?}, but it loads"),
        }
    }
    assert!(left.is_empty(), "{folder}: not there: {:?}", left.keys());
    println!("{folder}: {} files, {loaded} load, {refused} refused by key", found.len());
}

/// A configuration alone, on a model of the family that all of them are for.
fn configuration(path: &Path) -> Result<Vec<(usize, f32)>> {
    let config = AdapterConfig::parse(path, &std::fs::read_to_string(path).unwrap())?;
    assert_eq!(config.warnings, Vec::<String>::new(), "{}", path.display());
    Ok(config.select(path, &llama())?.iter().map(|s| (s.r, s.scale)).collect())
}

#[test]
fn configurations() {
    let rows = [
        ("ABISHEAK-std__TinyLlama-structured-output-finetuned-using-Lora__adapter_config.json", Loads(14, 16, 2.0)),
        ("Hmbown__shannon-control-unit__3b-fixed_adapter_config.json", Loads(14, 8, 4.0)),
        ("Hmbown__shannon-control-unit__3b-scu_adapter_config.json", Loads(14, 8, 4.0)),
        ("Leen-Alsharbaji__GhostCoder__gguf_Files_and_adaptor_adapter_config.json", Loads(14, 16, 1.0)),
        (
            "Navaneeth-45__LLM__adapter_config.json",
            Refused("target_modules: wanted linear modules inside the layers, got model.embed_tokens"),
        ),
        (
            "TasosGiot__Emergence-of-Thinking-in-LLMs-II__experiments_expansions_grpo_exp_llama_checkpoints_adapter_config.json",
            Loads(8, 16, 2.0),
        ),
        (
            "TasosGiot__Emergence-of-Thinking-in-LLMs-II__experiments_expansions_sqrt_qwen_checkpoints_adapter_config.json",
            Loads(8, 64, 2.0),
        ),
        ("arseniykotov02112010-dev__gitcourse__adapter_config.json", Loads(14, 16, 2.0)),
        ("camushoilingma__kurt_vonnegut_mistral__adapter_config.json", Loads(4, 8, 2.0)),
        ("devVibe1122__llama3-1_70b_together_model_cloned__adapter_config.json", Loads(8, 16, 2.0)),
        ("karbolak__llama3.2-qlora-finetunined-poetry-fusion__adapter_config.json", Loads(4, 64, 0.25)),
    ];
    walk("data/adapters/configs", &rows, configuration);
}

#[test]
fn methods_of_peft() {
    let rows = [
        ("beft_llama-3.2-3B-target-v_proj.json", Refused(METHOD)),
        ("deft_llama-3.2-3B-rank32-para.json", Refused(METHOD)),
        ("deft_llama-3.2-3B-rank32.json", Refused(METHOD)),
        ("delora_llama-3.2-3B-rank32.json", Refused(METHOD)),
        ("fourierft_llama-3.2-3B-default.json", Refused(METHOD)),
        ("frod_llama-3.2-3B-default.json", Refused(METHOD)),
        ("frod_llama-3.2-3B-sparse0.02-lr_0.001.json", Refused(METHOD)),
        ("gralora_llama-3.2-3B-rank32.json", Refused(METHOD)),
        ("ia3_llama-3.2-3B-all-attn-5k-lr0.005.json", Refused(METHOD)),
        ("ln_tuning_llama-3.2-3B-default.json", Refused(METHOD)),
        ("lora_llama-3.2-3B-rank32-kasa.json", Refused("kasa_config: wanted nothing (not supported), got")),
        ("lora_llama-3.2-3B-rank32-lorafa.json", Refused(NOWHERE)),
        ("lora_llama-3.2-3B-rank32-riemannian.json", Refused(NOWHERE)),
        ("miss_llama-3.2-3B-bat.json", Refused(METHOD)),
        ("miss_llama-3.2-3B-mini.json", Refused(METHOD)),
        ("peanut_llama-3.2-3B-rank1-relu-depth0-s32.0.json", Refused(METHOD)),
        ("prefixtuning_llama-3.2-3B-lr_0.005_zero_init.json", Refused(METHOD)),
        ("prefixtuning_llama-3.2-3B-tokens50-init_prefix-lr_0.005.json", Refused(METHOD)),
        ("prompt_tuning_llama-3.2-3B-sample_vocab-lr_0.001.json", Refused(METHOD)),
        ("psoft_llama-3.2-3B-fast.json", Refused(METHOD)),
        ("ptuning_llama-3.2-3B-default.json", Refused(METHOD)),
        ("pvera_llama-3.2-3B-default.json", Refused(METHOD)),
        ("pvera_llama-3.2-3B-rank64.json", Refused(METHOD)),
        ("randlora_llama-3.2-3B-default.json", Refused(METHOD)),
        ("road_llama-3.2-3B-lr_0.001.json", Refused(METHOD)),
        ("shira_llama-3.2-3B-lr_0.0003-random_seed_42.json", Refused(METHOD)),
        ("supertuning_llama-3.2-3B-s99-supra-r8.json", Refused(METHOD)),
        ("tinylora_llama-3.2-3B-weight-tying.json", Refused(METHOD)),
        ("unilora_llama-3.2-3B-default.json", Refused(METHOD)),
        ("vblora_llama-3.2-3B-bank1024-lr5e4.json", Refused(METHOD)),
        ("vblora_llama-3.2-3B-default.json", Refused(METHOD)),
    ];
    walk("data/adapters/configs_peft_methods", &rows, |path| {
        let read = configuration(path);
        // The error also names the method that was found.
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let method = file["peft_type"].as_str().unwrap();
        assert!(method == "LORA" || read.as_ref().is_err_and(|e| e.to_string().contains(method)), "{}", path.display());
        read
    });
}

#[test]
fn whole_adapters() {
    let rows = [
        ("gpt2-r8-support", Loads(12, 8, 2.0)),
        ("gptneo-125m-r8-movies", Loads(24, 8, 2.0)),
        ("lfs-pointer-qwen3-14b", Refused("adapter_model.safetensors: this is a git-LFS pointer")),
    ];
    walk("data/adapters/real", &rows, |path| {
        let name = path.file_name().unwrap().to_string_lossy();
        let base = match name.split('-').next() {
            Some("gpt2") => gpt(&[("attn.c_attn", 768, 2304), ("attn.c_proj", 768, 768), ("mlp.c_fc", 768, 3072)]),
            Some("gptneo") => gpt(&["q", "k", "v"].map(|n| match n {
                "q" => ("attn.attention.q_proj", 768, 768),
                "k" => ("attn.attention.k_proj", 768, 768),
                _ => ("attn.attention.v_proj", 768, 768),
            })),
            _ => llama(),
        };
        let adapter = Adapter::load(path, &base)?;
        assert!(adapter.config.warnings.is_empty(), "{name}: {:?}", adapter.config.warnings);
        // On a base without their modules, the key says so.
        let text = Adapter::load(path, &[module("model.layers.0.mlp.up_proj", 4, 4)]).unwrap_err().to_string();
        assert!(text.contains("adapter_config.json: target_modules: wanted at least one linear module"), "{text}");
        Ok(adapter.modules.iter().map(|m| (m.r, m.scale)).collect())
    });
    let (Some(adapter), Some(base)) = (shared("data/adapters/stories260k-imdb-pos-r8"), shared("data/models/stories260k")) else {
        return;
    };
    let adapter = Adapter::load(&adapter, &Config::from_folder(&base).unwrap().modules()).unwrap();
    assert!(adapter.modules.len() == 35 && adapter.modules.iter().all(|m| (m.r, m.scale) == (8, 2.0)));
    println!("data/adapters/stories260k-imdb-pos-r8: loads, 35 modules");
}
