//! `ple merge`: a base and an adapter as one model folder, with an audit of what the merge did: how many weights kept their value, and
//! how far logits and greedy tokens of the folder are from those of base and adapter side by side.

mod audit;
mod folder;

use super::required;
use crate::config::{Config, Dtype};
use crate::data::Dropped;
use crate::progress::Bars;
use crate::{Error, Result, identity, interrupt, log, open};
use audit::Audit;
use model::adapter::Adapter;
use model::merge::{Merged, Share, merge, whole};
use model::weights::Checkpoint;
use model::{Config as ModelConfig, Tokenizer};
use runtime::{DType, host};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The audit's file in the folder.
const NAME: &str = "merge.json";
/// A share of unchanged weights from which a wider type is recommended.
const MANY: f64 = 0.1;

/// What is merged.
struct Inputs<'a> {
    base: &'a Path,
    folder: &'a Path,
    config: ModelConfig,
    checkpoint: Checkpoint,
    adapter: Adapter,
    tokenizer: Tokenizer,
}

impl<'a> Inputs<'a> {
    fn open(c: &'a Config) -> Result<Inputs<'a>> {
        let (base, folder) = (required(&c.model_name_or_path, "model_name_or_path")?, required(&c.adapter, "adapter")?);
        identity::check(base, folder)?;
        identity::check_weights(base, folder)?;
        let config = ModelConfig::from_folder(base)?;
        let checkpoint = Checkpoint::open(base)?;
        checkpoint.check(&config.tensors())?;
        let adapter = Adapter::load_with(folder, &config.modules(), &whole(&config))?;
        if let Some(score) = adapter.score.as_ref().filter(|score| score.len() != config.hidden_size) {
            let text =
                format!("base_model.model.score.weight: wanted the base's {} columns, got {}", config.hidden_size, score.len());
            return Err(Error::file(folder, text));
        }
        let tokenizer = Tokenizer::open(base)?;
        open::fits(base, tokenizer.vocab_size(), config.vocab_size)?;
        Ok(Inputs { base, folder, config, checkpoint, adapter, tokenizer })
    }

    /// What is worth saying before anything is written.
    fn notes(&self) -> Vec<String> {
        let own = ["tokenizer.json", "chat_template.jinja"].into_iter().filter(|name| {
            let read = |folder: &Path| std::fs::read(folder.join(name)).ok();
            read(self.folder).is_some_and(|own| read(self.base).is_none_or(|base| base != own))
        });
        let own = own.map(|name| format!("{name} of the adapter's folder is not the base's, which is copied"));
        self.adapter.config.warnings.iter().cloned().chain(own).collect()
    }
}

/// Runs the command: the folder is there whole, or not at all.
pub fn run(c: &Config) -> Result<()> {
    let say = |text: &str| {
        if !c.quiet {
            log::tell(text);
        }
    };
    let inputs = Inputs::open(c)?;
    inputs.notes().iter().for_each(|note| say(&format!("note  {note}")));
    let (prompts, dropped) = audit::prompts(c, &inputs.tokenizer, &inputs.config)?;
    if c.dry_run {
        let (m, n) = (inputs.adapter.modules.len(), inputs.checkpoint.names().count());
        return log::print(&format!("{m} modules of {n} tensors; {} prompts to compare on\n", prompts.len()));
    }
    let output = required(&c.output_dir, "output_dir")?;
    let report = folder::place(output, |new| {
        let bar = Bars::new(c).phase("tensors", inputs.checkpoint.names().count());
        let mut progress = |done: usize| {
            bar.at(done, 0);
            interrupt::watch()
        };
        let merged = merge(&inputs.checkpoint, &inputs.config, &inputs.adapter, dtype(c), new, &mut progress)?;
        drop(bar);
        let left = folder::copy(inputs.base, new, &merged, dtype(c))?;
        let audit = audit::compare(c, &inputs, &merged, new, &prompts)?;
        let report = report(c, &inputs, &merged, &left, &audit);
        host::write_file(&new.join(NAME), |out| writeln!(out, "{report:#}"))?;
        lines(&inputs, &merged, &left, &dropped, &audit).iter().for_each(|line| say(line));
        Ok(report)
    })?;
    say(&format!(
        "wrote  {}: {} files of weights, {NAME}",
        output.display(),
        report["weight_files"].as_array().map_or(0, Vec::len)
    ));
    Ok(())
}

fn dtype(c: &Config) -> Option<DType> {
    match c.dtype {
        Dtype::Auto => None,
        Dtype::Float32 => Some(DType::F32),
        Dtype::Bfloat16 => Some(DType::Bf16),
        Dtype::Float16 => Some(DType::F16),
    }
}

/// Unchanged and all elements.
fn count<'a>(shares: impl IntoIterator<Item = &'a Share>) -> (usize, usize) {
    shares.into_iter().fold((0, 0), |(unchanged, all), s| (unchanged + s.unchanged, all + s.elements))
}

