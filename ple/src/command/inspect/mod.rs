//! `ple inspect`: what a model folder, an adapter, a chat template or rows are, as a run would take them, and what is wrong with them.

use crate::config::{Command, Config, nearest};
use crate::{Error, Result, log};
use report::Report;

mod adapter;
mod data;
mod model;
mod report;
mod template;
mod tokens;

/// What `--help` prints.
pub const USAGE: &str = "ple inspect model --model_name_or_path DIR [--json]
        Family, shapes, types, parameters, tokenizer, special tokens and template of a checkpoint, and why it would be refused.
        No weights are read but their headers.
ple inspect adapter --adapter DIR [--model_name_or_path BASE] [--json]
        Targets, rank, alpha, scale, DoRA, tensors saved whole, what it was trained on, norms per module, which commands take it; with the
        base, whether it fits.
ple inspect template --model_name_or_path DIR [--dataset_name FILE] [--rows N] [--json]
        Messages of a file, or sample messages, as the chat template renders them, with the beginning of an answer; token by token,
        what the assistant wrote marked `+`.
ple inspect data --model_name_or_path DIR --dataset_name FILE [--command sft] [--config FILE]... [--key value]... [--rows N] [--json]
        The rows as that run would read them, by its own settings: how many are odd and why (BOS twice or missing, EOS missing or
        twice, cut off, nothing in the loss, a prompt that ends inside a token), and the first N (2) token by token, what is in the
        loss marked `+`. Without --command the first row says whose they are: sft, dpo or generate.
Exit code 1 where something is refused or odd.
";

/// Runs the command; false where something is refused or odd.
pub fn run(argv: &[String]) -> Result<bool> {
    if argv.iter().any(|word| word == "--help" || word == "-h") {
        return log::print(USAGE).map(|()| true);
    }
    let Some((verb, rest)) = argv.split_first() else {
        return Err(Error::Usage(format!("inspect: wanted model, adapter, template or data, got nothing\n\n{USAGE}")));
    };
    let (json, mut rest): (Vec<String>, Vec<String>) = rest.iter().cloned().partition(|word| word == "--json");
    let rows = taken(&mut rest, "rows")?.map(|text| count(&text)).transpose()?;
    let settings = |rest: &[String]| Config::parse(Command::Inspect, rest);
    let alone = |name: &str| match rows {
        Some(_) => Err(Error::Usage(format!("--rows: not a setting of `ple inspect {name}` (of: template, data)"))),
        None => Ok(()),
    };
    let report = match verb.as_str() {
        "model" => alone("model").and_then(|()| model::report(&settings(&rest)?))?,
        "adapter" => alone("adapter").and_then(|()| adapter::report(&settings(&rest)?))?,
        "template" => template::report(&settings(&rest)?, rows.unwrap_or(1))?,
        "data" => {
            let command = taken(&mut rest, "command")?.map(|name| Command::named(&name)).transpose()?;
            data::report(command, &rest, rows.unwrap_or(2))?
        }
        other => {
            let near = nearest::nearest(other, ["model", "adapter", "template", "data"]);
            return Err(Error::Usage(format!("inspect: unknown `{other}`; the nearest known is `{near}`\n\n{USAGE}")));
        }
    };
    let Report { value, text, fine } = report;
    log::print(&if json.is_empty() { text } else { format!("{value:#}\n") })?;
    Ok(fine)
}

/// Takes `--NAME VALUE` or `--NAME=VALUE` out of the words.
fn taken(words: &mut Vec<String>, name: &str) -> Result<Option<String>> {
    let flag = format!("--{name}");
    let inline = format!("{flag}=");
    let Some(at) = words.iter().position(|word| *word == flag || word.starts_with(&inline)) else { return Ok(None) };
    let word = words.remove(at);
    match word.strip_prefix(&inline) {
        Some(value) => Ok(Some(value.into())),
        None if at < words.len() => Ok(Some(words.remove(at))),
        None => Err(Error::Usage(format!("{flag}: needs a value"))),
    }
}

fn count(text: &str) -> Result<usize> {
    text.parse().map_err(|_| Error::Usage(format!("--rows: wanted a whole number from 0, got {text:?}")))
}

#[cfg(test)]
mod tests;
