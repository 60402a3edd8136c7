//! `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json`.

use super::{Case, POINTER, Stage, absent, bytes, cut, folder, refuse, set, without};
use anyhow::Result;
use serde_json::json;

const CONFIG: &str = "model/config.json";

#[test]
fn configurations() -> Result<()> {
    let many = format!("{{\"model_type\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let cases: Vec<Case> = vec![
        ("another family", set(CONFIG, "model_type", json!("mamba")), &["config.json: model_type", "\"llama\"", "\"mamba\""]),
        (
            "another class",
            set(CONFIG, "architectures", json!(["MambaForCausalLM"])),
            &["config.json: architectures", "LlamaForCausalLM"],
        ),
        ("no family", without(CONFIG, "model_type"), &["config.json: model_type", "got nothing"]),
        ("no width", without(CONFIG, "hidden_size"), &["config.json: hidden_size", "integer", "got nothing"]),
        ("a width in quotes", set(CONFIG, "hidden_size", json!("40")), &["config.json: hidden_size", "integer", "got \"40\""]),
        ("half a layer", set(CONFIG, "num_hidden_layers", json!(2.5)), &["config.json: num_hidden_layers", "2.5"]),
        ("no layer", set(CONFIG, "num_hidden_layers", json!(0)), &["config.json: num_hidden_layers", "got 0"]),
        (
            "a layer more",
            set(CONFIG, "num_hidden_layers", json!(3)),
            &["model.safetensors: tensor \"model.layers.2.", "not there"],
        ),
        (
            "a layer less",
            set(CONFIG, "num_hidden_layers", json!(1)),
            &["model.safetensors: tensor \"model.layers.1.", "no such tensor"],
        ),
        ("a negative number", set(CONFIG, "intermediate_size", json!(-72)), &["config.json: intermediate_size", "-72"]),
        (
            "a huge vocabulary",
            set(CONFIG, "vocab_size", json!(67_108_864)),
            &["model.embed_tokens.weight", "shape", "67108864", "323"],
        ),
        ("beyond any machine", set(CONFIG, "vocab_size", json!(1e18)), &["config.json: vocab_size"]),
        (
            "heads that share unevenly",
            set(CONFIG, "num_key_value_heads", json!(3)),
            &["config.json: num_key_value_heads", "divisor"],
        ),
        ("an odd head", set(CONFIG, "head_dim", json!(15)), &["config.json: head_dim", "even"]),
        ("an activation", set(CONFIG, "hidden_act", json!("gelu")), &["config.json: hidden_act", "silu", "gelu"]),
        ("a negative epsilon", set(CONFIG, "rms_norm_eps", json!(-1e-5)), &["config.json: rms_norm_eps", "above 0"]),
        ("a base of text", set(CONFIG, "rope_theta", json!("big")), &["config.json: rope_theta", "number"]),
        (
            "scaling of another kind",
            set(CONFIG, "rope_scaling", json!({"type": "yarn", "factor": 2})),
            &["config.json: rope_scaling.type", "llama3", "yarn"],
        ),
        (
            "scaling without its factor",
            set(CONFIG, "rope_scaling", json!({"rope_type": "llama3"})),
            &["config.json: rope_scaling.factor", "got nothing"],
        ),
        (
            "quantised",
            set(CONFIG, "quantization_config", json!({"bits": 4})),
            &["config.json: quantization_config", "not supported"],
        ),
        ("a switch of text", set(CONFIG, "tie_word_embeddings", json!("no")), &["config.json: tie_word_embeddings"]),
        ("biases that are not there", set(CONFIG, "attention_bias", json!(true)), &["q_proj.bias", "not there"]),
        ("an unknown dtype", set(CONFIG, "torch_dtype", json!("int8")), &["config.json: torch_dtype", "float32", "int8"]),
        ("no object", bytes(CONFIG, "[1, 2]"), &["config.json: wanted a JSON object"]),
        ("no JSON", bytes(CONFIG, "model_type: llama"), &["config.json: not valid JSON"]),
        ("an end too early", cut(CONFIG, 40), &["config.json: not valid JSON"]),
        (
            "a key twice",
            bytes(CONFIG, r#"{"model_type": "llama", "model_type": "llama"}"#),
            &["config.json", "model_type", "twice"],
        ),
        ("deeper than any", bytes(CONFIG, many), &["config.json: not valid JSON"]),
        ("other bytes", bytes(CONFIG, b"{\"model_type\": \"\xff\"}"), &["config.json: wanted UTF-8", "0xff"]),
        ("a pointer", bytes(CONFIG, POINTER), &["config.json", "git-LFS pointer"]),
        ("nothing", bytes(CONFIG, ""), &["config.json: not valid JSON"]),
        ("absent", absent(CONFIG), &["config.json: cannot read"]),
        ("a folder", folder(CONFIG), &["config.json: cannot read"]),
        (
            "a stop of text",
            bytes("model/generation_config.json", r#"{"eos_token_id": "two"}"#),
            &["generation_config.json: eos_token_id", "two"],
        ),
    ];
    refuse(&Stage::new()?, cases)
}

#[test]
fn tokenizers() -> Result<()> {
    const FILE: &str = "model/tokenizer.json";
    let trained = |stage: &Stage| stage.edit(FILE, |file| file["model"]["vocab"]["w9"] = json!(400_000));
    // The adapter must not know which tokenizer it was trained with: another one is refused first.
    let other = |stage: &Stage, change: fn(&mut serde_json::Value)| {
        std::fs::remove_file(stage.path("adapter/base.json"))?;
        stage.edit(FILE, change)
    };
    let template = move |stage: &Stage| other(stage, |file| file["post_processor"]["special_tokens"] = json!({}));
    let beyond = move |stage: &Stage| other(stage, |file| file["model"]["vocab"]["w9"] = json!(400_000));
    let cases: Vec<Case> = vec![
        ("garbage", bytes(FILE, "not a tokenizer"), &["tokenizer.json: wanted a tokenizer"]),
        ("another object", bytes(FILE, r#"{"version": "1.0"}"#), &["tokenizer.json: wanted a tokenizer"]),
        ("an end too early", cut(FILE, 500), &["tokenizer.json: wanted a tokenizer"]),
        ("other bytes", bytes(FILE, b"{\xff}"), &["tokenizer.json: wanted UTF-8"]),
        ("a pointer", bytes(FILE, POINTER), &["tokenizer.json", "git-LFS pointer"]),
        ("nothing", bytes(FILE, ""), &["tokenizer.json: wanted a tokenizer"]),
        ("absent", absent(FILE), &["tokenizer.json: cannot read"]),
        ("a model of another kind", set(FILE, "model", json!({"type": "Magic"})), &["tokenizer.json: wanted a tokenizer"]),
        ("a template without its token", Box::new(template), &["tokenizer.json: wanted to encode a text", "cannot handle"]),
        ("another tokenizer", Box::new(trained), &["base.json: tokenizer_sha256", "trained with"]),
        ("ids beyond the model", Box::new(beyond), &["rows.jsonl: line 1", "vocabulary's 323", "400000"]),
        (
            "an end that is no token",
            set("model/tokenizer_config.json", "eos_token", json!("<end>")),
            &["tokenizer_config.json: eos_token", "<end>"],
        ),
        (
            "an end that is a number",
            set("model/tokenizer_config.json", "eos_token", json!(2)),
            &["tokenizer_config.json: eos_token", "string"],
        ),
        ("no JSON beside it", bytes("model/tokenizer_config.json", "{"), &["tokenizer_config.json: not valid JSON"]),
    ];
    refuse(&Stage::new()?, cases)
}

#[test]
fn folders() -> Result<()> {
    let stage = Stage::new()?;
    let call = |folder: &str| stage.score().key("model_name_or_path", stage.path(folder));
    call("nothing").refuse(super::FILE, &["nothing: wanted a model folder", "hf download"])?;
    call("rows.jsonl").refuse(super::FILE, &["rows.jsonl: wanted a model folder"])?;
    stage.left_clean()
}
