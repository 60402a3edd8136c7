//! Rewards and normalisation against values worked by hand.

use super::norm::{Normalisation, sigmoid};
use super::*;
use crate::config::{Calib, Command, Config, Norm};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn scored(completion: &str, tokens: usize) -> Scored<'_> {
    Scored { row: 0, prompt: "good good good", completion, tokens }
}

#[track_caller]
fn close(got: f64, want: f64) {
    assert!((got - want).abs() < 1e-12, "{got} {want}");
}

fn rewards(funcs: &[&str], weights: &[f64]) -> Result<Rewards> {
    let reward_funcs = funcs.iter().map(|f| f.to_string()).collect();
    let c = Config { reward_funcs, reward_weights: weights.to_vec(), reward_timeout: 1.0, ..Config::defaults(Command::Score) };
    Rewards::load(&c, None)
}

fn file(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn lexicon_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let good = file(folder.path(), "good.txt", "; comment\n# too\n\nGood\nfine 2\nodd 0.5\n");
    let bad = file(folder.path(), "bad.txt", "bad\nodd\n");
    let spec = Spec::parse(&format!("lexicon:{},{}", good.display(), bad.display())).unwrap();
    let name = spec.name.clone();
    let lexicon = spec.load(&mut Site::new(&Config::defaults(Command::Score), None)).unwrap();
    let texts = ["", "Good, GOOD fine!", "bad bad-odd", "goodness", "odd"].map(|t| scored(t, 1));
    let scores = lexicon.score(None, &texts).unwrap();
    close(scores[0], 0.5);
    close(scores[1], 0.5 * (1.0 + 4.0 / 31f64.sqrt()));
    close(scores[2], 0.5 * (1.0 - 2.5 / (6.25f64 + 15.0).sqrt()));
    close(scores[3], 0.5);
    close(scores[4], 0.5 * (1.0 - 0.5 / (0.25f64 + 15.0).sqrt()));
    assert!(lexicon.unit() && !lexicon.counts() && lexicon.name() == name);
}

#[test]
fn lexicon_of_four_columns() {
    let folder = tempfile::tempdir().unwrap();
    let vader = file(folder.path(), "v.txt", "$:\t-1.5\t0.80623\t[-1, -1]\nnice\t1.8\t0.6\t[2, 2]\n");
    let lexicon = lexicon::Lexicon::load("v", &vader, None).unwrap();
    close(lexicon.sum("nice, nice $:"), 3.6);
}

#[test]
fn shared_lexicons_read() {
    let root = std::env::var("PLE_SHARED").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").into());
    let folder = Path::new(&root).join("data/lexicon");
    if !folder.exists() {
        eprintln!("skip: {} is absent", folder.display());
        return;
    }
    let [positive, negative, vader] =
        ["opinion_positive-words.txt", "opinion_negative-words.txt", "vader_lexicon.txt"].map(|n| folder.join(n));
    let opinion = lexicon::Lexicon::load("o", &positive, Some(&negative)).unwrap();
    close(opinion.sum("A wonderful, brilliant film; not a dreary one."), 1.0);
    close(lexicon::Lexicon::load("v", &vader, None).unwrap().sum("Wonderful horrible"), 2.7 - 2.5);
}

#[test]
fn bad_lexicons_name_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[u8], &str); 5] = [
        (b"good\nbad word here\n", "line 2: wanted `word`"),
        (b"good x\n", "line 1: weight: wanted a number, got `x`"),
        (b"good inf\n", "weight"),
        (b"ok\n\xff\n", "line 2: wanted UTF-8"),
        (b"; nothing\n", "at least one word"),
    ];
    for (bytes, want) in cases {
        let path = file(folder.path(), "words.txt", bytes);
        let error = lexicon::Lexicon::load("l", &path, None).err().unwrap();
        assert!(error.to_string().contains("words.txt") && error.to_string().contains(want), "{error}");
        assert_eq!(error.exit_code(), 3);
    }
    let absent = lexicon::Lexicon::load("l", &folder.path().join("absent"), None).err().unwrap();
    assert!(absent.to_string().contains("absent"));
}

