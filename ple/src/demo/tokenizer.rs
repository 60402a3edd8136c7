//! A word-level tokenizer for the demo's language, as a `tokenizer.json` of the tokenizers library and the
//! `tokenizer_config.json` beside it: a token is a word with the space before it, or a mark of punctuation.

use super::grammar;
use crate::Result;
use runtime::host;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Unknown, first and last token, at ids 0, 1, 2.
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];
/// Stands for a space.
const SPACE: char = '\u{2581}';

/// Tokens of every text of the grammar, in the order of their spelling; ids count on from the special ones.
fn vocabulary() -> Vec<String> {
    let mut words = BTreeSet::new();
    for text in grammar::texts() {
        let mut rest = text;
        let mut plain = String::new();
        while let Some((before, after)) = rest.split_once('{') {
            plain.push_str(before);
            plain.push(' ');
            rest = after.split_once('}').map_or("", |(_, after)| after);
        }
        plain.push_str(rest);
        for word in plain.split_whitespace() {
            let bare = word.trim_end_matches(|c: char| c.is_ascii_punctuation());
            words.extend(word[bare.len()..].chars().map(String::from));
            if !bare.is_empty() {
                words.insert(format!("{SPACE}{bare}"));
            }
        }
    }
    SPECIAL.map(String::from).into_iter().chain(words).collect()
}

/// Writes both files and returns V.
pub fn write(folder: &Path) -> Result<usize> {
    let tokens = vocabulary();
    let vocab: Map<String, Value> = tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    let spaces = json!({ "type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": true });
    let begin = json!({ "SpecialToken": { "id": SPECIAL[1], "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": { "type": "Replace", "pattern": { "Regex": "\\s+" }, "content": " " },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [spaces, { "type": "Punctuation", "behavior": "Isolated" }] },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text("A")],
            "pair": [begin, text("A"), text("B")],
            "special_tokens": { (SPECIAL[1]): { "id": SPECIAL[1], "ids": [1], "tokens": [SPECIAL[1]] } },
        },
        "decoder": spaces,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": SPECIAL[0] },
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": SPECIAL[0],
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "clean_up_tokenization_spaces": false,
        "model_max_length": super::POSITIONS,
    });
    for (name, value) in [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)] {
        host::write_file(&folder.join(name), |out| writeln!(out, "{value:#}"))?;
    }
    Ok(tokens.len())
}
