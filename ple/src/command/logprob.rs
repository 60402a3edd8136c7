//! `ple logprob`: per-token log-probabilities of given completions, one line out per line in, in the same order.

use super::required;
use crate::config::Config;
use crate::data::{Lines, Row, Tokens, chat, sft};
use crate::method::Example;
use crate::open::Opened;
use crate::progress::Bars;
use crate::{Error, Result, log, logprob, pack};
use model::Keep;
use runtime::host;
use serde_json::{Map, Value, json};

/// Runs the command. A row with `prompt_ids` and `ids` is used as it is; otherwise `prompt` and `completion` (or `text`) are
/// tokenised, without an end token being added. The row comes back with `logps`, and with the ids if it had none.
pub fn run(c: &Config) -> Result<()> {
    if !c.dry_run {
        log::probe(required(&c.output_file, "output_file")?)?;
    }
    let opened = Opened::for_scoring(c)?;
    let (rows, examples) = read(c, &opened)?;
    let budget = pack::longest(&examples).max(c.max_tokens_per_micro_batch as usize);
    if c.dry_run {
        let bytes = opened.model()?.plan(pack::limits(budget), Keep::Nothing);
        return log::print(&format!("{} rows; {bytes} bytes of activations\n", rows.len()));
    }
    let mut acts = opened.model()?.acts(&opened.stream, pack::limits(budget), Keep::Nothing, None)?;
    let asked: Vec<&Example> = examples.iter().collect();
    let bar = Bars::new(c).phase("rows", asked.len());
    let mut tell = |done: usize, tokens: usize| bar.at(done, tokens);
    let all = logprob::score_telling(&opened.stream, opened.model()?, &mut acts, opened.policy, &asked, &mut tell)?;
    drop(bar);
    examples.iter().zip(&all).try_for_each(|(example, logps)| finite(example.row, logps))?;
    let (mut tokens, mut sum) = (0, 0.0);
    host::write_file(required(&c.output_file, "output_file")?, |out| {
        for (mut row, logps) in rows.into_iter().zip(&all) {
            tokens += logps.len();
            sum += logps.iter().map(|l| *l as f64).sum::<f64>();
            row.insert("logps".into(), exact(logps));
            writeln!(out, "{}", Value::Object(row))?;
        }
        Ok(())
    })?;
    if !c.quiet {
        log::tell(&format!("{} rows, {tokens} tokens, mean log-probability {:.6}", all.len(), sum / tokens.max(1) as f64));
    }
    Ok(())
}

/// A log-probability that is not finite is an error, never a result.
fn finite(row: u32, logps: &[f32]) -> Result<()> {
    match logps.iter().enumerate().find(|(_, l)| !l.is_finite()) {
        Some((i, l)) => Err(Error::Numeric(format!("row {row}: wanted finite log-probabilities, got {l} at {i}"))),
        None => Ok(()),
    }
}

/// f32 values so that reading them as f64 and rounding gives the same bits.
pub fn exact(values: &[f32]) -> Value {
    Value::Array(values.iter().map(|v| crate::log::number(*v as f64)).collect())
}

/// The rows as they came, and what is scored of each.
type Read = (Vec<Map<String, Value>>, Vec<Example>);

fn read(c: &Config, opened: &Opened) -> Result<Read> {
    let (mut rows, mut examples) = (Vec::new(), Vec::new());
    let mut lines = Lines::open(required(&c.dataset_name, "dataset_name")?)?;
    while let Some(mut line) = lines.next().transpose()? {
        let at = line.line;
        let invalid = |text: String| lines.error(at, text);
        let told = chat::render(&lines, &mut line, &opened.tokenizer, chat::Want::Whole)?;
        let rendered = chat::AsRendered(&opened.tokenizer);
        let tokens: &dyn Tokens = if matches!(told, chat::Told::Text) { &opened.tokenizer } else { &rendered };
        let mut fields = line.fields.clone();
        let given = (ids(&fields, "prompt_ids", &invalid)?, ids(&fields, "ids", &invalid)?);
        let (prompt, ids) = match given {
            (prompt, Some(ids)) => (prompt.unwrap_or_default(), ids),
            (Some(_), None) => return Err(invalid("field ids: wanted a list of ids beside prompt_ids, got none".into())),
            (None, None) => tokenise(&lines, &line, tokens, &invalid)?,
        };
        let (vocabulary, most) = (opened.model()?.config.vocab_size, opened.model()?.positions());
        if ids.is_empty() || (prompt.is_empty() && ids.len() < 2) {
            return Err(invalid(format!(
                "wanted at least one token to score after another, got {} after {}",
                ids.len(),
                prompt.len()
            )));
        }
        if let Some(id) = prompt.iter().chain(&ids).find(|id| **id as usize >= vocabulary) {
            return Err(invalid(format!("wanted ids below the vocabulary's {vocabulary}, got {id}")));
        }
        if prompt.len() + ids.len() > most + 1 {
            return Err(invalid(format!("wanted at most {most} positions, got {}", prompt.len() + ids.len())));
        }
        fields.insert("prompt_ids".into(), json!(prompt));
        fields.insert("ids".into(), json!(ids));
        rows.push(fields);
        examples.push(Example { row: line.row, prompt, answers: vec![ids], ..Example::default() });
    }
    if rows.is_empty() {
        return Err(Error::file(required(&c.dataset_name, "dataset_name")?, "wanted at least one row, got none"));
    }
    Ok((rows, examples))
}

fn tokenise(
    lines: &Lines,
    line: &crate::data::jsonl::Line,
    tokens: &dyn Tokens,
    invalid: &dyn Fn(String) -> Error,
) -> Result<(Vec<u32>, Vec<u32>)> {
    match Row::read(lines, line)? {
        Row::Answered { prompt, completion } => sft::pair(tokens, &prompt, &completion),
        Row::Text(text) => Ok((Vec::new(), tokens.encode(&text, true)?)),
        Row::Prompt(_) | Row::Dialogue { .. } => Err(invalid("wanted prompt and completion, text, or prompt_ids and ids".into())),
    }
}

/// A list of ids, if the field is there.
pub(super) fn ids(fields: &Map<String, Value>, name: &str, invalid: &dyn Fn(String) -> Error) -> Result<Option<Vec<u32>>> {
    let Some(value) = fields.get(name) else { return Ok(None) };
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = value.as_array().and_then(|list| list.iter().map(id).collect::<Option<Vec<u32>>>());
    ids.map(Some).ok_or_else(|| invalid(format!("field {name}: wanted a list of ids, got something else")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_not_finite_is_named() {
        assert!(finite(3, &[-1.0, 0.0]).is_ok());
        let error = finite(3, &[-1.0, f32::NAN]).map_err(|e| (e.exit_code(), e.to_string()));
        assert_eq!(error, Err((5, "row 3: wanted finite log-probabilities, got NaN at 1".to_string())));
    }
}
