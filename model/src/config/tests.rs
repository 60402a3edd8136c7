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
        assert_eq!(config.biases, [name.contains("bias"); 4]);
        let rope = config.rope.unwrap();
        assert_eq!(rope.scaling.is_some(), name.contains("rope3"));
        assert_eq!(rope.theta, if name.contains("bias") { 500000.0 } else { 10000.0 });
        let dtype =
            [("bf16", DType::Bf16), ("f16", DType::F16)].into_iter().find(|(n, _)| name.contains(n)).map_or(DType::F32, |d| d.1);
        assert_eq!(config.dtype, Some(dtype));
        seen += 1;
    }
    let Some(folder) = shared("data/models/stories260k") else { return };
    let config = Config::from_folder(&folder).unwrap();
    assert_eq!((config.hidden_size, config.head_dim, config.num_key_value_heads, config.norm_eps), (64, 8, 4, 1e-5));
    assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice(), config.pad_token_id), (Some(1), &[2][..], None));
    let weights: usize = config.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum();
    assert_eq!((seen, weights), (5, 260_032));
}

#[test]
fn other_families_are_refused_by_name() {
    let Some(path) = shared("data/configs/pythia-410m-classifier.json") else { return };
    let text = Config::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap_err().to_string();
    assert!(text.contains("model_type: wanted one of \"llama\", ") && text.contains("gpt_neox"), "{text}");
    let path = shared("data/configs/llama3.1-70b.json").unwrap();
    let config = Config::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 8192 };
    assert_eq!((config.rope, config.dtype), (Some(Rope { theta: 500000.0, scaling: Some(scaling) }), Some(DType::Bf16)));
}

/// The facts of a config.json, as a family's own.
fn of(family: Value) -> Result<Config> {
    Config::parse(Path::new("folder/config.json"), &family.to_string())
}

fn gpt2() -> Value {
    json!({"model_type": "gpt2", "vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "eos_token_id": 2})
}

fn gemma(model_type: &str) -> Value {
    json!({"model_type": model_type, "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "rope_theta": 1e6,
        "query_pre_attn_scalar": 24, "sliding_window": 7, "hidden_activation": "gelu_pytorch_tanh", "eos_token_id": 1})
}

fn names(config: &Config) -> Vec<String> {
    config.tensors().into_iter().map(|t| t.name).collect()
}

#[test]
fn qwen_and_mistral() {
    let Some(path) = shared("data/configs/qwen2.5-1.5b.json") else { return };
    let config = Config::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!((config.model_type(), config.biases, config.head_dim), ("qwen2", [true, false, false, false], 128));
    assert_eq!((config.windows, config.tie_word_embeddings, config.warnings), (vec![0; 28], true, vec![]));
    let window = |more: Value| {
        let mut file = base();
        more.as_object().unwrap().iter().for_each(|(k, v)| file[k] = v.clone());
        file["architectures"] = Value::Null;
        file["head_dim"] = json!(8);
        of(file).map(|c| c.windows)
    };
    let sliding = json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 9, "max_window_layers": 1});
    assert_eq!(window(sliding).unwrap(), [0, 9]);
    assert_eq!(window(json!({"model_type": "qwen3", "sliding_window": 9})).unwrap(), [0, 0]);
    assert_eq!(window(json!({"model_type": "mistral", "sliding_window": 9})).unwrap(), [9, 9]);
    assert_eq!(window(json!({"model_type": "mistral", "sliding_window": null})).unwrap(), [0, 0]);
    assert_eq!(window(json!({"model_type": "mistral"})).unwrap(), [4096, 4096]);
    let types = json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention"]});
    assert_eq!(window(types.clone()).unwrap(), [9, 0]);
    for (field, value, wanted) in [
        ("layer_types", json!(["full_attention"]), "layer_types: wanted 2 kinds of layers"),
        ("layer_types", json!(["full_attention", "linear"]), "layer_types: wanted \"sliding_attention\" and"),
        ("sliding_window", json!(null), "sliding_window: wanted an integer of at least 1, got null"),
        ("sliding_window", json!(0), "sliding_window: wanted an integer from 1"),
    ] {
        let mut wrong = types.clone();
        wrong[field] = value;
        let text = window(wrong).unwrap_err().to_string();
        assert!(text.contains(wanted), "{text}");
    }
    let mut qwen3 = base();
    qwen3["model_type"] = json!("qwen3");
    qwen3["architectures"] = json!(["Qwen3ForCausalLM"]);
    let text = of(qwen3.clone()).unwrap_err().to_string();
    assert!(text.contains("head_dim: wanted an integer from 1 to 4096, which qwen3 needs, got nothing"), "{text}");
    qwen3["head_dim"] = json!(8);
    let config = of(qwen3).unwrap();
    let norm = config.tensors().into_iter().find(|t| t.name == "model.layers.1.self_attn.k_norm.weight");
    assert_eq!(norm.map(|t| t.shape), Some(vec![8]));
}

