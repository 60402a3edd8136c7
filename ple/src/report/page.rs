//! The page: one file of HTML with its style and drawings inside, and nothing that runs.

use super::run::{Answer, Run, label};
use super::svg::escape;
use super::{compare, figures};
use crate::demo::{evaluate::NAMES, summary::Summary};
use serde_json::Value;

const STYLE: &str = include_str!("style.css");
/// Queries of an iteration that are shown.
const SHOWN: usize = 6;
/// Characters of a text that are shown: a page stays small however long answers are.
const CHARACTERS: usize = 600;

/// The colours of light and dark pages, for drawings of their own.
pub fn colours() -> String {
    STYLE.lines().take(2).collect()
}

/// What a demo's folder adds to its runs.
pub struct Demo<'a> {
    /// The numbers of `summary.json`.
    pub summary: Summary,
    /// The two runs that are compared.
    pub ple: &'a Run,
    /// See `ple`.
    pub raft: &'a Run,
}

/// The whole page.
pub fn page(runs: &[Run], demo: Option<&Demo<'_>>) -> String {
    let mut body = String::new();
    let names: Vec<String> = runs.iter().map(|run| run.folder.display().to_string()).collect();
    let title = match demo {
        Some(_) => "ple demo".to_string(),
        None => names.join(", "),
    };
    body += &format!("<h1>{}</h1><p class=\"soft\">{}</p>", escape(&title), escape(&versions(runs)));
    match demo {
        Some(demo) => body += &summary(demo),
        None if runs.len() > 1 => body += &compare::section(runs),
        None => {}
    }
    runs.iter().for_each(|run| body += &section(run));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{}</title><style>{STYLE}{}</style></head>\n<body><main>{body}</main></body></html>\n",
        escape(&title),
        figures::STYLE
    )
}

fn versions(runs: &[Run]) -> String {
    let text = |run: &Run, name: &str| run.settings.get(name).and_then(Value::as_str).unwrap_or("?").to_string();
    runs.first().map_or(String::new(), |run| format!("ple {} · {}", text(run, "version"), text(run, "device")))
}

/// The demo's table and its comparison.
fn summary(demo: &Demo<'_>) -> String {
    let measured = NAMES.iter().zip(demo.summary.measured);
    let most = demo.summary.measured.iter().map(|m| m.reward).fold(f64::NEG_INFINITY, f64::max);
    let row = |(name, m): (&&str, crate::demo::summary::Measured)| {
        let class = if m.reward == most { " class=\"best\"" } else { "" };
        let cells =
            [format!("{:.3}", m.reward), format!("{:.3}", m.ppl), format!("{:.3}", m.distinct2), format!("{:.1}", m.length)];
        format!("<tr{class}><td>{name}</td>{}</tr>", cells.map(|cell| format!("<td class=\"n\">{cell}</td>")).concat())
    };
    let rows: String = measured.map(row).collect();
    format!(
        "<p>A small Llama, trained from nothing on a language made of templates; a supervised adapter (sft); from it PLE and, \
         with the same number of sampled answers, best of two (raft). Measured on prompts that no stage has seen.</p>\
         <div class=\"grid\"><div><table class=\"narrow\"><thead><tr><th></th><th class=\"n\">reward</th><th class=\"n\">perplexity</th>\
         <th class=\"n\">distinct-2</th><th class=\"n\">length</th></tr></thead><tbody>{rows}</tbody></table>\
         <p class=\"soft\">Reward, distinct-2 and length (tokens) of one answer to each held-out prompt; perplexity of the held-out \
         references. Largest difference of a token’s log-probability between sampling and training: {}.</p></div>{}</div>",
        demo.summary.gap,
        figures::comparison(demo.ple, demo.raft)
    )
}

/// A run's part of the page.
fn section(run: &Run) -> String {
    let parameters = |name: &str| run.settings["parameters"][name].as_u64().map_or("?".into(), |n| n.to_string());
    let mut out = format!(
        "<h2>{}</h2><p class=\"soft\">ple {} · {} parameters, {} trained · {} steps</p>",
        escape(&run.folder.display().to_string()),
        escape(run.command()),
        parameters("base"),
        parameters("trainable"),
        run.steps.last().map_or(0, |s| s.step)
    );
    out += &format!("<div class=\"grid\">{}</div>", figures::all(run).concat());
    out += &before_after(run);
    out += &samples(run);
    out + &settings(run)
}

pub(super) fn shortened(text: &str) -> String {
    let cut: String = text.chars().take(CHARACTERS).collect();
    if cut.len() < text.len() { cut + " …" } else { cut }
}

/// Answers to the same held-out queries at the first and at the last evaluation.
fn before_after(run: &Run) -> String {
    let row = |[before, after]: &[Answer; 2]| {
        let cell = |a: &Answer| format!("<td>{}</td><td class=\"n\">{:.3}</td>", escape(&shortened(&a.completion)), a.reward);
        format!("<tr><td>{}</td>{}{}</tr>", escape(&shortened(&before.prompt)), cell(before), cell(after))
    };
    let rows: String = run.before_after.iter().take(SHOWN).map(row).collect();
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<h3>Answers to held-out queries, before and after</h3><div class=\"wide\"><table><thead><tr><th>query</th><th>before</th>\
         <th class=\"n\">reward</th><th>after</th><th class=\"n\">reward</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

/// Answers of the first and of the last iteration.
fn samples(run: &Run) -> String {
    let last = run.iterations.len().saturating_sub(1);
    let mut rows = String::new();
    let cell = |answer: Option<&Answer>| match answer {
        Some(a) => format!("<td>{}</td><td class=\"n\">{:.3}</td>", escape(&shortened(&a.completion)), a.reward),
        None => "<td></td><td></td>".into(),
    };
    for (i, iteration) in run.iterations.iter().enumerate().filter(|(i, _)| *i == 0 || *i == last) {
        for group in iteration.groups.iter().take(SHOWN) {
            let prompt = group.first().map_or("", |a| a.prompt.as_str());
            let branch = label(group).unwrap_or("left out");
            let [first, second] = [group.first(), group.get(1)].map(cell);
            rows += &format!("<tr><td class=\"n\">{i}</td><td>{}</td>{first}{second}", escape(&shortened(prompt)));
            rows += &format!("<td class=\"b\">{}</td></tr>", escape(branch));
        }
    }
    if rows.is_empty() {
        return rows;
    }
    let guided = run.iterations.iter().flat_map(|i| i.groups.iter().flatten()).any(|a| a.side == 1);
    let [one, other] = if guided { ["plain answer", "guided answer"] } else { ["one answer", "another"] };
    format!(
        "<h3>Answers, first and last iteration</h3><div class=\"wide\"><table><thead><tr><th class=\"n\">iter</th><th>query</th><th>{one}</th>\
         <th class=\"n\">reward</th><th>{other}</th><th class=\"n\">reward</th><th>branch</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

/// Every setting of the run.
fn settings(run: &Run) -> String {
    let Some(config) = run.settings.get("config").and_then(Value::as_object) else { return String::new() };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
    let row = |(name, value): (&String, &Value)| {
        format!("<tr><td><code>{}</code></td><td><code>{}</code></td></tr>", escape(name), escape(&shortened(&text(value))))
    };
    let rows: String = config.iter().filter(|(_, value)| !value.is_null()).map(row).collect();
    format!("<details><summary>Settings</summary><table><tbody>{rows}</tbody></table></details>")
}
