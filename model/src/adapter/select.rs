//! Module paths against PEFT's lists and regular expressions.

use super::Targets;
use crate::{Error, Result};
use fancy_regex::{Regex, RegexBuilder};
use std::path::Path;

fn compile(path: &Path, field: &str, text: &str) -> Result<Regex> {
    let wrong = |e| Error::file(path, format!("{field}: wanted a regular expression, got {text:?}: {e}"));
    RegexBuilder::new(text).backtrack_limit(100_000).build().map_err(wrong)
}

fn matches(path: &Path, field: &str, regex: &Regex, module: &str) -> Result<bool> {
    let wrong = |e| {
        Error::file(path, format!("{field}: wanted an expression that can be tried on {module}, got {:?}: {e}", regex.as_str()))
    };
    regex.is_match(module).map_err(wrong)
}

/// Targets, ready to be tried on paths.
pub(super) enum Selector<'a> {
    All,
    Regex(&'a Path, &'a str, Regex),
    List(&'a [String]),
}

impl<'a> Selector<'a> {
    pub(super) fn new(path: &'a Path, field: &'a str, targets: &'a Targets) -> Result<Selector<'a>> {
        Ok(match targets {
            Targets::AllLinear => Selector::All,
            Targets::Regex(text) => Selector::Regex(path, field, compile(path, field, &format!(r"\A(?:{text})\z"))?),
            Targets::List(list) => Selector::List(list),
        })
    }

    pub(super) fn matches(&self, module: &str) -> Result<bool> {
        match self {
            Selector::All => Ok(true),
            Selector::Regex(path, field, regex) => matches(path, field, regex, module),
            Selector::List(list) => {
                Ok(list.iter().any(|t| module.strip_suffix(t.as_str()).is_some_and(|r| r.is_empty() || r.ends_with('.'))))
            }
        }
    }
}

/// Patterns of the end of a path (from its start or after a dot), each with a value.
pub(super) struct Patterns<'a, T>(&'a Path, &'a str, Vec<(Regex, T)>);

impl<'a, T: Copy> Patterns<'a, T> {
    pub(super) fn new(path: &'a Path, field: &'a str, list: &[(String, T)]) -> Result<Patterns<'a, T>> {
        let compiled = list.iter().map(|(key, value)| Ok((compile(path, field, &format!(r"\A(?:.*\.)?(?:{key})\z"))?, *value)));
        Ok(Patterns(path, field, compiled.collect::<Result<_>>()?))
    }

    pub(super) fn first(&self, module: &str) -> Result<Option<T>> {
        for (regex, value) in &self.2 {
            if matches(self.0, self.1, regex, module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}
