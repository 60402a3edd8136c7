//! The help of a command, from the table.

use super::{Arity, Command, Config, KEYS};

/// One block per key: flag, what it takes, what it does, default.
pub fn help(command: Command) -> String {
    let defaults = Config::defaults(command);
    let mut text = format!("ple {} [--config FILE.yaml]... [--key value]...\n\n", command.name());
    text += "  --config FILE\n        Settings by the same names, YAML or JSON; later files win, flags win over files.\n";
    for key in KEYS.iter().filter(|k| k.belongs_to(command)) {
        let takes = match key.arity {
            Arity::Switch => " [true|false]",
            Arity::One => " VALUE",
            Arity::Many => " VALUE...",
        };
        let default = (key.get)(&defaults);
        let default = if default.is_null() { "unset".to_string() } else { default.to_string().replace('"', "") };
        text += &format!("  --{}{takes}\n       {} [{default}; {}]\n", key.name, key.help, (key.wanted)());
    }
    text
}
