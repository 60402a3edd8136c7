//! What is fuzzed: a function per kind of file that users bring. Each takes any bytes and must not panic; it says whether they got past
//! the outer parse (JSON, a header of the length it says, YAML, a template that compiles), so that a campaign can count what it reaches.
//! Two callers: `cargo fuzz` (see Cargo.toml here) and the ordinary test `mutated`, which keeps these from rotting.

use model::adapter::Adapter;
use model::weights::Checkpoint;
use model::{AdapterConfig, Config, Conversation, ModuleSpec, Template, Tokenizer};
use ple::config::Command;
use ple::data::{self, Fit, Tokens};
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A function with the name of its folder of seeds.
pub struct Function {
    pub name: &'static str,
    pub run: fn(&[u8]) -> bool,
}

/// All of them.
pub const ALL: [Function; 7] = [
    Function { name: "config", run: config },
    Function { name: "adapter", run: adapter },
    Function { name: "safetensors", run: safetensors },
    Function { name: "tokenizer", run: tokenizer },
    Function { name: "template", run: template },
    Function { name: "rows", run: rows },
    Function { name: "yaml", run: yaml },
];

thread_local! {
    /// Where a function's file lies; each thread has its own.
    static SCRATCH: TempDir = tempfile::tempdir().expect("a temporary folder");
}

/// Writes the bytes as a file of that name, alone or in a folder of others.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = SCRATCH.with(|folder| folder.path().join(name));
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(&path, bytes).expect("a file");
    path
}

fn is_object(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Value>(bytes).is_ok_and(|v| v.is_object())
}

/// `config.json`. What is accepted has tensors and modules that fit together.
pub fn config(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(config) = Config::parse(Path::new("config.json"), &text) {
        let tensors = config.tensors();
        assert!(!tensors.is_empty() && tensors.iter().all(|t| t.shape.iter().all(|d| *d > 0)));
        assert!(config.modules().iter().all(|m| m.in_features > 0 && m.out_features > 0));
    }
    is_object(bytes)
}

/// `adapter_config.json`, by itself and over a folder without tensors.
pub fn adapter(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(config) = AdapterConfig::parse(Path::new("adapter_config.json"), &text) {
        assert!(config.r > 0 && config.lora_alpha > 0.0);
        let folder = file("adapter/adapter_config.json", bytes);
        let folder = folder.parent().expect("a folder");
        assert!(Adapter::load(folder, &modules()).is_err());
    }
    is_object(bytes)
}

/// The modules of a small Llama.
pub fn modules() -> Vec<ModuleSpec> {
    let module = |name: &str| ModuleSpec { path: format!("model.layers.0.{name}_proj"), in_features: 4, out_features: 4 };
    ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"].map(module).to_vec()
}

/// A safetensors file: what opens has all its elements inside.
pub fn safetensors(bytes: &[u8]) -> bool {
    let path = file("model.safetensors", bytes);
    if let Ok(checkpoint) = Checkpoint::open_file(&path) {
        for name in checkpoint.names() {
            let Ok(tensor) = checkpoint.tensor(name) else { continue };
            let _ = tensor.check_finite();
            assert_eq!(tensor.to_f32().len() * tensor.dtype.size(), tensor.bytes.len());
        }
    }
    bytes.split_first_chunk::<8>().is_some_and(|(length, rest)| {
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        rest.get(..length).is_some_and(is_object)
    })
}

/// `tokenizer_config.json` beside a tokenizer of three words.
pub fn tokenizer(bytes: &[u8]) -> bool {
    let folder = file("tokenizer/tokenizer_config.json", bytes);
    let folder = folder.parent().expect("a folder");
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false })
    };
    let words = json!({ "version": "1.0", "added_tokens": [special(0, "<s>"), special(1, "</s>")], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": { "<s>": 0, "</s>": 1, "word": 2 }, "unk_token": "word" } });
    std::fs::write(folder.join("tokenizer.json"), words.to_string()).expect("a file");
    if let Ok(tokenizer) = Tokenizer::open(folder) {
        assert!([tokenizer.bos, tokenizer.eos].iter().flatten().all(|id| *id < 3));
        if let Ok(Some(template)) = tokenizer.template() {
            talk(&template, &messages());
        }
    }
    is_object(bytes)
}

fn messages() -> Value {
    json!([{ "role": "system", "content": "s" }, { "role": "user", "content": "a é" },
        { "role": "assistant", "content": "b" }, { "role": "user", "content": "" }])
}

/// A chat template, over four messages.
pub fn template(bytes: &[u8]) -> bool {
    let source = String::from_utf8_lossy(bytes).into_owned();
    let special = Map::from_iter([("bos_token".into(), json!("<s>")), ("eos_token".into(), json!("</s>"))]);
    match Template::new(Path::new("t.jinja"), vec![("default".into(), source)], special, 0) {
        Ok(template) => {
            talk(&template, &messages());
            true
        }
        Err(_) => false,
    }
}

/// What a rendering came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Rendered,
    /// Too many steps.
    Steps,
    /// Too long a text.
    Long,
    /// An error of the template or of its messages.
    Refused,
}