#[test]
fn gpt2_by_its_own_names() {
    let config = of(gpt2()).unwrap();
    assert_eq!((config.hidden_size, config.intermediate_size, config.head_dim), (16, 64, 4));
    assert!(config.tie_word_embeddings && config.fan_in_fan_out() && config.rope.is_none() && config.norm() == Norm::Layer);
    let shape = |name: &str| config.tensors().into_iter().find(|t| t.name == name).map(|t| t.shape);
    assert_eq!(shape("transformer.h.1.attn.c_attn.weight"), Some(vec![16, 48]));
    assert_eq!(shape("transformer.h.1.mlp.c_proj.weight"), Some(vec![64, 16]));
    assert_eq!((shape("transformer.wpe.weight"), shape("lm_head.weight")), (Some(vec![64, 16]), None));
    assert_eq!(names(&config).len(), 2 + 2 * 12 + 2);
    let modules = config.modules();
    assert_eq!((modules.len(), modules[4].path.as_str()), (8, "transformer.h.1.attn.c_attn"));
    assert_eq!((modules[4].in_features, modules[4].out_features), (16, 48));
    for (field, value, wanted) in [
        ("scale_attn_by_inverse_layer_idx", json!(true), "wanted false (nothing else is supported for gpt2), got true"),
        ("activation_function", json!("relu"), "wanted \"gelu_new\" or \"gelu_pytorch_tanh\", got \"relu\""),
        ("n_positions", Value::Null, "wanted an integer of at least 1"),
        ("n_head", json!(3), "n_embd: wanted a multiple of n_head 3"),
        ("architectures", json!(["GPT2Model"]), "wanted [\"GPT2LMHeadModel\"] or [\"GPT2ForSequenceClassification\"]"),
    ] {
        let mut wrong = gpt2();
        wrong[field] = value;
        let text = of(wrong).unwrap_err().to_string();
        assert!(text.contains(field) && text.contains(wanted), "{text}");
    }
}

#[test]
fn gemmas_in_both_spellings() {
    let mut two = gemma("gemma2");
    two["attn_logit_softcapping"] = json!(50.0);
    two["final_logit_softcapping"] = json!(30.0);
    let config = of(two).unwrap();
    assert_eq!(config.windows, [7, 0, 7, 0, 7, 0]);
    assert_eq!((config.attn_logit_softcapping, config.final_logit_softcapping, config.embedding_scale), (50.0, 30.0, 4.0));
    assert_eq!((config.query_pre_attn_scalar, config.tie_word_embeddings, config.rope_local), (24.0, true, None));
    assert_eq!((config.norm(), config.activation()), (Norm::Rms { offset: 1.0 }, Activation::GeGlu));
    assert!(names(&config).contains(&"model.layers.5.post_feedforward_layernorm.weight".into()));
    let mut old = gemma("gemma3_text");
    old["rope_local_base_freq"] = json!(1e4);
    old["rope_scaling"] = json!({"rope_type": "linear", "factor": 8.0});
    let mut new = gemma("gemma3_text");
    new["rope_parameters"] = json!({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}});
    new["layer_types"] = json!([vec!["sliding_attention"; 5], vec!["full_attention"]].concat());
    let (old, new) = (of(old).unwrap(), of(new).unwrap());
    assert_eq!(old, new);
    assert_eq!(new.windows, [7, 7, 7, 7, 7, 0]);
    assert_eq!(new.rope, Some(Rope { theta: 1e6, scaling: Some(RopeScaling::Linear { factor: 8.0 }) }));
    assert_eq!(new.rope_local, Some(Rope { theta: 1e4, scaling: None }));
    for (field, value, wanted) in [
        ("head_dim", Value::Null, "head_dim: wanted an integer from 1 to 4096, which gemma3_text needs"),
        ("hidden_activation", json!("gelu"), "hidden_activation: wanted \"gelu_pytorch_tanh\""),
        ("use_bidirectional_attention", json!(true), "wanted false"),
        ("rope_local_base_freq", Value::Null, "rope_local_base_freq: wanted a number above 0"),
        ("rope_parameters", json!({"full_attention": {"rope_theta": 1.0}}), "sliding_attention: wanted an object of rope_theta"),
        ("attn_logit_softcapping", json!(-1.0), "attn_logit_softcapping: wanted a number above 0"),
        ("final_logit_softcapping", json!(1e300), "final_logit_softcapping: wanted a number that f32 holds"),
        ("query_pre_attn_scalar", json!(0), "query_pre_attn_scalar: wanted a number above 0"),
    ] {
        let mut wrong = gemma("gemma3_text");
        wrong["rope_local_base_freq"] = json!(1e4);
        wrong[field] = value;
        let text = of(wrong).unwrap_err().to_string();
        assert!(text.contains(wanted), "{text}");
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
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 32 };
    assert_eq!((new.rope, new.warnings.len()), (Some(Rope { theta: 5e5, scaling: Some(scaling) }), 0));
    let both = with(json!({"rope_theta": 7.0, "rope_parameters": parameters})).unwrap();
    assert_eq!((both.rope, both.warnings.len()), (new.rope, 1));
    let neither = with(json!({"rope_theta": "remove"})).unwrap();
    assert_eq!(neither.rope, Some(Rope { theta: 10000.0, scaling: None }));
    assert!(neither.warnings[0].contains("rope_theta"));
    let plain = with(json!({"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 3.0}})).unwrap();
    assert_eq!(plain.rope, Some(Rope { theta: 3.0, scaling: None }));
    let linear = with(json!({"rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap();
    assert_eq!(linear.rope.and_then(|r| r.scaling), Some(RopeScaling::Linear { factor: 2.0 }));
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
        (json!({"model_type": "mamba"}), "\"qwen2\", \"qwen3\", \"gpt2\", \"gemma2\", \"gemma3_text\", got \"mamba\""),
        (json!({"model_type": "remove"}), "model_type: wanted one of \"llama\", \"mistral\", \"qwen2\", "),
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
        (json!({"rope_scaling": {"type": "linear", "factor": 0.5}}), "rope_scaling.factor: wanted at least 1, got 0.5"),
        (
            json!({"rope_scaling": {"rope_type": "yarn"}}),
            "rope_scaling.rope_type: wanted \"default\", \"linear\" or \"llama3\", got \"yarn\"",
        ),
        (
            json!({"rope_scaling": {"factor": 2.0}}),
            "rope_scaling.type: wanted \"default\", \"linear\" or \"llama3\", got nothing",
        ),
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