#[test]
fn length_and_weighted_sums() {
    let sum = rewards(&["length:4", "length:8"], &[0.25, 0.75]).unwrap();
    let scores = sum.score(None, &[scored("a", 0), scored("a", 2), scored("a", 6), scored("a", 80)]).unwrap();
    assert_eq!(scores.parts, [[0.0, 0.5, 1.0, 1.0], [0.0, 0.25, 0.75, 1.0]]);
    assert_eq!(scores.total, [0.0, 0.3125, 0.8125, 1.0]);
    assert!(sum.unit());
    assert_eq!(sum.names().collect::<Vec<_>>(), ["length:4", "length:8"]);
    assert!(!rewards(&["length:4", "length:8"], &[]).unwrap().unit());
    assert!(!rewards(&["length:4", "length:8"], &[2.0, -1.0]).unwrap().unit());
    assert!(rewards(&["length:4"], &[]).unwrap().unit());
    assert!(rewards(&["length:4"], &[1.0, 2.0]).is_err());
}

#[test]
fn sigmoid_normalisation_by_hand() {
    let mut n = Normalisation::new(Norm::Auto, Calib::FirstIter, false);
    assert_eq!(n.norm(), Norm::Sigmoid);
    assert!(!n.calibrate(&[1.0, 2.0, 3.0, 6.0]));
    let (mean, scale) = n.mean_scale().unwrap();
    close(mean, 3.0);
    close(scale, 3.5f64.sqrt());
    close(n.normalise(5.0), 1.0 / (1.0 + (-2.0 / 3.5f64.sqrt()).exp()));
    close(n.delta(3.0, 5.0), n.normalise(5.0) - 0.5);
    close(n.normalise(1e9), sigmoid(30.0));
    close(n.normalise(-1e9), sigmoid(-30.0));
    n.calibrate(&[100.0, 200.0]);
    assert_eq!(n.mean_scale(), Some((mean, scale)), "frozen");
    let mut again = Normalisation::new(Norm::Auto, Calib::FirstIter, false);
    again.restore(&serde_json::from_str(&n.state().to_string()).unwrap()).unwrap();
    assert_eq!(again, n);
    assert!(again.restore(&serde_json::json!([1])).is_err());
    assert!(again.restore(&serde_json::json!([1, 0])).is_err());
    again.restore(&serde_json::Value::Null).unwrap();
    assert_eq!(again.mean_scale(), None);
}

#[test]
fn calibration_each_iteration_given_or_flat() {
    let mut n = Normalisation::new(Norm::Sigmoid, Calib::EachIter, true);
    n.calibrate(&[0.0, 2.0]);
    n.calibrate(&[10.0, 14.0]);
    assert_eq!(n.mean_scale(), Some((12.0, 2.0)));
    n.calibrate(&[]);
    assert_eq!(n.mean_scale(), Some((12.0, 2.0)));
    let mut n = Normalisation::new(Norm::Sigmoid, Calib::Fixed { mean: 0.5, std: 0.8 }, false);
    assert!(!n.calibrate(&[9.0, 9.0]));
    close(n.delta(0.3, 1.9), 0.41412930285410865);
    close(n.delta(1.2, 1.0), -0.05443016317095706);
    n.restore(&serde_json::Value::Null).unwrap();
    assert_eq!(n.mean_scale(), Some((0.5, 0.8)));
    let mut n = Normalisation::new(Norm::Sigmoid, Calib::FirstIter, false);
    assert!(n.calibrate(&[-5.0, -5.0]));
    assert_eq!(n.mean_scale(), Some((-5.0, 1e-6 * 5.0)));
}

#[test]
fn none_and_bt() {
    let mut n = Normalisation::new(Norm::Auto, Calib::FirstIter, true);
    n.calibrate(&[1.0, 2.0]);
    assert_eq!((n.norm(), n.mean_scale(), n.delta(0.25, 0.75)), (Norm::None, None, 0.5));
    let n = Normalisation::new(Norm::Bt, Calib::FirstIter, false);
    close(n.delta(1.0, 3.0), 1f64.tanh());
    close(n.delta(1.0, 3.0), 2.0 * sigmoid(2.0) - 1.0);
    assert_eq!(n.normalise(7.0), 7.0);
}

