//! PEFT folders.

use super::{ADAPTER, Case, POINTER, Spoil, Stage, absent, bytes, cut, refuse, refuse_by, rewrite, set, without};
use anyhow::Result;
use serde_json::json;

const CONFIG: &str = "adapter/adapter_config.json";
const FIRST: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

fn renamed(to: &'static str) -> Spoil {
    Box::new(move |stage| {
        rewrite(stage, ADAPTER, |header, _| {
            let tensor = header.shift_remove(FIRST).unwrap_or_default();
            header.insert(to.into(), tensor);
        })
    })
}

fn cases() -> Vec<Case> {
    let nan = |stage: &Stage| rewrite(stage, ADAPTER, |_, data| data[8..12].copy_from_slice(&f32::NAN.to_le_bytes()));
    let pickle = |stage: &Stage| {
        std::fs::remove_file(stage.path(ADAPTER))?;
        stage.write("adapter/adapter_model.bin", "PK")
    };
    vec![
        (
            "another rank",
            set(CONFIG, "r", json!(4)),
            &["adapter_model.safetensors: tensor", "shape: wanted [4, 40], got [8, 40]"],
        ),
        ("a rank of 0", set(CONFIG, "r", json!(0)), &["adapter_config.json: r: wanted", "got 0"]),
        ("a rank of text", set(CONFIG, "r", json!("8")), &["adapter_config.json: r: wanted", "\"8\""]),
        ("no rank", without(CONFIG, "r"), &["adapter_config.json: r: wanted", "nothing"]),
        ("no alpha", without(CONFIG, "lora_alpha"), &["adapter_config.json: lora_alpha"]),
        ("another method", set(CONFIG, "peft_type", json!("IA3")), &["adapter_config.json: peft_type", "LORA", "IA3"]),
        ("no method", without(CONFIG, "peft_type"), &["adapter_config.json: peft_type", "LORA"]),
        (
            "DoRA without its lengths",
            set(CONFIG, "use_dora", json!(true)),
            &["adapter_model.safetensors: tensor \"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector\""],
        ),
        ("an init that changed the base", set(CONFIG, "init_lora_weights", json!("pissa")), &["init_lora_weights", "pissa"]),
        ("LoRA on the head", set(CONFIG, "target_modules", json!(["q_proj", "lm_head"])), &["target_modules", "got lm_head"]),
        ("a head of its own", set(CONFIG, "modules_to_save", json!(["lm_head"])), &["modules_to_save", "lm_head", "ple merge"]),
        ("biases", set(CONFIG, "bias", json!("all")), &["adapter_config.json: bias", "none"]),
        ("another task", set(CONFIG, "task_type", json!("SEQ_2_SEQ_LM")), &["adapter_config.json: task_type", "CAUSAL_LM"]),
        ("no module", set(CONFIG, "target_modules", json!(["w_pack"])), &["adapter_config.json: target_modules", "w_pack"]),
        (
            "a bad expression",
            set(CONFIG, "target_modules", json!("(")),
            &["adapter_config.json: target_modules", "regular expression"],
        ),
        (
            "an expression without an end",
            set(CONFIG, "target_modules", json!("((a*)*)*b|(.*)*(.*)*(.*)*\\1x")),
            &["adapter_config.json: target_modules"],
        ),
        (
            "fewer modules",
            set(CONFIG, "target_modules", json!(["q_proj"])),
            &["adapter_model.safetensors: tensor", "no such tensor"],
        ),
        (
            "a missing tensor",
            renamed("x"),
            &[
                "adapter_model.safetensors: tensor \"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight\"",
                "not there",
            ],
        ),
        ("NaN", Box::new(nan), &["adapter_model.safetensors: tensor", "finite", "element 2"]),
        ("a pointer", bytes(ADAPTER, POINTER), &["adapter_model.safetensors", "git-LFS pointer"]),
        ("a pointer of settings", bytes(CONFIG, POINTER), &["adapter_config.json", "git-LFS pointer"]),
        ("an end too early", cut(ADAPTER, 3000), &["adapter_model.safetensors"]),
        ("no settings", absent(CONFIG), &["adapter_config.json: cannot read"]),
        ("no tensors", absent(ADAPTER), &["adapter_model.safetensors: cannot open"]),
        ("a pickle", Box::new(pickle), &["adapter_model.safetensors", "adapter_model.bin", "pickle"]),
    ]
}

#[test]
fn adapters() -> Result<()> {
    let stage = Stage::new()?;
    refuse(&stage, cases())?;
    // Training goes on from an adapter under the same conditions.
    let of_training = cases().into_iter().filter(|(what, ..)| ["another rank", "another method", "NaN"].contains(what)).collect();
    refuse_by(&stage, of_training, super::FILE, |stage| stage.sft().key("adapter", stage.path("adapter")))
}
