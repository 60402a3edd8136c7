//! A language model case: logits, log-probabilities, losses, gradients, trajectories and greedy ids, with and without adapter.

use super::{Case, decoding, json, losses, number, tokens, training};
use anyhow::{Context, Result, ensure};
use model::adapter::Adapter as HostAdapter;
use model::{Adapter, Lora, Parent, Transformer};
use ple_tests::pass::{self, Example};
use ple_tests::tensors::Golden;
use runtime::{DType, Isa, Stream};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A case that is being compared.
pub struct Lm {
    pub folder: PathBuf,
    /// case.json.
    pub json: Value,
    pub golden: Golden,
    pub s: Stream,
    pub model: Transformer,
    /// The case's adapter, in slot 0.
    pub adapter: Option<(HostAdapter, Adapter)>,
}

/// The rows of `sft/` or `pairs/`.
pub struct Rows {
    pub texts: Vec<Vec<u32>>,
    /// Tokens of each prompt.
    pub prompts: Vec<usize>,
}

impl Rows {
    pub fn prompt(&self, i: usize) -> Vec<u32> {
        self.texts[i][..self.prompts[i]].to_vec()
    }
    pub fn answer(&self, i: usize) -> Vec<u32> {
        self.texts[i][self.prompts[i]..].to_vec()
    }
    /// Each row as an example of one answer.
    pub fn examples(&self) -> Vec<Example> {
        (0..self.texts.len()).map(|i| (self.prompt(i), vec![self.answer(i)])).collect()
    }
    /// Answer tokens of all rows.
    pub fn answer_tokens(&self) -> usize {
        self.texts.iter().zip(&self.prompts).map(|(t, p)| t.len() - p).sum()
    }
}

impl Lm {
    fn open(case: &Case) -> Result<Lm> {
        let folder = case.path.clone();
        let mut golden = Golden::open(&folder.join("golden.safetensors"))?;
        if folder.join("full_grads.safetensors").exists() {
            golden.add("full_grads/", &folder.join("full_grads.safetensors"))?;
        }
        let s = Stream::cpu(2, Isa::detect());
        let mut model = Transformer::load(&s, &folder.join("model"), None)?;
        let adapter = match folder.join("adapter") {
            path if path.exists() => {
                let host = HostAdapter::load(&path, &model.modules())?;
                let lora = Lora::upload(&s, model.base(), host.clone())?;
                Some((host, model.add_slot(lora)?))
            }
            _ => None,
        };
        Ok(Lm { json: json(&folder.join("case.json"))?, folder, golden, s, model, adapter })
    }

    /// The tolerance that case.json suggests for a family of tensors.
    pub fn atol(&self, family: &str) -> Result<f64> {
        number(&self.json["tolerances"][family]["suggested_atol"], &format!("case.json: tolerances.{family}.suggested_atol"))
    }

    /// Compares with the tensor of this name, within its own tolerance.
    pub fn close(&mut self, name: &str, ours: &[f32]) -> Result<()> {
        let atol = self.atol(name)?;
        self.golden.close(name, ours, atol)
    }

    /// Reads `input_ids`, `lens` and `prompt_lens` of a set and compares everything else in it with what follows from them:
    /// the masks, the offsets, and the ids and positions that our own packing gives.
    pub fn rows(&mut self, set: &str) -> Result<Rows> {
        let g = &mut self.golden;
        let name = |field: &str| format!("{set}/{field}");
        let padded = g.ids(&name("input_ids"))?;
        let width = *g.shape(&name("input_ids"))?.last().context("input_ids without a shape")?;
        let lens: Vec<usize> = g.ids(&name("lens"))?.into_iter().map(|n| n as usize).collect();
        let prompts: Vec<usize> = g.ids(&name("prompt_lens"))?.into_iter().map(|n| n as usize).collect();
        let texts: Vec<Vec<u32>> = padded.chunks(width).zip(&lens).map(|(row, n)| row[..*n].to_vec()).collect();
        let mut batch = model::Batch::default();
        texts.iter().for_each(|text| {
            batch.segment(text, Parent::Root, 0);
        });
        let mask = |from: &dyn Fn(usize) -> usize| -> Vec<u32> {
            (0..texts.len())
                .flat_map(|i| (0..width).map(move |t| (i, t)))
                .map(|(i, t)| (from(i)..lens[i]).contains(&t) as u32)
                .collect()
        };
        g.same(&name("attention_mask"), &mask(&|_| 0))?;
        g.same(&name("completion_mask"), &mask(&|i| prompts[i]))?;
        g.same(&name("packed_ids"), &batch.tokens)?;
        g.same(&name("packed_positions"), &batch.pos)?;
        let ends = batch.segments.iter().map(|s| s.start + s.len);
        g.same(&name("cu_seqlens"), &std::iter::once(0).chain(ends).collect::<Vec<_>>())?;
        // The three that the others were derived from.
        ["input_ids", "lens", "prompt_lens"].iter().for_each(|field| g.expect(&name(field), true, String::new));
        Ok(Rows { texts, prompts })
    }
}

