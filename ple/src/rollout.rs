//! One iteration's answers: queries to prompts, prompts to samples, samples to rewards, all in (query, side, sample) order.

use crate::config::Config;
use crate::data::Prompt;
use crate::journal::Key;
use crate::method::{Answer, Example, Group, Sampling, Side};
use crate::open::Opened;
use crate::reward::{Rewards, Scored, Scores};
use crate::{Error, Result};
use kernels::kv_store::PAGE;
use model::{
    Acts, Adapter, CacheLimits, Finished, KvCache, Progress, Request, SampleKey, Settings, Tokenizer, Transformer, generate,
};
use runtime::Stream;
use std::ops::ControlFlow;

/// Where the answers of an iteration are kept while it draws them.
pub trait Store {
    /// An answer that is there already: it is not drawn again.
    fn held(&self, key: Key) -> Option<Finished>;
    /// New ones, in the order in which they have ended.
    fn add(&mut self, answers: &[(Key, &Finished)]) -> Result<()>;
}

/// Keeps nothing.
impl Store for () {
    fn held(&self, _: Key) -> Option<Finished> {
        None
    }
    fn add(&mut self, _: &[(Key, &Finished)]) -> Result<()> {
        Ok(())
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
    /// Its name in the iteration.
    pub key: Key,
    /// Ids, log-probabilities, and how it ended.
    pub answer: Finished,
    /// The completion as text, without special tokens.
    pub text: String,
    /// The raw reward.
    pub reward: f64,
}

/// Settings of sampling as the sampler takes them.
pub fn sampling(s: &Sampling) -> kernels::sample::Sampling {
    kernels::sample::Sampling {
        temperature: s.temperature,
        top_k: s.top_k,
        top_p: s.top_p,
        min_p: s.min_p,
        repetition_penalty: s.repetition_penalty,
        ..Default::default()
    }
}

/// Sizes of the cache for `asked` sequences of at most `prompt` tokens before their answers.
pub fn cache(c: &Config, prompt: usize, asked: usize) -> Result<CacheLimits> {
    let (positions, batch) = (prompt + c.max_completion_length as usize, asked.clamp(1, c.max_num_seqs as usize));
    let (longest, given) = (positions.div_ceil(PAGE), (c.kv_cache_tokens as usize).div_ceil(PAGE));
    if given > 0 && given < longest {
        let (least, got) = (longest * PAGE, c.kv_cache_tokens);
        let wanted = format!("wanted 0 or at least {least} for the longest prompt and answer");
        return Err(Error::Usage(format!("kv_cache_tokens: {wanted}, got {got}")));
    }
    let most = batch * longest;
    let pages = if given > 0 { given.min(most) } else { most };
    Ok(CacheLimits { pages, prefill_tokens: prompt.max(1024), batch, positions })
}

/// What all sides share of the sampler's settings.
pub fn settings(c: &Config, opened: &Opened, model: &Transformer) -> Settings {
    Settings {
        sampling: kernels::sample::Sampling::default(),
        stop: opened.stop(&model.config),
        stop_strings: c.stop_strings.clone(),
        tokenizer: Some(opened.tokenizer.clone()),
        max_new_tokens: c.max_completion_length as usize,
        seed: c.seed,
    }
}

/// The ids a sample was drawn after.
pub fn prompt_of<'a>(prompts: &'a [Prompt], sides: &[Side], sample: &Sample) -> &'a [u32] {
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
    /// How often each row came before in this iteration (queries wrap around): sample numbers count on.
    pub repeats: Vec<u32>,
}

