//! `ple report` over runs written by hand: every number that is drawn can be counted, nothing hostile gets through, and what is
//! missing or damaged is named.

use super::program::ple;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;

const HOSTILE: &str = "</td><script>alert('x')</script> & \"more\"";

/// A run of `iterations` with two steps and `queries` pairs each.
fn run(folder: &Path, iterations: usize, queries: usize, text: &str) -> Result<()> {
    std::fs::create_dir_all(folder.join("completions"))?;
    let settings = json!({ "version": "0", "device": "cpu", "parameters": { "base": 1, "trainable": 1 },
        "config": { "command": "train", "reward_norm": "auto", "output_dir": HOSTILE } });
    std::fs::write(folder.join("run.json"), settings.to_string())?;
    let mut log = String::new();
    for i in 0..iterations {
        for step in [2 * i + 1, 2 * i + 2] {
            let row = json!({ "iteration": i, "step": step, "loss": 1.0 / step as f64, "ple/tau": 0.2 * 0.9f64.powi(i as i32),
                "ple/delta_mean": 0.1, "ple/rank_frac": 0.5, "time/rollout": 1.0, "time/reward": 0.1, "time/train": 0.5,
                "completions/mean_length": 2.0, "logp_gap_max": 0.0 });
            log += &format!("{row}\n");
        }
        let mut rows = String::new();
        for query in 0..queries {
            for side in [0, 1] {
                let branch = if query % 2 == 0 { "ranked" } else { "weighted" };
                let reward = if side == 0 { 0.5 } else { 0.5 + 0.4 * query as f64 / queries as f64 };
                let row = json!({ "row": query, "side": side, "sample": 0, "prompt": text, "completion": text, "ids": [1, 2],
                    "reward": reward, "branch": branch, "finished": true });
                rows += &format!("{row}\n");
            }
        }
        std::fs::write(folder.join(format!("completions/iter-{i:05}.jsonl")), rows)?;
    }
    std::fs::write(folder.join("log.jsonl"), log)?;
    Ok(())
}

/// The drawing that is called `name`.
fn chart<'a>(page: &'a str, name: &str) -> Result<&'a str> {
    let (_, rest) = page.split_once(&format!("aria-label=\"{name}\"")).with_context(|| name.to_string())?;
    Ok(rest.split_once("</svg>").context("an end")?.0)
}

#[test]
fn every_chart_has_its_points() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    run(&folder, 5, 8, HOSTILE)?;
    let said = ple("report").and(&folder.display().to_string()).succeed()?;
    ensure!(said.out.lines().count() >= 8 && said.out.contains("report.html"), "{}", said.out);
    let page = std::fs::read_to_string(folder.join("report.html"))?;
    let count = |name: &str, mark: &str| -> Result<usize> { Ok(chart(&page, name)?.matches(mark).count()) };
    ensure!(count("mean reward per iteration", "<circle")? == 2 * 5);
    ensure!(count("loss per step", "<circle")? == 10);
    ensure!(count("threshold and mean difference per iteration", "<circle")? == 2 * 5);
    ensure!(count("what became of the queries", "<rect")? == 2 * 5);
    ensure!(count("seconds per phase and iteration", "<rect")? == 3 * 5);
    ensure!(count("mean length per iteration", "<circle")? == 2 * 5);
    let histogram = chart(&page, "histogram of the differences")?;
    ensure!(histogram.matches("class=\"mark").count() == 2 && histogram.contains("τ = 0.200") && histogram.contains("τ = 0.131"));
    for iteration in ["iteration 0: ", "iteration 4: "] {
        let shares = histogram.split(iteration).skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<f64>().ok());
        let sum: f64 = shares.sum();
        ensure!((sum - 100.0).abs() < 0.5, "{iteration} has {sum} %");
    }
    Ok(())
}

