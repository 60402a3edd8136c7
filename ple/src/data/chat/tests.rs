use super::*;
use crate::data::sft::LossOn;
use crate::data::tests::Bytes;
use crate::data::{Fit, groups, pairs, prompts, queries};
use crate::method::{Group, Method, sft::Sft};
use std::path::Path;

const BYTES: Bytes = Bytes { merge: false };
const PLAIN: &str =
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}";
const MARKED: &str = "{% for m in messages %}<{{ m.role[0] }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";

/// Bytes with a template.
struct Chatty(&'static str);

impl Tokens for Chatty {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        BYTES.encode(text, special)
    }
    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        BYTES.decode(ids, skip_special)
    }
    fn eos(&self) -> Option<u32> {
        BYTES.eos()
    }
    fn template(&self) -> Result<Option<Template>> {
        Ok(Some(Template::new(Path::new("t.jinja"), vec![("default".into(), self.0.into())], Map::new(), 0)?))
    }
    fn encode_marked(&self, text: &str, marked: &[Range<usize>]) -> Result<(Vec<u32>, Vec<bool>)> {
        Ok((self.encode(text, false)?, (0..text.len()).map(|at| marked.iter().any(|m| m.contains(&at))).collect()))
    }
}

fn file(rows: &str) -> Result<(tempfile::TempDir, std::path::PathBuf)> {
    let failed = |e: std::io::Error| Error::Usage(e.to_string());
    let folder = tempfile::tempdir().map_err(failed)?;
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, rows).map_err(failed)?;
    Ok((folder, path))
}

fn text(ids: &[u32]) -> String {
    BYTES.decode(ids, true).unwrap_or_default()
}

/// Prompt and answers of every group as texts.
fn texts(groups: &[Group]) -> Vec<Vec<String>> {
    let one = |g: &Group| std::iter::once(text(&g.prompt)).chain(g.sides.iter().map(|side| text(&side[0].ids))).collect();
    groups.iter().map(one).collect()
}

const TALK: &str = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "and"}, {"role": "assistant", "content": "end"}]}"#;

#[test]
fn every_kind_of_row_may_be_a_conversation() -> Result<()> {
    let row = r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "good"}]}"#;
    let (_folder, path) = file(&format!("{TALK}\n{row}"))?;
    let (rows, _) = groups(&path, &Chatty(PLAIN), 100, None)?;
    assert_eq!(texts(&rows), [vec!["", "<u>hi<a>yo<u>and<a>end"], vec!["<u>q<a>", "good"]]);
    // Nothing is added to what a template wrote.
    assert_eq!(rows[1].sides[0][0].ids.len(), 4);
    let pair = r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "good"}], "rejected": [{"role": "assistant", "content": "bad"}]}
        {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "gx"}], "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "gy"}]}
        {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "rejected": [{"role": "user", "content": "r"}, {"role": "assistant", "content": "a"}]}"#;
    let (_folder, path) = file(pair)?;
    for fit in [Fit::Cut, Fit::Leave(&[2])] {
        let (rows, dropped) = pairs(&path, &Chatty(PLAIN), 100, fit)?;
        let whole: Vec<[String; 2]> =
            texts(&rows).iter().map(|r| [format!("{}{}", r[0], r[1]), format!("{}{}", r[0], r[2])]).collect();
        assert_eq!(whole, [["<u>q<a>good", "<u>q<a>bad"], ["<u>q<a>gx", "<u>q<a>gy"]]);
        assert_eq!(dropped.other_prompt, 1);
        let ended = rows.iter().flat_map(|g| &g.sides).all(|side| side[0].ids.last() == Some(&2));
        assert_eq!(ended, fit != Fit::Cut, "a scalar head reads an end, which this template does not write");
    }
    Ok(())
}

#[test]
fn queries_take_the_principle_as_their_system_message() -> Result<()> {
    let rows = r#"{"prompt": [{"role": "user", "content": "q"}]}
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "so "}]}"#;
    let (_folder, path) = file(&format!("{rows}\n{TALK}"))?;
    let (queries, ..) = queries(&path, &Chatty(PLAIN), 0)?;
    let principle = Principle { text: "Be kind.".into() };
    let (prompts, _) = prompts(&queries, &Chatty(PLAIN), Some(&principle), 200)?;
    let got: Vec<_> = prompts.iter().map(|p| (p.text.as_str(), text(&p.plain), text(&p.guided))).collect();
    let pair = |plain: &'static str, guided: &str| (plain, plain.to_string(), guided.to_string());
    assert_eq!(
        got,
        [
            pair("<u>q<a>", "<s>Be kind.<u>q<a>"),
            pair("<s>s<u>q<a>so", "<s>Be kind.\n\ns<u>q<a>so"),
            pair("<u>hi<a>yo<u>and<a>", "<s>Be kind.<u>hi<a>yo<u>and<a>"),
        ]
    );
    Ok(())
}

#[test]
fn the_loss_falls_on_the_assistant_alone() -> Result<()> {
    let (_folder, path) = file(TALK)?;
    let on = LossOn { completion: None, assistant: true };
    for template in [MARKED, PLAIN] {
        let (rows, _) = groups(&path, &Chatty(template), 100, on)?;
        let answer = &rows[0].sides[0][0];
        let within: Vec<u32> = answer.ids.iter().zip(&answer.loss).filter(|(_, on)| **on).map(|(id, _)| *id).collect();
        assert_eq!(text(&within), "yoend");
        let (examples, _) = Sft.label(0, rows.clone())?;
        let examples: Vec<_> = examples.iter().collect();
        let mut batch = model::Batch::default();
        crate::pack::fill(&mut batch, crate::method::Heads::LogProb, &examples)?;
        assert_eq!(text(&batch.targets), "yoend");
        let before: Vec<u32> = batch.rows.iter().map(|row| batch.tokens[*row as usize]).collect();
        assert_eq!(text(&before), ">y>en");
        assert_eq!((batch.sequences[0].len(), crate::pack::totals(crate::method::Heads::LogProb, &examples).tokens), (5, 5.0));
    }
    let refused = groups(&file("{\"text\": \"plain\"}")?.1, &Chatty(PLAIN), 100, on);
    assert!(refused.is_err());
    // A template that writes earlier turns otherwise cannot be told apart.
    let forgetful = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let error = groups(&path, &Chatty(forgetful), 100, on).map_err(|e| e.to_string());
    assert!(error.is_err_and(|e| e.contains("no {% generation %} block")));
    Ok(())
}

#[test]
fn what_cannot_be_rendered_is_named() -> Result<()> {
    for (row, wanted) in [
        (r#"{"messages": []}"#, "line 1: field messages: wanted messages, got an empty list"),
        (r#"{"prompt": [{"content": "x"}]}"#, "line 1: field prompt: message 0: wanted an object with a string `role`"),
        (
            r#"{"prompt": [{"role": "user"}], "completion": "c"}"#,
            "line 1: field completion: wanted a list of messages, got a string",
        ),
    ] {
        let (_folder, path) = file(row)?;
        let error = groups(&path, &Chatty(PLAIN), 100, None).map_err(|e| e.to_string());
        assert!(error.as_ref().is_err_and(|e| e.contains(wanted)), "{error:?}");
    }
    let (_folder, path) = file(TALK)?;
    let error = groups(&path, &BYTES, 100, None).map_err(|e| e.to_string());
    assert!(error.is_err_and(|e| e.contains("no chat template")));
    Ok(())
}
