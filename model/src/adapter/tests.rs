mod table;

use super::*;
use crate::shared::{Lcg, folders, shared};
use crate::weights::write_safetensors;
use crate::{Config, TensorSpec};
use serde_json::{Value, json};

fn module(path: &str, in_features: usize, out_features: usize) -> ModuleSpec {
    ModuleSpec { path: path.into(), in_features, out_features }
}

/// Two layers of two modules.
fn small() -> Vec<ModuleSpec> {
    (0..2)
        .flat_map(|l| {
            [module(&format!("model.layers.{l}.self_attn.q_proj"), 6, 4), module(&format!("model.layers.{l}.mlp.up_proj"), 6, 8)]
        })
        .collect()
}

fn plain() -> Value {
    json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"]})
}

fn parse(change: Value) -> Result<AdapterConfig> {
    let mut file = plain();
    change.as_object().unwrap().iter().for_each(|(k, v)| file[k] = v.clone());
    AdapterConfig::parse(Path::new("folder/adapter_config.json"), &file.to_string())
}

/// Philox4x32-10 of Salmon et al. (2011).
fn philox(mut key: [u32; 2], mut c: [u32; 4]) -> [u32; 4] {
    for _ in 0..10 {
        let (x, y) = (u64::from(c[0]) * 0xd251_1f53, u64::from(c[2]) * 0xcd9e_8d57);
        c = [(y >> 32) as u32 ^ c[1] ^ key[0], y as u32, (x >> 32) as u32 ^ c[3] ^ key[1], x as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    c
}

#[test]
fn philox_gives_the_published_answers() {
    assert_eq!(philox([0; 2], [0; 4]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    assert_eq!(philox([!0; 2], [!0; 4]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
    let (key, counter) = ([0xa4093822, 0x299f31d0], [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344]);
    assert_eq!(philox(key, counter), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
}

#[test]
fn real_adapters_load_and_come_back() {
    let temporary = tempfile::tempdir().unwrap();
    let mut cases: Vec<_> = folders("fixtures/lm", "llama_").into_iter().map(|c| (c.join("adapter"), c.join("model"))).collect();
    cases.retain(|(adapter, _)| adapter.exists());
    if let (Some(adapter), Some(model)) = (shared("data/adapters/stories260k-imdb-pos-r8"), shared("data/models/stories260k")) {
        cases.push((adapter, model));
        assert_eq!(cases.len(), 4);
    }
    for (folder, model) in cases {
        let expected = Config::from_folder(&model).unwrap().modules();
        let adapter = Adapter::load(&folder, &expected).unwrap();
        assert_eq!(
            adapter.modules.iter().map(|m| &m.path).collect::<Vec<_>>(),
            expected.iter().map(|m| &m.path).collect::<Vec<_>>()
        );
        assert!(adapter.modules.iter().all(|m| (m.r, m.scale) == (8, 2.0)));
        assert_eq!(adapter.config.warnings, Vec::<String>::new());
        let all = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
        assert_eq!(adapter.config.target_modules, Targets::List(all.map(String::from).to_vec()));
        let copy = temporary.path().join("copy");
        adapter.save(&copy).unwrap();
        assert!(
            std::fs::read(copy.join(TENSORS)).unwrap() == std::fs::read(folder.join(TENSORS)).unwrap(),
            "{}",
            folder.display()
        );
        assert_eq!(Adapter::load(&copy, &expected).unwrap(), adapter);
    }
}

#[test]
fn dora_and_saved_tensors_come_back() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let mut config = AdapterConfig::new(2, 4.0, Targets::List(vec!["q_proj".into()]));
    (config.use_dora, config.modules_to_save) = (true, vec!["lm_head".into()]);
    let mut adapter = Adapter::fresh(config, &small(), 1, philox).unwrap();
    for (i, m) in adapter.modules.iter_mut().enumerate() {
        m.magnitude = Some(vec![1.5 + i as f32; m.out_features]);
        m.b.iter_mut().enumerate().for_each(|(j, b)| *b = j as f32 / 8.0);
    }
    let head = TensorSpec { name: "lm_head.weight".into(), shape: vec![3, 2] };
    adapter.saved.push(SavedTensor { spec: head.clone(), values: vec![0.5; 6] });
    adapter.save(folder).unwrap();
    let embedding = TensorSpec { name: "model.embed_tokens.weight".into(), shape: vec![3, 2] };
    let whole = [embedding, head];
    assert_eq!(Adapter::load_with(folder, &small(), &whole).unwrap(), adapter);
    let text = Adapter::load(folder, &small()).unwrap_err().to_string();
    assert!(text.contains("adapter_config.json: modules_to_save: wanted nothing but \"score\" here, got \"lm_head\""), "{text}");
    // Without its lengths, a DoRA adapter is not one.
    adapter.modules[1].magnitude = None;
    adapter.save(folder).unwrap();
    let text = Adapter::load_with(folder, &small(), &whole).unwrap_err().to_string();
    assert!(text.contains("layers.1.self_attn.q_proj.lora_magnitude_vector\": wanted, but it is not there"), "{text}");
}

#[test]
fn a_gain_brings_a_row_to_its_length() {
    let mut m = AdapterModule {
        magnitude: Some(vec![2.0, -3.0]),
        a: vec![1.0, 0.0],
        b: vec![1.5, 0.0],
        scale: 2.0,
        ..empty(&module("q", 2, 2), 1, 2.0)
    };
    // Rows (0, 4) + 2·1.5·(1, 0) = (3, 4) of length 5, and (6, 8) of length 10.
    assert_eq!(m.gain(&[0.0, 4.0, 6.0, 8.0]).unwrap().unwrap(), [0.4, -0.3]);
    let text = m.gain(&[0.0, 4.0, 0.0, 0.0]).unwrap_err().to_string();
    assert!(text.contains("q: row 1 of W + scale B A has length 0"), "{text}");
    m.magnitude = None;
    assert_eq!(m.gain(&[0.0; 4]).unwrap(), None);
}

#[test]
fn targets_select_as_peft_does() {
    let expected = small();
    let selected = |targets: Value, exclude: Value| -> Vec<usize> {
        let config = parse(json!({"target_modules": targets, "exclude_modules": exclude})).unwrap();
        config.select(Path::new("c"), &expected).unwrap().iter().map(|s| s.index).collect()
    };
    assert_eq!(selected(json!("all-linear"), json!(null)), [0, 1, 2, 3]);
    assert_eq!(selected(json!(["q_proj"]), json!([])), [0, 2]);
    assert_eq!(selected(json!(["self_attn.q_proj", "nothing"]), json!(null)), [0, 2]);
    assert_eq!(selected(json!(["model.layers.1.mlp.up_proj"]), json!(null)), [3]);
    assert_eq!(selected(json!(r".*\.1\.(self_attn|mlp)\.(q|up)_proj"), json!(null)), [2, 3]);
    assert_eq!(selected(json!(r"(?!.*mlp).*_proj"), json!(null)), [0, 2]);
    assert_eq!(selected(json!("all-linear"), json!(["up_proj"])), [0, 2]);
    assert_eq!(selected(json!("all-linear"), json!(r".*0.*")), [2, 3]);
    let layers = |change: Value| -> Vec<usize> {
        let config = parse(change).unwrap();
        config.select(Path::new("c"), &expected).unwrap().iter().map(|s| s.index).collect()
    };
    assert_eq!(layers(json!({"layers_to_transform": 1})), [2, 3]);
    assert_eq!(layers(json!({"layers_to_transform": [0, 7], "layers_pattern": "layers"})), [0, 1]);
    assert_eq!(layers(json!({"layers_to_transform": [1], "layers_pattern": ["h", "(model\\.)?layers"]})), [2, 3]);
    // A whole path is meant whatever its layer, as in PEFT.
    let one = "model.layers.0.mlp.up_proj";
    assert_eq!(layers(json!({"layers_to_transform": [1], "target_modules": [one, "q_proj"]})), [1, 2]);
    assert_eq!(layers(json!({"layers_to_transform": [], "target_modules": ["q_proj"]})), [0, 2]);
    for targets in [json!(["_proj"]), json!([""]), json!("q_proj"), json!([])] {
        let config = parse(json!({"target_modules": targets})).unwrap();
        let error = config.select(Path::new("c"), &expected).err().unwrap().to_string();
        assert!(error.contains("c: target_modules: wanted at least one linear module"), "{error}");
    }
}

#[test]
fn ranks_and_scales_follow_the_patterns() {
    let pattern = json!({"rank_pattern": {"q_proj": 4, "^model.layers.0.mlp.up_proj": 9}, "alpha_pattern": {"layers.1.self_attn.q_proj": 1}});
    let scales = |change: Value| -> Vec<(usize, f32)> {
        let mut all = pattern.clone();
        change.as_object().unwrap().iter().for_each(|(k, v)| all[k] = v.clone());
        parse(all).unwrap().select(Path::new("c"), &small()).unwrap().iter().map(|s| (s.r, s.scale)).collect()
    };
    assert_eq!(scales(json!({})), [(4, 1.0), (9, 4.0 / 9.0), (4, 0.25), (2, 2.0)]);
    assert_eq!(scales(json!({"use_rslora": true})), [(4, 2.0), (9, 4.0 / 3.0), (4, 0.5), (2, (4.0 / 2f64.sqrt()) as f32)]);
}

#[test]
fn a_fresh_adapter_follows_the_law() {
    let temporary = tempfile::tempdir().unwrap();
    let expected = small();
    let seed = 0x0123_4567_89ab_cdef;
    let fresh = |targets| Adapter::fresh(AdapterConfig::new(3, 6.0, targets), &expected, seed, philox).unwrap();
    let all = fresh(Targets::AllLinear);
    assert_eq!(all.config.target_modules, Targets::List(vec!["q_proj".into(), "up_proj".into()]));
    for (ordinal, m) in all.modules.iter().enumerate() {
        assert_eq!((m.a.len(), m.b.len(), m.r, m.scale), (18, m.out_features * 3, 3, 2.0));
        assert!(m.b.iter().all(|x| x.to_bits() == 0));
        for (i, x) in m.a.iter().enumerate() {
            let word = philox([0x89ab_cdef, 0x0123_4566], [i as u32 / 4, 0, ordinal as u32, 0])[i % 4];
            let exact = (2.0 * f64::from(word >> 8) / f64::from(1 << 24) - 1.0) / 6f64.sqrt();
            assert!((f64::from(*x) - exact).abs() < 1e-7 && x.abs() <= 6f32.sqrt().recip(), "{x} {exact}");
        }
    }
    let part = fresh(Targets::Regex(r".*\.1\..*".into()));
    assert_eq!(part.modules[..], all.modules[2..], "a module's draws do not depend on the others");
    assert_eq!(
        part.config.target_modules,
        Targets::List(vec!["model.layers.1.mlp.up_proj".into(), "model.layers.1.self_attn.q_proj".into()])
    );
    part.save(temporary.path()).unwrap();
    assert_eq!(Adapter::load(temporary.path(), &expected).unwrap(), part);
    for (r, alpha) in [(0, 1.0), (1, 0.0), (1, f64::NAN)] {
        let config = AdapterConfig::new(r, alpha, Targets::AllLinear);
        let error = Adapter::fresh(config, &expected, 1, philox).unwrap_err().to_string();
        assert!(error.contains("r, lora_alpha: wanted a rank of at least 1"), "{error}");
    }
}

#[test]
fn the_written_config_has_pefts_keys_sorted() {
    let temporary = tempfile::tempdir().unwrap();
    let config =
        AdapterConfig { base_model_name_or_path: Some("base \"x\"".into()), ..AdapterConfig::new(2, 0.5, Targets::AllLinear) };
    let mut adapter = Adapter::fresh(config, &small()[..1], 7, philox).unwrap();
    adapter.config.modules_to_save = vec!["classifier".into(), "score".into()];
    adapter.config.task_type = Some("SEQ_CLS".into());
    adapter.score = Some(vec![1.0; 6]);
    adapter.save(temporary.path()).unwrap();
    let text = std::fs::read_to_string(temporary.path().join(CONFIG)).unwrap();
    let wanted = r#"{
  "alpha_pattern": {},
  "base_model_name_or_path": "base \"x\"",
  "bias": "none",
  "fan_in_fan_out": false,
  "inference_mode": true,
  "init_lora_weights": true,
  "lora_alpha": 0.5,
  "lora_dropout": 0.0,
  "modules_to_save": [
    "classifier",
    "score"
  ],
  "peft_type": "LORA",
  "peft_version": "0.21.2",
  "r": 2,
  "rank_pattern": {},
  "target_modules": [
    "q_proj"
  ],
  "task_type": "SEQ_CLS",
  "use_dora": false,
  "use_rslora": false
}"#;
    assert_eq!(text, wanted);
    assert!(std::fs::read_to_string(temporary.path().join("README.md")).unwrap().contains("base_model: \"base \\\"x\\\"\""));
    assert_eq!(Adapter::load(temporary.path(), &small()[..1]).unwrap(), adapter);
    let specs = [("A", [2, 6]), ("B", [4, 2])].map(|(w, shape)| TensorSpec {
        name: format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{w}.weight"),
        shape: shape.to_vec(),
    });
    let score = TensorSpec { name: SCORE.into(), shape: vec![1, 6] };
    Checkpoint::open_file(&temporary.path().join(TENSORS)).unwrap().check(&[&specs[..], &[score]].concat()).unwrap();
}

#[test]
fn sixteen_bit_tensors_are_widened() {
    let temporary = tempfile::tempdir().unwrap();
    let (expected, folder) = (&small()[..1], temporary.path());
    std::fs::write(folder.join(CONFIG), plain().to_string()).unwrap();
    let a: Vec<u8> = (0..12).flat_map(|i| half::bf16::from_f32(i as f32).to_le_bytes()).collect();
    let b: Vec<u8> = (0..8).flat_map(|i| half::f16::from_f32(i as f32 / 4.0).to_le_bytes()).collect();
    let (a_key, b_key) = (key(&expected[0].path, 'A'), key(&expected[0].path, 'B'));
    write_safetensors(&folder.join(TENSORS), &[(a_key, DType::Bf16, vec![2, 6], &a), (b_key, DType::F16, vec![4, 2], &b)])
        .unwrap();
    let adapter = Adapter::load(folder, expected).unwrap();
    assert_eq!(adapter.modules[0].a, (0..12).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(adapter.modules[0].b, (0..8).map(|i| i as f32 / 4.0).collect::<Vec<_>>());
}

type Change<'a> = &'a dyn Fn(&mut Adapter);

#[test]
fn bad_tensors_name_the_key() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let good = Adapter::fresh(AdapterConfig::new(2, 4.0, Targets::AllLinear), &small(), 1, philox).unwrap();
    let fault = |change: Change| {
        let mut adapter = good.clone();
        change(&mut adapter);
        write_safetensors(&folder.join(TENSORS), &adapter.tensors()).unwrap();
        std::fs::write(folder.join(CONFIG), plain().to_string()).unwrap();
        Adapter::load(folder, &small()).unwrap_err().to_string()
    };
    let at = |text: &str| format!("adapter_model.safetensors: tensor \"base_model.model.{text}");
    let rank = |a: &mut Adapter| {
        (a.modules[0].r, a.modules[0].a, a.modules[0].b) = (1, vec![0.0; 6], vec![0.0; 4]);
    };
    let wide = |a: &mut Adapter| {
        (a.modules[2].out_features, a.modules[2].b) = (5, vec![0.0; 10]);
    };
    let cases: [(Change, String); 6] = [
        (&rank, at("model.layers.0.self_attn.q_proj.lora_A.weight\": shape: wanted [2, 6], got [1, 6]")),
        (&wide, at("model.layers.1.self_attn.q_proj.lora_B.weight\": shape: wanted [4, 2], got [5, 2]")),
        (&|a| drop(a.modules.remove(1)), at("model.layers.0.mlp.up_proj.lora_A.weight\": wanted, but it is not there")),
        (
            &|a| a.modules[3].path = "lm_head".into(),
            at("model.layers.1.mlp.up_proj.lora_A.weight\": wanted, but it is not there"),
        ),
        (
            &|a| a.modules.push(AdapterModule { path: "lm_head".into(), ..a.modules[0].clone() }),
            at("lm_head.lora_A.weight\": wanted no such tensor"),
        ),
        (
            &|a| a.modules[1].b[5] = f32::NAN,
            at("model.layers.0.mlp.up_proj.lora_B.weight\": wanted finite numbers, got NaN or infinity at element 5"),
        ),
    ];
    for (change, wanted) in cases {
        let text = fault(change);
        assert!(text.contains(&wanted), "{wanted}: {text}");
    }
    good.save(folder).unwrap();
    let head =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": "all-linear", "modules_to_save": ["score"]});
    std::fs::write(folder.join(CONFIG), head.to_string()).unwrap();
    assert!(
        Adapter::load(folder, &small()).unwrap_err().to_string().contains(&at("score.weight\": wanted, but it is not there"))
    );
    std::fs::rename(folder.join(TENSORS), folder.join("adapter_model.bin")).unwrap();
    assert!(Adapter::load(folder, &small()).unwrap_err().to_string().contains("got adapter_model.bin only"));
    std::fs::remove_file(folder.join(CONFIG)).unwrap();
    assert!(Adapter::load(folder, &small()).unwrap_err().to_string().contains("adapter_config.json: cannot read"));
}

#[test]
fn bad_configs_name_the_field() {
    let cases = [
        (json!({"peft_type": "IA3"}), "peft_type: wanted \"LORA\", the one method supported, got \"IA3\""),
        (json!({"peft_type": null}), "peft_type: wanted \"LORA\""),
        (json!({"task_type": "SEQ_2_SEQ_LM"}), "task_type: wanted \"CAUSAL_LM\" or \"SEQ_CLS\""),
        (json!({"r": 0}), "r: wanted an integer from 1 to 65536, got 0"),
        (json!({"r": null}), "r: wanted an integer of at least 1, got null"),
        (json!({"r": 2.5}), "r: wanted an integer"),
        (json!({"lora_alpha": 0}), "lora_alpha: wanted a number above 0, got 0"),
        (json!({"lora_alpha": "16"}), "lora_alpha: wanted a finite number"),
        (json!({"lora_dropout": 1.0}), "lora_dropout: wanted a number from 0 to below 1"),
        (json!({"bias": "lora_only"}), "bias: wanted \"none\", got \"lora_only\""),
        (json!({"lora_bias": true}), "lora_bias: wanted nothing"),
        (json!({"use_dora": "yes"}), "use_dora: wanted true or false, got \"yes\""),
        (json!({"use_qalora": true}), "use_qalora: wanted nothing"),
        (json!({"layer_replication": [[0, 4]]}), "layer_replication: wanted nothing"),
        (json!({"layers_to_transform": [-1]}), "layers_to_transform: wanted a layer's number or a list of them, got [-1]"),
        (json!({"layers_to_transform": "1"}), "layers_to_transform: wanted an integer from 0"),
        (
            json!({"layers_to_transform": 1, "target_modules": "all-linear"}),
            "layers_to_transform: wanted nothing unless target_modules is a list, got 1",
        ),
        (json!({"layers_pattern": "layers"}), "layers_pattern: wanted nothing without layers_to_transform"),
        (json!({"layers_to_transform": 1, "layers_pattern": 7}), "layers_pattern: wanted a list of strings"),
        (json!({"target_parameters": ["w"]}), "target_parameters: wanted nothing"),
        (json!({"trainable_token_indices": [1]}), "trainable_token_indices: wanted nothing"),
        (json!({"alora_invocation_tokens": [1, 2]}), "alora_invocation_tokens: wanted nothing"),
        (json!({"megatron_config": {"a": 1}}), "megatron_config: wanted nothing"),
        (json!({"init_lora_weights": "pissa"}), "init_lora_weights: wanted an init that leaves the base weights"),
        (json!({"init_lora_weights": "pissa_niter_16"}), "init_lora_weights: wanted an init that leaves the base weights"),
        (json!({"init_lora_weights": "olora"}), "init_lora_weights: wanted an init that leaves the base weights"),
        (json!({"init_lora_weights": "corda"}), "init_lora_weights: wanted an init that leaves the base weights"),
        (json!({"init_lora_weights": "loftq"}), "init_lora_weights: wanted an init that leaves the base weights"),
        (json!({"modules_to_save": ["score", "q_proj"]}), "modules_to_save: wanted nothing but \"score\", \"embed_tokens\""),
        (
            json!({"modules_to_save": ["lm_head"], "ensure_weight_tying": true}),
            "ensure_weight_tying: wanted false beside modules_to_save, got true",
        ),
        (json!({"target_modules": 7}), "target_modules: wanted \"all-linear\""),
        (json!({"target_modules": [7]}), "target_modules: wanted a list of strings"),
        (json!({"rank_pattern": {"q": 0}}), "rank_pattern.q: wanted an integer from 1"),
        (json!({"alpha_pattern": {"q": null}}), "alpha_pattern.q: wanted a number, got null"),
        (json!({"use_rslora": "no"}), "use_rslora: wanted true or false"),
    ];
    for (change, wanted) in cases {
        let text = parse(change).expect_err(wanted).to_string();
        assert!(text.starts_with("folder/adapter_config.json: ") && text.contains(wanted), "{text}");
    }
    for (change, wanted) in [
        (json!({"target_modules": "(q_proj"}), "target_modules: wanted a regular expression"),
        (json!({"rank_pattern": {"*": 1}}), "rank_pattern: wanted a regular expression"),
        (json!({"lora_alpha": 1e300}), "lora_alpha: wanted one whose scale fits f32, got 1000"),
        (
            json!({"target_modules": ["q_proj", "lm_head"]}),
            "target_modules: wanted linear modules inside the layers, got lm_head",
        ),
        (json!({"target_modules": ".*"}), "target_modules: wanted linear modules inside the layers, got model.embed_tokens"),
        (json!({"layers_to_transform": 0, "layers_pattern": ["(layers"]}), "layers_pattern: wanted a regular expression"),
        (json!({"target_modules": "((.*)*)*(?=x)\\2_nothing"}), "target_modules: wanted"),
    ] {
        let text = parse(change).unwrap().select(Path::new("c.json"), &small()).err().expect(wanted).to_string();
        assert!(text.starts_with("c.json: ") && text.contains(wanted), "{text}");
    }
    let config = parse(json!({"use_novelty": true, "novelty_config": {}, "alora": null})).unwrap();
    assert_eq!(config.warnings, ["adapter_config.json: use_novelty = true is not known and passed over"]);
}

#[test]
fn damaged_configs_never_panic() {
    let mut file = plain();
    file["rank_pattern"] = json!({"q_proj": 4});
    file["exclude_modules"] = json!("(up|down)_proj");
    let (text, mut random, mut read) = (file.to_string(), Lcg(3), 0);
    for _ in 0..1000 {
        let damaged = random.damage(text.as_bytes());
        let Ok(config) = AdapterConfig::parse(Path::new("c.json"), &String::from_utf8_lossy(&damaged)) else { continue };
        read += usize::from(
            config.select(Path::new("c.json"), &small()).is_ok_and(|s| s.iter().all(|m| m.r > 0 && m.scale.is_finite())),
        );
    }
    assert!(read > 20 && read < 980, "{read}");
}
