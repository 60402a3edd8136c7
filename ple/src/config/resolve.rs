//! From defaults, presets, files and flags to settings, with where each value is from.

use super::{Command, Config, Given, KEYS, Key, Origin, argv, file, other, preset};
use crate::{Error, Result};
use std::fmt;

/// Where an effective value is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Of the command.
    Default,
    /// A preset, by name.
    Preset(String),
    /// A file or a flag.
    Given(Origin),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::Preset(name) => write!(f, "preset {name}"),
            Source::Given(Origin::File { path, line, .. }) if *line > 0 => write!(f, "{}:{line}", path.display()),
            Source::Given(origin) => write!(f, "{origin}"),
        }
    }
}

/// Settings before they are checked together.
#[derive(Debug)]
pub struct Resolved {
    /// The settings; a key that is at fault keeps what lies under it.
    pub config: Config,
    /// Of the keys that are not at their default.
    sources: Vec<(&'static str, Source)>,
    /// Unknown keys and values of another type, in order.
    pub faults: Vec<Error>,
}

impl Resolved {
    /// Settings of `command` from its arguments. An error is a file that cannot be read or a word that is no setting.
    pub fn read(command: Command, argv: &[String]) -> Result<Resolved> {
        let (folders, argv) = argv::folders(command, argv);
        let (flags, files) = argv::read(argv)?;
        let mut given: Vec<Given> = folders.into_iter().collect();
        for path in &files {
            given.extend(file::read(path)?);
        }
        given.extend(flags);
        let mut resolved = Resolved { config: Config::defaults(command), sources: Vec::new(), faults: Vec::new() };
        given.iter_mut().for_each(|one| resolved.config.notes.extend(renamed(one)));
        let (presets, others): (Vec<_>, Vec<_>) = given.into_iter().partition(|g| matches!(g.name.as_str(), "preset" | "recipe"));
        presets.into_iter().for_each(|one| resolved.apply(one));
        let recipe = resolved.config.recipe.name();
        resolved.beneath(recipe, |config| {
            preset::recipe(config);
            Ok(())
        });
        for name in resolved.config.preset.clone() {
            resolved.beneath(&name, |config| preset::apply(config, &name));
        }
        others.into_iter().for_each(|one| resolved.apply(one));
        Ok(resolved)
    }

    /// Where the value of a key is from.
    pub fn source(&self, key: &Key) -> &Source {
        self.sources.iter().find(|(name, _)| *name == key.name).map_or(&Source::Default, |(_, source)| source)
    }

    fn apply(&mut self, given: Given) {
        match self.config.apply(&given) {
            Err(fault) => self.faults.push(fault),
            Ok(Some(key)) => self.note(key, Source::Given(given.from)),
            Ok(None) => {}
        }
    }

    /// What built-in settings of this name change.
    fn beneath(&mut self, name: &str, change: impl FnOnce(&mut Config) -> Result<()>) {
        let before = self.config.clone();
        if let Err(fault) = change(&mut self.config) {
            self.faults.push(fault);
        }
        for key in KEYS {
            if (key.get)(&before) != (key.get)(&self.config) {
                self.note(key.name, Source::Preset(name.to_string()));
            }
        }
    }

    fn note(&mut self, key: &'static str, source: Source) {
        self.sources.retain(|(name, _)| *name != key);
        self.sources.push((key, source));
    }
}

/// Gives a key its present name; the line that says so.
pub(super) fn renamed(given: &mut Given) -> Option<String> {
    let (old, new) = other::RENAMED.iter().find(|(old, _)| *old == given.name)?;
    given.name = (*new).to_string();
    Some(format!("{}: {old} is called {new}", given.from))
}
