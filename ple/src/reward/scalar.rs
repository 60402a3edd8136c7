//! Rewards with a scalar head: `model:DIR`, a checkpoint of its own, and `adapter:DIR`, a further slot on the policy's base.
//!
//! The text is the plain query and the answer, tokenised as one with the tokenizer of the checkpoint (of the base, for an adapter)
//! and the special tokens that it puts around a text. Reward models are trained on texts that end with their end token (TRL's
//! RewardTrainer and OpenRLHF's reward data both append it), and answers come here without theirs, so it is appended iff the
//! text does not end with an end token yet: the `eos_token` of tokenizer_config.json, else the first `eos_token_id` of
//! config.json, else none. The score is read at the last token, by position: never one token earlier because a padding token
//! happens to be the end token too.

use super::{Reward, Scored};
use crate::open::{Opened, fits};
use crate::{Error, Result, interrupt};
use model::{Adapter, Batch, Config, Head, Keep, Limits, Parent, ScalarHead, Tokenizer, Transformer};
use runtime::Stream;
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

    /// Puts an adapter with a scalar head into a slot of the base; the base's weights are there once.
    pub fn adapter(name: &str, unit: bool, folder: &Path, base: &mut Opened, budget: usize) -> Result<Scalar> {
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

    /// The ids of a text as the head reads it.
    pub fn ids(&self, config: &Config, prompt: &str, completion: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(&format!("{prompt}{completion}"), true)?;
        let ends =
            || self.tokenizer.eos.iter().chain(&config.eos_token_ids).copied().filter(|id| (*id as usize) < config.vocab_size);
        if !ids.last().is_some_and(|last| ends().any(|end| end == *last)) {
            ids.extend(ends().next());
        }
        Ok(ids)
    }
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
        let scores = last_token(&self.stream, model, adapter, &self.head, &ids, self.budget)?;
        Ok(scores.into_iter().map(f64::from).collect())
    }
}

/// The head's scalar at the last token of each text (each of at least one token), in micro-batches of about `budget` tokens. How
/// they are cut never changes a score.
pub fn last_token(
    s: &Stream,
    model: &Transformer,
    adapter: Adapter,
    head: &ScalarHead,
    texts: &[Vec<u32>],
    budget: usize,
) -> Result<Vec<f32>> {
    let tokens = texts.iter().map(Vec::len).max().unwrap_or(0).max(budget.min(texts.iter().map(Vec::len).sum()));
    let rows = tokens.min(texts.len());
    let limits = Limits { tokens, loss_rows: rows, segments: rows, examples: 0 };
    let mut acts = model.acts(s, limits, Keep::Nothing, None)?;
    let (mut batch, mut out, mut scores) = (Batch::default(), Vec::new(), Vec::with_capacity(texts.len()));
    let mut rest = texts.iter().peekable();
    while rest.peek().is_some() {
        interrupt::check()?;
        batch.clear();
        while let Some(text) = rest.next_if(|text| batch.tokens() + text.len() <= tokens && batch.loss_rows() < rows) {
            batch.segment(text, Parent::Root, 0);
            batch.rows.push(batch.tokens() as u32 - 1);
            batch.targets.push(0);
        }
        model.forward(s, &mut acts, &batch, adapter, Head::Scalar(head), Keep::Nothing)?;
        acts.out(s, &mut out)?;
        scores.extend_from_slice(&out);
    }
    Ok(scores)
}
