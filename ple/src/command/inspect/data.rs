//! Rows as a run reads them.

use super::report::Report;
use super::tokens::{Token, coloured, table, tokens, value};
use crate::command::data_line;
use crate::config::{Command, Config, Resolved};
use crate::data::check::{self, Ends, Odd};
use crate::data::sft::LossOn;
use crate::data::{self, Dropped, Fit, Lines, Prompt};
use crate::method::{Answer, Group};
use crate::open::end_from;
use crate::principle::Principle;
use crate::reward::scalar;
use crate::{Error, Result};
use model::Tokenizer;
use serde_json::{Value, json};
use std::path::PathBuf;

/// What the rows are read with; no weights.
struct Reader {
    c: Config,
    path: PathBuf,
    tokenizer: Tokenizer,
    ends: Ends,
    /// Of the model; none where its family is not run here.
    config: Option<model::Config>,
    notes: Vec<String>,
}

/// Rows, each with what is odd about it.
struct Looked {
    odd: Vec<(u32, Vec<Odd>)>,
    dropped: Dropped,
    /// The first ones, token by token.
    shown: Vec<Vec<Token>>,
}

pub(super) fn report(command: Option<Command>, argv: &[String], rows: usize) -> Result<Report> {
    let argv = [argv, &["--dry_run".to_string()]].concat();
    let command = match command {
        Some(command) if command.trains() || command == Command::Generate => command,
        Some(other) => {
            let text = format!("--command: wanted a command that trains, or generate, got `{}`", other.name());
            return Err(Error::Usage(text));
        }
        None => whose(&argv)?,
    };
    let reader = Reader::open(Config::parse(command, &argv)?)?;
    let looked = if command.samples() || command == Command::Generate { reader.queries(rows)? } else { reader.groups(rows)? };
    let name = reader.path.display().to_string();
    let mut text: String = reader.notes.iter().map(|note| format!("note  {note}\n")).collect();
    text += &format!("{}, as `ple {}` reads them\n", data_line(&name, looked.odd.len(), &looked.dropped), command.name());
    text += &format!("{}\n", check::line(&looked.odd, looked.odd.len(), &reader.ends));
    let mut shown = Vec::new();
    for ((row, odd), tokens) in looked.odd.iter().zip(&looked.shown) {
        let why: Vec<&str> = odd.iter().map(|odd| odd.text()).collect();
        let why = if why.is_empty() { String::new() } else { format!(": {}", why.join("; ")) };
        text += &format!("\nrow {row}{why}\n{}", table(tokens, coloured()));
        shown.push(json!({ "row": row, "tokens": value(tokens) }));
    }
    let odd = looked.odd.iter().filter(|(_, odd)| !odd.is_empty());
    let odd: Vec<Value> =
        odd.map(|(row, odd)| json!({ "row": row, "odd": odd.iter().map(|o| o.text()).collect::<Vec<_>>() })).collect();
    let value = json!({ "file": name, "command": command.name(), "rows": looked.odd.len(), "left_out": looked.dropped.total(),
        "notes": reader.notes, "odd": odd, "shown": shown });
    let fine = !reader.ends.stop.is_empty() && looked.odd.iter().flat_map(|(_, odd)| odd).all(|odd| !odd.is_fault());
    Ok(Report { value, text, fine })
}

/// Whose rows they look like: pairs are dpo's, queries alone are answered, all others sft's.
fn whose(argv: &[String]) -> Result<Command> {
    let Some(path) = Resolved::read(Command::Sft, argv)?.config.dataset_name else { return Ok(Command::Sft) };
    let Some(line) = Lines::open(&path)?.next().transpose()? else { return Ok(Command::Sft) };
    let has = |name: &str| line.fields.contains_key(name);
    Ok(match (has("chosen") && has("rejected") || has("summaries"), has("prompt") && !has("completion")) {
        (true, _) => Command::Dpo,
        (false, true) => Command::Generate,
        _ => Command::Sft,
    })
}

