//! Real and own chat templates with changed sources and changed messages: within steps and bytes, and the same every time.

use super::functions::{Outcome, talk};
use super::{jinja, json, rounds, seeds};
use anyhow::{Result, ensure};
use model::Template;
use ple_tests::data::{say, shared};
use ple_tests::tiny::Random;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Own seeds, and the templates of `$PLE_SHARED`.
fn sources() -> Result<Vec<String>> {
    let mut all: Vec<String> = seeds("template")?.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).collect();
    if let Some(folder) = shared("data/chat_templates/jinja") {
        let mut paths = std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            all.push(std::fs::read_to_string(path)?);
        }
    }
    Ok(all)
}

fn conversations() -> Vec<Value> {
    let say = |role: &str, content: &str| json!({ "role": role, "content": content });
    let call = json!({ "role": "assistant", "content": "", "tool_calls": [{ "type": "function", "id": "c1",
        "function": { "name": "f", "arguments": { "x": 1 } } }] });
    vec![
        json!([say("user", "hi")]),
        json!([say("system", "s"), say("user", "a"), say("assistant", "b"), say("user", "c")]),
        json!([say("user", "a"), call, say("tool", "3"), say("assistant", "d")]),
        json!([{ "role": "user", "content": [{ "type": "text", "text": "é😀" }] }]),
    ]
}

#[test]
fn stay_within_their_limits() -> Result<()> {
    let (sources, talks, mut random) = (sources()?, conversations(), Random(17));
    let special = || Map::from_iter(["bos_token", "eos_token", "pad_token"].map(|name| (name.to_string(), json!("<x>"))));
    let [mut compiled, mut rendered, mut steps, mut long, mut refused] = [0; 5];
    let rounds = rounds(800);
    for _ in 0..rounds {
        let source = &sources[random.below(sources.len() as u32) as usize];
        let source = jinja::mutated(source, &sources, &mut random);
        let messages = match random.below(2) {
            0 => talks[random.below(4) as usize].clone(),
            _ => json::mutated(&talks[random.below(4) as usize], &talks, &mut random),
        };
        let Ok(template) = Template::new(Path::new("t.jinja"), vec![("default".into(), source)], special(), 0) else { continue };
        compiled += 1;
        *match talk(&template, &messages) {
            Outcome::Rendered => &mut rendered,
            Outcome::Steps => &mut steps,
            Outcome::Long => &mut long,
            Outcome::Refused => &mut refused,
        } += 1;
    }
    say(&format!(
        "templates: {compiled} of {rounds} compile: {rendered} render, {steps} take too many steps, {long} are too long, {refused} are refused"
    ));
    ensure!(compiled * 10 >= rounds * 3 && rendered * 10 >= compiled, "{compiled} of {rounds} compile, {rendered} render");
    ensure!(steps > 0 && long > 0 && refused > 0, "a limit was not met: {steps} {long} {refused}");
    Ok(())
}
