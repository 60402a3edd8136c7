//! `ple completions bash|zsh|fish`: a shell's completions, from the table of keys and the list of commands.

use crate::config::{Arity, Command, Hint, KEYS, Key, PRESETS};
use crate::{Error, Result, log};

/// What `--help` prints.
pub const USAGE: &str = "ple completions bash|zsh|fish
        bash: source <(ple completions bash)
        zsh:  ple completions zsh > a folder of $fpath/_ple
        fish: ple completions fish > ~/.config/fish/completions/ple.fish
";

/// Runs the command.
pub fn run(argv: &[String]) -> Result<()> {
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    log::print(&match words.as_slice() {
        ["--help" | "-h"] => USAGE.to_string(),
        ["bash"] => bash(),
        ["zsh"] => zsh(),
        ["fish"] => fish(),
        other => {
            let got = if other.is_empty() { "nothing".to_string() } else { other.join(" ") };
            return Err(Error::Usage(format!("completions: wanted bash, zsh or fish, got {got}")));
        }
    })
}

/// Words that may follow a command at once.
fn verbs(command: Command) -> &'static [&'static str] {
    match command {
        Command::Config => &["show", "check", "from-trl"],
        Command::Completions => &["bash", "zsh", "fish"],
        Command::Inspect => &["model", "adapter", "template", "data"],
        _ => &[],
    }
}

/// Flags that are no keys, with what each does.
fn extra(command: Command) -> &'static [(&'static str, &'static str)] {
    match command {
        Command::Config => &[("command", "Whose settings"), ("config", "A file of settings")],
        Command::Completions => &[],
        Command::Inspect => &[
            ("command", "Whose rows (data)"),
            ("config", "A file of settings"),
            ("json", "As JSON"),
            ("rows", "Rows to show (data)"),
        ],
        Command::Doctor => &[("config", "A file of settings"), ("json", "As JSON")],
        _ => &[("config", "A file of settings")],
    }
}

/// `ple config` takes the keys of every command, `ple inspect data` those of whoever reads rows.
fn reads(command: Command, key: &Key) -> bool {
    let rows = || Command::ALL.into_iter().filter(|command| command.trains()).chain([Command::Generate]);
    let others = match command {
        Command::Config => true,
        Command::Inspect => rows().any(|command| key.belongs_to(command)),
        _ => false,
    };
    others || key.belongs_to(command)
}

/// Values to offer for a key.
fn values(key: &Key) -> Option<Vec<&'static str>> {
    match (key.name, key.hint) {
        ("preset", _) => Some(PRESETS.to_vec()),
        ("device", _) => Some(vec!["auto", "cpu", "cuda", "ascend"]),
        (_, Hint::Words(words)) => Some(words.to_vec()),
        _ => None,
    }
}

fn names() -> Vec<&'static str> {
    Command::ALL.map(Command::name).to_vec()
}

/// Every flag of a command with what it does: those that are no keys, the keys, and `no_` for switches.
fn flags(command: Command) -> Vec<(String, &'static str)> {
    let keys = KEYS.iter().filter(|key| reads(command, key));
    let own = extra(command).iter().map(|(name, help)| (format!("--{name}"), *help));
    let positive = keys.clone().map(|key| (format!("--{}", key.name), key.help.trim()));
    let negative = keys.filter(|key| key.arity == Arity::Switch).map(|key| (format!("--no_{}", key.name), "Off"));
    own.chain(positive).chain(negative).collect()
}

/// `pattern) action ;;` for each flag that has values to offer.
fn value_cases(action: impl Fn(&str) -> String) -> String {
    let of = |key: &Key| Some(format!("    --{}) {} ;;\n", key.name, action(&values(key)?.join(" "))));
    format!("    --command) {} ;;\n", action(&names().join(" "))) + &KEYS.iter().filter_map(of).collect::<String>()
}

/// `a|b|c` over the flags of the keys of one kind.
fn flags_where(holds: impl Fn(&Key) -> bool) -> String {
    KEYS.iter().filter(|key| holds(key)).map(|key| format!("--{}", key.name)).collect::<Vec<_>>().join("|")
}

/// Where there is nothing to offer, bash's own default completes file names.
fn bash() -> String {
    let case = |command: Command| {
        let flags: Vec<String> = flags(command).into_iter().map(|(flag, _)| flag).collect();
        format!("    {}) verbs='{}' flags='{}' ;;\n", command.name(), verbs(command).join(" "), flags.join(" "))
    };
    include_str!("completions/ple.bash")
        .replace("@commands@", &names().join(" "))
        .replace("@cases@\n", &Command::ALL.map(case).concat())
        .replace("@values@\n", &value_cases(|words| format!("words='{words}'")))
        .replace("@switches@", &flags_where(|key| key.arity == Arity::Switch))
        .replace("@lists@", &flags_where(|key| key.arity == Arity::Many))
}

fn zsh() -> String {
    // In `_describe` a colon parts the word from what is said of it.
    let entry = |name: &str, about: &str| format!("'{name}:{}'", about.replace('\'', "'\\''").replace(':', "\\:"));
    let commands = Command::ALL.map(|command| entry(command.name(), command.about())).join(" ");
    let case = |command: Command| {
        let flags: Vec<String> = flags(command).iter().map(|(flag, help)| entry(flag, help)).collect();
        format!("    {}) verbs=({}) flags=({}) ;;\n", command.name(), verbs(command).join(" "), flags.join(" "))
    };
    include_str!("completions/ple.zsh")
        .replace("@commands@", &commands)
        .replace("@cases@\n", &Command::ALL.map(case).concat())
        .replace("@values@\n", &value_cases(|words| format!("words_=({words})")))
        .replace("@switches@", &flags_where(|key| key.arity == Arity::Switch))
        .replace("@lists@", &flags_where(|key| key.arity == Arity::Many))
}

fn fish() -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let first = "-n 'test (count (commandline -opc)) -eq 1'";
    let seen = |commands: &[&str]| format!("-n '__fish_seen_subcommand_from {}'", commands.join(" "));
    let mut text = String::from("# Completions of ple for fish.\ncomplete -c ple -f\n");
    for command in Command::ALL {
        text += &format!("complete -c ple {first} -a {} -d {}\n", command.name(), quote(command.about()));
        for verb in verbs(command) {
            text += &format!(
                "complete -c ple -n 'test (count (commandline -opc)) -eq 2; and {}' -a {verb}\n",
                &seen(&[command.name()])[4..].trim_matches('\'')
            );
        }
        for (flag, help) in extra(command) {
            let takes = match *flag {
                "config" => "-r -F".to_string(),
                "command" => format!("-x -a '{}'", names().join(" ")),
                _ => String::new(),
            };
            text += &format!("complete -c ple {} -l {flag} {takes} -d {}\n", seen(&[command.name()]), quote(help));
        }
    }
    for key in KEYS {
        let owners: Vec<&str> = Command::ALL.into_iter().filter(|command| reads(*command, key)).map(Command::name).collect();
        let takes = match (key.arity, key.hint, values(key)) {
            (Arity::Switch, ..) => String::new(),
            (_, _, Some(words)) => format!("-x -a '{}'", words.join(" ")),
            (_, Hint::Path, _) => "-r -F".to_string(),
            _ => "-x".to_string(),
        };
        text += &format!("complete -c ple {} -l {} {takes} -d {}\n", seen(&owners), key.name, quote(key.help.trim()));
    }
    text + "complete -c ple -n '__fish_seen_subcommand_from report' -F\n"
}

#[cfg(test)]
mod tests;
