//! A reward as asked for: `kind:argument`, for what others compute followed by `@unit` where its scores lie in [0, 1].

use super::{Reward, exec::Exec, length::Length, lexicon::Lexicon, pattern, scalar::Scalar};
use crate::config::{Config, nearest::nearest};
use crate::open::{self, Opened};
use crate::{Error, Result};
use runtime::Stream;
use std::path::PathBuf;
use std::time::Duration;

/// A reward before its files are read.
#[derive(Clone, Debug)]
pub struct Spec {
    /// As given.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Whether its scores lie in [0, 1]: rules by their formula, others by their word.
    pub unit: bool,
}

/// The kinds of rewards.
#[derive(Clone, Debug)]
pub enum Kind {
    /// `lexicon:POSITIVE[,NEGATIVE]`.
    Lexicon {
        /// Words that count their weight, +1 if they have none.
        positive: PathBuf,
        /// Words that count against.
        negative: Option<PathBuf>,
    },
    /// `length:N`.
    Length(u32),
    /// `regex:PATTERN`.
    Regex(Box<fancy_regex::Regex>),
    /// `contains:TEXT`.
    Contains(String),
    /// `model:DIR`: a checkpoint with a scalar head.
    Model(PathBuf),
    /// `adapter:DIR`: an adapter with a scalar head, on the policy's base.
    Adapter(PathBuf),
    /// `exec:COMMAND`: program and arguments.
    Exec(Vec<String>),
}

const KINDS: [&str; 7] = ["lexicon", "length", "regex", "contains", "model", "adapter", "exec"];
/// Says that a reward's scores lie in [0, 1].
const UNIT: &str = "@unit";

/// Every reward that the settings ask for: `reward_funcs`, then `reward_model_name_or_path` as `model:DIR`.
pub fn funcs(c: &Config) -> Vec<String> {
    let model = c.reward_model_name_or_path.iter().map(|folder| format!("model:{}", folder.display()));
    c.reward_funcs.iter().cloned().chain(model).collect()
}

impl Spec {
    /// Reads `kind:argument`; an unknown kind names the nearest.
    pub fn parse(text: &str) -> Result<Spec> {
        let (kind, argument) = text.split_once(':').unwrap_or((text, ""));
        let wanted = |w: &str| Error::Usage(format!("reward_funcs: wanted {w}, got `{text}`"));
        let some = |argument: &str, w: &str| if argument.is_empty() { Err(wanted(w)) } else { Ok(argument.to_string()) };
        let (declared, unit) = argument.strip_suffix(UNIT).map_or((argument, false), |rest| (rest, true));
        let spec = |kind: Kind, unit: bool| Ok(Spec { name: text.to_string(), kind, unit });
        match kind {
            "lexicon" => {
                let w = "lexicon:POSITIVE[,NEGATIVE] with file names";
                let (positive, negative) = argument.split_once(',').map_or((argument, None), |(p, n)| (p, Some(n)));
                let negative = negative.map(|n| some(n, w)).transpose()?.map(PathBuf::from);
                spec(Kind::Lexicon { positive: some(positive, w)?.into(), negative }, true)
            }
            "length" => match argument.parse() {
                Ok(n) if n > 0 => spec(Kind::Length(n), true),
                _ => Err(wanted("length:N with N above 0")),
            },
            "regex" => {
                let regex = pattern::compile(&some(argument, "regex:PATTERN with a pattern")?);
                spec(
                    Kind::Regex(Box::new(regex.map_err(|e| wanted(&format!("regex:PATTERN with a regular expression ({e})")))?)),
                    true,
                )
            }
            "contains" => spec(Kind::Contains(some(argument, "contains:TEXT with a text")?), true),
            "model" => spec(Kind::Model(some(declared, "model:DIR with a folder")?.into()), unit),
            "adapter" => spec(Kind::Adapter(some(declared, "adapter:DIR with a folder")?.into()), unit),
            "exec" => match shlex::split(declared).filter(|words| words.first().is_some_and(|w| !w.is_empty())) {
                Some(words) => spec(Kind::Exec(words), unit),
                None => Err(wanted("exec:COMMAND with a program and closed quotes")),
            },
            _ => {
                let near = nearest(kind, KINDS);
                Err(Error::Usage(format!("reward_funcs: unknown reward `{text}`; the nearest known is `{near}:`")))
            }
        }
    }

    /// Reads its files, loads its model, starts its command.
    pub fn load(self, site: &mut Site<'_>) -> Result<Box<dyn Reward>> {
        let Spec { name, kind, unit } = self;
        Ok(match kind {
            Kind::Lexicon { positive, negative } => Box::new(Lexicon::load(&name, &positive, negative.as_deref())?),
            Kind::Length(n) => Box::new(Length::new(&name, n)),
            Kind::Regex(regex) => Box::new(pattern::Matches::new(&name, *regex)),
            Kind::Contains(text) => Box::new(pattern::Contains::new(&name, &text)),
            Kind::Model(folder) => Box::new(Scalar::model(&name, unit, &folder, site.stream()?, site.budget())?),
            Kind::Adapter(folder) => {
                let budget = site.budget();
                Box::new(Scalar::adapter(&name, unit, &folder, site.base()?, budget)?)
            }
            Kind::Exec(words) => {
                let exec = Exec::new(&name, unit, words, Duration::from_secs_f64(site.c.reward_timeout));
                if !site.c.dry_run {
                    exec.start()?;
                }
                Box::new(exec)
            }
        })
    }
}

/// Where rewards are loaded: the settings, the base if one is open, the device once a reward needs one.
pub struct Site<'a> {
    c: &'a Config,
    base: Option<&'a mut Opened>,
    stream: Option<Stream>,
}

impl<'a> Site<'a> {
    /// Opens nothing yet.
    pub fn new(c: &'a Config, base: Option<&'a mut Opened>) -> Site<'a> {
        let stream = base.as_ref().map(|b| b.stream.clone());
        Site { c, base, stream }
    }

    fn stream(&mut self) -> Result<Stream> {
        if self.stream.is_none() {
            self.stream = Some(open::stream(self.c)?);
        }
        self.stream.clone().ok_or_else(|| Error::Usage("device: wanted one, got none".into()))
    }

    fn base(&mut self) -> Result<&mut Opened> {
        let missing = || Error::Usage("model_name_or_path: wanted the base of an adapter reward, got nothing".into());
        self.base.as_deref_mut().ok_or_else(missing)
    }

    fn budget(&self) -> usize {
        self.c.max_tokens_per_micro_batch as usize
    }
}
