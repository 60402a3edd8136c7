//! Settings: one flat namespace of TRL's names, from one table ([`KEYS`]). Order: defaults, presets, files (later ones win),
//! flags. An unknown key is an error that names the file, the line and the nearest known key.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::fmt;
use std::path::PathBuf;

mod argv;
mod check;
mod choice;
mod field;
mod file;
mod help;
mod key;
mod keys;
pub mod nearest;
mod other;
mod preset;
mod resolve;
#[cfg(test)]
mod tests;
pub mod translate;
mod yaml;

pub use choice::*;
pub use field::{Arity, Field, Hint};
pub use help::help;
pub use key::Key;
pub use keys::{Config, KEYS};
pub use preset::PRESETS;
pub use resolve::{Resolved, Source};

/// The commands; all but the last two read settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Supervised fine-tuning.
    Sft,
    /// A reward model from pairs.
    Reward,
    /// Direct preference optimisation on pairs.
    Dpo,
    /// PLE.
    Train,
    /// Best of K.
    Raft,
    /// Leave-one-out.
    Rloo,
    /// Group-relative.
    Grpo,
    /// Answers to queries.
    Generate,
    /// Rewards of given rows.
    Score,
    /// Log-probabilities of given rows.
    Logprob,
    /// Numbers on a model's answers.
    Eval,
    /// A conversation.
    Chat,
    /// What a model, an adapter, a template or rows are.
    Inspect,
    /// A page on finished or running runs.
    Report,
    /// The first difference between two runs.
    Diff,
    /// A run once more.
    Rerun,
    /// The whole way on a small model made on the spot.
    Demo,
    /// Every room's kernels against the CPU.
    Selftest,
    /// Speed of the kernels.
    Bench,
    /// What this machine has.
    Doctor,
    /// Settings themselves: shown, checked, translated.
    Config,
    /// A shell's completions.
    Completions,
}

impl Command {
    /// All of them.
    pub const ALL: [Command; 22] = [
        Command::Train,
        Command::Sft,
        Command::Reward,
        Command::Dpo,
        Command::Raft,
        Command::Rloo,
        Command::Grpo,
        Command::Generate,
        Command::Score,
        Command::Logprob,
        Command::Eval,
        Command::Chat,
        Command::Inspect,
        Command::Report,
        Command::Diff,
        Command::Rerun,
        Command::Demo,
        Command::Selftest,
        Command::Bench,
        Command::Doctor,
        Command::Config,
        Command::Completions,
    ];