impl Sampler<'_> {
    /// Samples every side of every query, but for what `store` holds.
    pub fn sample(
        &self,
        tokenizer: &Tokenizer,
        prompts: &[Prompt],
        sides: &[Side],
        kv: &mut KvCache,
        store: &mut dyn Store,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<Sample>> {
        let (mut samples, mut before) = (Vec::new(), Progress::default());
        for (i, side) in sides.iter().enumerate() {
            let mut settings = self.settings.clone();
            settings.sampling = sampling(&side.sampling);
            let requests = self.requests(prompts, side, i as u32);
            let after = |p: Progress| Progress { finished: before.finished + p.finished, tokens: before.tokens + p.tokens };
            let answers = self.answers(&requests, &settings, kv, store, &mut |p| watch(after(p)))?;
            before = after(Progress { finished: answers.len(), tokens: answers.iter().map(|a| a.ids.len()).sum() });
            for (j, (request, answer)) in requests.iter().zip(answers).enumerate() {
                let (query, sample) = (j / side.samples as usize, (j % side.samples as usize) as u32);
                let text = tokenizer.decode(&answer.ids, true)?;
                samples.push(Sample { query, side: i as u32, sample, key: key(request), answer, text, reward: f64::NAN });
            }
        }
        samples.sort_by_key(|s| (s.query, s.side, s.sample));
        Ok(samples)
    }

    /// Answers to requests in their order: those that are held, and the others drawn and added as they end.
    fn answers(
        &self,
        requests: &[Request],
        settings: &Settings,
        kv: &mut KvCache,
        store: &mut dyn Store,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<Finished>> {
        let mut answers: Vec<Option<Finished>> = requests.iter().map(|request| store.held(key(request))).collect();
        let missing = || requests.iter().zip(&answers).filter(|(_, answer)| answer.is_none());
        let asked: Vec<Request> = missing().map(|(request, _)| request.clone()).collect();
        let mut failed = None;
        let drawn = generate(self.stream, self.model, kv, &asked, settings, self.policy, &mut |progress, new| {
            let named: Vec<(Key, &Finished)> = new.iter().map(|answer| (key(&asked[answer.id]), answer)).collect();
            if let Err(error) = store.add(&named) {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            watch(progress)
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let mut drawn = drawn?.into_iter();
        answers.iter_mut().filter(|answer| answer.is_none()).for_each(|answer| *answer = drawn.next());
        Ok(answers.into_iter().flatten().collect())
    }

    fn requests(&self, prompts: &[Prompt], side: &Side, index: u32) -> Vec<Request> {
        let one = |(p, repeat): (&Prompt, &u32), sample: u32| Request {
            prompt: if side.principle { p.guided.clone() } else { p.plain.clone() },
            key: SampleKey { row: p.row, side: index, sample: repeat * side.samples + sample, iteration: self.iteration },
        };
        prompts.iter().zip(&self.repeats).flat_map(|pair| (0..side.samples).map(move |sample| one(pair, sample))).collect()
    }
}

/// What names a request's answer.
fn key(request: &Request) -> Key {
    let SampleKey { row, side, sample, .. } = request.key;
    Key { row, side, sample }
}

/// Scores samples under the plain query; each part's scores come back beside their sum.
pub fn score<'a>(
    rewards: &Rewards,
    model: &Transformer,
    prompts: &'a [Prompt],
    samples: impl IntoIterator<Item = &'a Sample>,
) -> Result<Scores> {
    let text = |s: &'a Sample| {
        let Prompt { row, text, .. } = &prompts[s.query];
        Scored { row: *row, prompt: text, completion: &s.text, tokens: s.answer.ids.len() }
    };
    let texts: Vec<Scored<'_>> = samples.into_iter().map(text).collect();
    rewards.score(Some(model), &texts)
}

/// Samples as groups, in query order.
pub fn groups(prompts: &[Prompt], sides: &[Side], samples: &[Sample]) -> Vec<Group> {
    let mut groups: Vec<Group> = prompts
        .iter()
        .map(|p| Group { row: p.row, prompt: p.plain.clone(), sides: vec![Vec::new(); sides.len()], ..Group::default() })
        .collect();
    for s in samples {
        let a = &s.answer;
        groups[s.query].sides[s.side as usize].push(Answer {
            ids: a.ids.clone(),
            logps: a.logps.clone(),
            finished: a.stopped,
            reward: s.reward,
            text: s.text.clone(),
            ..Answer::default()
        });
    }
    groups
}

/// How far stored log-probabilities are from those of the training forward (LAW "The gap is measured").
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gap {
    /// Largest difference.
    pub max: f64,
    /// Mean difference.
    pub mean: f64,
    /// Share of tokens whose probability differs by more than 1 %.
    pub off: f64,
}

/// Answers of each side that are scored again.
const SCORED_AGAIN: usize = 64;

/// Scores the first finished answers of each side again, under the prompt they were sampled from.
pub fn gap(
    s: &Stream,
    model: &Transformer,
    acts: &mut Acts,
    policy: Adapter,
    prompts: &[Prompt],
    sides: &[Side],
    samples: &[Sample],
) -> Result<Gap> {
    let of_side = |side: u32| samples.iter().filter(move |s| s.side == side && !s.answer.ids.is_empty()).take(SCORED_AGAIN);
    let chosen: Vec<&Sample> = (0..sides.len() as u32).flat_map(of_side).collect();
    let examples: Vec<Example> = chosen
        .iter()
        .map(|s| Example {
            prompt: prompt_of(prompts, sides, s).to_vec(),
            answers: vec![s.answer.ids.clone()],
            ..Example::default()
        })
        .collect();
    let again = crate::logprob::score(s, model, acts, policy, &examples.iter().collect::<Vec<_>>())?;
    let (mut gap, mut tokens) = (Gap::default(), 0.0);
    for (stored, again) in chosen.iter().flat_map(|s| &s.answer.logps).zip(again.iter().flatten()) {
        let difference = (*stored as f64 - *again as f64).abs();
        // NaN on either side is a gap without bound.
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        gap.max = gap.max.max(difference);
        gap.mean += difference;
        gap.off += f64::from(u8::from(difference > 0.01f64.ln_1p()));
        tokens += 1.0;
    }
    let tokens = f64::max(tokens, 1.0);
    Ok(Gap { mean: gap.mean / tokens, off: gap.off / tokens, ..gap })
}
