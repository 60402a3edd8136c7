//! What `ple train` reads and plans before its first iteration.

use super::super::{data_line, required, sft};
use crate::config::Config;
use crate::data::{self, Prompt};
use crate::log::Log;
use crate::method::Method;
use crate::open::Opened;
use crate::pack;
use crate::principle::Principle;
use crate::trainer::{Trainer, Workspace};
use crate::{Error, Result};
use kernels::kv_store::PAGE;
use model::{Adapter, CacheLimits, Limits};
use runtime::Arena;

/// Samples of one row and side in an iteration: their numbers have 16 bits, and a row may come once more where the order wraps.
const ROW_SAMPLES: u64 = 65_535;

/// Every query on both sides, within the budget that leaves room for an answer.
pub(super) fn prompts(c: &Config, opened: &Opened, tell: &mut dyn FnMut(String)) -> Result<(Vec<Prompt>, Principle)> {
    let path = required(&c.dataset_name, "dataset_name")?;
    let (queries, kind, mut dropped) = data::queries(path, &opened.tokenizer, c.seed)?;
    let principle = Principle::choose(c, kind, queries.first().map_or("", |q| &q.text))?;
    let (most, answer) = (opened.model()?.positions(), c.max_completion_length as usize);
    let Some(room) = most.checked_sub(answer).filter(|room| *room > 0) else {
        return Err(Error::Usage(format!("max_completion_length: wanted below the model's {most} positions, got {answer}")));
    };
    let (prompts, later) = data::prompts(&queries, &opened.tokenizer, &principle, room.min(c.max_prompt_length as usize))?;
    dropped.add(later);
    tell(data_line(&path.display().to_string(), prompts.len(), &dropped));
    if prompts.is_empty() {
        return Err(Error::file(path, format!("no query is left: {dropped}")));
    }
    let most = ROW_SAMPLES * prompts.len() as u64;
    if u64::from(c.ple_queries_per_iter) > most {
        let (n, got) = (prompts.len(), c.ple_queries_per_iter);
        return Err(Error::Usage(format!("ple_queries_per_iter: wanted at most {most} with {n} queries, got {got}")));
    }
    Ok((prompts, principle))
}

pub(super) fn supervised_rows(c: &Config, opened: &Opened, tell: &mut dyn FnMut(String)) -> Result<Option<sft::Rows>> {
    let Some(path) = &c.sft_dataset_name else { return Ok(None) };
    sft::Rows::read(c, opened, path, None, tell).map(Some)
}

/// The supervised stage, on the adapter that the iterations go on training; its optimizer is its own.
pub(super) fn supervise(
    c: &Config,
    trainer: &mut Trainer,
    rows: &sft::Rows,
    limits: Limits,
    overlay: Arena,
    log: &mut Log,
) -> Result<Arena> {
    let mut w = Workspace::new(&trainer.stream, &trainer.model, limits, Some(overlay))?;
    let steps = rows.steps(c);
    let own = trainer.optimizer.restarted(&trainer.stream, c, steps)?;
    let later = std::mem::replace(&mut trainer.optimizer, own);
    sft::stage(c, trainer, &mut w, rows, steps, log, &mut |_, _| Ok(()))?;
    trainer.optimizer = later;
    Ok(w.into_overlay())
}

/// The slot of the frozen reference: a copy of the given adapter, or Off if the run starts without one.
pub(super) fn reference(c: &Config, opened: &mut Opened, method: &dyn Method) -> Result<Adapter> {
    match &c.adapter {
        _ if !method.needs().reference => Ok(Adapter::Off),
        None if c.tune == crate::config::Tune::Full => {
            Err(Error::Usage("tune full has no reference: ple_rank dpo and ple_kl_coef want tune lora".into()))
        }
        None if c.sft_dataset_name.is_some() => {
            Err(Error::Usage("a reference after a supervised stage: run `ple sft` first and give its folder as adapter".into()))
        }
        None => Ok(Adapter::Off),
        Some(folder) => opened.add_slot(folder),
    }
}

/// Sizes of both phases: the longest prompt and answer there can be. A cache that cannot hold them is a usage error.
pub(super) fn plan(c: &Config, positions: usize, supervised: Option<&sft::Rows>) -> Result<(CacheLimits, Limits)> {
    let answer = c.max_completion_length as usize;
    let prompt = (c.max_prompt_length as usize).min(positions.saturating_sub(answer)).max(1);
    let (positions, batch) = (prompt + answer, (c.max_num_seqs as usize).min(c.ple_queries_per_iter as usize).max(1));
    let (longest, given) = (positions.div_ceil(PAGE), (c.kv_cache_tokens as usize).div_ceil(PAGE));
    if given > 0 && given < longest {
        let (least, got) = (longest * PAGE, c.kv_cache_tokens);
        return Err(Error::Usage(format!(
            "kv_cache_tokens: wanted 0 or at least {least} for the longest prompt and answer, got {got}"
        )));
    }
    let pages = if given > 0 { given.min(batch * longest) } else { batch * longest };
    let cache = CacheLimits { pages, prefill_tokens: prompt.max(1024), batch, positions };
    let tree = (prompt + 2 * answer).max(supervised.map_or(0, |rows| rows.budget(c)));
    Ok((cache, pack::limits(tree.max(c.max_tokens_per_micro_batch as usize))))
}