/// Minus the mean of log-probabilities.
pub fn mean_loss<'a>(logps: impl IntoIterator<Item = &'a f32>) -> f32 {
    let (sum, n) = logps.into_iter().fold((0.0f64, 0usize), |(sum, n), l| (sum + f64::from(*l), n + 1));
    (-sum / n as f64) as f32
}

fn base(case: &mut Lm, rows: &Rows) -> Result<()> {
    let logits = pass::logits(&case.s, &case.model, &rows.texts, Adapter::Off)?;
    case.close("logits", &logits)?;
    if case.golden.has("logits_bf16_compute") {
        case.close("logits_bf16_compute", &logits)?;
    }
    // Whole texts: every token but the first is a loss row.
    let whole = pass::batch(&rows.texts.iter().map(|t| (Vec::new(), vec![t.clone()])).collect::<Vec<_>>())?;
    let out = pass::logps(&case.s, &case.model, &whole, Adapter::Off, model::Keep::Nothing)?;
    let packed: Vec<f32> = pass::by_sequence(&whole, &out).into_iter().flat_map(|l| [vec![0.0], l].concat()).collect();
    case.close("token_logprobs", &packed)?;
    case.close("sft_full_loss", &[mean_loss(&out)])?;
    let answers = pass::logps(&case.s, &case.model, &pass::batch(&rows.examples())?, Adapter::Off, model::Keep::Nothing)?;
    case.close("sft_loss", &[mean_loss(&answers)])
}

/// The adapter beside the weights against PEFT's merged model, and merged here.
fn adapted(case: &mut Lm, rows: &Rows) -> Result<()> {
    let Some((host, slot)) = case.adapter.clone() else { return Ok(()) };
    let unmerged = pass::logits(&case.s, &case.model, &rows.texts, slot)?;
    case.close("adapter/merged_logits", &unmerged)?;
    let merged = merged(&case.folder.join("model"), &host)?;
    let model = Transformer::load(&case.s, merged.path(), None)?;
    case.close("adapter/merged_logits", &pass::logits(&case.s, &model, &rows.texts, Adapter::Off)?)?;
    let out = pass::logps(&case.s, &case.model, &pass::batch(&rows.examples())?, slot, model::Keep::Nothing)?;
    case.close("adapter/sft_loss", &[mean_loss(&out)])
}

/// The base and the adapter as `ple merge` makes one model of them.
fn merged(folder: &Path, adapter: &HostAdapter) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::copy(folder.join("config.json"), dir.path().join("config.json"))?;
    let (checkpoint, config) = (model::weights::Checkpoint::open(folder)?, model::Config::from_folder(folder)?);
    if !config.fan_in_fan_out() {
        model::merge::merge(&checkpoint, &config, adapter, None, dir.path(), &mut |_| ControlFlow::Continue(()))?;
        return Ok(dir);
    }
    let mut rows = Vec::new();
    for spec in config.tensors() {
        let mut w = checkpoint.tensor(&spec.name)?.to_f32();
        if let Some(m) = adapter.modules.iter().find(|m| spec.name == format!("{}.weight", m.path)) {
            // A Conv1D's rows are inputs.
            for (at, w) in w.iter_mut().enumerate() {
                let (i, o) = (at / m.out_features, at % m.out_features);
                let ba: f64 = (0..m.r).map(|j| f64::from(m.b[o * m.r + j]) * f64::from(m.a[j * m.in_features + i])).sum();
                *w = (f64::from(*w) + f64::from(m.scale) * ba) as f32;
            }
        }
        rows.push((spec.name, spec.shape, w.iter().flat_map(|v| v.to_le_bytes()).collect()));
    }
    ple_tests::tiny::write(&dir.path().join("model.safetensors"), safetensors::Dtype::F32, &rows)?;
    Ok(dir)
}

/// Compares a whole case.
pub fn run(case: &Case, public: bool) -> Result<bool> {
    let mut lm = Lm::open(case)?;
    let sft = lm.rows("sft")?;
    base(&mut lm, &sft)?;
    adapted(&mut lm, &sft)?;
    decoding::compare(&mut lm, &sft)?;
    if lm.adapter.is_some() {
        losses::compare(&mut lm, &sft)?;
        training::trajectories(&mut lm, &sft)?;
    }
    if lm.golden.has("full_grads/model.norm.weight") {
        training::full_gradients(&mut lm, &sft)?;
    }
    tokens::compare(&lm)?;
    Ok(lm.golden.report(&case.name, public))
}

/// The same weights in f32, for what only f32 can do.
pub fn widened(case: &Lm) -> Result<Transformer> {
    let model = Transformer::load(&case.s, &case.folder.join("model"), Some(DType::F32))?;
    ensure!(model.config == case.model.config, "the same folder read twice gives two configurations");
    Ok(model)
}
