use super::*;
use crate::shared::{Lcg, folders, shared};
use serde_json::{Value, json};

fn base() -> Value {
    json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "rope_theta": 10000.0, "eos_token_id": 2})
}

/// The base with some fields set; `remove` stands for an absent field.
fn with(change: Value) -> Result<Config> {
    let mut file = base();
    for (field, value) in change.as_object().unwrap() {
        if value == "remove" {
            file.as_object_mut().unwrap().remove(field);
        } else {
            file[field] = value.clone();
        }
    }
    Config::parse(Path::new("folder/config.json"), &file.to_string())
}

#[test]
fn fixtures_and_stories_open() {
    let mut seen = 0;
    for case in folders("fixtures/lm", "llama_") {
        let config = Config::from_folder(&case.join("model")).unwrap();
        assert_eq!((config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers), (320, 64, 96, 2));
        assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (4, 2, 16));
        assert_eq!(config.warnings, Vec::<String>::new());
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(config.tie_word_embeddings, name.contains("tied_") || name.contains("_f16"), "{name}");
        assert_eq!(config.attention_bias && config.mlp_bias, name.contains("bias"));
        assert_eq!(config.rope_scaling.is_some(), name.contains("rope3"));
        assert_eq!(config.rope_theta, if name.contains("bias") { 500000.0 } else { 10000.0 });
        let dtype =
            [("bf16", DType::Bf16), ("f16", DType::F16)].into_iter().find(|(n, _)| name.contains(n)).map_or(DType::F32, |d| d.1);
        assert_eq!(config.dtype, Some(dtype));
        seen += 1;
    }
    let Some(folder) = shared("data/models/stories260k") else { return };
    let config = Config::from_folder(&folder).unwrap();
    assert_eq!((config.hidden_size, config.head_dim, config.num_key_value_heads, config.rms_norm_eps), (64, 8, 4, 1e-5));
    assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice(), config.pad_token_id), (Some(1), &[2][..], None));
    let weights: usize = config.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum();
    assert_eq!((seen, weights), (5, 260_032));
}

#[test]
fn other_families_are_refused_by_name() {
    for (path, name) in [("data/configs/qwen2.5-1.5b.json", "qwen2"), ("data/configs/pythia-410m-classifier.json", "gpt_neox")] {
        let Some(path) = shared(path) else { return };
        let text = Config::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap_err().to_string();
        assert!(text.contains("model_type") && text.contains(name), "{text}");
    }
    let path = shared("data/configs/llama3.1-70b.json").unwrap();
    let config = Config::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    let scaling =
        RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 8192 };
    assert_eq!((config.rope_scaling, config.rope_theta, config.dtype), (Some(scaling), 500000.0, Some(DType::Bf16)));
    for case in folders("fixtures/lm", "").into_iter().filter(|c| !c.file_name().unwrap().to_string_lossy().starts_with("llama"))
    {
        let text = Config::from_folder(&case.join("model")).unwrap_err().to_string();
        assert!(text.contains("model_type: wanted \"llama\""), "{text}");
    }
}

#[test]
fn both_spellings_of_rotary_positions() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 32});
    let old = with(json!({"rope_theta": 5e5, "rope_scaling": llama3})).unwrap();
    let mut parameters = llama3.clone();
    parameters["rope_theta"] = json!(5e5);
    let new = with(json!({"rope_theta": "remove", "rope_parameters": parameters})).unwrap();
    assert_eq!(old, new);
    assert_eq!((new.rope_theta, new.rope_scaling.unwrap().factor, new.warnings.len()), (5e5, 8.0, 0));
    let both = with(json!({"rope_theta": 7.0, "rope_parameters": parameters})).unwrap();
    assert_eq!((both.rope_theta, both.rope_scaling, both.warnings.len()), (5e5, new.rope_scaling, 1));
    let neither = with(json!({"rope_theta": "remove"})).unwrap();
    assert_eq!((neither.rope_theta, neither.rope_scaling), (10000.0, None));
    assert!(neither.warnings[0].contains("rope_theta"));
    let plain = with(json!({"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 3.0}})).unwrap();
    assert_eq!((plain.rope_theta, plain.rope_scaling), (3.0, None));
}

#[test]
fn nulls_lists_and_heads() {
    let config =
        with(json!({"num_key_value_heads": null, "head_dim": null, "eos_token_id": [9, 3, 9], "torch_dtype": "bfloat16"}))
            .unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim, config.eos_token_ids.as_slice()), (4, 4, &[3, 9][..]));
    assert_eq!((config.dtype, config.tie_word_embeddings, config.scalar_head), (Some(DType::Bf16), false, false));
    let head = with(
        json!({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}, "tie_word_embeddings": true}),
    );
    let tensors = head.unwrap().tensors();
    assert_eq!(tensors.last().unwrap(), &TensorSpec { name: "score.weight".into(), shape: vec![1, 16] });
    assert!(tensors.iter().all(|t| t.name != "lm_head.weight"));
    let biased = with(json!({"attention_bias": true, "mlp_bias": true, "head_dim": 6})).unwrap();
    let shape = |name: &str| biased.tensors().into_iter().find(|t| t.name.ends_with(name)).map(|t| t.shape);
    assert_eq!(shape("layers.1.self_attn.k_proj.weight"), Some(vec![12, 16]));
    assert_eq!((shape("layers.1.self_attn.o_proj.weight"), shape("o_proj.bias")), (Some(vec![16, 24]), Some(vec![16])));
    assert_eq!((shape("down_proj.bias"), shape("lm_head.weight")), (Some(vec![16]), Some(vec![32, 16])));
    assert_eq!(biased.tensors().len(), 1 + 2 * (2 + 14) + 2);
    let modules = biased.modules();
    assert_eq!((modules.len(), modules[10].path.as_str()), (14, "model.layers.1.self_attn.o_proj"));
    assert_eq!((modules[10].in_features, modules[10].out_features), (24, 16));
}

