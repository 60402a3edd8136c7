//! Pairs of answers, the better one first (ALGORITHMS §5, TRL's preference rows): `{"prompt", "chosen", "rejected"}`; `{"chosen",
//! "rejected"}` with the prompt in both (raw dialogues, or texts that begin alike); comparisons of summaries `{"info", "summaries",
//! "choice"}`. A number `margin` may stand beside them.

use super::chat::{self, AsRendered, Told, Want};
use super::jsonl::{Line, Lines, kind};
use super::queries::nothing_left;
use super::row::text;
use super::sft::{Left, border, example};
use super::{Dropped, Tokens, hh, tldr};
use crate::method::{Answer, Group};
use crate::{Result, interrupt};
use serde_json::{Map, Value};
use std::path::Path;

/// What becomes of answers that are too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit<'a> {
    /// Their end is cut off. Prompt and answer are tokenised as for the supervised stage.
    Cut,
    /// The pair is left out. Prompt and answer are tokenised as one, as a scalar head reads them: see [`judged`], which these ids are for.
    Leave(&'a [u32]),
}

/// The texts of a row.
#[derive(Clone, Debug, PartialEq)]
struct Texts {
    prompt: String,
    chosen: String,
    rejected: String,
    margin: f64,
}

/// Why a pair is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Out {
    Unpaired(hh::Unpaired),
    Identical,
    Long,
}

/// Every pair of a file, its chosen and its rejected answer on one side each.
pub fn pairs(path: &Path, tokens: &dyn Tokens, max_length: usize, fit: Fit<'_>) -> Result<(Vec<Group>, Dropped)> {
    let (mut groups, mut dropped) = (Vec::new(), Dropped::default());
    let mut lines = Lines::open(path)?;
    while let Some(mut line) = lines.next().transpose()? {
        interrupt::check()?;
        let rendered = AsRendered(tokens);
        let read_as: &dyn Tokens = match chat::render(&lines, &mut line, tokens, Want::Whole)? {
            Told::Text => tokens,
            Told::Chat(..) => &rendered,
            Told::Unpaired => {
                dropped.other_prompt += 1;
                continue;
            }
        };
        let made = match read(&lines, &line)? {
            Ok(texts) => match fit {
                Fit::Cut => cut(read_as, &texts, max_length)?,
                // What a template rendered is scored as a text, and so it is trained as one.
                Fit::Leave(ends) => whole(tokens, &texts, max_length, ends)?,
            }
            .map(|(prompt, answers)| (prompt, answers, texts.margin)),
            Err(why) => Err(why),
        };
        match made {
            Ok((prompt, answers, margin)) => {
                let sides = answers.map(|answer| vec![answer]).to_vec();
                groups.push(Group { row: line.row, prompt, sides, margin });
            }
            Err(Out::Unpaired(why)) => dropped.count(why),
            Err(Out::Identical) => dropped.identical += 1,
            Err(Out::Long) => dropped.long += 1,
        }
    }
    if groups.is_empty() { Err(nothing_left(path, dropped)) } else { Ok((groups, dropped)) }
}

/// The texts of a line; rows of other kinds are refused by name.
fn read(lines: &Lines, line: &Line) -> Result<std::result::Result<Texts, Out>> {
    let has = |name: &str| line.fields.contains_key(name);
    let margin = match line.fields.get("margin") {
        None | Some(Value::Null) => 0.0,
        Some(value) => value
            .as_f64()
            .filter(|m| m.is_finite())
            .ok_or_else(|| lines.error(line.line, format!("field margin: wanted a number, got {}", kind(value))))?,
    };
    if has("summaries") && has("choice") {
        return summaries(lines, line, margin).map(Ok);
    }
    if !has("chosen") && !has("rejected") {
        return Err(unpaired(lines, line));
    }
    let (chosen, rejected) = (text(lines, line, "chosen")?, text(lines, line, "rejected")?);
    let split = match has("prompt") {
        true => Ok((text(lines, line, "prompt")?, chosen, rejected)),
        false => split(&chosen, &rejected).map(|(p, w, l)| (p.to_string(), w.to_string(), l.to_string())),
    };
    Ok(split.and_then(|(prompt, chosen, rejected)| match chosen == rejected {
        true => Err(Out::Identical),
        false => Ok(Texts { prompt, chosen, rejected, margin }),
    }))
}

