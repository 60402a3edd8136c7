//! Lines of a journal. A line is a JSON object whose last field `crc` is the CRC-32 (IEEE, eight hex digits) of the object's text
//! without that field.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// Whose answers a journal holds. Answers and rewards are a function of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Of the training loop.
    pub iteration: u32,
    /// SHA-256 of the adapter that samples ([`crate::checkpoint::fingerprint`]).
    pub adapter: String,
    /// SHA-256 of the settings that answers depend on, and of the files that these name.
    pub answers: String,
    /// The same of rewards; those of an answer depend on both.
    pub rewards: String,
    /// Of every random number.
    pub seed: u64,
}

/// Names an answer within an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Index in the input before any filter.
    pub row: u32,
    /// Plain 0, guided 1.
    pub side: u32,
    /// Counts on over repeats of a row.
    pub sample: u32,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {} side {} sample {}", self.row, self.side, self.sample)
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Its name.
    pub key: Key,
    /// Ids, the stop id included.
    pub ids: Vec<u32>,
    /// Log-probability of each id at temperature 1.
    pub logps: Vec<f32>,
    /// Log-probability of each id under the distribution it was drawn from.
    pub sampling_logps: Vec<f32>,
    /// Whether it ended by a stop id rather than by the length limit.
    pub finished: bool,
}

/// A reward. Whatever is no number is one NaN.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewarded {
    /// Whose.
    pub key: Key,
    /// The raw reward.
    pub reward: f64,
    /// Of each source, in the order of `reward_funcs`.
    pub parts: Vec<f64>,
}

/// Any line.
#[derive(Debug)]
pub(super) enum Line {
    Head(Head),
    Sampled(Sampled),
    Rewarded(Rewarded),
}

/// `,"crc":"01234567"}` and the end of the line.
const TAIL: usize = 19;

/// Closes an object's text by its checksum.
fn closed(object: &impl Serialize) -> String {
    // Structs of numbers, lists and strings always have a JSON text; without one the line fails its own check on reading.
    let text = serde_json::to_string(object).unwrap_or_default();
    let crc = crc32fast::hash(text.as_bytes());
    format!("{},\"crc\":\"{crc:08x}\"}}\n", text.strip_suffix('}').unwrap_or_default())
}

/// The object's text of a whole line whose checksum holds.
pub(super) fn checked(line: &[u8]) -> Option<Vec<u8>> {
    let (text, tail) = line.split_at_checked(line.len().checked_sub(TAIL)?)?;
    let digits = tail.strip_prefix(b",\"crc\":\"")?.strip_suffix(b"\"}\n")?;
    let body = [text, b"}"].concat();
    (format!("{:08x}", crc32fast::hash(&body)).as_bytes() == digits).then_some(body)
}

/// What an object's text says, or what is wrong with it.
pub(super) fn parse(body: &[u8]) -> Result<Line, String> {
    let value: Value = serde_json::from_slice(body).map_err(|e| format!("not valid JSON: {e}"))?;
    let line = if value.get("iteration").is_some() {
        serde_json::from_value(value).map(Line::Head)
    } else if value.get("reward").is_some() {
        serde_json::from_value(value).map(|line: RewardLine| Line::Rewarded(line.into()))
    } else {
        let line: SampleLine = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let (ids, lists) = (line.ids.len(), [line.logps.len(), line.sampling_logps.len()]);
        if lists != [ids; 2] {
            return Err(format!("wanted {ids} logps and sampling_logps, one for each of the ids, got {lists:?}"));
        }
        Ok(Line::Sampled(line.into()))
    };
    line.map_err(|e| e.to_string())
}

impl Head {
    /// Whether both stand over the same answers, whatever their rewards.
    pub fn answers_as(&self, other: &Head) -> bool {
        Head { rewards: other.rewards.clone(), ..self.clone() } == *other
    }

    pub(super) fn line(&self) -> String {
        closed(self)
    }
}

impl Sampled {
    pub(super) fn line(&self) -> String {
        let Key { row, side, sample } = self.key;
        let bits = |list: &[f32]| list.iter().map(|x| x.to_bits()).collect();
        let (logps, sampling_logps) = (bits(&self.logps), bits(&self.sampling_logps));
        closed(&SampleLine { row, side, sample, ids: self.ids.clone(), logps, sampling_logps, finished: self.finished })
    }
}

impl Rewarded {
    pub(super) fn line(&self) -> String {
        let Key { row, side, sample } = self.key;
        let parts = self.parts.iter().map(|x| Number::from(*x)).collect();
        closed(&RewardLine { row, side, sample, reward: self.reward.into(), parts })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleLine {
    row: u32,
    side: u32,
    sample: u32,
    ids: Vec<u32>,
    logps: Vec<u32>,
    sampling_logps: Vec<u32>,
    finished: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RewardLine {
    row: u32,
    side: u32,
    sample: u32,
    reward: Number,
    parts: Vec<Number>,
}

/// A float with the shortest digits that read back to its bits; what JSON has no number for is a word.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    Word(Word),
}

#[derive(Serialize, Deserialize)]
enum Word {
    #[serde(rename = "nan")]
    Nan,
    #[serde(rename = "inf")]
    Infinity,
    #[serde(rename = "-inf")]
    NegativeInfinity,
}

impl From<f64> for Number {
    fn from(x: f64) -> Number {
        match x {
            x if x.is_finite() => Number::Finite(x),
            x if x.is_nan() => Number::Word(Word::Nan),
            x if x > 0.0 => Number::Word(Word::Infinity),
            _ => Number::Word(Word::NegativeInfinity),
        }
    }
}

impl From<Number> for f64 {
    fn from(number: Number) -> f64 {
        match number {
            Number::Finite(x) => x,
            Number::Word(Word::Nan) => f64::NAN,
            Number::Word(Word::Infinity) => f64::INFINITY,
            Number::Word(Word::NegativeInfinity) => f64::NEG_INFINITY,
        }
    }
}

impl From<SampleLine> for Sampled {
    fn from(line: SampleLine) -> Sampled {
        let SampleLine { row, side, sample, ids, logps, sampling_logps, finished } = line;
        let floats = |list: Vec<u32>| list.into_iter().map(f32::from_bits).collect();
        let (logps, sampling_logps) = (floats(logps), floats(sampling_logps));
        Sampled { key: Key { row, side, sample }, ids, logps, sampling_logps, finished }
    }
}

impl From<RewardLine> for Rewarded {
    fn from(line: RewardLine) -> Rewarded {
        let RewardLine { row, side, sample, reward, parts } = line;
        let parts = parts.into_iter().map(f64::from).collect();
        Rewarded { key: Key { row, side, sample }, reward: reward.into(), parts }
    }
}
