//! The device memory of a run: planned by part before its first step, and the most that the device has handed out in the end.
//!
//! Activations and KV pages take turns in one arena, so the larger of the two counts. What the driver keeps for itself (its context, compiled
//! kernels) is not in the plan, nor is what a reward model takes while it scores.

use crate::config::{Checkpointing, Config};
use crate::log::Log;
use crate::open::Opened;
use crate::optim::Optimizer;
use crate::{Error, Result};
use model::{Keep, Limits, Transformer, Tune};
use runtime::{Stream, host};
use serde_json::{Value, json};
use std::path::Path;

/// What a run asks of its device beside the model that is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Of a micro-batch.
    pub limits: Limits,
    /// Bytes of KV pages and of what decodes with them; 0 where nothing is sampled.
    pub pages: usize,
    /// Positions of the longest path.
    pub path: usize,
    /// Optimizers at once.
    pub optimizers: usize,
}

/// Bytes by part, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The base.
    pub weights: usize,
    /// Every adapter slot.
    pub adapters: usize,
    /// Gradients, and the optimizer's moments.
    pub optimizer: usize,
    /// Activations, their gradients, and what a head keeps.
    pub activations: usize,
    /// KV pages, logits, and the activations of decoding.
    pub pages: usize,
    /// Tables of positions, gradients of the loss rows, and whatever else is loaded: reward models.
    pub others: usize,
    /// What a forward keeps.
    pub keep: Keep,
}

/// Bytes for a reader.
fn size(bytes: usize) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 10_240.0 { format!("{mib:.1} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

impl Planned {
    /// For a model that is loaded and not yet trained.
    pub fn of(s: &Stream, model: &Transformer, tune: Tune, needs: Needs, keep: Keep) -> Result<Planned> {
        let (arena, tensors) = model.trained(tune)?;
        let (weights, adapters) = (model.weights(), model.adapters());
        let moments = Optimizer::bytes(s, arena.flat().len(), tensors.len());
        let loaded = (s.backend().memory().used as usize).saturating_sub(weights + adapters);
        Ok(Planned {
            weights,
            adapters,
            optimizer: model.grads_plan(tune)? + needs.optimizers * moments,
            activations: model.plan(needs.limits, keep),
            pages: needs.pages,
            others: loaded + model.tables_plan(needs.path) + size_of::<f32>() * needs.limits.loss_rows,
            keep,
        })
    }

    /// The plan of a run that is about to train: with all activations kept if that fits or is asked for, else with inputs alone. One that
    /// does not fit is an error that names what would.
    pub fn choose(c: &Config, opened: &Opened, needs: Needs) -> Result<Planned> {
        let (s, model) = (&opened.stream, opened.model()?);
        let of = |keep| Planned::of(s, model, opened.tune, needs, keep);
        let memory = s.backend().memory();
        let plan = match c.gradient_checkpointing {
            Checkpointing::On => of(Keep::Inputs)?,
            Checkpointing::Off => of(Keep::Backward)?,
            Checkpointing::Auto => {
                let whole = of(Keep::Backward)?;
                let fits = memory.free.is_none_or(|free| whole.beyond(memory.used) <= free);
                if fits { whole } else { of(Keep::Inputs)? }
            }
        };
        let wanted = plan.beyond(memory.used);
        match memory.free {
            Some(free) if wanted > free => Err(plan.refusal(c, s.backend().name(), wanted, free, needs.limits)),
            _ => Ok(plan),
        }
    }

    /// Bytes of everything at once.
    pub fn total(&self) -> usize {
        self.weights + self.adapters + self.optimizer + self.activations.max(self.pages) + self.others
    }

    /// What is still to be allocated.
    fn beyond(&self, used: u64) -> u64 {
        (self.total() as u64).saturating_sub(used)
    }

    fn refusal(&self, c: &Config, device: &str, wanted: u64, free: u64, limits: Limits) -> Error {
        let mut smaller =
            vec![format!("max_tokens_per_micro_batch or shorter rows (a micro-batch has {} tokens)", limits.tokens)];
        if self.keep == Keep::Backward {
            smaller.push("gradient_checkpointing true".into());
        }
        if self.pages > self.activations {
            smaller.push("max_num_seqs or kv_cache_tokens".into());
        }
        match c.tune {
            crate::config::Tune::Lora => smaller.push(format!("lora_r (the adapter has {})", size(self.adapters))),
            crate::config::Tune::Full => smaller.push("tune lora".into()),
        }
        let what = format!(
            "training on {device}, where {free} bytes are free. Planned: {self}. Less is needed with: {}",
            smaller.join("; ")
        );
        runtime::Error::OutOfMemory { wanted: wanted as usize, what }.into()
    }

    /// As `run.json` has it.
    pub fn to_json(&self) -> Value {
        json!({
            "weights": self.weights, "adapters": self.adapters, "optimizer": self.optimizer, "activations": self.activations,
            "pages": self.pages, "others": self.others, "total": self.total(), "gradient_checkpointing": self.keep == Keep::Inputs,
        })
    }

    /// Says and keeps in `run.json` what the device has handed out at most.
    pub fn end(&self, s: &Stream, folder: &Path, log: &Log) -> Result<()> {
        let peak = s.backend().memory().peak;
        log.say(&format!("memory {} at most were in use, {} were planned", size(peak as usize), size(self.total())));
        let path = folder.join("run.json");
        let file = host::MappedFile::open(&path)?;
        let mut run: Value = serde_json::from_slice(file.bytes()).map_err(|e| Error::file(&path, e.to_string()))?;
        drop(file);
        run["memory"]["peak"] = peak.into();
        Ok(host::write_file(&path, |out| writeln!(out, "{run:#}"))?)
    }
}

impl std::fmt::Display for Planned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kept = if self.keep == Keep::Inputs { " (inputs of layers, the rest is made again)" } else { "" };
        write!(f, "weights {}, adapter {}, ", size(self.weights), size(self.adapters))?;
        write!(f, "gradients and moments {}, activations {}{kept}", size(self.optimizer), size(self.activations))?;
        if self.pages > 0 {
            write!(f, " in turn with KV pages {}", size(self.pages))?;
        }
        write!(f, ", others {}: {} in all", size(self.others), size(self.total()))
    }
}
