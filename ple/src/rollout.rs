//! One iteration's answers: queries to prompts, prompts to samples, samples to rewards, all in (query, side, sample) order.

use crate::data::Query;
use crate::method::{Answer, Group, Side};
use crate::principle::Principle;
use crate::reward::{Reward, Scored};
use crate::{Error, Result};
use model::tokenizer::Tokenizer;
use model::{Adapter, CacheLimits, Finished, KvCache, Request, SampleKey, Settings, Transformer, generate};
use runtime::{Arena, Stream};

/// A query as it is sampled: the plain prompt and the guided one, cut to the same budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompts {
    /// Index of the row in the input.
    pub row: u32,
    /// Text of the plain prompt: what the reward sees.
    pub text: String,
    /// Ids of the plain prompt.
    pub plain: Vec<u32>,
    /// Ids of the prompt with the principle.
    pub guided: Vec<u32>,
}

/// Tokenises a query on both sides. The cut is decided with the principle, and the same cut serves both.
pub fn prompts(tokenizer: &Tokenizer, principle: &Principle, query: &Query, budget: usize) -> Result<Option<Prompts>> {
    let mut text = query.text.clone();
    loop {
        let guided = tokenizer.encode(&principle.guide(&text), true)?;
        if guided.len() <= budget {
            let plain = tokenizer.encode(&text, true)?;
            return Ok((!plain.is_empty()).then_some(Prompts { row: query.row, text, plain, guided }));
        }
        match crate::data::cut_left(&text) {
            Some(shorter) => text = shorter,
            None => return Ok(None),
        }
    }
}

/// One sampled and scored answer, as the completions file shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Which query of the iteration.
    pub query: usize,
    /// Plain 0, guided 1.
    pub side: u32,
    /// Counts samples of one side.
    pub sample: u32,
    /// Ids, log-probabilities, and how it ended.
    pub answer: Finished,
    /// The completion as text, without special tokens.
    pub text: String,
    /// The raw reward.
    pub reward: f64,
}

/// The ids a sample was drawn after.
pub fn prompt_of<'a>(prompts: &'a [Prompts], sides: &[Side], sample: &Sample) -> &'a [u32] {
    let p = &prompts[sample.query];
    if sides[sample.side as usize].principle { &p.guided } else { &p.plain }
}

/// What sampling needs beside the queries.
pub struct Sampler<'a> {
    /// The queue.
    pub stream: &'a Stream,
    /// The model.
    pub model: &'a Transformer,
    /// Slot of the policy.
    pub policy: Adapter,
    /// Stop ids, length, seed; `sampling` comes from each side.
    pub settings: Settings,
    /// Of the training loop.
    pub iteration: u32,
    /// Sequences that run at once, at most.
    pub batch: usize,
    /// How often each row came before in this iteration (queries wrap around): sample numbers count on.
    pub repeats: Vec<u32>,
}

impl Sampler<'_> {
    /// Pages, prefill and batch for these prompts.
    pub fn limits(&self, prompts: &[Prompts]) -> CacheLimits {
        let longest = prompts.iter().map(|p| p.plain.len().max(p.guided.len())).max().unwrap_or(1);
        let positions = longest + self.settings.max_new_tokens;
        CacheLimits { pages: self.batch * positions.div_ceil(64), prefill_tokens: longest.max(1024), batch: self.batch, positions }
    }

    /// Samples every side of every query. Takes the overlay and gives it back.
    pub fn sample(
        &self,
        tokenizer: &Tokenizer,
        prompts: &[Prompts],
        sides: &[Side],
        overlay: Option<Arena>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(Vec<Sample>, Arena)> {
        let seen = sides.iter().any(|s| s.sampling.repetition_penalty != 1.0);
        let mut kv = KvCache::new(self.stream, self.model, self.limits(prompts), seen, overlay)?;
        let (mut samples, mut before) = (Vec::new(), 0);
        for (i, side) in sides.iter().enumerate() {
            let mut settings = self.settings.clone();
            settings.sampling = side.sampling.into();
            let requests = self.requests(prompts, side, i as u32);
            let answers = generate(self.stream, self.model, &mut kv, &requests, &settings, self.policy, &mut |done| progress(before + done))?;
            before += answers.len();
            for (j, answer) in answers.into_iter().enumerate() {
                let (query, sample) = (j / side.samples as usize, (j % side.samples as usize) as u32);
                let text = tokenizer.decode(&answer.ids, true)?;
                samples.push(Sample { query, side: i as u32, sample, answer, text, reward: f64::NAN });
            }
        }
        samples.sort_by_key(|s| (s.query, s.side, s.sample));
        Ok((samples, kv.into_overlay()))
    }

    fn requests(&self, prompts: &[Prompts], side: &Side, index: u32) -> Vec<Request> {
        let one = |(p, repeat): (&Prompts, &u32), sample: u32| Request {
            prompt: if side.principle { p.guided.clone() } else { p.plain.clone() },
            key: SampleKey { row: p.row, side: index, sample: repeat * side.samples + sample, iteration: self.iteration },
        };
        prompts.iter().zip(&self.repeats).flat_map(|pair| (0..side.samples).map(move |sample| one(pair, sample))).collect()
    }
}

/// Scores every sample under the plain query.
pub fn score(reward: &dyn Reward, prompts: &[Prompts], samples: &mut [Sample]) -> Result<()> {
    let texts: Vec<Scored<'_>> = samples
        .iter()
        .map(|s| Scored { prompt: &prompts[s.query].text, completion: &s.text, tokens: s.answer.ids.len() })
        .collect();
    let rewards = reward.score(&texts)?;
    if rewards.len() != samples.len() {
        return Err(Error::Numeric(format!("{}: {} rewards for {} answers", reward.name(), rewards.len(), samples.len())));
    }
    samples.iter_mut().zip(rewards).for_each(|(sample, reward)| sample.reward = reward);
    Ok(())
}

/// Samples as groups, in query order.
pub fn groups(prompts: &[Prompts], sides: &[Side], samples: &[Sample]) -> Vec<Group> {
    let mut groups: Vec<Group> =
        prompts.iter().map(|p| Group { row: p.row, prompt: p.plain.clone(), sides: vec![Vec::new(); sides.len()] }).collect();
    for s in samples {
        let a = &s.answer;
        groups[s.query].sides[s.side as usize].push(Answer {
            ids: a.ids.clone(),
            logps: a.logps.clone(),
            finished: a.stopped,
            reward: s.reward,
        });
    }
    groups
}
