//! Every oddity by a row that has it and one that has not, and the line over them.

use super::*;
use crate::data::sft::border;
use crate::data::tests::Bytes;

const BYTES: Bytes = Bytes { merge: false };
const BOS: u32 = 1;
const EOS: u32 = 2;

fn ends() -> Ends {
    Ends { first: Some(BOS), added: true, stop: vec![EOS] }
}

fn ids(text: &str) -> Vec<u32> {
    text.bytes()
        .map(|byte| match byte {
            b'^' => BOS,
            b'$' => EOS,
            other => u32::from(other) + 3,
        })
        .collect()
}

fn row(prompt: &str, answer: &str) -> Group {
    let answer = Answer { ids: ids(answer), ..Answer::default() };
    Group { row: 7, prompt: ids(prompt), sides: vec![vec![answer]], ..Group::default() }
}

fn odd(of: &Group) -> Result<Vec<Odd>> {
    group(of, &BYTES, &ends(), 12)
}

#[test]
fn each_oddity_has_its_row() -> Result<()> {
    for (prompt, answer, wanted) in [
        ("^ab", " c$", &[][..]),
        ("", "^ab$", &[]),
        ("^ab", "c$\n", &[]),
        ("^^ab", "c$", &[Odd::DoubleFirst]),
        ("ab", "c$", &[Odd::NoFirst]),
        ("", "^^b$", &[Odd::DoubleFirst]),
        ("^ab", "c", &[Odd::NoEnd]),
        ("^ab", "c$d", &[Odd::NoEnd]),
        ("^ab", "c$$", &[Odd::DoubleEnd]),
        ("^abcdef", "ghijk", &[Odd::Cut]),
        ("^abcdef", "ghij$", &[]),
        ("^ab", "$", &[Odd::Empty]),
        ("^ab", "  $", &[Odd::Empty]),
        ("^^ab", " ", &[Odd::DoubleFirst, Odd::NoEnd, Odd::Empty]),
    ] {
        assert_eq!(odd(&row(prompt, answer))?, wanted, "{prompt:?} {answer:?}");
    }
    let mut masked = row("", "^user bot$");
    masked.sides[0][0].loss = vec![false; 10];
    assert_eq!(odd(&masked)?, [Odd::Empty]);
    masked.sides[0][0].loss[6] = true;
    assert_eq!(odd(&masked)?, []);
    assert_eq!(group(&row("ab", "c$"), &BYTES, &Ends { added: false, ..ends() }, 12)?, []);
    Ok(())
}

#[test]
fn a_border_inside_a_token_is_seen() -> Result<()> {
    let merging = Bytes { merge: true };
    for (prompt, answer, apart) in [("xa", "bc", true), ("xa", "c", false)] {
        let (prompt, mut ids, spans) = border(&merging, prompt, answer)?;
        ids.push(EOS);
        let answer = Answer { ids, apart: spans, ..Answer::default() };
        let row = Group { prompt, sides: vec![vec![answer]], ..Group::default() };
        let wanted: &[Odd] = if apart { &[Odd::Apart] } else { &[] };
        assert_eq!(group(&row, &merging, &ends(), 99)?, wanted);
    }
    let query = |text: &str| -> Result<Prompt> {
        let plain = SPACED.encode(text, true)?;
        Ok(Prompt { row: 0, text: text.into(), guided: plain.clone(), plain })
    };
    for (text, wanted) in [("A dog ", &[Odd::Apart][..]), ("A dog", &[]), ("A dog:", &[])] {
        assert_eq!(prompt(&query(text)?, &SPACED, &ends())?, wanted, "{text:?}");
    }
    let rendered =
        Prompt { row: 0, text: "^a ".into(), plain: SPACED.encode("^a ", false)?, guided: SPACED.encode("^a ", false)? };
    assert_eq!(prompt(&rendered, &SPACED, &ends())?, [Odd::NoFirst, Odd::Apart]);
    Ok(())
}

/// Bytes whose letters carry the space before them.
struct Spaced;
const SPACED: Spaced = Spaced;

impl Tokens for Spaced {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for id in BYTES.encode(text, special)? {
            match ids.last_mut() {
                Some(last) if *last == u32::from(b' ') + 3 => *last = id + 1000,
                _ => ids.push(id),
            }
        }
        Ok(ids)
    }
    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        BYTES.decode(ids, skip_special)
    }
    fn eos(&self) -> Option<u32> {
        Some(EOS)
    }
}

#[test]
fn the_line_counts_and_names() -> Result<()> {
    let good = row("^ab", "c$");
    let mut rows = vec![good; 100];
    assert_eq!(
        groups_line(&rows, &BYTES, &ends(), 12)?,
        "check first 64 of 100 rows: nothing is odd about BOS, EOS, borders and loss"
    );
    for (at, row) in rows.iter_mut().enumerate() {
        row.row = at as u32;
        if at % 10 == 3 {
            row.sides[0][0].ids.pop();
        }
    }
    rows[5] = Group { row: 5, ..row("^^ab", "c$") };
    assert_eq!(
        groups_line(&rows[..50], &BYTES, &ends(), 12)?,
        "check 50 rows: 1 begin with BOS twice (row 5); 5 end without EOS (row 3, 13, 23, …)"
    );
    let text = groups_line(&rows[..1], &BYTES, &Ends::of(&BYTES, Some(BOS), Vec::new())?, 12)?;
    assert_eq!(text, "check 1 rows: 1 end without EOS (row 0); no EOS is known");
    Ok(())
}