/// Renders; what comes out is within the limits, the same again, and its spans lie in it, in order, on whole characters.
pub fn talk(template: &Template, messages: &Value) -> Outcome {
    let chat = Conversation::new(messages, true);
    match (template.render(&chat), template.render(&chat)) {
        (Ok(once), Ok(again)) => {
            assert_eq!(once, again, "another rendering");
            assert!(once.text.len() <= 4 << 20);
            assert!(!template.marks_assistant() || !once.text.contains(['\u{fdd0}', '\u{fdd1}']));
            let mut end = 0;
            for Range { start, end: until } in once.assistant {
                assert!(end <= start && start < until && once.text.get(start..until).is_some());
                end = until;
            }
            Outcome::Rendered
        }
        (Err(once), Err(again)) => {
            let text = once.to_string();
            assert_eq!(text, again.to_string(), "another refusal");
            match text {
                text if text.contains("at most 1000000 steps") => Outcome::Steps,
                text if text.contains("at most 4194304 bytes") => Outcome::Long,
                _ => Outcome::Refused,
            }
        }
        (once, again) => panic!("once {once:?}, again {again:?}"),
    }
}

/// Rows of every kind: read for each stage that reads rows.
pub fn rows(bytes: &[u8]) -> bool {
    let path = file("rows.jsonl", bytes);
    for tokens in [Letters(false), Letters(true)] {
        let _ = data::groups(&path, &tokens, 24, None);
        let assistant = data::sft::LossOn { completion: None, assistant: true };
        let _ = data::groups(&path, &tokens, 24, assistant);
        let _ = data::pairs(&path, &tokens, 24, Fit::Cut);
        let _ = data::pairs(&path, &tokens, 24, Fit::Leave(&[2]));
        if let Ok((queries, ..)) = data::queries(&path, &tokens, 1) {
            let _ = data::prompts(&queries, &tokens, None, 24);
        }
    }
    bytes.split(|byte| *byte == b'\n').any(is_object)
}

/// A token a byte, with a chat template or without.
struct Letters(bool);

const CHATML: &str = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
    {% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";

impl Tokens for Letters {
    fn encode(&self, text: &str, special: bool) -> ple::Result<Vec<u32>> {
        Ok(special.then_some(1).into_iter().chain(text.bytes().map(|byte| u32::from(byte) + 3)).collect())
    }
    fn decode(&self, ids: &[u32], _: bool) -> ple::Result<String> {
        let bytes: Vec<u8> = ids.iter().filter(|id| **id > 2).map(|id| (*id - 3) as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
    fn eos(&self) -> Option<u32> {
        Some(2)
    }
    fn template(&self) -> ple::Result<Option<Template>> {
        let new = || Template::new(Path::new("t.jinja"), vec![("default".into(), CHATML.into())], Map::new(), 0);
        Ok(self.0.then(new).transpose()?)
    }
    fn encode_marked(&self, text: &str, marked: &[Range<usize>]) -> ple::Result<(Vec<u32>, Vec<bool>)> {
        Ok((self.encode(text, false)?, (0..text.len()).map(|at| marked.iter().any(|m| m.contains(&at))).collect()))
    }
}

/// A file of settings.
pub fn yaml(bytes: &[u8]) -> bool {
    let path = file("settings.yaml", bytes);
    let argv = ["--dry_run".to_string(), "--config".into(), path.display().to_string()];
    let outcome = ple::config::Resolved::read(Command::Train, &argv);
    if let Ok(resolved) = &outcome {
        let _ = resolved.config.check();
        let _ = resolved.yaml();
    }
    outcome.is_ok()
}