/// The prompt that two whole texts share, and what follows it in each. Of dialogues it ends with the assistant's mark; of other texts
/// where they part, before the space there.
fn split<'a>(chosen: &'a str, rejected: &'a str) -> std::result::Result<(&'a str, &'a str, &'a str), Out> {
    if chosen == rejected {
        return Err(Out::Identical);
    }
    if chosen.contains(hh::ASSISTANT) {
        return hh::split(chosen, rejected).map_err(Out::Unpaired);
    }
    let common = chosen.chars().zip(rejected.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum::<usize>();
    let end = if chosen[..common].ends_with(' ') { common - 1 } else { common };
    let (prompt, chosen, rejected) = (&chosen[..end], &chosen[end..], &rejected[end..]);
    match (prompt.trim().is_empty(), chosen.trim().is_empty() || rejected.trim().is_empty()) {
        (true, _) => Err(Out::Unpaired(hh::Unpaired::OtherPrompt)),
        (_, true) => Err(Out::Unpaired(hh::Unpaired::EmptyReply)),
        _ => Ok((prompt, chosen, rejected)),
    }
}

fn unpaired(lines: &Lines, line: &Line) -> crate::Error {
    let names: Vec<_> = line.fields.keys().take(8).map(String::as_str).collect();
    let what = if line.fields.contains_key("label") && line.fields.contains_key("completion") {
        "unpaired rows (completion and label) hold no pairs; wanted chosen and rejected"
    } else {
        "wanted chosen and rejected, with or without prompt"
    };
    lines.error(line.line, format!("fields: {what}, got [{}]", names.join(", ")))
}

/// Two summaries of a post or an article, of which `choice` is the better.
fn summaries(lines: &Lines, line: &Line, margin: f64) -> Result<Texts> {
    let wrong = |field: &str, wanted: &str| lines.error(line.line, format!("field {field}: wanted {wanted}"));
    let none = Map::new();
    let info = line.fields.get("info").and_then(Value::as_object).unwrap_or(&none);
    let of = |name: &str| info.get(name).and_then(Value::as_str);
    let prompt = match (of("post"), of("article")) {
        (Some(post), _) => {
            tldr::query(of("subreddit").unwrap_or_default(), of("title").unwrap_or_default(), &post.replace("\n\n", "\n"))
        }
        (None, Some(article)) => format!("TITLE: {}\n\n{article}\n\nTL;DR:", of("title").unwrap_or_default()),
        (None, None) => return Err(wrong("info", "an object with post or article")),
    };
    let summary = |i: usize| {
        let text = line.fields.get("summaries").and_then(|s| s.get(i)?.get("text")?.as_str());
        text.filter(|t| !t.is_empty()).map(str::to_string).ok_or_else(|| wrong("summaries", "two objects with a text"))
    };
    let (first, second) = (summary(0)?, summary(1)?);
    match line.fields.get("choice").and_then(Value::as_u64) {
        Some(0) => Ok(Texts { prompt, chosen: first, rejected: second, margin }),
        Some(1) => Ok(Texts { prompt, chosen: second, rejected: first, margin }),
        _ => Err(wrong("choice", "0 or 1")),
    }
}

type Made = std::result::Result<(Vec<u32>, [Answer; 2]), Out>;

/// Both answers with their end tokens under the prompt's own ids, cut at `max_length`.
fn cut(tokens: &dyn Tokens, texts: &Texts, max_length: usize) -> Result<Made> {
    let mut made = Vec::with_capacity(2);
    for answer in [&texts.chosen, &texts.rejected] {
        let (prompt, ids, apart) = border(tokens, &texts.prompt, answer)?;
        match example(tokens, prompt, ids, max_length, false) {
            Ok((prompt, answer)) => made.push((prompt, Answer { apart, ..answer })),
            Err(Left::Long) => return Ok(Err(Out::Long)),
            Err(Left::Short) => return Ok(Err(Out::Unpaired(hh::Unpaired::EmptyReply))),
        }
    }
    Ok(match <[_; 2]>::try_from(made) {
        Ok([(prompt, chosen), (_, rejected)]) if chosen.ids != rejected.ids => Ok((prompt, [chosen, rejected])),
        _ => Err(Out::Identical),
    })
}

/// The ids of a whole text as a scalar head reads it, when it is trained and when it scores. What the tokenizer puts first stands once, where
/// the text begins with it already too. The text ends with an end token: with its own, white space behind it aside, else with the first of
/// `ends`, if there is any.
pub fn judged(tokens: &dyn Tokens, text: &str, ends: &[u32]) -> Result<Vec<u32>> {
    let mut ids = tokens.encode(text, true)?;
    if let (Some(first), [a, b, ..]) = (tokens.encode("", true)?.first(), ids.as_slice())
        && (a, b) == (first, first)
    {
        ids.remove(0);
    }
    let last = ids.iter().rposition(|id| ends.contains(id)).map_or(0, |at| at + 1);
    match last > 0 && tokens.decode(&ids[last..], false)?.trim().is_empty() {
        true => ids.truncate(last),
        false => ids.extend(ends.first()),
    }
    Ok(ids)
}

/// Both texts as one each; the prompt is what their ids have in common, but for a last token of each.
fn whole(tokens: &dyn Tokens, texts: &Texts, max_length: usize, ends: &[u32]) -> Result<Made> {
    let ids = |answer: &str| judged(tokens, &format!("{}{answer}", texts.prompt), ends);
    let (mut chosen, mut rejected) = (ids(&texts.chosen)?, ids(&texts.rejected)?);
    if chosen == rejected {
        return Ok(Err(Out::Identical));
    }
    if chosen.len().max(rejected.len()) > max_length {
        return Ok(Err(Out::Long));
    }
    let most = chosen.len().min(rejected.len()).saturating_sub(1);
    let common = chosen[..most].iter().zip(&rejected[..most]).take_while(|(a, b)| a == b).count();
    let (chosen, rejected, prompt) = (chosen.split_off(common), rejected.split_off(common), chosen);
    let answer = |ids: Vec<u32>| Answer { finished: true, ids, reward: f64::NAN, ..Answer::default() };
    Ok(Ok((prompt, [answer(chosen), answer(rejected)])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::Bytes;

    const BYTES: Bytes = Bytes { merge: false };
    use crate::method::Group;

    fn of(rows: &str, max_length: usize, fit: Fit<'_>) -> Result<(Vec<Group>, Dropped)> {
        let folder = tempfile::tempdir().map_err(|e| crate::Error::Usage(e.to_string()))?;
        let path = folder.path().join("pairs.jsonl");
        std::fs::write(&path, rows).map_err(|e| crate::Error::Usage(e.to_string()))?;
        pairs(&path, &BYTES, max_length, fit)
    }

    fn text(ids: &[u32]) -> String {
        BYTES.decode(ids, true).unwrap_or_default()
    }

    /// Prompt, chosen and rejected of every group as texts.
    fn texts(groups: &[Group]) -> Vec<[String; 3]> {
        groups.iter().map(|g| [text(&g.prompt), text(&g.sides[0][0].ids), text(&g.sides[1][0].ids)]).collect()
    }

    #[test]
    fn prompts_stand_apart_or_in_both() -> Result<()> {
        let rows = r#"{"prompt": "p", "chosen": " good", "rejected": " bad", "margin": 0.5}
            {"chosen": "Sky is blue.", "rejected": "Sky is green."}
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
            {"info": {"subreddit": "s", "title": "t", "post": "a\n\nb"}, "summaries": [{"text": " x"}, {"text": " y"}], "choice": 1}"#;
        let (groups, dropped) = of(rows, 100, Fit::Cut)?;
        let wanted = [
            ["p", " good", " bad"],
            ["Sky is", " blue.", " green."],
            ["\n\nHuman: a\n\nAssistant:", " b", " c"],
            ["SUBREDDIT: r/s\n\nTITLE: t\n\nPOST: a\nb\n\nTL;DR:", " y", " x"],
        ];
        assert_eq!(texts(&groups), wanted.map(|row| row.map(String::from)));
        assert_eq!((dropped.total(), groups[0].margin, groups[1].margin), (0, 0.5, 0.0));
        assert!(groups.iter().all(|g| g.sides.iter().all(|s| s[0].ids.last() == BYTES.eos().as_ref())));
        Ok(())
    }

    #[test]
    fn what_is_no_pair_is_counted() -> Result<()> {
        let rows = r#"{"prompt": "p", "chosen": "same", "rejected": "same"}
            {"chosen": "same", "rejected": "same"}
            {"chosen": "one", "rejected": "two"}
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: c"}
            {"chosen": "begins", "rejected": "begins alike"}
            {"prompt": "long long long long", "chosen": "a", "rejected": "b"}
            {"prompt": "p", "chosen": "yes and more", "rejected": "yes and less"}
            {"prompt": "p", "chosen": "y", "rejected": "n"}"#;
        let (groups, dropped) = of(rows, 8, Fit::Cut)?;
        assert_eq!((groups.len(), groups[0].row), (1, 7));
        // The last but one differs only beyond what is kept.
        let wanted = Dropped { other_prompt: 2, empty_reply: 1, short: 0, long: 1, identical: 3 };
        assert_eq!(dropped, wanted, "{dropped}");
        assert!(dropped.to_string().ends_with("3 with equal answers"));
        let none = of(r#"{"prompt": "p", "chosen": "a", "rejected": "a"}"#, 8, Fit::Cut).map_err(|e| e.to_string());
        assert!(none.is_err_and(|e| e.contains("no row is left: 1 were left out") && e.contains("1 with equal answers")));
        Ok(())
    }

    #[test]
    fn a_scalar_head_reads_whole_texts() -> Result<()> {
        let rows = r#"{"prompt": "ab", "chosen": "cd", "rejected": "ce"}
            {"prompt": "ab", "chosen": "c", "rejected": "cd"}
            {"prompt": "abcdef", "chosen": "g", "rejected": "hij"}"#;
        let end = BYTES.eos().unwrap_or_default();
        let (groups, dropped) = of(rows, 8, Fit::Leave(&[end]))?;
        let first = &groups[0];
        assert_eq!(
            (text(&first.prompt), text(&first.sides[1][0].ids), first.sides[1][0].ids.len()),
            ("abc".into(), "e".into(), 2)
        );
        assert_eq!(groups[1].sides[0][0].ids, [end], "one text goes on where the other ends");
        assert_eq!((groups.len(), dropped.long), (2, 1));
        Ok(())
    }

    #[test]
    fn what_a_head_reads_begins_and_ends_once() -> Result<()> {
        // A first token by hand, an end by hand, and white space behind it.
        struct Written;
        impl Tokens for Written {
            fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
                let own = |c: char| match c {
                    '^' => 1,
                    '$' => 2,
                    c => u32::from(c) + 3,
                };
                Ok(special.then_some(1).into_iter().chain(text.chars().map(own)).collect())
            }
            fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
                BYTES.decode(ids, skip_special)
            }
            fn eos(&self) -> Option<u32> {
                Some(2)
            }
        }
        let a = u32::from('a') + 3;
        for text in ["a", "^a", "a$", "^a$", "^a$ \n"] {
            assert_eq!(judged(&Written, text, &[2])?, [1, a, 2], "{text:?}");
        }
        assert_eq!(judged(&Written, "^^a$a", &[2, 7])?, [1, 1, a, 2, a, 2]);
        assert_eq!(judged(&Written, "a", &[])?, [1, a]);
        Ok(())
    }

    #[test]
    fn other_rows_are_refused_by_name() {
        let cases = [
            (r#"{"prompt": "p", "completion": "c", "label": true}"#, "unpaired rows (completion and label)"),
            (r#"{"prompt": "p"}"#, "wanted chosen and rejected, with or without prompt, got [prompt]"),
            (r#"{"prompt": "p", "chosen": "a"}"#, "field rejected: wanted a string, got none"),
            (r#"{"prompt": "p", "chosen": "a", "rejected": "b", "margin": "x"}"#, "field margin: wanted a number"),
            (r#"{"info": {}, "summaries": [], "choice": 0}"#, "field info"),
            (
                r#"{"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 2}"#,
                "field choice: wanted 0 or 1",
            ),
        ];
        for (row, wanted) in cases {
            let text = of(row, 8, Fit::Cut).map_err(|e| e.to_string());
            assert!(text.as_ref().is_err_and(|t| t.contains(wanted)), "{row}: {text:?}");
        }
    }
}
