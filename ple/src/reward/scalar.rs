//! Rewards with a scalar head: `model:DIR`, a checkpoint of its own, and `adapter:DIR`, a further slot on the policy's base.
//!
//! The text is the plain query and the answer, tokenised as one with the tokenizer of the checkpoint (of the base, for an adapter)
//! and the special tokens that it puts around a text. Reward models are trained on texts that end with their end token (TRL's
//! RewardTrainer and OpenRLHF's reward data both append it), and answers come here without theirs, so it is appended iff the
//! text does not end with an end token yet ([`judged`], which training calls too): the `eos_token` of tokenizer_config.json, else the first `eos_token_id` of
//! config.json, else none. The score is read at the last token, by position: never one token earlier because a padding token
//! happens to be the end token too.

use super::{Reward, Scored};
use crate::data::judged;
use crate::open::{Opened, fits};
use crate::{Error, Result, identity, interrupt};
use model::{Adapter, Batch, Config, Head, Keep, Limits, Parent, ScalarHead, Tokenizer, Transformer};
use runtime::{Stream, View};
use std::path::{Path, PathBuf};

/// A scalar head on a checkpoint or on an adapter slot.
pub struct Scalar {
    name: String,
    unit: bool,
    folder: PathBuf,
    stream: Stream,
    tokenizer: Tokenizer,
    head: ScalarHead,
    body: Body,
    /// Tokens of a micro-batch; a longer text has one of its own.
    budget: usize,
}

/// What the head sits on.
enum Body {
    Own(Box<Transformer>),
    Base(Adapter),
}

impl Scalar {
    /// Loads a checkpoint in the types of its file.
    pub fn model(name: &str, unit: bool, folder: &Path, stream: Stream, budget: usize) -> Result<Scalar> {
        if !folder.is_dir() {
            return Err(Error::file(folder, "wanted the folder of a reward model, got nothing there"));
        }
        if !Config::from_folder(folder)?.scalar_head {
            let wanted = "architectures: wanted a ForSequenceClassification model with one label, got one without a score head";
            return Err(Error::file(&folder.join("config.json"), wanted));
        }
        let model = Transformer::load(&stream, folder, None)?;
        let (tokenizer, head) = (Tokenizer::open(folder)?, model.scalar_head(&stream)?);
        fits(folder, tokenizer.vocab_size(), model.config.vocab_size)?;
        let body = Body::Own(Box::new(model));
        Ok(Scalar { name: name.into(), unit, folder: folder.into(), stream, tokenizer, head, body, budget })
    }

    /// Puts an adapter with a scalar head into a slot of the base; the base's weights are there once. A base with another tokenizer or
    /// template than it was trained with is refused.
    pub fn adapter(name: &str, unit: bool, folder: &Path, base: &mut Opened, budget: usize) -> Result<Scalar> {
        identity::check(&base.folder, folder)?;
        let disk = model::adapter::Adapter::load(folder, &base.model()?.modules())?;
        let wrong = |text: String| Err(Error::file(folder, text));
        let Some(score) = &disk.score else {
            return wrong("modules_to_save: wanted `score`, the scalar head of an adapter reward, got none".into());
        };
        let width = base.model()?.config.hidden_size;
        if score.len() != width {
            return wrong(format!("base_model.model.score.weight: wanted the base's {width} columns, got {}", score.len()));
        }
        let head = ScalarHead { weight: base.stream.upload(score)? };
        let body = Body::Base(base.insert(disk)?);
        let (stream, tokenizer) = (base.stream.clone(), base.tokenizer.clone());
        Ok(Scalar { name: name.into(), unit, folder: folder.into(), stream, tokenizer, head, body, budget })
    }

    /// The ids of a text as the head reads it, and as `ple reward` trained it.
    pub fn ids(&self, config: &Config, prompt: &str, completion: &str) -> Result<Vec<u32>> {
        judged(&self.tokenizer, &format!("{prompt}{completion}"), &ends(&self.tokenizer, config))
    }
}

/// The ids that end a text; the first is the one that is appended.
pub fn ends(tokenizer: &Tokenizer, config: &Config) -> Vec<u32> {
    let all = tokenizer.eos.iter().chain(&config.eos_token_ids).copied();
    all.filter(|id| (*id as usize) < config.vocab_size).collect()
}

