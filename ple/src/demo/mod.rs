//! The demo: a language of its own, a base trained from nothing on it, a supervised adapter, and from there PLE and RAFT with the
//! same number of sampled answers. Everything is done by the ordinary commands on ordinary files; their lines are printed, so
//! that they can be called by hand.

use crate::command::{sft, train};
use crate::config::{Command, Config};
use crate::{Error, Result, checkpoint, log};
use runtime::host;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub mod corpus;
pub mod evaluate;
pub mod grammar;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod tokenizer;

/// Longest path of the base.
pub const POSITIONS: usize = 128;
/// Answers of RAFT to a query, and of PLE (one plain, one guided).
const ANSWERS: u32 = 2;

/// Sizes and steps: fixed, so that a demo is the same everywhere.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rows of the files.
    pub sizes: corpus::Sizes,
    /// Steps of the base.
    pub base_steps: u32,
    /// Texts of such a step.
    pub base_batch: u32,
    /// Steps of the supervised adapter, of 32 rows.
    pub sft_steps: u32,
    /// Iterations of PLE and of RAFT.
    pub iterations: u32,
    /// Queries of an iteration.
    pub queries: u32,
    /// Learning rate of both.
    pub learning_rate: f64,
}

impl Plan {
    /// 18 seconds on two cores of a Xeon with AVX-512 (45 on busy ones); quick, 5.
    pub fn new(quick: bool) -> Plan {
        match quick {
            false => Plan {
                sizes: corpus::Sizes { base: 12_000, sft: 2_000, queries: 2_000, held_out: 256 },
                base_steps: 500,
                base_batch: 64,
                sft_steps: 60,
                iterations: 8,
                queries: 128,
                learning_rate: 2.4e-4,
            },
            true => Plan {
                sizes: corpus::Sizes { base: 6_000, sft: 1_000, queries: 1_000, held_out: 128 },
                base_steps: 420,
                base_batch: 16,
                sft_steps: 20,
                iterations: 5,
                queries: 96,
                learning_rate: 5e-4,
            },
        }
    }
}

/// A demo's folder and the settings that all its commands share.
pub struct Demo {
    /// Of `ple demo`.
    pub c: Config,
    /// Where everything is written.
    pub folder: PathBuf,
    /// Sizes and steps.
    pub plan: Plan,
}

/// Subfolders a demo writes.
const FOLDERS: [&str; 6] = ["data", "model", "sft", "ple", "raft", "eval"];

impl Demo {
    /// A new folder, or the folder of an earlier demo, whose parts are removed; any other that is not empty is refused.
    pub fn start(c: &Config) -> Result<Demo> {
        let folder = c.output_dir.clone().unwrap_or_else(|| "ple-demo".into());
        checkpoint::create_folder(&folder)?;
        let failed = |action| {
            let path = folder.clone();
            move |source| runtime::Error::File { path, action, source }
        };
        let run = folder.join("run.json");
        let earlier = std::fs::read(&run).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        if earlier.is_some_and(|run| run["config"]["command"] == "demo") {
            for name in FOLDERS.iter().map(|name| folder.join(name)).filter(|path| path.is_dir()) {
                std::fs::remove_dir_all(&name).map_err(failed("remove the old parts of"))?;
            }
        } else if std::fs::read_dir(&folder).map_err(failed("list"))?.next().is_some() {
            return Err(Error::file(&folder, "wanted a new or empty folder, or one of an earlier demo, got other files"));
        }
        FOLDERS.iter().try_for_each(|name| checkpoint::create_folder(&folder.join(name)))?;
        let settings = json!({ "version": env!("CARGO_PKG_VERSION"), "config": c.to_json() });
        host::write_file(&run, |out| writeln!(out, "{settings:#}"))?;
        Ok(Demo { c: c.clone(), folder, plan: Plan::new(c.quick) })
    }