    /// As typed.
    pub fn name(self) -> &'static str {
        match self {
            Command::Sft => "sft",
            Command::Reward => "reward",
            Command::Dpo => "dpo",
            Command::Train => "train",
            Command::Raft => "raft",
            Command::Rloo => "rloo",
            Command::Grpo => "grpo",
            Command::Generate => "generate",
            Command::Score => "score",
            Command::Logprob => "logprob",
            Command::Eval => "eval",
            Command::Chat => "chat",
            Command::Inspect => "inspect",
            Command::Report => "report",
            Command::Diff => "diff",
            Command::Rerun => "rerun",
            Command::Demo => "demo",
            Command::Selftest => "selftest",
            Command::Bench => "bench",
            Command::Doctor => "doctor",
            Command::Config => "config",
            Command::Completions => "completions",
        }
    }

    /// What it does, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Command::Train => "PLE: sample, score, label, train",
            Command::Sft => "supervised fine-tuning",
            Command::Reward => "a reward model from pairs of answers (Bradley-Terry)",
            Command::Dpo => "direct preference optimisation on pairs of answers",
            Command::Raft => "sample, score, imitate the best of K answers",
            Command::Rloo => "sample, score, REINFORCE with a leave-one-out baseline",
            Command::Grpo => "sample, score, REINFORCE with group-relative advantages",
            Command::Generate => "answers to the queries of a file",
            Command::Score => "rewards of given answers",
            Command::Logprob => "per-token log-probabilities of given completions",
            Command::Eval => "numbers on a model's answers: reward, KL to the base, diversity, overlap with references",
            Command::Chat => "a conversation with a model, a message a line",
            Command::Inspect => {
                "what there is: ple inspect model | adapter | template | data (exit code 1 where something is refused or odd)"
            }
            Command::Report => "a page on runs: ple report RUN...",
            Command::Diff => "the first difference between two runs: ple diff RUN_A RUN_B (exit code 1 if there is one)",
            Command::Rerun => "a run once more, as its run.json says: ple rerun RUN --output_dir NEW",
            Command::Demo => "the whole way on a small model made on the spot, without downloads",
            Command::Selftest => "the kernels of a device against the CPU, room by room (exit code 1 if one is wrong)",
            Command::Bench => "speed of the kernels on a device, as JSON lines; --merge FILE... makes a table of them",
            Command::Doctor => "what this machine has",
            Command::Config => "settings: ple config show | check FILE... | from-trl FILE",
            Command::Completions => "for a shell: ple completions bash | zsh | fish",
        }
    }

    /// The command of that name; the error names the nearest.
    pub fn named(name: &str) -> Result<Command> {
        let found = Command::ALL.into_iter().find(|c| c.name() == name);
        let near = || nearest::nearest(name, Command::ALL.map(Command::name));
        found.ok_or_else(|| Error::Usage(format!("unknown command `{name}`; the nearest known is `{}`", near())))
    }

    pub(crate) const fn bit(self) -> u32 {
        1 << self as u8
    }

    /// Defaults that differ by command.
    fn adjust(self, config: &mut Config) {
        let c = config;
        if self.trains() && self != Command::Sft {
            c.gradient_accumulation_steps = 8;
        }
        match self {
            Command::Train => c.lr_scheduler_type = Scheduler::Constant,
            Command::Raft => {
                c.lr_scheduler_type = Scheduler::Constant;
                c.num_generations = 4;
                (c.ple_iters, c.ple_queries_per_iter, c.ple_epochs_per_iter) = (20, 1024, 4);
            }
            Command::Rloo | Command::Grpo => {
                (c.num_generations, c.beta) = if self == Command::Rloo { (2, 0.05) } else { (8, 0.0) };
                (c.learning_rate, c.temperature, c.max_completion_length) = (1e-6, 1.0, 512);
                (c.ple_iters, c.ple_queries_per_iter) = (32, 512);
            }
            Command::Dpo => c.learning_rate = 1e-6,
            Command::Reward => c.learning_rate = 1e-4,
            Command::Chat => c.max_completion_length = 512,
            _ => {}
        }
    }

    /// Whether it trains on answers that it samples.
    pub fn samples(self) -> bool {
        matches!(self, Command::Train | Command::Raft | Command::Rloo | Command::Grpo)
    }

    /// Whether it trains.
    pub fn trains(self) -> bool {
        self.samples() || matches!(self, Command::Sft | Command::Reward | Command::Dpo)
    }
}

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line, as typed.
    Flag(String),
    /// In a file.
    File {
        /// The file.
        path: PathBuf,
        /// Line of the key, 0 where unknown.
        line: u64,
        /// The key as written.
        key: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(flag) => write!(f, "{flag}"),
            Origin::File { path, line: 0, key } => write!(f, "{}: {key}", path.display()),
            Origin::File { path, line, key } => write!(f, "{}:{line}: {key}", path.display()),
        }
    }
}

/// A key with its value, before types.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    /// As in the table.
    pub name: String,
    /// The value.
    pub value: Value,
    /// Where from.
    pub from: Origin,
}

impl Config {
    /// Settings of `command` from its arguments (without program and command name).
    pub fn parse(command: Command, argv: &[String]) -> Result<Config> {
        let Resolved { config, faults, .. } = Resolved::read(command, argv)?;
        match faults.into_iter().next() {
            Some(fault) => Err(fault),
            None => config.check().map(|()| config),
        }
    }

    /// What the settings must satisfy together.
    pub fn check(&self) -> Result<()> {
        check::check(self)
    }

    /// Stores one value and names its key, or notes why not.
    fn apply(&mut self, given: &Given) -> Result<Option<&'static str>> {
        let Some(key) = KEYS.iter().find(|k| k.name == given.name) else {
            if other::knows(&given.name) {
                self.notes.extend(other::judge(given)?);
                return Ok(None);
            }
            return Err(other::unknown(&given.from, &given.name, &KEYS.iter().map(|k| k.name).collect::<Vec<_>>()));
        };
        if !key.belongs_to(self.command) {
            let text = format!("{}: {}", given.from, key.foreign(self.command));
            return match given.from {
                Origin::Flag(_) => Err(Error::Usage(text)),
                Origin::File { .. } => {
                    self.notes.push(text);
                    Ok(None)
                }
            };
        }
        if !(key.set)(self, &given.value) {
            return Err(Error::Usage(format!("{}: {}", given.from, key.refusal(&given.value))));
        }
        if !self.given.contains(&key.name) {
            self.given.push(key.name);
        }
        Ok(Some(key.name))
    }

    /// The effective settings of this command, by name.
    pub fn to_json(&self) -> Value {
        let command = [("command".to_string(), Value::from(self.command.name()))].into_iter();
        let keys = KEYS.iter().filter(|k| k.belongs_to(self.command)).map(|k| (k.name.to_string(), (k.get)(self)));
        Value::Object(command.chain(keys).collect::<Map<_, _>>())
    }

    /// Examples of one optimizer batch; a pair is one.
    pub fn batch_size(&self) -> usize {
        self.per_device_train_batch_size as usize * self.gradient_accumulation_steps as usize
    }
}