impl Reader {
    fn open(c: Config) -> Result<Reader> {
        let folder = c.model_name_or_path.as_ref().or(c.init_from_config.as_ref());
        let missing = |key: &str| Error::Usage(format!("{key}: wanted a path, got nothing"));
        let folder = folder.ok_or_else(|| missing("model_name_or_path"))?;
        let path = c.dataset_name.clone().ok_or_else(|| missing("dataset_name"))?;
        let mut tokenizer = Tokenizer::open(folder)?;
        let mut notes = c.notes.clone();
        let config = match model::Config::from_folder(folder) {
            Ok(config) => Some(config),
            Err(error) => {
                notes.push(format!("positions and end ids of the model are not known: {error}"));
                None
            }
        };
        notes.extend(config.as_ref().and_then(|config| end_from(&mut tokenizer, config)));
        let own = config.iter().flat_map(|config| config.eos_token_ids.iter().copied());
        let stop = own.chain(tokenizer.eos).collect();
        let ends = Ends::of(&tokenizer, tokenizer.bos, stop)?;
        Ok(Reader { c, path, tokenizer, ends, config, notes })
    }

    fn positions(&self) -> usize {
        self.config.as_ref().map_or(usize::MAX, |config| config.max_position_embeddings)
    }

    /// Rows with answers.
    fn groups(&self, rows: usize) -> Result<Looked> {
        let Reader { c, path, tokenizer, ends, .. } = self;
        let longest = (c.max_length as usize).min(self.positions());
        let (groups, dropped) = match c.command {
            Command::Dpo => data::pairs(path, tokenizer, longest, Fit::Cut)?,
            Command::Reward => {
                let own = || tokenizer.eos.into_iter().collect();
                let stop = self.config.as_ref().map_or_else(own, |config| scalar::ends(tokenizer, config));
                data::pairs(path, tokenizer, longest, Fit::Leave(&stop))?
            }
            _ => data::groups(path, tokenizer, longest, LossOn::of(c))?,
        };
        let odd = groups.iter().map(|g| Ok((g.row, check::group(g, tokenizer, ends, longest)?))).collect::<Result<_>>()?;
        let shown = groups.iter().take(rows).map(|g| self.group(g)).collect::<Result<_>>()?;
        Ok(Looked { odd, dropped, shown })
    }

    /// The tokens of a row: the prompt, then each answer. A scalar head reads the last token alone.
    fn group(&self, group: &Group) -> Result<Vec<Token>> {
        let mut all = tokens(&self.tokenizer, "prompt", &group.prompt, |_| false)?;
        let names = if group.sides.len() > 1 { ["chosen", "rejected"] } else { ["answer", ""] };
        for (name, answer) in names.into_iter().zip(group.sides.iter().flatten()) {
            let Answer { ids, loss, .. } = answer;
            let marked = |i: usize| match self.c.command {
                Command::Reward => i + 1 == ids.len(),
                // The first token of a text only conditions.
                _ => (i > 0 || !group.prompt.is_empty()) && loss.get(i).copied().unwrap_or(loss.is_empty()),
            };
            all.extend(tokens(&self.tokenizer, name, ids, marked)?);
        }
        Ok(all)
    }

    /// Rows that are answered by sampling.
    fn queries(&self, rows: usize) -> Result<Looked> {
        let Reader { c, path, tokenizer, ends, .. } = self;
        let (queries, kind, mut dropped) = data::queries(path, tokenizer, c.seed)?;
        let given = c.ple_principle.is_some() || c.ple_principle_file.is_some();
        let guided = given || c.command == Command::Train;
        let example = queries.first().map_or("", |q| &q.text);
        let principle = guided.then(|| Principle::choose(c, kind, example)).transpose()?;
        let budget = self.positions().saturating_sub(c.max_completion_length as usize).min(c.max_prompt_length as usize);
        let (prompts, later) = data::prompts(&queries, tokenizer, principle.as_ref(), budget)?;
        dropped.add(later);
        let odd = prompts.iter().map(|p| Ok((p.row, check::prompt(p, tokenizer, ends)?))).collect::<Result<_>>()?;
        let both = |p: &Prompt| -> Result<Vec<Token>> {
            let mut all = tokens(tokenizer, "prompt", &p.plain, |_| false)?;
            if guided {
                all.extend(tokens(tokenizer, "guided", &p.guided, |_| false)?);
            }
            Ok(all)
        };
        let shown = prompts.iter().take(rows).map(both).collect::<Result<_>>()?;
        Ok(Looked { odd, dropped, shown })
    }
}
