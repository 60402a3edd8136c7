use super::*;
use crate::shared::{Lcg, folders, shared};
use serde_json::json;

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// A word-level tokenizer of three tokens that frames a text with `<s>`.
fn tiny() -> Value {
    json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "model": {"type": "WordLevel", "vocab": {"<s>": 0, "good": 1, "bad": 2}, "unk_token": "bad"}})
}

#[test]
fn fixtures_give_the_golden_ids() {
    let mut probes = 0;
    for case in folders("fixtures/lm", "llama_") {
        let (tokenizer, golden) = (Tokenizer::open(&case.join("model")).unwrap(), json_of(&case.join("tokenizer_golden.json")));
        for probe in golden["probes"].as_array().unwrap() {
            let text = probe["text"].as_str().unwrap();
            let (special, plain) = (tokenizer.encode(text, true).unwrap(), tokenizer.encode(text, false).unwrap());
            assert_eq!((&special, &plain), (&ids(&probe["ids"]), &ids(&probe["ids_no_special"])), "{text:?}");
            assert_eq!(tokenizer.decode(&plain, false).unwrap(), probe["decoded"].as_str().unwrap());
            assert_eq!(tokenizer.decode(&special, true).unwrap(), probe["decoded_skip_special"].as_str().unwrap());
            probes += 1;
        }
        assert_eq!((json!(tokenizer.bos), json!(tokenizer.eos)), (golden["bos_id"].clone(), golden["eos_id"].clone()));
        assert_eq!(json!(tokenizer.vocab_size()), golden["vocab"]);
        let names = (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.token(id).and_then(|token| tokenizer.id(&token)));
        assert!(names.eq((0..tokenizer.vocab_size() as u32).map(Some)));
    }
    assert!(probes > 0 || shared("fixtures").is_none());
}

#[test]
fn stories_prompts_give_the_golden_ids() {
    let Some(folder) = shared("data/models/stories260k") else { return };
    let tokenizer = Tokenizer::open(&folder).unwrap();
    for case in json_of(&folder.join("golden.json"))["cases"].as_array().unwrap() {
        assert_eq!(tokenizer.encode(case["prompt"].as_str().unwrap(), true).unwrap(), ids(&case["input_ids"]));
    }
    assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.vocab_size()), (Some(1), Some(2), 512));
}

#[test]
fn real_tokenizers_give_the_golden_ids() {
    for name in ["gpt2", "llama2", "llama3", "qwen2.5", "mistral-v1"] {
        let Some(folder) = shared(&format!("data/tokenizers/{name}")) else { return };
        let tokenizer = Tokenizer::open(&folder).unwrap();
        for line in std::fs::read_to_string(folder.join("golden.jsonl")).unwrap().lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let text = row["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&row["ids"]), "{name} {text:?}");
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&row["ids_special"]), "{name} {text:?}");
            if let Some(decoded) = row["decoded"].as_str() {
                assert_eq!(tokenizer.decode(&ids(&row["ids"]), false).unwrap(), decoded, "{name}");
            }
        }
    }
}

#[test]
fn padding_and_truncation_left_by_a_trainer_are_off() {
    let (Some(trap), Some(clean)) = (shared("data/tokenizers/gpt2-padding-state"), shared("data/tokenizers/gpt2")) else {
        return;
    };
    let (trap, clean) = (Tokenizer::open(&trap).unwrap(), Tokenizer::open(&clean).unwrap());
    let long = "a word and ".repeat(200);
    for text in ["", "Hello world", long.as_str()] {
        assert_eq!(trap.encode(text, true).unwrap(), clean.encode(text, true).unwrap());
    }
    assert!(trap.encode(&long, true).unwrap().len() > 256);
    assert_eq!((trap.eos, trap.vocab_size()), (Some(50256), 50257));
}