#[test]
fn generation_config_adds_stop_ids() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), base().to_string()).unwrap();
    assert_eq!(Config::from_folder(folder.path()).unwrap().eos_token_ids, [2]);
    std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [31, 2, 99]}"#).unwrap();
    let config = Config::from_folder(folder.path()).unwrap();
    assert_eq!(config.eos_token_ids, [2, 31, 99]);
    assert!(config.warnings[0].contains("99"), "{:?}", config.warnings);
    std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": "2"}"#).unwrap();
    let text = Config::from_folder(folder.path()).unwrap_err().to_string();
    assert!(text.contains("generation_config.json: eos_token_id: wanted a token id"), "{text}");
    let text = Config::from_folder(&folder.path().join("none")).unwrap_err().to_string();
    assert!(text.contains("none/config.json: cannot read"), "{text}");
}

#[test]
fn a_padding_id_that_is_none_is_a_warning() {
    for got in [json!(-1), json!(32), json!(4294967296u64), json!("<pad>"), json!([0])] {
        let config = with(json!({"pad_token_id": got})).unwrap();
        assert!(config.pad_token_id.is_none() && config.warnings.len() == 1, "{got}: {:?}", config.warnings);
        let wanted = format!("pad_token_id: wanted an id below 32, got {got}");
        assert!(config.warnings[0].contains(&wanted), "{:?}", config.warnings);
    }
    let config = with(json!({"pad_token_id": 31, "head_dim": 256})).unwrap();
    assert_eq!((config.pad_token_id, config.head_dim, config.warnings.len()), (Some(31), 256, 0));
}

