//! The scripts in the shells themselves, where they are installed.

use super::*;
use std::process::Command as Process;

/// What a shell prints; None where it is not installed.
fn shell(name: &str, flags: &[&str], script: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("script");
    std::fs::write(&path, script).unwrap();
    let Ok(out) = Process::new(name).args(flags).arg(&path).current_dir(folder.path()).env("HOME", folder.path()).output() else {
        log::tell(&format!("skip: {name} is not installed"));
        return None;
    };
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.is_empty(), "{name}: {said}");
    Some(String::from_utf8(out.stdout).unwrap())
}

/// A line typed so far, what must be offered, and what must not.
const CASES: &[(&str, &[&str], &[&str])] = &[
    ("ple tr", &["train"], &["score"]),
    ("ple c", &["config", "completions"], &["train"]),
    ("ple train --le", &["--learning_rate"], &["--lora_r"]),
    ("ple sft --ple_", &[], &["--ple_tau0"]),
    ("ple train --ple_ta", &["--ple_tau0", "--ple_tau_min"], &["--ple_alpha"]),
    ("ple train --dtype ", &["auto", "float32", "bfloat16", "float16"], &["--seed"]),
    ("ple train --ple-rank h", &["hinge"], &["logistic"]),
    ("ple train --ple_rank hinge --se", &["--seed"], &["hinge"]),
    ("ple train --preset im", &["imdb"], &["hh"]),
    ("ple train --preset imdb l", &["literal"], &["hh"]),
    ("ple train --preset imdb --se", &["--seed"], &["hh"]),
    ("ple train --quiet --no_q", &["--no_quiet"], &["--quiet"]),
    ("ple doctor --js", &["--json"], &[]),
    ("ple config f", &["from-trl"], &["show"]),
    ("ple config show --command s", &["sft", "score"], &["train"]),
    ("ple config show --command sft --lora_a", &["--lora_alpha"], &["sft"]),
    ("ple inspect d", &["data"], &["model"]),
    ("ple inspect data --ro", &["--rows"], &[]),
    ("ple chat --sys", &["--system"], &[]),
    ("ple completions z", &["zsh"], &["bash"]),
];

fn holds(shell: &str, line: &str, offered: &[&str], wanted: &[&str], unwanted: &[&str]) {
    for word in wanted {
        assert!(offered.contains(word), "{shell}: `{line}` should offer {word}, got {offered:?}");
    }
    for word in unwanted {
        assert!(!offered.contains(word), "{shell}: `{line}` should not offer {word}, got {offered:?}");
    }
}

/// The words of a line, the last of which may be empty.
fn parts(line: &str) -> Vec<String> {
    line.split(' ').map(|word| format!("'{word}'")).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let ask = |words: &[String]| {
        let (list, at) = (words.join(" "), words.len() - 1);
        format!("COMP_WORDS=({list}); COMP_CWORD={at}; _ple; echo \"${{COMPREPLY[*]}}\"\n")
    };
    let inline = ["'ple'", "'train'", "'--dtype'", "'='", "'b'"].map(String::from);
    let path = ["'ple'", "'train'", "'--model_name_or_path'", "''"].map(String::from);
    let calls: String = CASES.iter().map(|(line, ..)| ask(&parts(line))).collect();
    let script = format!("set -u\n{}\ncomplete -p ple\n{calls}{}{}", bash(), ask(&inline), ask(&path));
    let Some(said) = shell("bash", &["--noprofile", "--norc"], &script) else { return };
    let lines: Vec<&str> = said.split('\n').collect();
    assert!(lines[0].contains("-o default") && lines[0].contains("-F _ple"), "{}", lines[0]);
    for ((line, wanted, unwanted), offered) in CASES.iter().zip(&lines[1..]) {
        holds("bash", line, &offered.split(' ').collect::<Vec<_>>(), wanted, unwanted);
    }
    let rest = &lines[CASES.len() + 1..];
    assert_eq!(rest, ["bfloat16", "", ""], "--dtype=b, and a path that is left to file names");
}

#[test]
fn bash_offers_every_key_of_every_command() {
    let calls =
        Command::ALL.map(|c| format!("COMP_WORDS=(ple {} --); COMP_CWORD=2; _ple; echo \"${{COMPREPLY[*]}}\"\n", c.name()));
    let Some(said) = shell("bash", &["--noprofile", "--norc"], &(bash() + &calls.concat())) else { return };
    for (command, offered) in Command::ALL.into_iter().zip(said.lines()) {
        let offered: Vec<&str> = offered.split(' ').filter(|word| !word.is_empty()).collect();
        let wanted: Vec<String> = flags(command).into_iter().map(|(flag, _)| flag).collect();
        assert_eq!(offered, wanted, "{}", command.name());
        let keys = KEYS.iter().filter(|key| key.belongs_to(command));
        keys.for_each(|key| assert!(offered.contains(&format!("--{}", key.name).as_str()), "{}", key.name));
    }
}

/// zsh's own `compadd` works only while a line is edited: here it and `_describe` print what they are given, which is then cut to
/// what begins as the word does.
#[test]
fn zsh_completes_commands_flags_and_values() {
    let stand_ins = "compdef() { : }\n_files() { : }\n_describe() { print -l -- \"${(@)${(@P)2}%%:*}\" }\n\
        compadd() { [[ $1 == -a ]] && print -l -- \"${(@P)2}\" || print -l -- \"$@\" }\n";
    let ask = |line: &str| format!("words=({}); CURRENT=$#words; print -- $(_ple)\n", parts(line).join(" "));
    let calls: String = CASES.iter().map(|(line, ..)| ask(line)).collect();
    let Some(said) = shell("zsh", &["-f"], &format!("{stand_ins}{}\n{calls}", zsh())) else { return };
    for ((line, wanted, unwanted), offered) in CASES.iter().zip(said.split('\n')) {
        let typed = line.rsplit(' ').next().unwrap();
        let offered: Vec<&str> = offered.split(' ').filter(|word| word.starts_with(typed)).collect();
        holds("zsh", line, &offered, wanted, unwanted);
    }
}

#[test]
fn fish_completes_commands_flags_and_values() {
    let calls: String =
        CASES.iter().map(|(line, ..)| format!("echo -- (complete -C '{line}' | string split -f1 \\t)\n")).collect();
    let Some(said) = shell("fish", &["--no-config"], &(fish() + &calls)) else { return };
    let switches = ["--no_quiet", "--ple-rank"];
    for ((line, wanted, unwanted), offered) in CASES.iter().zip(said.split('\n')) {
        // fish completes what is declared: neither `no_` nor dashes, nor a second value of a list.
        if line.contains("--preset imdb l") || line.contains("--ple-rank") || wanted.iter().any(|w| switches.contains(w)) {
            continue;
        }
        holds("fish", line, &offered.split(' ').collect::<Vec<_>>(), wanted, unwanted);
    }
}

#[test]
fn other_shells_are_refused() {
    for argv in [&[][..], &["tcsh".to_string()], &["bash".to_string(), "zsh".to_string()]] {
        assert!(run(argv).is_err_and(|e| e.exit_code() == 2 && e.to_string().contains("wanted bash, zsh or fish")));
    }
}
