//! Words of the command line.

use super::*;

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_string).collect()
}

#[test]
fn flags_of_its_own_are_taken_out() -> Result<()> {
    let mut rest = words("--a 1 --rows 3 --b --rows=4");
    assert_eq!(taken(&mut rest, "rows")?.as_deref(), Some("3"));
    assert_eq!(taken(&mut rest, "rows")?.as_deref(), Some("4"));
    assert_eq!((taken(&mut rest, "rows")?, rest), (None, words("--a 1 --b")));
    assert!(taken(&mut words("--rows"), "rows").is_err_and(|e| e.to_string() == "--rows: needs a value"));
    Ok(())
}

#[test]
fn wrong_words_are_usage_errors() {
    for (line, wanted) in [
        ("", "wanted model, adapter, template or data, got nothing"),
        ("date", "the nearest known is `data`"),
        ("model", "model_name_or_path: wanted a path"),
        ("adapter", "adapter: wanted a path"),
        ("model --rows 2", "--rows: not a setting of `ple inspect model`"),
        ("template --rows two", "--rows: wanted a whole number"),
        ("model --seed 3", "--seed: not a setting of `ple inspect`"),
        ("data --command score --model_name_or_path m", "--command: wanted a command that trains, or generate"),
        ("data --command sft", "model_name_or_path"),
    ] {
        let got = run(&words(line)).map_err(|e| (e.exit_code(), e.to_string()));
        assert!(got.as_ref().is_err_and(|(code, text)| *code == 2 && text.contains(wanted)), "{line}: {got:?}");
    }
}