/// Linear light of a colour `#rrggbb`.
fn light(colour: &str) -> Result<[f64; 3]> {
    let part = |at: usize| -> Result<f64> {
        let x = f64::from(u8::from_str_radix(colour.get(at..at + 2).context("#rrggbb")?, 16)?) / 255.0;
        Ok(if x <= 0.04045 { x / 12.92 } else { ((x + 0.055) / 1.055).powf(2.4) })
    };
    Ok([part(1)?, part(3)?, part(5)?])
}

/// OKLab, in which a just noticeable difference is about 0.02.
fn lab([r, g, b]: [f64; 3]) -> [f64; 3] {
    let l = (0.412_221_470_8 * r + 0.536_332_536_3 * g + 0.051_445_992_9 * b).cbrt();
    let m = (0.211_903_498_2 * r + 0.680_699_545_1 * g + 0.107_396_956_6 * b).cbrt();
    let s = (0.088_302_461_9 * r + 0.281_718_837_6 * g + 0.629_978_700_5 * b).cbrt();
    [
        0.210_454_255_3 * l + 0.793_617_785_0 * m - 0.004_072_046_8 * s,
        1.977_998_495_1 * l - 2.428_592_205_0 * m + 0.450_593_709_9 * s,
        0.025_904_037_1 * l + 0.782_771_766_2 * m - 0.808_675_766_0 * s,
    ]
}

#[test]
fn eight_runs_side_by_side_are_told_apart() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folders: Vec<_> = (0..9).map(|i| dir.path().join(format!("run-{i}"))).collect();
    folders.iter().try_for_each(|folder| run(folder, 4, 6, "x"))?;
    let words: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    let file = dir.path().join("page.html");
    ple("report").and(&words.join(" ")).key("output_file", &file).succeed()?;
    let page = std::fs::read_to_string(&file)?;
    ensure!(page.len() < 300_000, "{} bytes", page.len());
    for name in ["reward of plain answers, by run", "threshold, by run", "ranked pairs, by run", "loss per step, by run"] {
        let chart = chart(&page, name)?;
        let lines: Vec<usize> = (4..12).map(|colour| chart.matches(&format!("<polyline class=\"s{colour}\"")).count()).collect();
        ensure!(lines == [2, 1, 1, 1, 1, 1, 1, 1], "{name}: lines by colour {lines:?}");
        ensure!((0..9).all(|i| chart.contains(&format!(">run-{i}</text>"))), "{name}: a name is missing");
    }
    // On a light page and on a dark one.
    for scheme in page.split(":root{").skip(1) {
        let scheme = scheme.split('}').next().context("a scheme")?;
        let colour = |name: &str| -> Result<[f64; 3]> {
            light(scheme.split(&format!("--{name}:")).nth(1).with_context(|| name.to_string())?.split(';').next().unwrap_or(""))
        };
        let luminance = |[r, g, b]: [f64; 3]| 0.05 + 0.2126 * r + 0.7152 * g + 0.0722 * b;
        let ground = luminance(colour("bg")?);
        let colours = (4..12).map(|i| colour(&format!("c{i}"))).collect::<Result<Vec<_>>>()?;
        for (i, one) in colours.iter().enumerate() {
            let contrast = luminance(*one).max(ground) / luminance(*one).min(ground);
            ensure!(contrast >= 3.0, "colour {i}: contrast {contrast}");
            for other in &colours[..i] {
                let squares = lab(*one).into_iter().zip(lab(*other)).map(|(a, b)| (a - b).powi(2));
                let distance = squares.sum::<f64>().sqrt();
                ensure!(distance > 0.1, "colour {i} is {distance} from another");
            }
        }
    }
    ensure!(page.matches(":root{").count() == 2, "wanted a light and a dark scheme");
    Ok(())
}