fn part((unchanged, all): (usize, usize)) -> f64 {
    unchanged as f64 / all.max(1) as f64
}

fn report(c: &Config, inputs: &Inputs<'_>, merged: &Merged, left: &[String], audit: &Audit) -> Value {
    let of =
        |(unchanged, all): (usize, usize)| json!({ "elements": all, "unchanged": unchanged, "share": part((unchanged, all)) });
    let module = |s: &Share| {
        let mut entry = of((s.unchanged, s.elements));
        entry["path"] = json!(s.path);
        entry
    };
    json!({
        "base": inputs.base, "adapter": inputs.folder, "ple": env!("CARGO_PKG_VERSION"), "dtype": c.dtype.name(),
        "weights": of(count(&merged.modules)), "modules": merged.modules.iter().map(module).collect::<Vec<_>>(),
        "dora": inputs.adapter.is_dora(), "replaced": merged.replaced, "untied": merged.untied, "scalar_head": merged.headed,
        "weight_files": merged.files, "left_out": left, "audit": audit.json(),
    })
}

/// What the reader sees: a line per kind of module, then what the model as a whole does differently.
fn lines(inputs: &Inputs<'_>, merged: &Merged, left: &[String], dropped: &Dropped, audit: &Audit) -> Vec<String> {
    let mut kinds: BTreeMap<&str, Vec<&Share>> = BTreeMap::new();
    for share in &merged.modules {
        kinds.entry(share.path.rsplit('.').next().unwrap_or_default()).or_default().push(share);
    }
    let mut lines: Vec<String> = Vec::new();
    for (kind, shares) in &kinds {
        let most = shares.iter().map(|s| part((s.unchanged, s.elements))).fold(0.0, f64::max);
        let mean = part(count(shares.iter().copied()));
        lines.push(format!(
            "merge  {kind}: {} modules, {:.2} % of weights unchanged (at most {:.2} %)",
            shares.len(),
            100.0 * mean,
            100.0 * most
        ));
    }
    let all = count(&merged.modules);
    lines.push(format!("merge  {} of {} weights unchanged ({:.2} %)", all.0, all.1, 100.0 * part(all)));
    let narrow = inputs.config.dtype != Some(DType::F32);
    if part(all) > MANY && narrow {
        lines.push(
            "note  much of the adapter is too small for this type: --dtype float32 keeps it, and so does not merging".into(),
        );
    }
    lines.extend(merged.replaced.iter().map(|name| format!("merge  {name} is the adapter's own")));
    if merged.untied {
        lines.push(
            "note  embedding and head were one tensor and differ now: tie_word_embeddings is false, lm_head.weight is written"
                .into(),
        );
    }
    if merged.headed {
        lines.push("note  the result is a classifier with one label: score.weight in the place of the vocabulary".into());
    }
    lines.extend(left.iter().map(|name| format!("note  {name} is not copied")));
    if dropped.total() > 0 {
        lines.push(format!("note  {} prompts are left out ({dropped})", dropped.total()));
    }
    lines.push(format!("audit  {audit}"));
    lines
}
