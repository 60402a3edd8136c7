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
    regex.is_match(module).map_err(|e| untried(path, field, regex, module, e))
}

fn untried(path: &Path, field: &str, regex: &Regex, module: &str, e: fancy_regex::Error) -> Error {
    Error::file(path, format!("{field}: wanted an expression that can be tried on {module}, got {:?}: {e}", regex.as_str()))
}

/// Targets, ready to be tried on paths.
pub(super) enum Selector<'a> {
    All,
    Regex(&'a Path, &'a str, Regex),
    List(&'a [String], Option<Layers<'a>>),
}

/// The layers that names by their end are limited to.
pub(super) struct Layers<'a> {
    path: &'a Path,
    numbers: &'a [usize],
    /// Each finds the first number behind the name, in the group `idx`; the first pattern that matches counts.
    patterns: Vec<Regex>,
}

impl<'a> Layers<'a> {
    /// None where every layer is meant.
    pub(super) fn new(path: &'a Path, numbers: &'a [usize], names: &'a [String]) -> Result<Option<Layers<'a>>> {
        if numbers.is_empty() {
            return Ok(None);
        }
        let one = |text: String| compile(path, "layers_pattern", &text);
        let patterns = match names {
            [] => vec![one(r"\A.*?\.[^.]*\.(?<idx>\d+)\.".into())?],
            names => names.iter().map(|n| one(format!(r"\A(?:.*?\.)?{n}\.(?<idx>\d+)\."))).collect::<Result<_>>()?,
        };
        Ok(Some(Layers { path, numbers, patterns }))
    }

    fn holds(&self, module: &str) -> Result<bool> {
        for pattern in &self.patterns {
            let found = pattern.captures(module).map_err(|e| untried(self.path, "layers_pattern", pattern, module, e))?;
            if let Some(found) = found {
                let number = found.name("idx").and_then(|m| m.as_str().parse::<usize>().ok());
                return Ok(number.is_some_and(|n| self.numbers.contains(&n)));
            }
        }
        Ok(false)
    }
}

impl<'a> Selector<'a> {
    /// `layers` limits names by their end only, as in PEFT.
    pub(super) fn new(path: &'a Path, field: &'a str, targets: &'a Targets, layers: Option<Layers<'a>>) -> Result<Selector<'a>> {
        Ok(match targets {
            Targets::AllLinear => Selector::All,
            Targets::Regex(text) => Selector::Regex(path, field, compile(path, field, &format!(r"\A(?:{text})\z"))?),
            Targets::List(list) => Selector::List(list, layers),
        })
    }

    pub(super) fn matches(&self, module: &str) -> Result<bool> {
        match self {
            Selector::All => Ok(true),
            Selector::Regex(path, field, regex) => matches(path, field, regex, module),
            Selector::List(list, _) if list.iter().any(|t| t == module) => Ok(true),
            Selector::List(list, layers) => {
                let ends = list.iter().any(|t| module.strip_suffix(t.as_str()).is_some_and(|r| r.ends_with('.')));
                Ok(ends && layers.as_ref().map_or(Ok(true), |l| l.holds(module))?)
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
