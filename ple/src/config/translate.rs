//! A file of TRL's settings as one of ours: keys under their present names, and what is left out with the reason.

use super::{Command, Config, Given, KEYS, Origin, file, other, resolve, yaml};
use crate::Result;
use std::path::Path;

/// What became of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// Keys that stay, as YAML, each with the line it came from.
    pub kept: String,
    /// One line per key that has no effect here: line, key, why.
    pub ignored: Vec<String>,
    /// One line per key that would stop a run: unknown, of another type, or a feature that is not there.
    pub refused: Vec<String>,
}

impl Translated {
    /// The file for `command`.
    pub fn read(command: Command, path: &Path) -> Result<Translated> {
        let mut out = Translated::default();
        let mut scratch = Config::defaults(command);
        file::read(path)?.into_iter().for_each(|given| out.add(&mut scratch, given));
        Ok(out)
    }

    /// As a YAML file; what is left out stands in comments at its end.
    pub fn text(&self) -> String {
        let block = |title: &str, lines: &[String]| -> String {
            let all = std::iter::once(title.to_string()).chain(lines.iter().map(|line| format!("  {line}")));
            if lines.is_empty() { String::new() } else { all.map(|line| yaml::comment(&line)).collect() }
        };
        self.kept.clone() + &block("ignored:", &self.ignored) + &block("refused:", &self.refused)
    }

    fn add(&mut self, scratch: &mut Config, mut given: Given) {
        let line = match &given.from {
            Origin::File { line, .. } => *line,
            Origin::Flag(_) => 0,
        };
        let (written, command) = (given.name.clone(), scratch.command);
        let was = if resolve::renamed(&mut given).is_some() { format!(", was {written}") } else { String::new() };
        let say = |text: String| format!("line {line}: {written}: {text}");
        match KEYS.iter().find(|key| key.name == given.name) {
            Some(key) if !key.belongs_to(command) => self.ignored.push(say(key.foreign(command))),
            Some(key) if (key.set)(scratch, &given.value) => {
                self.kept += &yaml::line(key.name, &(key.get)(scratch), &format!("line {line}{was}"));
            }
            Some(key) => self.refused.push(say(key.refusal(&given.value))),
            None if !other::knows(&written) => {
                self.refused.push(say(format!("unknown; the nearest known is `{}`", other::near(&written))))
            }
            None => match other::verdict(&given) {
                Ok(Some(why)) => self.ignored.push(say(why.to_string())),
                Ok(None) => self.ignored.push(say("this value changes nothing".into())),
                Err(why) => self.refused.push(say(why)),
            },
        }
    }
}