impl Reward for Scalar {
    fn name(&self) -> &str {
        &self.name
    }
    fn unit(&self) -> bool {
        self.unit
    }
    fn score(&self, base: Option<&Transformer>, texts: &[Scored<'_>]) -> Result<Vec<f64>> {
        let missing = || Error::Usage(format!("reward {}: wanted the base it was loaded on, got none", self.name));
        let (model, adapter) = match &self.body {
            Body::Own(model) => (&**model, Adapter::Off),
            Body::Base(slot) => (base.ok_or_else(missing)?, *slot),
        };
        let most = model.positions();
        let one = |t: &Scored<'_>| -> Result<Vec<u32>> {
            let ids = self.ids(&model.config, t.prompt, t.completion)?;
            if (1..=most).contains(&ids.len()) {
                return Ok(ids);
            }
            Err(Error::file(&self.folder, format!("row {}: wanted a text of 1 to {most} tokens, got {}", t.row, ids.len())))
        };
        let ids = texts.iter().map(one).collect::<Result<Vec<_>>>()?;
        let scores = last_token(&self.stream, model, adapter, self.head.weight.view(), &ids, self.budget)?;
        Ok(scores.into_iter().map(f64::from).collect())
    }
}

/// Tokens in common that are worth a segment of their own.
const WORTH: usize = 16;

/// The head's scalar at the last token of each text (each of at least one token), in micro-batches of about `budget` tokens.
/// Neighbours that begin alike, as answers to one query do, share what they begin with. Neither changes a score.
pub fn last_token(
    s: &Stream,
    model: &Transformer,
    adapter: Adapter,
    head: View<'_>,
    texts: &[Vec<u32>],
    budget: usize,
) -> Result<Vec<f32>> {
    let tokens = texts.iter().map(Vec::len).max().unwrap_or(0).max(budget.min(texts.iter().map(Vec::len).sum()));
    let rows = tokens.min(texts.len());
    let limits = Limits { tokens, loss_rows: rows, segments: 2 * rows, examples: 0 };
    let mut acts = model.acts(s, limits, Keep::Nothing, None)?;
    let (mut batch, mut out, mut scores) = (Batch::default(), Vec::new(), Vec::with_capacity(texts.len()));
    let mut rest = texts;
    while !rest.is_empty() {
        interrupt::check()?;
        batch.clear();
        while let Some(first) = rest.first()
            && batch.tokens() + first.len() <= tokens
            && batch.loss_rows() < rows
        {
            let (count, shared) = alike(&rest[..rest.len().min(rows - batch.loss_rows())], tokens - batch.tokens());
            let (now, later) = rest.split_at(count);
            add(&mut batch, now, shared);
            rest = later;
        }
        model.forward(s, &mut acts, &batch, adapter, Head::Scalar(head), Keep::Nothing)?;
        acts.out(s, &mut out)?;
        scores.extend_from_slice(&out);
    }
    Ok(scores)
}

/// How many texts make the next tree of at most `room` tokens, and how many tokens all of them begin with; a text joins if that
/// computes fewer tokens than the text alone has.
fn alike(texts: &[Vec<u32>], room: usize) -> (usize, usize) {
    let (mut shared, mut sum, mut count) = (texts[0].len(), texts[0].len(), 1);
    for text in &texts[1..] {
        let common = texts[0][..shared].iter().zip(text).take_while(|(a, b)| a == b).count();
        let (without, with) = (sum - (count - 1) * shared + text.len(), sum + text.len() - count * common);
        if common < WORTH || with >= without || with > room {
            break;
        }
        (shared, sum, count) = (common, sum + text.len(), count + 1);
    }
    (count, shared)
}

/// Adds a tree: what all texts begin with, and of each what follows.
fn add(batch: &mut Batch, texts: &[Vec<u32>], shared: usize) {
    let root = batch.segment(&texts[0][..shared], Parent::Root, 0);
    let last = batch.tokens() as u32 - 1;
    for text in texts {
        let own = &text[shared..];
        if !own.is_empty() {
            batch.segment(own, Parent::Segment(root), shared as u32);
        }
        batch.rows.push(if own.is_empty() { last } else { batch.tokens() as u32 - 1 });
        batch.targets.push(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(head: usize, tail: &[u32]) -> Vec<u32> {
        (100..100 + head as u32).chain(tail.iter().copied()).collect()
    }

    #[test]
    fn neighbours_that_begin_alike_are_one_tree() {
        let texts = [text(20, &[1, 2]), text(20, &[3]), text(20, &[]), text(15, &[7; 9])];
        assert_eq!(alike(&texts, 1000), (3, 20));
        assert_eq!(alike(&texts, 22), (1, 22));
        assert_eq!(alike(&texts[3..], 1000), (1, 24));
        // A third that has less in common would cost the first two more than it saves.
        assert_eq!(alike(&[text(60, &[1]), text(60, &[2]), text(17, &[3])], 1000), (2, 60));
        let mut batch = Batch::default();
        add(&mut batch, &texts[..3], 20);
        assert_eq!((batch.tokens(), batch.rows.as_slice(), batch.segments.len()), (23, &[21, 22, 19][..], 3));
        assert_eq!((batch.pos[20], batch.pos[22], batch.tokens[22]), (20, 20, 3));
    }
}
