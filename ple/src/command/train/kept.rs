//! What an iteration has drawn and scored, kept in its journal as it comes: a run that goes on neither draws an answer nor asks
//! for a reward twice.

use super::Run;
use crate::config::{Config, KEYS};
use crate::digest::sha256;
use crate::journal::{Found, Head, Held, Journal, Key, Rewarded, Sampled};
use crate::log::Log;
use crate::progress::Bar;
use crate::reward::Scores;
use crate::rollout::{self, Sample, Store};
use crate::{Error, Result, interrupt};
use model::{Finished, Transformer};
use serde_json::{Map, Value};
use std::path::Path;

/// Answers that are scored together: what a run that breaks off may have to ask for again.
const CHUNK: usize = 64;

/// Settings that answers and rewards depend on, beside the policy and the seed.
const READ: [&str; 21] = [
    "model_name_or_path",
    "init_from_config",
    "dtype",
    "dataset_name",
    "preset",
    "max_prompt_length",
    "max_completion_length",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop_strings",
    "ple_principle",
    "ple_principle_file",
    "ple_queries_per_iter",
    "ple_order",
    "num_generations",
    "reward_funcs",
    "reward_model_name_or_path",
    "reward_weights",
];

/// SHA-256 of these settings.
pub(super) fn settings(c: &Config) -> String {
    let read = KEYS.iter().filter(|key| READ.contains(&key.name));
    let values: Map<String, Value> = read.map(|key| (key.name.to_string(), (key.get)(c))).collect();
    sha256(Value::Object(values).to_string().as_bytes())
}

/// An iteration's journal and what it holds.
pub(super) struct Kept {
    journal: Journal,
    held: Held,
}

impl Kept {
    /// Opens it, or begins it where the run does not go on from another; what was found of an earlier run is said.
    pub fn open(folder: &Path, head: &Head, goes_on: bool, log: &Log) -> Result<Kept> {
        let (journal, held, found) = if goes_on { Journal::open(folder, head)? } else { Journal::begin(folder, head)? };
        let name = journal.path().display();
        match found {
            Found::Nothing => {}
            Found::Stale(aside) => log.say(&format!("note  {name} is of another run: put aside as {}", aside.display())),
            Found::Same { cut } => {
                let lost = if cut > 0 { format!("; {cut} damaged bytes at its end are gone") } else { String::new() };
                let (answers, rewards) = (held.samples.len(), held.rewards.len());
                log.say(&format!("note  {name} has {answers} answers and {rewards} rewards{lost}"));
            }
        }
        Ok(Kept { journal, held })
    }

    /// That every answer of an iteration whose examples are trained is there: its policy has moved on and cannot draw them again.
    pub fn whole(&self, answers: usize) -> Result<()> {
        let got = self.held.samples.len();
        if got == answers && self.held.rewards.len() == answers {
            return Ok(());
        }
        let path = self.journal.path();
        Err(Error::file(
            path,
            format!(
                "wanted the {answers} answers and rewards that the checkpoint trains on, got {got}; name an earlier checkpoint"
            ),
        ))
    }

    /// The rewards of all samples: those that are held, and the others asked for and added.
    pub fn score(
        &mut self,
        run: &Run<'_>,
        model: &Transformer,
        samples: &[Sample],
        prompts: &[crate::data::Prompt],
        bar: &Bar,
    ) -> Result<Scores> {
        self.journal.sync()?;
        let missing: Vec<&Sample> = samples.iter().filter(|s| !self.held.rewards.contains_key(&s.key)).collect();
        let held = samples.len() - missing.len();
        for (i, chunk) in missing.chunks(CHUNK).enumerate() {
            interrupt::check()?;
            let scores = rollout::score(&run.rewards, model, prompts, chunk.iter().copied())?;
            let one = |(i, s): (usize, &&Sample)| Rewarded {
                key: s.key,
                reward: scores.total[i],
                parts: scores.parts.iter().map(|part| part[i]).collect(),
            };
            let new: Vec<Rewarded> = chunk.iter().enumerate().map(one).collect();
            self.journal.append_rewards(&new)?;
            self.held.rewards.extend(new.into_iter().map(|r| (r.key, r)));
            bar.at(held + i * CHUNK + chunk.len(), 0);
        }
        let mut scores =
            Scores { total: Vec::with_capacity(samples.len()), parts: vec![Vec::new(); run.rewards.names().count()] };
        for reward in samples.iter().filter_map(|s| self.held.rewards.get(&s.key)) {
            scores.total.push(reward.reward);
            scores.parts.iter_mut().zip(&reward.parts).for_each(|(part, value)| part.push(*value));
        }
        Ok(scores)
    }

    /// The iteration is drawn and scored.
    pub fn finish(self) -> Result<()> {
        self.journal.finish().map(drop)
    }
}

impl Store for Kept {
    fn held(&self, key: Key) -> Option<Finished> {
        let Sampled { ids, logps, sampling_logps, finished, .. } = self.held.samples.get(&key)?.clone();
        Some(Finished { id: 0, ids, logps, sampling_logps, stopped: finished })
    }

    fn add(&mut self, answers: &[(Key, &Finished)]) -> Result<()> {
        let sampled = |(key, a): &(Key, &Finished)| Sampled {
            key: *key,
            ids: a.ids.clone(),
            logps: a.logps.clone(),
            sampling_logps: a.sampling_logps.clone(),
            finished: a.stopped,
        };
        self.journal.append_samples(&answers.iter().map(sampled).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Command;

    #[test]
    fn every_setting_that_is_read_counts_and_no_other() {
        assert!(READ.iter().all(|name| KEYS.iter().any(|key| key.name == *name)), "a name that is no setting");
        let c = Config::defaults(Command::Train);
        let warmer = Config { temperature: 1.0, ..c.clone() };
        let (longer, slower) = (Config { ple_iters: 9, ..c.clone() }, Config { max_num_seqs: 1, threads: 1, ..c.clone() });
        assert_ne!(settings(&c), settings(&warmer));
        assert_eq!([settings(&longer), settings(&slower)], [settings(&c), settings(&c)]);
    }
}
