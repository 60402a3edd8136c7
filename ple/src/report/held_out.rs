//! Answers to held-out queries, as evaluations left them: `completions/eval-STEP.jsonl`.

use super::run::{Answer, number};
use crate::Result;
use crate::data::Lines;
use serde_json::Value;
use std::path::Path;

/// Answers to the same queries at the first and at the last of these evaluations (step, reward, deviation); none where there are
/// not two, or where one has left no file.
pub fn before_after(folder: &Path, evaluations: &[(u64, f64, f64)]) -> Result<Vec<[Answer; 2]>> {
    let path = |step: u64| folder.join(format!("completions/eval-{step:05}.jsonl"));
    match [evaluations.first(), evaluations.last()].map(|one| one.map(|(step, ..)| path(*step))) {
        [Some(first), Some(last)] if first != last && first.is_file() && last.is_file() => {
            let [first, last] = [answers(&first)?, answers(&last)?];
            Ok(first.into_iter().zip(last).filter(|(a, b)| a.prompt == b.prompt).map(|(a, b)| [a, b]).collect())
        }
        _ => Ok(Vec::new()),
    }
}

fn answers(path: &Path) -> Result<Vec<Answer>> {
    let (mut lines, mut answers) = (Lines::open(path)?, Vec::new());
    while let Some(line) = lines.next().transpose()? {
        let text = |name: &str| match line.fields.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            _ => Err(lines.error(line.line, format!("field {name}: wanted a string, got another or none"))),
        };
        answers.push(Answer {
            side: 0,
            prompt: text("prompt")?,
            completion: text("completion")?,
            reward: number(&lines, &line, "reward")?,
            tokens: line.fields.get("ids").and_then(Value::as_array).map_or(0, Vec::len),
            finished: line.fields.get("finished").and_then(Value::as_bool).unwrap_or(true),
            branch: None,
        });
    }
    Ok(answers)
}
