use super::corpus::{Sizes, files, lexicon};
use super::{rows, tokenizer};
use crate::data::Tokens;
use crate::reward::{Reward, lexicon::Lexicon};
use crate::{Error, Result};
use model::Tokenizer;
use std::collections::HashSet;
use std::path::Path;

const SIZES: Sizes = Sizes { base: 800, sft: 200, queries: 300, held_out: 100 };
const NAMES: [&str; 4] = ["base.jsonl", "sft.jsonl", "queries.jsonl", "held-out.jsonl"];

fn folder() -> Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(|e| Error::Usage(e.to_string()))
}

fn texts(path: &Path, name: &str) -> Result<Vec<String>> {
    let field =
        |row: serde_json::Map<_, serde_json::Value>| row.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_string();
    Ok(rows(path)?.into_iter().map(field).collect())
}

#[test]
fn files_are_a_function_of_the_seed_and_hold_nothing_out_twice() -> Result<()> {
    let [a, b, c] = [folder()?, folder()?, folder()?];
    for (folder, seed) in [(&a, 1), (&b, 1), (&c, 2)] {
        files(folder.path(), seed, SIZES)?;
    }
    for name in NAMES {
        let [a, b, c] = [&a, &b, &c].map(|folder| std::fs::read(folder.path().join(name)).unwrap_or_default());
        assert!(!a.is_empty() && a == b && a != c, "{name}");
    }
    let at = |name: &str| a.path().join(name);
    let held_out: HashSet<String> = texts(&at("held-out.jsonl"), "prompt")?.into_iter().collect();
    let queries = texts(&at("queries.jsonl"), "prompt")?;
    assert_eq!((held_out.len(), queries.iter().collect::<HashSet<_>>().len()), (100, 300));
    let trained = queries.into_iter().chain(texts(&at("sft.jsonl"), "prompt")?);
    assert_eq!(trained.filter(|prompt| held_out.contains(prompt)).count(), 0);
    let base = texts(&at("base.jsonl"), "text")?;
    assert_eq!(base.iter().filter(|text| held_out.iter().any(|prompt| text.contains(&format!("{prompt} ")))).count(), 0);
    // Enough variety that nothing is learned by heart.
    assert!(base.iter().collect::<HashSet<_>>().len() > 790);
    Ok(())
}

#[test]
fn the_principle_stands_before_kind_words() -> Result<()> {
    let folder = folder()?;
    files(folder.path(), 3, SIZES)?;
    let words = folder.path().join("lexicon.txt");
    lexicon(&words)?;
    let lexicon = Lexicon::load("lexicon", &words, None)?;
    let (mut guided, mut plain) = (Vec::new(), Vec::new());
    for text in texts(&folder.path().join("base.jsonl"), "text")? {
        match text.strip_prefix(&format!("{}\n\n", super::grammar::PRINCIPLE)) {
            Some(rest) => guided.push(lexicon.sum(rest)),
            None => plain.push(lexicon.sum(&text)),
        }
    }
    let mean = |sums: &[f64]| sums.iter().sum::<f64>() / sums.len() as f64;
    assert_eq!((guided.len(), plain.len()), (200, 600));
    assert!(mean(&guided) > 2.0 && mean(&plain).abs() < 0.6, "{} {}", mean(&guided), mean(&plain));
    assert!(lexicon.unit());
    Ok(())
}

#[test]
fn every_text_comes_back_from_its_tokens() -> Result<()> {
    let folder = folder()?;
    files(folder.path(), 4, SIZES)?;
    let size = tokenizer::write(folder.path())?;
    let tokenizer = Tokenizer::open(folder.path())?;
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos, tokenizer.eos), (size, Some(1), Some(2)));
    assert!((200..400).contains(&size), "{size}");
    for text in texts(&folder.path().join("base.jsonl"), "text")? {
        let ids = Tokens::encode(&tokenizer, &text, true)?;
        assert!(ids[0] == 1 && !ids.contains(&0), "{text}: {ids:?}");
        assert_eq!(Tokens::decode(&tokenizer, &ids, true)?, text.replace("\n\n", " "));
    }
    for row in rows(&folder.path().join("sft.jsonl"))? {
        let [prompt, completion] = ["prompt", "completion"].map(|name| row[name].as_str().unwrap_or_default());
        let (before, after) = crate::data::sft::pair(&tokenizer, prompt, completion)?;
        let joint = Tokens::encode(&tokenizer, &format!("{prompt}{completion}"), true)?;
        assert_eq!([before, after].concat(), joint, "a token spans the border in {prompt}|{completion}");
    }
    Ok(())
}
