//! What `ple train` reads and plans before its first iteration.

use super::super::resume::{At, Resumed, Site};
use super::super::{data_line, prompt_budget, required, sft};
use crate::config::Config;
use crate::data::{self, Prompt};
use crate::log::Log;
use crate::method::{Method, Rollout, Side, sft::Sft};
use crate::open::Opened;
use crate::pack;
use crate::principle::Principle;
use crate::rollout;
use crate::trainer::{Trainer, Workspace};
use crate::{Error, Result};
use model::{Adapter, CacheLimits, Limits};
use runtime::Arena;

/// Samples of one row and side in an iteration: their numbers have 16 bits, and a row may come once more where the order wraps.
const ROW_SAMPLES: u64 = 65_535;

/// The most that an iteration draws for one query.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Samples {
    /// On one side.
    pub side: usize,
    /// On all sides.
    pub query: usize,
    /// Whether a side stands under the principle.
    pub guided: bool,
}

/// The sides of an iteration.
pub(super) fn sides(method: &dyn Method, iteration: u32) -> Result<Vec<Side>> {
    match method.rollout(iteration) {
        Rollout::Sides(sides) if sides.iter().any(|side| side.samples > 0) => Ok(sides),
        _ => Err(Error::Usage(format!("the loop wants a method that samples, got one that does not in iteration {iteration}"))),
    }
}

/// Over all iterations of the settings.
pub(super) fn samples(c: &Config, method: &dyn Method) -> Result<Samples> {
    let mut most = Samples::default();
    for iteration in 0..c.ple_iters {
        let sides = sides(method, iteration)?;
        let counts = || sides.iter().map(|side| side.samples as usize);
        most.side = most.side.max(counts().max().unwrap_or(0));
        most.query = most.query.max(counts().sum());
        most.guided |= sides.iter().any(|side| side.principle);
    }
    Ok(most)
}

/// Every query on both sides, within the budget that leaves room for an answer. The principle is that of the guided sides, if
/// there are any.
pub(super) fn prompts(
    c: &Config,
    opened: &Opened,
    samples: Samples,
    tell: &mut dyn FnMut(String),
) -> Result<(Vec<Prompt>, Option<Principle>)> {
    let path = required(&c.dataset_name, "dataset_name")?;
    let (queries, kind, mut dropped) = data::queries(path, &opened.tokenizer, c.seed)?;
    let principle = match samples.guided {
        true => Some(Principle::choose(c, kind, queries.first().map_or("", |q| &q.text))?),
        false => None,
    };
    let budget = prompt_budget(c, opened, principle.as_ref())?;
    let (prompts, later) = data::prompts(&queries, &opened.tokenizer, principle.as_ref(), budget)?;
    dropped.add(later);
    tell(data_line(&path.display().to_string(), prompts.len(), &dropped));
    if prompts.is_empty() {
        return Err(Error::file(path, format!("no query is left: {dropped}")));
    }
    tell(data::check::prompts_line(&prompts, &opened.tokenizer, &opened.ends()?)?);
    let most = ROW_SAMPLES / samples.side as u64 * prompts.len() as u64;
    if u64::from(c.ple_queries_per_iter) > most {
        let (n, got) = (prompts.len(), c.ple_queries_per_iter);
        return Err(Error::Usage(format!("ple_queries_per_iter: wanted at most {most} with {n} queries, got {got}")));
    }
    Ok((prompts, principle))
}

pub(super) fn supervised_rows(c: &Config, opened: &Opened, tell: &mut dyn FnMut(String)) -> Result<Option<sft::Rows>> {
    let Some(path) = &c.sft_dataset_name else { return Ok(None) };
    sft::Rows::supervised(c, opened, path, None, tell).map(Some)
}

/// The supervised stage, on the adapter that the iterations go on training; its optimizer is its own. `resumed` is a checkpoint
/// inside it.
pub(super) fn supervise(
    c: &Config,
    trainer: &mut Trainer,
    rows: &sft::Rows,
    mut w: Workspace,
    log: &mut Log,
    at: &mut At,
    site: &Site<'_>,
    resumed: Option<&Resumed>,
) -> Result<Arena> {
    let steps = rows.steps(c);
    let own = trainer.optimizer.restarted(&trainer.stream, c, steps)?;
    let later = std::mem::replace(&mut trainer.optimizer, own);
    if let Some(resumed) = resumed {
        resumed.restore(trainer, site.tune())?;
    }
    sft::stage(c, trainer, &mut w, &Sft, rows, steps, log, at, site)?;
    trainer.optimizer = later;
    Ok(w.into_overlay())
}

/// The slot of the frozen reference: a copy of the given adapter, or Off if the run starts without one.
pub fn reference(c: &Config, opened: &mut Opened, method: &dyn Method) -> Result<Adapter> {
    match &c.adapter {
        _ if !method.needs().reference => Ok(Adapter::Off),
        None if c.tune == crate::config::Tune::Full => Err(Error::Usage(
            "tune: wanted lora where a reference is needed (full has no weights left to compare with), got full".into(),
        )),
        None if c.sft_dataset_name.is_some() => {
            Err(Error::Usage("a reference after a supervised stage: run `ple sft` first and give its folder as adapter".into()))
        }
        None => Ok(Adapter::Off),
        Some(folder) => opened.add_slot(folder),
    }
}

/// Sizes of both phases: the longest prompt and answers there can be, and what given `rows` need. A cache that cannot hold them is a usage error.
pub(super) fn plan(c: &Config, positions: usize, samples: Samples, rows: usize) -> Result<(CacheLimits, Limits)> {
    let answer = c.max_completion_length as usize;
    let prompt = (c.max_prompt_length as usize).min(positions.saturating_sub(answer)).max(1);
    let cache = rollout::cache(c, prompt, (c.ple_queries_per_iter as usize).saturating_mul(samples.side))?;
    let tree = (prompt + samples.query * answer).max(rows);
    Ok((cache, pack::limits(tree.max(c.max_tokens_per_micro_batch as usize))))
}
