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
use crate::{Result, interrupt};
use model::{Finished, Transformer};
use serde_json::{Map, Value};
use std::path::Path;

/// Answers that are scored together: what a run that breaks off may have to ask for again.
const CHUNK: usize = 64;

/// Settings that answers depend on, beside the policy and the seed. The files that these name count by their contents.
const ANSWERS: [&str; 18] = [
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
];

/// Settings that the rewards of given answers depend on.
const REWARDS: [&str; 3] = ["reward_funcs", "reward_model_name_or_path", "reward_weights"];

/// SHA-256 of what answers and of what rewards depend on; `files` are those of `run.json`, each under its setting.
pub(super) fn digests(c: &Config, files: &Map<String, Value>) -> [String; 2] {
    [&ANSWERS[..], &REWARDS[..]].map(|names| {
        let settings = KEYS.iter().filter(|key| names.contains(&key.name)).map(|key| (key.name.to_string(), (key.get)(c)));
        // A reward's files stand under `reward_funcs` and their own name.
        let named = |key: &String| key.split(' ').next().is_some_and(|name| names.contains(&name));
        let files = files.iter().filter(|(key, _)| named(key)).map(|(key, file)| (format!("file {key}"), file.clone()));
        sha256(Value::Object(settings.chain(files).collect()).to_string().as_bytes())
    })
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
            Found::Stale(aside) => {
                let why = "of another run, or of a policy, settings or files that have changed";
                log.say(&format!("note  {name} is {why}: put aside as {}, and drawn again", aside.display()));
            }
            Found::Rewarded(aside) => {
                let (why, answers) = ("is of rewards whose settings or files have changed", held.samples.len());
                log.say(&format!("note  {name} {why}: put aside as {}; {answers} answers are scored again", aside.display()));
            }
            Found::Same { cut } => {
                let lost = if cut > 0 { format!("; {cut} damaged bytes at its end are gone") } else { String::new() };
                let (answers, rewards) = (held.samples.len(), held.rewards.len());
                log.say(&format!("note  {name} has {answers} answers and {rewards} rewards{lost}"));
            }
        }
        Ok(Kept { journal, held })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        self.journal.path()
    }

    /// Answers that it holds.
    pub fn answers(&self) -> usize {
        self.held.samples.len()
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
        let names = ANSWERS.iter().chain(&REWARDS);
        assert!(names.into_iter().all(|name| KEYS.iter().any(|key| key.name == *name)), "a name that is no setting");
        let (c, none) = (Config::defaults(Command::Train), Map::new());
        let [answers, rewards] = digests(&c, &none);
        let warmer = digests(&Config { temperature: 1.0, ..c.clone() }, &none);
        assert!(warmer[0] != answers && warmer[1] == rewards);
        let other = digests(&Config { reward_funcs: vec!["length:3".into()], ..c.clone() }, &none);
        assert!(other[0] == answers && other[1] != rewards);
        let (longer, slower) = (Config { ple_iters: 9, ..c.clone() }, Config { max_num_seqs: 1, threads: 1, ..c.clone() });
        assert_eq!([digests(&longer, &none), digests(&slower, &none)], [[answers.clone(), rewards.clone()], [answers, rewards]]);
    }

    #[test]
    fn every_file_that_is_read_counts_and_no_other() {
        let c = Config::defaults(Command::Train);
        let of = |key: &str, sha256: &str| {
            let file = serde_json::json!({"path": "a b", "sha256": sha256});
            digests(&c, &[(key.to_string(), file)].into_iter().collect())
        };
        let differ = |key: &str| {
            let [one, other] = [of(key, "1"), of(key, "2")];
            [one[0] != other[0], one[1] != other[1]]
        };
        assert_eq!(["dataset_name", "ple_principle_file", "model_name_or_path"].map(differ), [[true, false]; 3]);
        assert_eq!(["reward_funcs a b", "reward_model_name_or_path"].map(differ), [[false, true]; 2]);
        assert_eq!(["eval_dataset_name", "sft_dataset_name", "adapter"].map(differ), [[false, false]; 3]);
    }
}
