//! What a training method is: arithmetic on log-probabilities. A method does no I/O and starts no generation; the trainer
//! samples, scores, packs and steps for it. A new method is one file here and one line in [`crate::trainer`].

use crate::config::Config;
use crate::{Error, Result};
use model::{Batch, Columns};

#[cfg(test)]
mod baselines;
pub mod dpo;
pub(crate) mod group;
pub mod grpo;
pub mod ple;
pub mod raft;
pub mod release;
pub mod reward_model;
pub mod rloo;
pub mod sft;
#[cfg(test)]
mod tests;

/// How the sides of an iteration are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy. As the user gave it: 1/T is rounded once, by the sampler.
    pub temperature: f64,
    /// Keeps the smallest set of ids with this mass; 1 keeps all.
    pub top_p: f32,
    /// Keeps the largest logits; 0 keeps all.
    pub top_k: u32,
    /// Keeps ids with at least this share of the largest mass; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of ids seen before; 1 is off.
    pub repetition_penalty: f32,
}

impl Sampling {
    /// Of the settings.
    pub fn of(c: &Config) -> Sampling {
        Sampling {
            temperature: c.temperature,
            top_p: c.top_p as f32,
            top_k: c.top_k,
            min_p: c.min_p as f32,
            repetition_penalty: c.repetition_penalty as f32,
        }
    }
}

/// One side of a group: which prompt, and how many samples of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// Whether the principle stands before the query.
    pub principle: bool,
    /// Samples per query.
    pub samples: u32,
    /// How they are drawn.
    pub sampling: Sampling,
}

/// What an iteration begins with.
#[derive(Clone, Debug, PartialEq)]
pub enum Rollout {
    /// Nothing is sampled: an iteration is an epoch over the rows' own answers.
    None,
    /// Each query is answered on every side.
    Sides(Vec<Side>),
}

/// Which heads a method reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// Log-probabilities.
    LogProb,
    /// The scalar head.
    Scalar,
    /// Both.
    Both,
}

/// What the trainer computes for the method before the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Needs {
    /// Heads of the training forward.
    pub heads: Heads,
    /// 1/T of the training forward; 1 for all but parity modes.
    pub inv_temperature: f32,
    /// Fill `Columns::ref_logp`.
    pub reference: bool,
    /// Fill `Columns::old_logp` by a forward (sampled rows carry it already).
    pub old_logp: bool,
    /// Fill `Columns::value_target`.
    pub value: bool,
}

impl Needs {
    /// Log-probabilities at temperature 1 and nothing else.
    pub fn logp() -> Needs {
        Needs { heads: Heads::LogProb, inv_temperature: 1.0, reference: false, old_logp: false, value: false }
    }

    /// The scalar head at the last token of each answer: one loss row per answer.
    pub fn scalar() -> Needs {
        Needs { heads: Heads::Scalar, ..Needs::logp() }
    }
}

/// One answer of a group: sampled and scored, or given by the row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Token ids, the end token included if there is one. Sampled answers are never tokenised again.
    pub ids: Vec<u32>,
    /// Log-probability of each id at sampling time, temperature 1; empty for given answers.
    pub logps: Vec<f32>,
    /// Whether it ended by itself (an end token) rather than by the length limit.
    pub finished: bool,
    /// The raw reward; NaN for given answers.
    pub reward: f64,
    /// As it was scored, without special tokens; empty for given answers.
    pub text: String,
    /// Of each id whether the loss falls on it; empty means on all.
    pub loss: Vec<bool>,
    /// Of given answers: tokenised apart from the prompt, because a token would lie on both sides of their border.
    pub apart: bool,
}

/// All answers to one row, in (side, sample) order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// Index of the row in the input, before any filter.
    pub row: u32,
    /// Ids of the plain prompt; empty for `text` rows.
    pub prompt: Vec<u32>,
    /// `sides[side][sample]`; for Rollout::None one side with the row's own answers.
    pub sides: Vec<Vec<Answer>>,
    /// Of a row with two answers: by how much the first must be better.
    pub margin: f64,
}

/// What one optimizer step is made of: a prompt, the answers trained under it, and the method's branch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// Index of the row in the input.
    pub row: u32,
    /// Ids of the prompt; empty for `text` rows.
    pub prompt: Vec<u32>,
    /// Ids of each answer.
    pub answers: Vec<Vec<u32>>,
    /// Per answer: of each id whether the loss falls on it; empty where it falls on all.
    pub loss: Vec<Vec<bool>>,
    /// Per answer: its weight (`Columns::weight`); empty if unused.
    pub weights: Vec<f32>,
    /// Per loss row: log-probability under the reference (`Columns::ref_logp`); empty if unused.
    pub ref_logp: Vec<f32>,
    /// Per loss row: log-probability under the policy that sampled it (`Columns::old_logp`); empty if unused.
    pub old_logp: Vec<f32>,
    /// Per loss row (`Columns::advantage`): the trainer fills it from [`Method::advantages`]; empty if unused.
    pub advantage: Vec<f32>,
    /// The method's own branch (`Batch::tags`).
    pub tag: u32,
    /// Which of the groups that [`Method::label`] was given it came from: rows may repeat within an iteration.
    pub group: u32,
}

