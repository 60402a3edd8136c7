//! Readers, rules and orders on small rows and on the real files; bad input; random mutations.

use super::order::{QUERIES, ROWS};
use super::*;
use crate::principle::Principle;
use crate::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One id per byte after a first id of 1; 2 ends. With `merge`, "ab" is one id, so that a token can span prompt and answer.
pub struct Bytes {
    pub merge: bool,
}

const BOS: u32 = 1;
const EOS: u32 = 2;

impl Tokens for Bytes {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = special.then_some(BOS).into_iter().collect();
        for byte in text.bytes() {
            match ids.last_mut() {
                Some(last) if self.merge && byte == b'b' && *last == u32::from(b'a') + 3 => *last = 999,
                _ => ids.push(u32::from(byte) + 3),
            }
        }
        Ok(ids)
    }
    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let plain = ids.iter().filter(|id| **id > 2 || !skip_special);
        let bytes: Vec<u8> =
            plain.flat_map(|id| if *id == 999 { vec![b'a', b'b'] } else { vec![id.saturating_sub(3) as u8] }).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
    fn eos(&self) -> Option<u32> {
        Some(EOS)
    }
}

const PLAIN: Bytes = Bytes { merge: false };

/// Philox4x32-10 as published.
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let ([mut k0, mut k1], [mut a, mut b, mut c, mut d]) = (key, counter);
    for _ in 0..10 {
        let (x, y) = (u64::from(a) * 0xD251_1F53, u64::from(c) * 0xCD9E_8D57);
        (a, b, c, d) = ((y >> 32) as u32 ^ b ^ k0, y as u32, (x >> 32) as u32 ^ d ^ k1, x as u32);
        (k0, k1) = (k0.wrapping_add(0x9E37_79B9), k1.wrapping_add(0xBB67_AE85));
    }
    [a, b, c, d]
}

/// Random numbers of a test.
pub struct Random {
    seed: u64,
    count: u32,
}

impl Random {
    pub fn new(seed: u64) -> Random {
        Random { seed, count: 0 }
    }
    pub fn below(&mut self, n: usize) -> usize {
        self.count += 1;
        order::below(philox([self.seed as u32, (self.seed >> 32) as u32 ^ 77], [self.count, 0, 0, 0]), n as u64) as usize
    }
    /// Uniform from -1 to 1.
    pub fn unit(&mut self) -> f64 {
        self.below(1 << 30) as f64 / (1 << 29) as f64 - 1.0
    }
    /// One to four bytes replaced, inserted, removed, or a run doubled.
    pub fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..1 + self.below(4) {
            let at = self.below(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
            let special = b"{}[]\":,\\\n\t -#&*!|>'%@`\xff\x00\xc3?";
            let byte = if self.below(2) == 0 { special[self.below(special.len())] } else { self.below(256) as u8 };
            match self.below(4) {
                0 if !bytes.is_empty() => bytes[at] = byte,
                1 if !bytes.is_empty() => drop(bytes.remove(at)),
                2 => bytes.insert(at, byte),
                _ => {
                    let end = (at + self.below(9)).min(bytes.len());
                    let run = bytes[at.min(end)..end].to_vec();
                    bytes.splice(at..at, run);
                }
            }
        }
        bytes
    }
}

/// A file of a temporary folder.
fn file(bytes: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var("PLE_SHARED").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").into());
    let path = Path::new(&root).join(name);
    if !path.exists() {
        eprintln!("skip: {} is absent", path.display());
        return None;
    }
    Some(path)
}

#[track_caller]
fn fails<T>(result: Result<T>, parts: &[&str]) {
    let error = result.err().expect("an error");
    let text = error.to_string();
    parts.iter().for_each(|p| assert!(text.contains(p), "`{text}` should name `{p}`"));
}

