//! What a row of the table of keys is, and the macro that makes struct and table from one list.

use super::field::{Arity, Hint};
use super::{Command, Config};
use serde_json::Value;

/// One row of the table.
pub struct Key {
    /// As in files; a flag may use dashes.
    pub name: &'static str,
    /// One sentence or two.
    pub help: &'static str,
    /// Words of its flag.
    pub arity: Arity,
    /// Commands that read it, a sum of their bits.
    pub commands: u32,
    /// What a user is told is wanted.
    pub wanted: fn() -> String,
    /// What a shell may offer.
    pub hint: Hint,
    /// Stores a value; false where it has another type.
    pub set: fn(&mut Config, &Value) -> bool,
    /// The value as JSON.
    pub get: fn(&Config) -> Value,
}

impl Key {
    /// Whether `command` reads it.
    pub fn belongs_to(&self, command: Command) -> bool {
        self.commands & command.bit() != 0
    }

    /// Why `command` does not read it.
    pub(super) fn foreign(&self, command: Command) -> String {
        let owners: Vec<_> = Command::ALL.into_iter().filter(|c| self.belongs_to(*c)).map(Command::name).collect();
        format!("not a setting of `ple {}` (of: {})", command.name(), owners.join(", "))
    }

    /// Why it cannot have a value.
    pub(super) fn refusal(&self, value: &Value) -> String {
        let got: String = value.to_string().chars().take(120).collect();
        format!("wanted {}, got {got}", (self.wanted)())
    }
}

/// `/// help` `name: type = default, commands;` per key.
macro_rules! keys {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ty = $default:expr, $commands:expr;)+) => {
        /// Every setting of every command; keys that a command does not read keep their defaults.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            /// The command these are for.
            pub command: Command,
            /// One line per key that was accepted and has no effect.
            pub notes: Vec<String>,
            /// Keys that a file or a flag gave, presets aside.
            pub given: Vec<&'static str>,
            $($(#[doc = $help])+ pub $name: $kind,)+
        }

        impl Config {
            /// What holds before presets, files and flags; a few keys differ by command.
            pub fn defaults(command: Command) -> Config {
                let mut config = Config { command, notes: Vec::new(), given: Vec::new(), $($name: $default,)+ };
                command.adjust(&mut config);
                config
            }
        }

        /// The table.
        pub const KEYS: &[Key] = &[$(Key {
            name: stringify!($name),
            help: concat!($($help),+),
            arity: <$kind as Field>::ARITY,
            commands: $commands,
            wanted: <$kind as Field>::wanted,
            hint: <$kind as Field>::HINT,
            set: |config, value| <$kind as Field>::read(value).map(|v| config.$name = v).is_some(),
            get: |config| config.$name.write(),
        }),+];
    };
}
pub(super) use keys;
