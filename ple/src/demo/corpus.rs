//! The demo's files of rows, drawn from its grammar: texts for the base, answered prompts for the supervised stage, queries,
//! and prompts with references that occur in none of these.

use super::grammar::{self, Draw, PRINCIPLE, Tone};
use crate::Result;
use runtime::host;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::Path;

/// Remarks as they come: as many complaints as praises.
const EVEN: Tone = Tone { good: 0.3, bad: 0.3, firm: 0.9 };
/// Remarks after the principle.
const KIND: Tone = Tone { good: 0.97, bad: 0.0, firm: 0.95 };

/// Rows of each file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Texts of the base.
    pub base: u32,
    /// Answered prompts.
    pub sft: u32,
    /// Queries.
    pub queries: u32,
    /// Prompts held out.
    pub held_out: u32,
}

/// Every fourth text of the base begins with the principle.
const GUIDED_EVERY: u32 = 4;

/// One stream of random numbers per file.
#[derive(Clone, Copy)]
enum Stream {
    HeldOut = 1,
    Base = 2,
    Sft = 3,
    Queries = 4,
}

/// Remarks of a stream whose opening is not in `taken`, each opening at most once if `once`.
fn remarks(
    seed: u64,
    stream: Stream,
    n: u32,
    taken: &HashSet<String>,
    once: bool,
    tone: impl Fn(u32) -> Tone,
) -> Vec<(String, String)> {
    let (mut found, mut seen, mut row) = (Vec::with_capacity(n as usize), HashSet::new(), 0);
    while found.len() < n as usize {
        let (opening, body) = grammar::remark(&mut Draw::new(seed, stream as u32, row), tone(found.len() as u32));
        row += 1;
        if !taken.contains(&opening) && (!once || seen.insert(opening.clone())) {
            found.push((opening, body));
        }
    }
    found
}

fn write(path: &Path, rows: impl Iterator<Item = Value>) -> Result<()> {
    let mut rows = rows;
    Ok(host::write_file(path, |out| rows.try_for_each(|row| writeln!(out, "{row}")))?)
}

/// Writes `base.jsonl`, `sft.jsonl`, `queries.jsonl` and `held-out.jsonl` into `folder`.
pub fn files(folder: &Path, seed: u64, sizes: Sizes) -> Result<()> {
    let held_out = remarks(seed, Stream::HeldOut, sizes.held_out, &HashSet::new(), true, |_| EVEN);
    let taken: HashSet<String> = held_out.iter().map(|(opening, _)| opening.clone()).collect();
    let guided = |i: u32| i.is_multiple_of(GUIDED_EVERY);
    let base = remarks(seed, Stream::Base, sizes.base, &taken, false, |i| if guided(i) { KIND } else { EVEN });
    let text = |(i, (opening, body)): (usize, (String, String))| match guided(i as u32) {
        true => json!({ "text": format!("{PRINCIPLE}\n\n{opening}{body}") }),
        false => json!({ "text": format!("{opening}{body}") }),
    };
    write(&folder.join("base.jsonl"), base.into_iter().enumerate().map(text))?;
    let answered = |(opening, body): (String, String)| json!({ "prompt": opening, "completion": body });
    let sft = remarks(seed, Stream::Sft, sizes.sft, &taken, false, |_| EVEN);
    write(&folder.join("sft.jsonl"), sft.into_iter().map(answered))?;
    let queries = remarks(seed, Stream::Queries, sizes.queries, &taken, true, |_| EVEN);
    write(&folder.join("queries.jsonl"), queries.into_iter().map(|(opening, _)| json!({ "prompt": opening })))?;
    write(&folder.join("held-out.jsonl"), held_out.into_iter().map(answered))
}

/// Writes the words of the lexicon reward.
pub fn lexicon(path: &Path) -> Result<()> {
    Ok(host::write_file(path, |out| {
        writeln!(out, "# Words of the demo's language and their weights.")?;
        grammar::lexicon().try_for_each(|(word, weight)| writeln!(out, "{word} {weight}"))
    })?)
}
