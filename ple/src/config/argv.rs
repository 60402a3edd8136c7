//! The command line: `--key value`, `--key=value`, `--some-key`, `--flag`, `--flag false`, `--no_flag`, lists as repeated
//! values or repeated flags, `--config FILE` any number of times.

use super::field::{Arity, Field};
use super::{Command, Given, KEYS, Origin, other};
use crate::{Error, Result};
use serde_json::Value;
use std::path::PathBuf;

/// The flags in order, and the files of `--config`.
pub fn read(argv: &[String]) -> Result<(Vec<Given>, Vec<PathBuf>)> {
    let (mut flags, mut files): (Vec<Given>, Vec<PathBuf>) = (Vec::new(), Vec::new());
    let mut words = argv.iter().peekable();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").filter(|f| !f.is_empty()) else {
            return Err(Error::Usage(format!("unexpected argument `{word}`; settings are given as --key value")));
        };
        let (typed, inline) = match flag.split_once('=') {
            Some((key, value)) => (key, Some(value.to_string())),
            None => (flag, None),
        };
        let name = typed.replace('-', "_");
        let from = Origin::Flag(format!("--{typed}"));
        let (name, negated, arity) = arity(name, &from)?;
        let mut values: Vec<String> = inline.into_iter().collect();
        if values.is_empty() && !negated {
            let most = if arity == Arity::Many { usize::MAX } else { 1 };
            while values.len() < most && words.peek().is_some_and(|w| is_value(w, arity)) {
                values.extend(words.next().cloned());
            }
        }
        let value = match (arity, values.as_slice()) {
            (Arity::Switch, _) if negated && !values.is_empty() => {
                return Err(Error::Usage(format!("{from}: takes no value")));
            }
            (Arity::Switch, []) => Value::Bool(!negated),
            (Arity::Many, [_, ..]) => values.into_iter().map(Value::String).collect(),
            (_, []) if other::is_ignored(&name) => Value::Null,
            (_, [one]) => Value::String(one.clone()),
            _ => return Err(Error::Usage(format!("{from}: needs a value"))),
        };
        match (name.as_str(), value) {
            ("config", Value::String(file)) => files.push(file.into()),
            (_, value) => push(&mut flags, Given { name, value, from }, arity),
        }
    }
    Ok((flags, files))
}

/// `ple report RUN...`, `ple diff RUN_A RUN_B`: the words before the first flag are its `runs`.
pub fn folders(command: Command, argv: &[String]) -> (Option<Given>, &[String]) {
    let takes = matches!(command, Command::Report | Command::Diff | Command::Rerun);
    let count = argv.iter().take_while(|word| takes && !word.starts_with("--")).count();
    let (words, rest) = argv.split_at(count);
    let value: Value = words.iter().cloned().map(Value::String).collect();
    ((count > 0).then(|| Given { name: "runs".into(), value, from: Origin::Flag("runs".into()) }), rest)
}

/// The key's name, whether the flag said `no_`, and how many words it takes.
fn arity(name: String, from: &Origin) -> Result<(String, bool, Arity)> {
    let renamed =
        |n: &str| other::RENAMED.iter().find(|(old, _)| *old == n).map_or_else(|| n.to_string(), |(_, new)| (*new).into());
    let find = |n: &str| KEYS.iter().find(|k| k.name == renamed(n)).map(|k| k.arity);
    if name == "config" {
        return Ok((name, false, Arity::One));
    }
    if let Some(arity) = find(&name) {
        return Ok((name, false, arity));
    }
    if let Some(positive) = name.strip_prefix("no_")
        && (find(positive) == Some(Arity::Switch) || other::knows(positive) && other::arity(positive) != Arity::One)
    {
        return Ok((positive.to_string(), true, Arity::Switch));
    }
    if other::knows(&name) {
        let arity = other::arity(&name);
        return Ok((name, false, arity));
    }
    let known: Vec<_> = KEYS.iter().map(|k| k.name).chain(["config"]).collect();
    Err(other::unknown(from, &name, &known))
}

/// Whether the next word is a value: not a flag, and a word of truth or `auto` where only that makes sense. A minus before a digit is a number.
fn is_value(word: &str, arity: Arity) -> bool {
    let number = word.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit() || c == '.'));
    let flag = word.starts_with('-') && word.len() > 1 && !number;
    !flag && (arity != Arity::Switch || word == "auto" || bool::read(&Value::String(word.to_string())).is_some())
}

/// A later flag replaces an earlier one; a list grows.
fn push(flags: &mut Vec<Given>, given: Given, arity: Arity) {
    match flags.iter_mut().find(|f| f.name == given.name) {
        Some(before) if arity == Arity::Many => {
            if let (Value::Array(all), Value::Array(more)) = (&mut before.value, given.value) {
                all.extend(more);
            }
        }
        Some(before) => *before = given,
        None => flags.push(given),
    }
}