    /// A path in the folder, as it is typed.
    pub fn at(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// A line for the reader.
    pub fn say(&self, text: &str) {
        if !self.c.quiet {
            log::tell(text);
        }
    }

    /// Settings of a command: `words` parted by spaces, then the paths and texts of `pairs`, then what all commands share. The
    /// line is printed as one would type it.
    pub fn settings(&self, command: Command, words: &str, pairs: &[(&str, String)]) -> Result<Config> {
        let mut argv: Vec<String> = Vec::new();
        argv.extend(pairs.iter().flat_map(|(key, value)| [format!("--{key}"), value.clone()]));
        argv.extend(words.split_whitespace().map(String::from));
        if command != Command::Score && command != Command::Logprob && self.c.seed != 42 {
            argv.extend(["--seed".into(), self.c.seed.to_string()]);
        }
        let shared = [("threads", self.c.threads.to_string(), "0"), ("device", self.c.device.clone(), "auto")];
        let given = shared.into_iter().filter(|(_, value, default)| value != default);
        argv.extend(given.flat_map(|(key, value, _)| [format!("--{key}"), value]));
        self.say(&format!("      ple {} {}", command.name(), argv.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" ")));
        let mut config = Config::parse(command, &argv)?;
        (config.quiet, config.log_format) = (self.c.quiet, self.c.log_format);
        Ok(config)
    }

    /// Files of rows, words and the base's configuration.
    pub fn files(&self) -> Result<()> {
        corpus::files(&self.folder.join("data"), self.c.seed, self.plan.sizes)?;
        corpus::lexicon(&self.folder.join("lexicon.txt"))?;
        let model = self.folder.join("model");
        let vocabulary = tokenizer::write(&model)?;
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 96,
            "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32,
            "vocab_size": vocabulary, "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"
        });
        Ok(host::write_file(&model.join("config.json"), |out| writeln!(out, "{config:#}"))?)
    }

    /// The base: every weight from nothing.
    pub fn base(&self) -> Result<()> {
        let pairs = [
            ("init_from_config", self.at("model")),
            ("dataset_name", self.at("data/base.jsonl")),
            ("output_dir", self.at("model")),
            ("max_steps", self.plan.base_steps.to_string()),
            ("per_device_train_batch_size", self.plan.base_batch.to_string()),
        ];
        let words = "--tune full --learning_rate 0.003 --lr_scheduler_type cosine --warmup_steps 10 --logging_steps 20";
        sft::run(&self.settings(Command::Sft, words, &pairs)?)
    }

    /// The supervised adapter.
    pub fn supervised(&self) -> Result<()> {
        let pairs = [
            ("model_name_or_path", self.at("model")),
            ("dataset_name", self.at("data/sft.jsonl")),
            ("eval_dataset_name", self.at("data/held-out.jsonl")),
            ("output_dir", self.at("sft")),
            ("max_steps", self.plan.sft_steps.to_string()),
        ];
        let words = "--learning_rate 0.001 --per_device_train_batch_size 32 --logging_steps 10";
        sft::run(&self.settings(Command::Sft, words, &pairs)?)
    }

    /// Settings of both runs that go on from the supervised adapter; `more` are those of one of them.
    fn aligned(&self, command: Command, name: &str, more: &[(&str, String)]) -> Result<Config> {
        let pairs = [
            ("model_name_or_path", self.at("model")),
            ("adapter", self.at("sft")),
            ("dataset_name", self.at("data/queries.jsonl")),
            ("output_dir", self.at(name)),
            ("reward_funcs", format!("lexicon:{}", self.at("lexicon.txt"))),
            ("ple_iters", self.plan.iterations.to_string()),
            ("ple_queries_per_iter", self.plan.queries.to_string()),
            ("learning_rate", self.plan.learning_rate.to_string()),
        ];
        let pairs = [&pairs[..], more].concat();
        let words = "--per_device_train_batch_size 16 --gradient_accumulation_steps 1 \
            --max_prompt_length 32 --max_completion_length 40 --temperature 1";
        self.settings(command, words, &pairs)
    }

    /// PLE.
    pub fn ple(&self) -> Result<()> {
        train::run(&self.aligned(Command::Train, "ple", &[("ple_principle", grammar::PRINCIPLE.into())])?)
    }

    /// Best of two.
    pub fn raft(&self) -> Result<()> {
        let more = [("num_generations", ANSWERS.to_string()), ("ple_epochs_per_iter", "1".to_string())];
        train::run(&self.aligned(Command::Raft, "raft", &more)?)
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:,=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_string() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// A line over a stage.
pub fn headline(number: usize, of: usize, text: &str) -> String {
    format!("\n[{number}/{of}] {text}")
}

/// Reads a JSONL file whole.
pub fn rows(path: &Path) -> Result<Vec<serde_json::Map<String, Value>>> {
    crate::data::Lines::open(path)?.map(|line| line.map(|line| line.fields)).collect()
}