#[test]
fn philox_is_the_published_one() {
    assert_eq!(philox([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox([u32::MAX; 2], [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
}

#[test]
fn shuffle_is_the_law_s() {
    let order = shuffle(5, 42, 3, ROWS);
    let mut want: Vec<u32> = (0..5).collect();
    for i in (1..5u32).rev() {
        let block = philox([42, 2], [i, 0, 3, ROWS]);
        let draw = u128::from(block[0]) + (u128::from(block[1]) << 32);
        want.swap(i as usize, ((draw * u128::from(i + 1)) >> 64) as usize);
    }
    assert_eq!(order, want);
    let mut sorted = shuffle(1000, 1 << 40, 0, ROWS);
    assert_ne!(sorted, shuffle(1000, 0, 0, ROWS), "the high half of the seed counts");
    assert_ne!(sorted, shuffle(1000, 1 << 40, 1, ROWS));
    sorted.sort_unstable();
    assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
    assert!(shuffle(0, 1, 0, ROWS).is_empty());
    assert_eq!(shuffle(1, 1, 0, ROWS), [0]);
}

#[test]
fn draws_walk_permutations_without_replacement() {
    let first = shuffle(7, 5, 0, QUERIES);
    let second = shuffle(7, 5, 1, QUERIES);
    let walk: Vec<u32> = (0..3).flat_map(|i| draw(i, 4, 7, 5)).collect();
    assert_eq!(walk, [first.as_slice(), &second[..5]].concat());
    assert_eq!(draw(0, 20, 7, 5)[..14], [first, second].concat());
    assert!(draw(3, 4, 0, 5).is_empty());
}

#[test]
fn dialogues_split_at_the_last_common_turn() {
    let (a, b) = ("\n\nHuman: q\n\nAssistant: yes", "\n\nHuman: q\n\nAssistant: yet");
    assert_eq!(hh::split(a, b), Ok(("\n\nHuman: q\n\nAssistant:", " yes", " yet")));
    assert_eq!(hh::split(a, a), Ok(("\n\nHuman: q\n\nAssistant:", " yes", " yes")));
    let two = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: ";
    assert_eq!(hh::split(&format!("{two}x"), &format!("{two}y")).unwrap().0, two.trim_end());
    assert_eq!(hh::split(&format!("{two}x"), &format!("{two} ")), Err(hh::Unpaired::EmptyReply));
    assert_eq!(hh::split(&format!("{two}x"), a), Err(hh::Unpaired::OtherPrompt));
    assert_eq!(hh::split("\n\nHuman: q\n\nAssistant", "\n\nHuman: q\n\nAssistant"), Err(hh::Unpaired::OtherPrompt));
    // The texts part inside a character.
    let (a, b) = ("\n\nHuman: q\n\nAssistant:é", "\n\nHuman: q\n\nAssistant:è");
    assert_eq!(hh::split(a, b), Ok(("\n\nHuman: q\n\nAssistant:", "é", "è")));
    // One reply is the beginning of the other, which goes on with an assistant's turn.
    let (a, b) = ("\n\nHuman: q\n\nAssistant: x", "\n\nHuman: q\n\nAssistant: x\n\nAssistant: y");
    assert_eq!(hh::split(b, a).unwrap().1, " x\n\nAssistant: y");
}

#[test]
fn kinds_of_rows_become_queries() {
    let long = "word ".repeat(60);
    let rows = format!(
        "{}\n\n{}\r\n{}\n{}\n{}\n",
        r#"{"prompt": "plain"}"#,
        r#"{"prompt": "asked", "completion": " yes", "id": 3}"#,
        r#"{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}"#,
        r#"{"text": "short", "label": 1}"#,
        serde_json::json!({"text": long, "label": 0}),
    );
    let (_folder, path) = file(rows);
    let (queries, kind, dropped) = queries(&path, &PLAIN, 42).unwrap();
    assert_eq!(kind, RowKind::Prompt);
    assert_eq!(dropped, Dropped { short: 1, ..Dropped::default() });
    assert_eq!(queries[0], Query { row: 0, text: "plain".into(), chat: None });
    assert_eq!(queries[1], Query { row: 1, text: "asked".into(), chat: None });
    assert_eq!(queries[2], Query { row: 2, text: "\n\nHuman: q\n\nAssistant:".into(), chat: None });
    let draw = philox([42, 5], [4, 0, 0, 0]);
    let count = 2 + (((u128::from(draw[0]) + (u128::from(draw[1]) << 32)) * 7) >> 64) as usize;
    assert_eq!(queries[3], Query { row: 4, text: long[..count].into(), chat: None });
}

#[test]
fn post_records_become_queries_and_summaries_their_answers() {
    let rows = concat!(
        "{\"id\": \"x\", \"subreddit\": \"tifu\", \"title\": \"t\", \"post\": \"a\\n\\nb\", \"summary\": \"s\"}\n",
        "{\"subreddit\": \"AskReddit\", \"title\": \"u\", \"post\": \"c\"}\n",
    );
    let (_folder, path) = file(rows);
    let (queries, kind, _) = queries(&path, &PLAIN, 0).unwrap();
    assert_eq!(kind, RowKind::Answered);
    assert_eq!(queries[0].text, "SUBREDDIT: r/tifu\n\nTITLE: t\n\nPOST: a\n\nb\n\nTL;DR:");
    assert_eq!(queries[1].text, "SUBREDDIT: r/AskReddit\n\nTITLE: u\n\nPOST: c\n\nTL;DR:");
    assert!(queries.iter().all(|q| tldr::post(&q.text).is_some()));
    fails(groups(&path, &PLAIN, 99, None), &["line 2: field completion"]);
    let (_folder, path) = file(rows.lines().next().unwrap());
    let answer = groups(&path, &PLAIN, 99, None).unwrap().0.pop().unwrap().sides[0][0].ids.clone();
    assert_eq!(answer, [u32::from(b' ') + 3, u32::from(b's') + 3, EOS]);
    for (row, want) in [
        (r#"{"title": "t", "post": "p"}"#, "field subreddit: wanted a string, got none"),
        (r#"{"subreddit": "r", "post": "p"}"#, "field title"),
        (r#"{"subreddit": "r", "title": 3, "post": "p"}"#, "field title: wanted a string, got a number"),
        (r#"{"subreddit": "r", "title": "t", "post": ""}"#, "field post: wanted a text, got an empty one"),
    ] {
        let (_folder, path) = file(row);
        fails(super::queries(&path, &PLAIN, 0), &["rows.jsonl: line 1: ", want]);
    }
}

#[test]
fn prefixes_have_two_to_eight_whole_characters() {
    let rows: String = (0..200).map(|_| format!("{}\n", serde_json::json!({"text": "é".repeat(201)}))).collect();
    let (_folder, path) = file(rows);
    let (queries, kind, _) = queries(&path, &PLAIN, 1).unwrap();
    assert_eq!(kind, RowKind::Text);
    let mut lengths: Vec<usize> = queries.iter().map(|q| q.text.chars().count()).collect();
    assert!(queries.iter().all(|q| q.text.chars().all(|c| c == 'é')));
    lengths.sort_unstable();
    lengths.dedup();
    assert_eq!(lengths, [1, 2, 3, 4], "2 to 8 bytes, half a character left out");
}

#[test]
fn examples_of_the_supervised_stage() {
    let rows = concat!(
        "{\"prompt\": \"xa\", \"completion\": \"by\"}\n",
        "{\"prompt\": \"toolong\", \"completion\": \"z\"}\n",
        "{\"text\": \"hi\"}\n",
        "{\"prompt\": \"q\", \"completion\": \"abcdefgh\"}\n",
        "{\"chosen\": \"\\n\\nAssistant: a\", \"rejected\": \"x\"}\n",
    );
    let (_folder, path) = file(rows);
    let ids = |text: &str| text.bytes().map(|b| u32::from(b) + 3).collect::<Vec<_>>();
    let (groups, dropped) = groups(&path, &PLAIN, 8, None).unwrap();
    assert_eq!(dropped, Dropped { long: 1, other_prompt: 1, ..Dropped::default() });
    assert_eq!(groups.iter().map(|g| g.row).collect::<Vec<_>>(), [0, 2, 3]);
    assert_eq!(
        (groups[0].prompt.clone(), groups[0].sides[0][0].ids.clone()),
        ([vec![BOS], ids("xa")].concat(), [ids("by"), vec![EOS]].concat())
    );
    assert_eq!((groups[1].prompt.len(), groups[1].sides[0][0].ids.clone()), (0, [vec![BOS], ids("hi"), vec![EOS]].concat()));
    let cut = &groups[2].sides[0][0];
    assert_eq!((cut.ids.clone(), cut.finished, groups[0].sides[0][0].finished), (ids("abcdef"), false, true));
    // A token spans the border: prompt and answer are tokenised apart.
    let (prompt, answer) = sft::pair(&Bytes { merge: true }, "xa", "by").unwrap();
    assert_eq!((prompt, answer), ([vec![BOS], ids("xa")].concat(), ids("by")));
    // Loss on everything.
    let (groups, _) = super::groups(&path, &PLAIN, 8, Some(false)).unwrap();
    assert_eq!((groups[0].prompt.len(), groups[0].sides[0][0].ids.len()), (0, 6));
    fails(super::groups(&path, &PLAIN, 8, Some(true)), &["line 3", "completion_only_loss"]);
}

#[test]
fn an_end_token_is_added_only_where_absent() {
    struct Ending;
    impl Tokens for Ending {
        fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
            PLAIN.encode(text.trim_end_matches('$'), special).map(|mut ids| {
                ids.extend(text.ends_with('$').then_some(EOS));
                ids
            })
        }
        fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
            PLAIN.decode(ids, skip_special)
        }
        fn eos(&self) -> Option<u32> {
            Some(EOS)
        }
    }
    let (_folder, path) = file("{\"prompt\": \"p\", \"completion\": \"c$\"}\n{\"prompt\": \"p\", \"completion\": \"c\"}\n");
    let (groups, _) = groups(&path, &Ending, 9, None).unwrap();
    let ids: Vec<_> = groups.iter().map(|g| g.sides[0][0].ids.clone()).collect();
    assert_eq!(ids, vec![vec![u32::from(b'c') + 3, EOS]; 2]);
}

#[test]
fn long_queries_are_cut_at_turns_with_the_principle() {
    let principle = Principle { text: "P".repeat(10) };
    let turn = |q: &str| format!("\n\nHuman: {q}\n\nAssistant:");
    let dialogue = format!("{} a{} b{}", turn("one"), turn("two"), turn("three"));
    let query = |text: &str| Query { row: 3, text: text.into(), chat: None };
    let two_turns = format!("{} b{}", turn("two"), turn("three"));
    let budget = 1 + 10 + 1 + two_turns.len();
    let (cut, dropped) = prompts(&[query(&dialogue)], &PLAIN, Some(&principle), budget).unwrap();
    assert_eq!((cut[0].text.as_str(), cut[0].row, dropped.long), (two_turns.as_str(), 3, 0));
    assert_eq!((cut[0].guided.len(), cut[0].plain.len()), (budget, 1 + two_turns.len()));
    let (cut, _) = prompts(&[query(&dialogue)], &PLAIN, Some(&principle), budget - 1).unwrap();
    assert_eq!(cut[0].text, turn("three"));
    let (cut, dropped) = prompts(&[query(&dialogue), query(&"x".repeat(99))], &PLAIN, Some(&principle), 20).unwrap();
    assert_eq!((cut.len(), dropped.long), (0, 2));
}

#[test]
fn long_posts_lose_their_last_paragraphs() {
    let principle = Principle { text: "P".into() };
    let post = |body: &str| format!("SUBREDDIT: r/x\n\nTITLE: t\n\nPOST: {body}\n\nTL;DR:");
    let query = Query { row: 0, text: post("first line\nsecond line\nthird"), chat: None };
    let fits = |body: &str| 1 + 3 + post(body).len();
    let cut = |budget| prompts(std::slice::from_ref(&query), &PLAIN, Some(&principle), budget).unwrap().0.pop().map(|p| p.text);
    assert_eq!(cut(fits("first line\nsecond line")), Some(post("first line\nsecond line")));
    assert_eq!(cut(fits("first line\nsecond line") - 1), Some(post("first line")));
    assert_eq!(cut(fits("first ")), Some(post("first ")));
    assert_eq!(cut(fits("")), Some(post("")));
    assert_eq!(cut(fits("") - 1), None);
}

#[test]
fn real_dialogues() {
    let Some(folder) = shared("data/hh") else { return };
    let (mut all, mut same, mut left, mut empty_fields) = (0, 0, Dropped::default(), 0);
    for name in ["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"] {
        let mut lines = Lines::open(&folder.join(format!("{name}.jsonl"))).unwrap();
        while let Some(line) = lines.next() {
            let Ok(Row::Dialogue { chosen, rejected }) = Row::read(&lines, &line.unwrap()) else {
                empty_fields += 1;
                continue;
            };
            all += 1;
            same += u32::from(chosen == rejected);
            match hh::split(&chosen, &rejected) {
                Ok((prompt, a, b)) => {
                    assert!(prompt.starts_with(hh::HUMAN) && prompt.ends_with(hh::ASSISTANT));
                    assert_eq!((format!("{prompt}{a}"), format!("{prompt}{b}")), (chosen.clone(), rejected.clone()));
                }
                Err(why) => left.count(why),
            }
        }
    }
    // The 8 rows whose last turns begin at different places part inside the assistant's reply: the rule keeps them.
    assert_eq!((all, same, empty_fields), (4333, 20, 0));
    assert_eq!(left, Dropped { empty_reply: 4, ..Dropped::default() });
}

#[test]
fn bad_lines_name_file_and_line() {
    let good = "{\"prompt\": \"p\", \"completion\": \"c\"}\n";
    let cases: &[(&[u8], &str)] = &[
        (b"{\"prompt\": \"\xff\", \"completion\": \"c\"}", "UTF-8"),
        (b"[1]", "wanted a JSON object, got a list"),
        (b"12", "got a number"),
        (b"{\"prompt\": \"p\", \"completion\": ", "EOF"),
        (b"{} {}", "trailing"),
        (b"{\"completion\": \"c\"}", "field prompt"),
        (b"{\"prompt\": \"p\"}", "field completion"),
        (b"{\"prompt\": \"p\", \"completion\": \"\"}", "field completion: wanted a text, got an empty one"),
        (b"{\"prompt\": \"p\", \"completion\": 3}", "field completion: wanted a string, got a number"),
        (b"{\"prompt\": [{\"role\": \"user\"}], \"completion\": \"c\"}", "no chat template"),
        (b"{\"messages\": []}", "no chat template"),
        (b"{\"chosen\": \"c\"}", "field rejected"),
        (b"{\"a\": 1, \"b\": 2}", "[a, b]"),
        (b"{\"text\": null}", "field text: wanted a string, got null"),
    ];
    for (line, want) in cases {
        let (_folder, path) = file([good.as_bytes(), b"\n", line].concat());
        let error = groups(&path, &PLAIN, 64, None).err().unwrap();
        assert_eq!(error.exit_code(), 3);
        let text = error.to_string();
        assert!(text.contains("rows.jsonl: line 3: ") && text.contains(want), "{text} should name {want}");
    }
    let deep = [b"{\"text\": ".to_vec(), vec![b'['; 100_000]].concat();
    let (_folder, path) = file(deep);
    fails(groups(&path, &PLAIN, 64, None), &["line 1", "recursion"]);
    let (_folder, path) = file("");
    fails(groups(&path, &PLAIN, 64, None), &["rows.jsonl", "wanted at least one row"]);
    let (_folder, path) = file("{\"prompt\": \"long prompt\", \"completion\": \"c\"}");
    fails(groups(&path, &PLAIN, 4, None), &["no row is left", "1 too long"]);
    let (_folder, path) = file("{\"text\": \"short\"}");
    fails(queries(&path, &PLAIN, 0), &["no row is left", "1 too short"]);
    fails(groups(Path::new("/nonexistent.jsonl"), &PLAIN, 4, None), &["/nonexistent.jsonl", "cannot open"]);
    fails(groups(Path::new("/"), &PLAIN, 4, None), &["/"]);
}

#[test]
fn large_lines() {
    let (_folder, path) = file(serde_json::json!({"text": "x".repeat(10 << 20)}).to_string());
    let (groups, _) = groups(&path, &PLAIN, 64, None).unwrap();
    assert_eq!(groups[0].sides[0][0].ids.len(), 64);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.jsonl.gz");
    let mut writer = flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::fast());
    let block = vec![b' '; 1 << 20];
    (0..65).for_each(|_| writer.write_all(&block).unwrap());
    writer.finish().unwrap();
    fails(Lines::open(&path).unwrap().next().unwrap(), &["huge.jsonl.gz", "line 1", "67108864"]);
}

#[test]
fn compressed_files() {
    let rows = "\u{feff}{\"prompt\": \"p\"}\n{\"prompt\": \"q\"}\n";
    let zip = |text: &str| {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(text.as_bytes()).unwrap();
        writer.finish().unwrap()
    };
    // Two members, and a name that does not tell.
    let (_folder, path) = file([zip(rows), zip("{\"prompt\": \"r\"}")].concat());
    let rows: Vec<_> = Lines::open(&path).unwrap().map(|l| l.unwrap().fields["prompt"].clone()).collect();
    assert_eq!(rows, ["p", "q", "r"]);
    let whole = zip(&"{\"prompt\": \"p\"}\n".repeat(500));
    for cut in [5, 12, whole.len() / 2, whole.len() - 4] {
        let (_folder, path) = file(&whole[..cut]);
        fails(queries(&path, &PLAIN, 0), &["rows.jsonl: line ", "cannot read"]);
    }
}

#[test]
fn mutated_rows_never_panic() {
    let rows = concat!(
        "{\"prompt\": \"a\\u00e9\", \"completion\": \"b\\ud83d\\ude00\", \"x\": [1, 2.5e3, null]}\n",
        "{\"chosen\": \"\\n\\nHuman: q\\n\\nAssistant: a\", \"rejected\": \"\\n\\nHuman: q\\n\\nAssistant: b\"}\n",
        "{\"text\": \"word \\\"quoted\\\" text\"}\n",
    );
    let mut random = Random::new(5);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.jsonl");
    let mut refused = 0;
    for _ in 0..400 {
        std::fs::write(&path, random.mutate(rows.as_bytes())).unwrap();
        let groups = groups(&path, &Bytes { merge: true }, 16, None);
        let queries = queries(&path, &PLAIN, 1);
        refused += u32::from(groups.is_err() && queries.is_err());
        if let Err(e) = groups {
            assert!(matches!(e, Error::File { .. }), "{e}");
        }
    }
    assert!(refused > 75, "{refused}");
}