#[test]
fn hostile_text_and_long_answers_leave_a_small_page_of_text() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    run(&folder, 40, 60, &HOSTILE.repeat(400))?;
    let file = dir.path().join("page.html");
    ple("report").and(&folder.display().to_string()).key("output_file", &file).succeed()?;
    let page = std::fs::read_to_string(&file)?;
    ensure!(page.len() < 300_000, "{} bytes", page.len());
    ensure!(!page.contains("<script") && !page.contains("</td><s"), "the text got through");
    ensure!(page.contains("&lt;/td&gt;&lt;script&gt;alert(&#39;x&#39;)"), "the text is gone");
    ensure!(
        !page.contains("http://") || page.matches("http://").count() == page.matches("xmlns=\"http://").count(),
        "it asks for more"
    );
    ensure!(page.contains("prefers-color-scheme"));
    Ok(())
}

#[test]
fn an_unfinished_run_is_a_run() -> Result<()> {
    let dir = tempfile::tempdir()?;
    run(dir.path(), 2, 4, "x")?;
    let log = std::fs::read_to_string(dir.path().join("log.jsonl"))?;
    let first: String = log.lines().take(1).flat_map(|line| [line, "\n"]).collect();
    for (log, steps) in [(first.as_str(), 1), ("", 0)] {
        std::fs::write(dir.path().join("log.jsonl"), log)?;
        ple("report").and(&dir.path().display().to_string()).succeed()?;
        let page = std::fs::read_to_string(dir.path().join("report.html"))?;
        ensure!(page.contains(&format!("{steps} steps")), "{page}");
    }
    Ok(())
}

#[test]
fn missing_and_damaged_lines_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let report = || ple("report").and(&folder.display().to_string());
    report().refuse(3, &["run: wanted the folder"])?;
    let damage = |file: &str, change: &dyn Fn(Vec<&str>) -> String, words: &[&str]| -> Result<()> {
        run(&folder, 3, 4, "x")?;
        let path = folder.join(file);
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(&path, change(text.lines().collect()))?;
        report().refuse(3, &[&[file], words].concat())
    };
    let without = |n: usize| {
        move |lines: Vec<&str>| {
            lines.iter().enumerate().filter(|(i, _)| *i != n).flat_map(|(_, l)| [*l, "\n"]).collect::<String>()
        }
    };
    let cut = |lines: Vec<&str>| lines.join("\n").chars().rev().skip(5).collect::<Vec<_>>().into_iter().rev().collect::<String>();
    damage("log.jsonl", &without(2), &["line 3", "step: wanted 3, got 4"])?;
    damage("log.jsonl", &|lines| [lines[0], lines[1], lines[4]].join("\n"), &["line 3", "iteration: wanted 1, got 2"])?;
    damage("log.jsonl", &cut, &["line 6", "JSON object"])?;
    damage(
        "log.jsonl",
        &|lines| lines.join("\n").replace("\"loss\":0.5", "\"loss\":\"a\""),
        &["line 2", "field loss", "a string"],
    )?;
    damage("completions/iter-00001.jsonl", &without(3), &["line 4", "lines are missing"])?;
    damage("completions/iter-00001.jsonl", &without(7), &["line 7", "lines are missing"])?;
    damage("completions/iter-00002.jsonl", &|l| l.join("\n").replace("\"ids\"", "\"jds\""), &["line 1", "field ids"])?;
    damage("run.json", &|lines| lines[0][1..].to_string(), &["run.json"])?;
    std::fs::remove_file(folder.join("completions/iter-00001.jsonl"))?;
    run(&folder, 3, 4, "x")?;
    std::fs::remove_file(folder.join("completions/iter-00001.jsonl"))?;
    report().refuse(3, &["iter-00001.jsonl", "cannot open"])?;
    let settings: Value = json!({ "config": { "command": "sft", "logging_steps": 10 } });
    std::fs::write(folder.join("run.json"), settings.to_string())?;
    std::fs::write(folder.join("log.jsonl"), "{\"step\":1,\"loss\":1}\n{\"step\":10,\"loss\":1}\n{\"step\":30,\"loss\":1}\n")?;
    report().refuse(3, &["log.jsonl", "line 3", "wanted 20, got 30"])
}