#[test]
fn bad_configs_name_the_field() {
    let rope = |more: Value| {
        let mut all = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
        more.as_object().unwrap().iter().for_each(|(k, v)| all[k] = v.clone());
        json!({"rope_scaling": all})
    };
    let cases = [
        (json!({"model_type": "mamba"}), "model_type: wanted \"llama\", the one family supported so far, got \"mamba\""),
        (json!({"model_type": "remove"}), "model_type: wanted \"llama\", the one family supported so far, got nothing"),
        (json!({"architectures": ["LlamaModel"]}), "architectures: wanted [\"LlamaForCausalLM\"]"),
        (json!({"architectures": ["LlamaForSequenceClassification"]}), "id2label: wanted exactly one label"),
        (json!({"architectures": "LlamaForCausalLM"}), "architectures: wanted a list of strings"),
        (json!({"hidden_act": "gelu"}), "hidden_act: wanted \"silu\", got \"gelu\""),
        (json!({"sliding_window": 4096}), "sliding_window: wanted null"),
        (json!({"quantization_config": {"bits": 4}}), "quantization_config: wanted null"),
        (json!({"vocab_size": "remove"}), "vocab_size: wanted an integer of at least 1, got nothing"),
        (json!({"vocab_size": 0}), "vocab_size: wanted an integer from 1 to"),
        (json!({"hidden_size": -16}), "hidden_size: wanted an integer from 1 to 1048576, got -16"),
        (json!({"hidden_size": "16"}), "hidden_size: wanted an integer"),
        (json!({"hidden_size": 18}), "hidden_size: wanted a multiple of num_attention_heads 4"),
        (json!({"hidden_size": 1e300}), "hidden_size: wanted an integer"),
        (json!({"num_hidden_layers": 18446744073709551615u64}), "num_hidden_layers: wanted an integer from 1 to 4096"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads: wanted a divisor of num_attention_heads 4, got 3"),
        (json!({"head_dim": 5}), "head_dim: wanted an even number"),
        (json!({"head_dim": 258}), "head_dim: wanted at most 256 (it is 258 here), got 258"),
        (json!({"hidden_size": 2048}), "head_dim: wanted at most 256 (it is 512 here), got nothing"),
        (json!({"rms_norm_eps": -1e-5}), "rms_norm_eps: wanted a number above 0"),
        (json!({"rms_norm_eps": true}), "rms_norm_eps: wanted a finite number"),
        (json!({"attention_bias": 1}), "attention_bias: wanted true or false"),
        (json!({"tie_word_embeddings": "yes"}), "tie_word_embeddings: wanted true or false"),
        (json!({"eos_token_id": -1}), "eos_token_id: wanted a token id"),
        (json!({"eos_token_id": [1, 2.5]}), "eos_token_id: wanted a token id"),
        (json!({"bos_token_id": 4294967296u64}), "bos_token_id: wanted a token id"),
        (json!({"torch_dtype": "float64"}), "torch_dtype: wanted \"float32\""),
        (json!({"rope_theta": 0}), "rope_theta: wanted a number above 0"),
        (json!({"rope_scaling": "llama3"}), "rope_scaling: wanted an object"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
            "rope_scaling.type: wanted \"default\" or \"llama3\", got \"linear\"",
        ),
        (
            json!({"rope_scaling": {"rope_type": "yarn"}}),
            "rope_scaling.rope_type: wanted \"default\" or \"llama3\", got \"yarn\"",
        ),
        (json!({"rope_scaling": {"factor": 2.0}}), "rope_scaling.type: wanted \"default\" or \"llama3\", got nothing"),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}),
            "rope_parameters.full_attention: wanted no parameters per kind",
        ),
        (json!({"rope_parameters": {"rope_type": "longrope"}}), "rope_parameters.rope_type: wanted"),
        (rope(json!({"factor": 0.5})), "rope_scaling.factor: wanted at least 1, got 0.5"),
        (rope(json!({"factor": null})), "rope_scaling.factor: wanted a number above 0, got null"),
        (rope(json!({"high_freq_factor": 1.0})), "rope_scaling.high_freq_factor: wanted more than"),
        (
            rope(json!({"original_max_position_embeddings": 0})),
            "rope_scaling.original_max_position_embeddings: wanted an integer",
        ),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor: wanted nothing"),
    ];
    for (change, wanted) in cases {
        let text = with(change.clone()).expect_err(wanted).to_string();
        assert!(text.starts_with("folder/config.json: ") && text.contains(wanted), "{change}: {text}");
    }
}

#[test]
fn bad_json_is_an_error() {
    let twice = base().to_string().replacen("{", "{\"vocab_size\":1,", 1);
    let deep = "[".repeat(100_000);
    let cases = [
        ("", "not valid JSON"),
        ("[1]", "wanted a JSON object"),
        ("{\"model_type\": ", "not valid JSON"),
        ("{} {}", "not valid JSON"),
        ("{\"a\": NaN}", "not valid JSON"),
        ("version https://git-lfs.github.com/spec/v1\noid", "git-LFS pointer"),
        (twice.as_str(), "\"vocab_size\" stands twice"),
        (deep.as_str(), "recursion limit"),
    ];
    for (text, wanted) in cases {
        let error = Config::parse(Path::new("config.json"), text).unwrap_err().to_string();
        assert!(error.starts_with("config.json: ") && error.contains(wanted), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), b"{\"model_type\": \"\xff\"}").unwrap();
    let error = Config::from_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("wanted UTF-8 text, got the byte 0xff at 16"), "{error}");
}

#[test]
fn damaged_configs_never_panic() {
    let (text, mut random, mut read) = (base().to_string(), Lcg(1), 0);
    for _ in 0..2000 {
        let damaged = random.damage(text.as_bytes());
        if let Ok(config) = Config::parse(Path::new("config.json"), &String::from_utf8_lossy(&damaged)) {
            assert!(config.num_attention_heads % config.num_key_value_heads == 0 && config.head_dim % 2 == 0);
            read += 1;
        }
    }
    assert!(read > 50 && read < 1950, "{read}");
}
