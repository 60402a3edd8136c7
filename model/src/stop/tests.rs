use super::*;
use crate::shared::{Lcg, shared};
use std::path::Path;

/// Characters of one to four bytes, words, and what a tokenizer may cut in two.
const TEXT: &str =
    "Once upon a time, there was a naïve café — “ok”? 日本語のテキスト 🙂👍🏽 fin.\n\nHuman: yes\n\nAssistant: no END</s> x";

/// How many ids it takes until a stop string is complete.
fn taken(ids: &[u32], stops: &[String], tokenizer: &Tokenizer) -> Option<usize> {
    let mut tail = Tail::default();
    ids.iter().position(|&id| tail.push(id, stops, tokenizer).unwrap()).map(|i| i + 1)
}

/// The same, by decoding everything every time.
fn wanted(ids: &[u32], stops: &[String], tokenizer: &Tokenizer) -> Option<usize> {
    (1..=ids.len()).find(|&n| {
        let text = tokenizer.decode(&ids[..n], false).unwrap();
        stops.iter().any(|stop| text.trim_end_matches(REPLACEMENT).contains(stop.as_str()))
    })
}

/// Every tokenizer that the shared folder has: byte-level, with byte fallback, of bytes alone.
fn tokenizers() -> Vec<Tokenizer> {
    let Some(folder) = shared("data/tokenizers") else { return Vec::new() };
    let mut folders: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    folders.extend(shared("data/models/stories260k"));
    folders
        .iter()
        .filter(|f| f.join("tokenizer.json").exists())
        .map(|f: &std::path::PathBuf| Tokenizer::open(Path::new(f)).unwrap())
        .collect()
}

#[test]
fn the_text_grows_as_if_it_were_decoded_whole() {
    let mut random = Lcg(5);
    let places: Vec<usize> = TEXT.char_indices().map(|(i, _)| i).chain([TEXT.len()]).collect();
    let tokenizers = tokenizers();
    assert!(!tokenizers.is_empty() || shared("data/tokenizers").is_none());
    for tokenizer in &tokenizers {
        let ids = tokenizer.encode(TEXT, false).unwrap();
        let mut found = 0;
        for _ in 0..150 {
            let from = random.below(places.len() - 1);
            let to = (from + 1 + random.below(12)).min(places.len() - 1);
            let stops = vec![TEXT[places[from]..places[to]].to_string(), "not there".into()];
            let (got, want) = (taken(&ids, &stops, tokenizer), wanted(&ids, &stops, tokenizer));
            assert_eq!(got, want, "{stops:?} of {} tokens", ids.len());
            found += usize::from(got.is_some());
        }
        assert!(found > 50, "{found} of 150 stop strings were found");
    }
}

/// Ids that are no text, and more of them than any character has: what is kept stays small.
#[test]
fn what_is_kept_of_a_text_stays_small() {
    for tokenizer in &tokenizers() {
        let (mut random, mut tail) = (Lcg(9), Tail::default());
        for _ in 0..400 {
            tail.push(random.below(tokenizer.vocab_size()) as u32, &["\n\nHuman:".into()], tokenizer).unwrap();
            assert!(tail.ids.len() <= 2 * PENDING && tail.text.len() < 16, "{tail:?}");
        }
    }
}

#[test]
fn settings_that_cannot_stop_are_refused() {
    let with = |stop: &str| Settings { stop_strings: vec!["ok".into(), stop.into()], ..Settings::default() };
    assert!(with("").validate().unwrap_err().to_string().contains("stop_strings[1]: wanted a text"));
    assert!(with("x").validate().unwrap_err().to_string().contains("stop_strings: wanted a tokenizer"));
    assert!(with("x").ends(1, &mut Tail::default()).is_err());
    assert!(Settings::default().validate().is_ok());
}
