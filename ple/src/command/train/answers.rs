//! Where an iteration's answers come from: its journal, and for what that does not hold the policy that draws them. Once an
//! iteration's examples are trained that policy has moved on; what a journal has lost is then drawn by the one that was kept.

use super::Run;
use super::kept::Kept;
use crate::data::Prompt;
use crate::log::Log;
use crate::method::Side;
use crate::rollout::{self, Sample, Sampler};
use crate::trainer::Trainer;
use crate::{Error, Result, checkpoint, interrupt};
use model::{KvCache, Tune};

/// What an iteration asks.
pub(super) struct Asked<'a> {
    /// Of the run.
    pub iteration: u32,
    /// Its queries.
    pub prompts: &'a [Prompt],
    /// How often each row came before among them.
    pub repeats: Vec<u32>,
    /// What is drawn for each.
    pub sides: &'a [Side],
}

impl Asked<'_> {
    /// Answers in all.
    fn count(&self) -> usize {
        self.sides.iter().map(|side| side.samples as usize).sum::<usize>() * self.prompts.len()
    }
}

impl Run<'_> {
    /// All answers; `policy` names the one that has drawn them where it has moved on.
    pub(super) fn answers(
        &self,
        trainer: &Trainer,
        asked: Asked<'_>,
        kv: &mut KvCache,
        kept: &mut Kept,
        log: &Log,
        policy: Option<&str>,
    ) -> Result<Vec<Sample>> {
        let missing = asked.count().saturating_sub(kept.answers());
        let Some(policy) = policy.filter(|_| missing > 0) else { return self.sample(trainer, asked, kv, kept, log) };
        let name = kept.path().to_path_buf();
        let moved = |text: String| {
            let wanted = format!("wanted the {} answers that the checkpoint trains on, {missing} are missing", asked.count());
            Error::file(&name, format!("{wanted}, and their policy has moved on: {text}; name an earlier checkpoint"))
        };
        let Tune::Lora(slot) = self.opened.tune else { return Err(moved("full tuning keeps none of them".into())) };
        let folder = self.adapter_folder(asked.iteration);
        let (s, model) = (&trainer.stream, &trainer.model);
        let own = checkpoint::borrow(s, model, slot, &folder, policy).map_err(|e| moved(e.to_string()))?;
        log.say(&format!("note  {}: {missing} answers are drawn again, by {}", name.display(), folder.display()));
        let outcome = self.sample(trainer, asked, kv, kept, log);
        checkpoint::give_back(s, model, slot, &own)?;
        outcome
    }

    fn sample(&self, trainer: &Trainer, asked: Asked<'_>, kv: &mut KvCache, kept: &mut Kept, log: &Log) -> Result<Vec<Sample>> {
        let bar = log.bars.phase(&format!("iter {} answers", asked.iteration), asked.count());
        let settings = rollout::settings(self.c, &self.opened, &trainer.model);
        let Asked { iteration, prompts, repeats, sides } = asked;
        let sampler =
            Sampler { stream: &trainer.stream, model: &trainer.model, policy: trainer.policy, settings, iteration, repeats };
        sampler.sample(&self.opened.tokenizer, prompts, sides, kv, kept, &mut |p| {
            bar.at(p.finished, p.tokens);
            interrupt::watch()
        })
    }
}