#[test]
fn patterns_by_hand() {
    let rules = rewards(&["regex:^a+b", "contains:A b", "regex:(?i)x$"], &[1.0, 10.0, 100.0]).unwrap();
    let texts = ["", "aab", "caab A b", "A bX", "A\nb"].map(|t| scored(t, 0));
    assert_eq!(rules.score(None, &texts).unwrap().total, [0.0, 1.0, 10.0, 110.0, 0.0]);
    assert!(rewards(&["contains:user@unit"], &[]).unwrap().unit(), "a rule is unit by its formula");
    let found = rewards(&["contains:user@unit"], &[]).unwrap().score(None, &[scored("user", 0), scored("a user@unit", 0)]);
    assert_eq!(found.unwrap().total, [0.0, 1.0], "and the text is as written");
}

#[test]
fn bad_specs_name_the_reward() {
    for (text, words) in [
        ("lexcon:a", &["unknown reward", "`lexcon:a`", "`lexicon:`"][..]),
        ("regex:(", &["regex:PATTERN", "`regex:(`"]),
        ("regex:(a{1000}){1000}", &["regex:PATTERN", "`regex:(a{1000}){1000}`"]),
        ("regex:", &["regex:PATTERN with a pattern"]),
        ("contains:", &["contains:TEXT"]),
        ("model:", &["model:DIR"]),
        ("model:@unit", &["model:DIR"]),
        ("adapter:", &["adapter:DIR"]),
        ("exec:", &["exec:COMMAND"]),
        ("exec: @unit", &["exec:COMMAND"]),
        ("exec:sh 'a", &["exec:COMMAND", "quotes"]),
    ] {
        let error = Spec::parse(text).unwrap_err();
        let missing: Vec<_> = words.iter().filter(|word| !error.to_string().contains(**word)).collect();
        assert!(missing.is_empty() && error.exit_code() == 2, "{text}: {missing:?} in {error}");
    }
}

#[test]
fn others_are_unit_by_their_word() {
    for (text, unit) in
        [("exec:a@unit", true), ("exec:a", false), ("model:m@unit", true), ("model:m", false), ("adapter:a@unit", true)]
    {
        assert_eq!(Spec::parse(text).unwrap().unit, unit, "{text}");
    }
    let words = |text: &str| match Spec::parse(text).unwrap().kind {
        Kind::Exec(words) => words,
        other => panic!("{other:?}"),
    };
    assert_eq!(words("exec:./a 'b c' \"d\" e\\ f@unit"), ["./a", "b c", "d", "e f"]);
    let folder = tempfile::tempdir().unwrap();
    let high = file(folder.path(), "high.sh", "while read -r l; do echo 1.5; done");
    let [real, unit] = ["", "@unit"].map(|more| rewards(&[&format!("exec:sh {}{more}", high.display())], &[]).unwrap());
    assert_eq!(real.score(None, &[scored("a", 0)]).unwrap().total, [1.5]);
    let error = unit.score(None, &[Scored { row: 9, ..scored("a", 0) }]).unwrap_err();
    assert!(error.exit_code() == 5 && error.to_string().contains("row 9: wanted a score in [0, 1], got 1.5"), "{error}");
}

/// Back and forth without end: an error, soon.
#[test]
fn a_pattern_without_end_ends() {
    let rule = rewards(&["regex:(a|b|ab)*(?=c)\\1d"], &[]).unwrap();
    let (text, start) = ("ab".repeat(500), Instant::now());
    let error = rule.score(None, &[Scored { row: 4, ..scored(&text, 0) }]).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("row 4: wanted a pattern that ends"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn answers_of_a_command() {
    let number = super::exec::number;
    for (line, value) in
        [("1", 1.0), (" -2.5e-3\r", -0.0025), ("{\"reward\": 3}", 3.0), ("{\"a\": \"NaN\", \"reward\": 0.5}", 0.5)]
    {
        assert_eq!(number(line), Some(value), "{line}");
    }
    for line in
        ["nan", "NaN", "inf", "-Infinity", "{\"reward\": NaN}", "{\"reward\":Infinity}", "{\"reward\": -Infinity, \"a\": 1}"]
    {
        assert!(number(line).is_some_and(|x| !x.is_finite()), "{line}");
    }
    for line in [
        "",
        "good",
        "1 2",
        "[1]",
        "true",
        "null",
        "{\"reward\": \"1\"}",
        "{\"reward\": null}",
        "{\"score\": 1}",
        "{\"reward\": \"NaN\"}",
    ] {
        assert_eq!(number(line), None, "{line}");
    }
}