/// Host counts over a whole optimizer batch (all micro-batches and ranks), known before its first forward.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Examples: a pair or a group is one.
    pub examples: f64,
    /// Answers of all examples.
    pub answers: f64,
    /// Loss rows.
    pub tokens: f64,
    /// Sum of `Columns::weight`.
    pub weight: f64,
}

/// One value per head; the unused one is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outputs<T> {
    /// `[M]` log-probabilities of the loss rows.
    pub logp: T,
    /// `[M]` values of the scalar head.
    pub value: T,
}

/// Named numbers for the log.
pub type Metrics = Vec<(&'static str, f64)>;

/// A micro-batch's share of the optimizer batch's loss, and of its metrics (each a sum that the trainer adds up).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loss {
    /// Already divided by the totals.
    pub value: f64,
    /// Name and share, added over micro-batches.
    pub metrics: Metrics,
}

/// A training method.
pub trait Method {
    /// What iteration `iteration` begins with.
    fn rollout(&self, iteration: u32) -> Rollout;

    /// What the training forward must give.
    fn needs(&self) -> Needs;

    /// Finished and scored groups of the whole iteration, in query order, to examples. Pure: no I/O, no generation. Returns
    /// beside the examples what the log line says of the labelling.
    fn label(&mut self, iteration: u32, groups: Vec<Group>) -> Result<(Vec<Example>, Metrics)>;

    /// Lines for a reader on what is odd about the labelling, of which `labelled` are the metrics. Default: nothing.
    fn remarks(&self, labelled: &Metrics) -> Vec<String> {
        let _ = labelled;
        Vec::new()
    }

    /// Once per iteration, after the side forwards, over all its examples (GAE, KL in the reward, whitening, leave-one-out).
    fn advantages(&self, examples: &[Example], side: &mut Columns) -> Result<()> {
        let _ = (examples, side);
        Ok(())
    }

    /// Writes d loss / d output into `dout` (every element) and returns the loss. Sums are f64, in order.
    fn loss(&self, totals: &Totals, batch: &Batch, out: Outputs<&[f32]>, dout: Outputs<&mut [f32]>) -> Result<Loss>;

    /// What a tag of its examples is called in the completions file.
    fn branch(&self, tag: u32) -> &'static str;

    /// What a checkpoint keeps of the method: nothing by itself.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// The reverse of [`Method::state`].
    fn restore(&mut self, _: &serde_json::Value) -> Result<()> {
        Ok(())
    }
}

/// Groups of two given answers, the better one first, as examples.
pub(crate) fn pair_examples(method: &str, groups: Vec<Group>) -> Result<Vec<Example>> {
    let example = |(i, group): (usize, Group)| {
        let answers: Vec<Vec<u32>> = group.sides.into_iter().flatten().map(|answer| answer.ids).collect();
        if answers.len() != 2 {
            let (row, n) = (group.row, answers.len());
            return Err(Error::Usage(format!("{method}: row {row}: wanted two answers, got {n}")));
        }
        Ok(Example { row: group.row, prompt: group.prompt, answers, group: i as u32, ..Example::default() })
    };
    groups.into_iter().enumerate().map(example).collect()
}

/// The two answers of every example with their spans of the loss rows; another number of answers is an error.
pub(crate) fn pairs<'a>(method: &'a str, batch: &'a Batch) -> impl Iterator<Item = Result<[model::Span; 2]>> + 'a {
    batch.examples.iter().map(move |span| match batch.sequences.get(span.range()) {
        Some([first, second]) => Ok([*first, *second]),
        _ => Err(model::Error::Batch(format!("{method}: wanted 2 answers per example, got {}", span.len())).into()),
    })
}

/// Σ in f64, in order.
pub(crate) fn sum(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v)).sum()
}

/// log(1 + e^x), without overflow; −log σ(x) = softplus(−x).
pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// A loss that must not be stepped on.
pub(crate) fn finite(method: &str, value: f64) -> Result<f64> {
    if value.is_finite() { Ok(value) } else { Err(Error::Numeric(format!("{method}: loss is {value}; wanted a finite number"))) }
}

/// A column that the loss reads: `[M]`, or an error.
pub(crate) fn column<'a>(method: &str, name: &str, column: &'a [f32], batch: &Batch) -> Result<&'a [f32]> {
    let (wanted, got) = (batch.loss_rows(), column.len());
    if wanted == got {
        return Ok(column);
    }
    Err(model::Error::Batch(format!("{method}: wanted {name} of {wanted} loss rows, got {got}")).into())
}

/// The lengths of a loss: `[M]` log-probabilities and their gradients, values `[M]` or empty.
pub(crate) fn check_outputs(batch: &Batch, out: &Outputs<&[f32]>, dout: &Outputs<&mut [f32]>) -> Result<()> {
    let rows = batch.loss_rows();
    if out.logp.len() != rows || dout.logp.len() != rows || out.value.len() != dout.value.len() {
        let got = [out.logp.len(), dout.logp.len(), out.value.len(), dout.value.len()];
        return Err(model::Error::Batch(format!("loss: wanted logp and dlogp of {rows} rows, got {got:?}")).into());
    }
    Ok(())
}
