//! `ple demo`: the whole way on a small model made on the spot, without downloads.

use crate::config::Config;
use crate::demo::{Demo, evaluate, headline, rows, summary::Summary};
use crate::{Result, interrupt, report};
use serde_json::{Map, Value};
use std::time::Instant;

/// Stages that are announced.
const STAGES: usize = 6;
/// Prompts whose answers are shown.
const SHOWN: usize = 3;

/// Runs the command.
pub fn run(c: &Config) -> Result<()> {
    let clock = Instant::now();
    let demo = Demo::start(c)?;
    type Stage = (&'static str, fn(&Demo) -> Result<()>);
    let stages: [Stage; STAGES] = [
        ("data    remarks on films, food and journeys, from a grammar", Demo::files),
        ("base    a small Llama, every weight from nothing", Demo::base),
        ("sft     an adapter on remarks as they come", Demo::supervised),
        ("ple     plain and guided answers, ranked or imitated", Demo::ple),
        ("raft    the better of two plain answers, imitated", Demo::raft),
        ("eval    prompts that no stage has seen", evaluate_all),
    ];
    for (i, (text, stage)) in stages.iter().enumerate() {
        interrupt::check()?;
        demo.say(&headline(i + 1, STAGES, text));
        stage(&demo)?;
    }
    let summary = Summary::of(&demo.folder)?;
    summary.write(&demo.folder)?;
    let page = demo.folder.join("report.html");
    report::write(std::slice::from_ref(&demo.folder), &page)?;
    report::picture(&demo.folder, &demo.folder.join("reward.svg"))?;
    demo.say(&format!("\n{}", summary.table()));
    demo.say(&samples(&demo)?);
    demo.say(&format!("checks  logp gap rollout/train {}", summary.gap));
    demo.say(&format!("report  {} ({:.0} s in all)", page.display(), clock.elapsed().as_secs_f64()));
    Ok(())
}

fn evaluate_all(demo: &Demo) -> Result<()> {
    evaluate::references(demo)?;
    for name in evaluate::NAMES {
        evaluate::answers(demo, name)?;
        evaluate::perplexity(demo, name)?;
    }
    Ok(())
}

/// The first held-out prompts with all three answers.
fn samples(demo: &Demo) -> Result<String> {
    let all = evaluate::NAMES.map(|name| rows(&demo.folder.join(format!("eval/{name}.jsonl"))));
    let [sft, raft, ple] = all;
    let all = [sft?, raft?, ple?];
    let text = |row: &Map<String, Value>, name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
    let mut out = String::new();
    for i in 0..SHOWN.min(all[0].len()) {
        out += &format!("{} …\n", text(&all[0][i], "prompt"));
        for (name, rows) in evaluate::NAMES.iter().zip(&all) {
            out += &format!("  {name:<6}… {}\n", text(&rows[i], "completion"));
        }
    }
    Ok(out)
}