#[test]
fn a_lone_file_and_every_spelling_of_a_special_token() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::write(folder.join("tokenizer.json"), tiny().to_string()).unwrap();
    let tokenizer = Tokenizer::open(folder).unwrap();
    assert_eq!(tokenizer.encode("good bad good", true).unwrap(), [0, 1, 2, 1]);
    assert_eq!(tokenizer.encode("good", false).unwrap(), [1]);
    assert_eq!(
        (tokenizer.decode(&[0, 1, 2], true).unwrap(), tokenizer.decode(&[9], false).unwrap()),
        ("good bad".into(), String::new())
    );
    assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.vocab_size(), tokenizer.token(3)), (None, None, 3, None));
    let write = |config: &str| std::fs::write(folder.join("tokenizer_config.json"), config).unwrap();
    write(
        r#"{"bos_token":{"content":"<s>","lstrip":false},"eos_token":"bad","model_max_length":1000000000000000019884624838656}"#,
    );
    let tokenizer = Tokenizer::open(folder).unwrap();
    assert_eq!((tokenizer.bos, tokenizer.eos), (Some(0), Some(2)));
    for (config, wanted) in [
        (r#"{"eos_token": "</s>"}"#, "tokenizer_config.json: eos_token: wanted a token of tokenizer.json, got \"</s>\""),
        (r#"{"bos_token": 1}"#, "tokenizer_config.json: bos_token: wanted a string, or an object"),
        (r#"{"bos_token": {"id": 1}}"#, "tokenizer_config.json: bos_token: wanted a string, or an object"),
        (r#"{"bos_token": "<s>""#, "tokenizer_config.json: not valid JSON"),
    ] {
        write(config);
        let text = Tokenizer::open(folder).unwrap_err().to_string();
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn bad_tokenizers_name_the_file() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("tokenizer.json");
    assert!(Tokenizer::open(temporary.path()).unwrap_err().to_string().contains("tokenizer.json: cannot read"));
    let changed = |pointer: &str, value: Value| {
        let mut file = tiny();
        *file.pointer_mut(pointer).unwrap() = value;
        file.to_string().into_bytes()
    };
    let cases = [
        (b"".to_vec(), "wanted a tokenizer: EOF"),
        (b"{\xff}".to_vec(), "wanted UTF-8 text"),
        (b"[]".to_vec(), "wanted a tokenizer"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "git-LFS pointer"),
        (tiny().to_string().into_bytes()[..400].to_vec(), "wanted a tokenizer: EOF"),
        (changed("/version", json!("9.0")), "wanted a tokenizer"),
        (changed("/model/type", json!("Unknown")), "wanted a tokenizer"),
        (changed("/model/vocab/good", json!(-1)), "wanted a tokenizer"),
        (changed("/added_tokens/0/id", json!("0")), "wanted a tokenizer"),
        (
            changed(
                "/pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
            ),
            "wanted a tokenizer",
        ),
    ];
    for (bytes, wanted) in cases {
        std::fs::write(&path, &bytes).unwrap();
        let text = Tokenizer::open(temporary.path()).expect_err(wanted).to_string();
        assert!(text.contains("tokenizer.json: ") && text.contains(wanted), "{text}");
    }
    // A template that names a special token without ids makes the library panic while encoding.
    std::fs::write(&path, changed("/post_processor/special_tokens", json!({}))).unwrap();
    let text = Tokenizer::open(temporary.path()).and_then(|t| t.encode("good", true)).unwrap_err().to_string();
    assert!(
        text.contains("tokenizer.json: wanted to encode a text, got a file that the tokenizers library cannot handle"),
        "{text}"
    );
    let (good, mut random, mut read) = (tiny().to_string(), Lcg(4), 0);
    for _ in 0..500 {
        std::fs::write(&path, random.damage(good.as_bytes())).unwrap();
        let Ok(tokenizer) = Tokenizer::open(temporary.path()) else { continue };
        if let Ok(ids) = tokenizer.encode("good bad ugly", true) {
            assert!(ids.len() <= 32 && tokenizer.decode(&ids, false).is_ok());
            read += 1;
        }
    }
    assert!(read > 10, "{read}");
}

/// The pieces that ids give one by one.
fn told(ids: &[u32], tokenizer: &Tokenizer) -> Vec<String> {
    let mut stream = TextStream::default();
    let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id, tokenizer).unwrap()).collect();
    pieces.push(stream.finish(tokenizer).unwrap());
    pieces
}

#[test]
fn text_as_it_comes_is_the_text_of_all() {
    let texts = [
        "Once upon a time, there was a dog.",
        "  two spaces\n\n\ttab  and more  ",
        "é ü ß 中文字符 日本語 한국어 😀👩‍👩‍👧‍👦 🏳️‍🌈 \u{10ffff}",
        "it's   don't <s> </s> <|endoftext|> <|im_end|>",
        "",
    ];
    for name in [
        "data/models/stories260k",
        "data/tokenizers/gpt2",
        "data/tokenizers/llama2",
        "data/tokenizers/llama3",
        "data/tokenizers/qwen2.5",
        "data/tokenizers/mistral-v1",
    ] {
        let Some(folder) = shared(name) else { return };
        let tokenizer = Tokenizer::open(&folder).unwrap();
        for text in texts {
            for special in [false, true] {
                let ids = tokenizer.encode(text, special).unwrap();
                let pieces = told(&ids, &tokenizer);
                assert_eq!(pieces.concat(), tokenizer.decode(&ids, true).unwrap(), "{name} {text:?}");
                assert!(pieces[..pieces.len() - 1].iter().all(|piece| !piece.contains('\u{fffd}')), "{name} {pieces:?}");
            }
        }
        // Any ids: text where they are text, and never a panic.
        let mut random = Lcg(7);
        for _ in 0..200 {
            let ids: Vec<u32> = (0..random.below(30)).map(|_| random.below(tokenizer.vocab_size()) as u32).collect();
            let (pieces, whole) = (told(&ids, &tokenizer), tokenizer.decode(&ids, true).unwrap());
            assert!(whole.contains('\u{fffd}') || pieces.concat() == whole, "{name} {ids:?}: {pieces:?} {whole:?}");
        }
    }
}
