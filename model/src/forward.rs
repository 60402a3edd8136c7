//! The forward pass: tokens to log-probabilities of the loss rows.

use crate::acts::{ATTENTION_OUT, Acts, GATE_UP, Keep, LayerActs, MLP_OUT, QKV};
use crate::kv_cache::KvCache;
use crate::transformer::{Adapter, Head, Transformer};
use crate::{Batch, Error, Result};
use kernels::{attention, decode_attention, embedding, kv_store, linear, logprob, rms_norm, rope, score, swiglu};
use runtime::{Stream, View};

/// How a layer's attention sees what came before its rows.
pub(crate) enum Context<'a> {
    /// The rows are a whole forest: training and scoring.
    Forest,
    /// The rows are a whole forest and their keys and values go to pages.
    Prefill {
        /// Where they go.
        cache: &'a KvCache,
        /// Whether a root goes on from a prefix that is in the pages alone.
        cached: bool,
    },
    /// One row per running sequence, over pages.
    Decode {
        /// Where the keys and values are.
        cache: &'a KvCache,
    },
}

impl Transformer {
    /// Runs a micro-batch: leaves `[M]` log-probabilities (or scalars) in [`Acts::out`], and with [`Keep::Backward`] what
    /// [`Transformer::backward`] reads. Errors: a batch beyond the plan, ids or positions out of range.
    pub fn forward(&self, s: &Stream, a: &mut Acts, b: &Batch, ad: Adapter, h: Head<'_>, keep: Keep) -> Result<()> {
        self.check(s, b)?;
        if keep == Keep::Backward && a.at.gradients.is_none() {
            return Err(Error::Batch("these activations were planned without a backward".into()));
        }
        if b.cached() {
            return Err(Error::Batch("a cached parent is for prefill only".into()));
        }
        a.upload(s, b)?;
        self.body(s, a, ad, &Context::Forest)?;
        self.final_norm(s, a)?;
        let (n, m) = a.size;
        let hidden = a.view(a.at.hidden, n * self.config.hidden_size)?;
        let (out, rows) = (a.view(a.at.out, m)?, a.view(a.at.rows, m)?);
        match h {
            Head::LogProb { inv_temperature } => {
                let head = self.base.weight(self.lm_head()?)?;
                let targets = a.view(a.at.targets, m)?;
                let way = if keep == Keep::Backward { m * self.config.hidden_size } else { 0 };
                let kept = logprob::Kept { way: a.view(a.at.way, way)?, ..self.kept(a, 0..m)? };
                logprob::forward(s, out, kept, hidden, rows, targets, head, scaling(inv_temperature))?;
            }
            Head::Scalar(head) => score::forward(s, out, hidden, rows, head)?,
        }
        Ok(())
    }

    /// The LM head's logits of the last forward: `[N, V]`, for inspection and tests; training never stores them.
    pub fn logits(&self, s: &Stream, a: &Acts) -> Result<Vec<f32>> {
        let n = a.size.0;
        let out = s.zeros::<f32>(n * self.config.vocab_size)?;
        self.logits_of(s, out.view(), a.view(a.at.hidden, n * self.config.hidden_size)?)?;
        Ok(out.to_vec()?)
    }

    /// Logits of normed hidden rows.
    pub(crate) fn logits_of(&self, s: &Stream, logits: View<'_>, hidden: View<'_>) -> Result<()> {
        let weight = self.base.weight(self.lm_head()?)?;
        let part = linear::Part { weight, bias: None, lora: None };
        Ok(linear::forward(s, logits, View::none(runtime::DType::F32), hidden, &[part])?)
    }

    pub(crate) fn lm_head(&self) -> Result<&crate::base::Matrix> {
        self.base.head.as_ref().ok_or_else(|| Error::Batch("this checkpoint has a scalar head and no LM head".into()))
    }

    /// What the head's forward kept of these loss rows, but for the way.
    pub(crate) fn kept<'a>(&self, a: &'a Acts, rows: std::ops::Range<usize>) -> Result<logprob::Kept<'a>> {
        let at = |i: usize| -> Result<View<'a>> { Ok(a.view(a.at.kept[i], rows.end)?.slice(rows.clone())?) };
        Ok(logprob::Kept { z_target: at(0)?, sum: at(1)?, max: at(2)?, way: View::none(runtime::DType::F32) })
    }

    /// Embedding and every layer; leaves the last residual stream as the final norm's operands.
    pub(crate) fn body(&self, s: &Stream, a: &Acts, ad: Adapter, context: &Context<'_>) -> Result<()> {
        let (n, c) = (a.size.0, self.config.hidden_size);
        let first = a.view(a.at.layers[0].input, n * c)?;
        embedding::forward(s, first, a.view(a.at.tokens, n)?, self.base.weight(&self.base.embedding)?, 1.0)?;
        for layer in 0..self.base.layers() {
            self.attention_block(s, a, layer, ad, context)?;
            self.mlp_block(s, a, layer, ad)?;
        }
        Ok(())
    }

    fn norm(
        &self,
        s: &Stream,
        y: View<'_>,
        rstd: View<'_>,
        sum: View<'_>,
        x: View<'_>,
        delta: Option<View<'_>>,
        w: View<'_>,
    ) -> Result<()> {
        Ok(rms_norm::forward(s, y, rstd, sum, x, delta, w, self.config.rms_norm_eps as f32, 0.0)?)
    }

    fn attention_block(&self, s: &Stream, a: &Acts, layer: usize, ad: Adapter, context: &Context<'_>) -> Result<()> {
        let (n, c, heads) = (a.size.0, self.config.hidden_size, self.heads());
        let at = &a.at.layers[layer];
        let weights = &self.base.layers[layer];
        let (input, normed) = (a.view(at.input, n * c)?, a.view(a.at.normed, n * c)?);
        let (rstd, w) = (a.view(at.input_rstd, n)?, self.base.arena().view(weights.input_norm)?);
        if layer == 0 {
            self.norm(s, normed, rstd, View::none(runtime::DType::F32), input, None, w)?;
        } else {
            let before = a.view(a.at.layers[layer - 1].middle, n * c)?;
            let delta = a.view(a.at.projected, n * c)?;
            self.norm(s, normed, rstd, input, before, Some(delta), w)?;
        }
        let qkv = a.view(at.qkv, n * self.qkv_width())?;
        self.linear(s, a, qkv, normed, layer, QKV, ad)?;
        let (pos, table) = (a.view(a.at.pos, n)?, self.rotary.view());
        rope::forward(s, qkv, pos, table, heads.h + heads.k, heads.d, self.qkv_width())?;
        let attended = a.view(at.attended, n * heads.h * heads.d)?;
        match context {
            Context::Forest => self.attend(s, a, at, None)?,
            Context::Prefill { cache, cached } => {
                kv_store::forward(s, cache.layer(layer)?, qkv, cache.slots(n)?, heads)?;
                self.attend(s, a, at, cached.then_some((*cache, layer)))?;
            }
            Context::Decode { cache } => {
                kv_store::forward(s, cache.layer(layer)?, qkv, cache.slots(n)?, heads)?;
                let (pieces, first) = cache.pieces()?;
                decode_attention::forward(s, attended, qkv, cache.layer(layer)?, pieces, first, pos, heads, self.attention())?;
            }
        }
        self.linear(s, a, a.view(a.at.projected, n * c)?, attended, layer, ATTENTION_OUT, ad)
    }

    /// Attention of a forest's rows over each other, or over the pages of a layer.
    fn attend(&self, s: &Stream, a: &Acts, at: &LayerActs, pages: Option<(&KvCache, usize)>) -> Result<()> {
        let (n, heads) = (a.size.0, self.heads());
        let (maximum, denominator) = (a.view(at.maximum, n * heads.h)?, a.view(at.denominator, n * heads.h)?);
        let (out, qkv) = (a.view(at.attended, n * heads.h * heads.d)?, a.view(at.qkv, n * self.qkv_width())?);
        let (segments, params) = (a.segments()?, self.attention());
        if let Some((cache, layer)) = pages {
            let (m, l, pages, (pieces, first)) = (maximum, denominator, cache.layer(layer)?, cache.pieces()?);
            return Ok(decode_attention::prefill(s, out, m, l, qkv, segments, pages, pieces, first, heads, params)?);
        }
        Ok(attention::forward(s, out, maximum, denominator, qkv, segments, heads, params)?)
    }

    fn mlp_block(&self, s: &Stream, a: &Acts, layer: usize, ad: Adapter) -> Result<()> {
        let (n, c, f) = (a.size.0, self.config.hidden_size, self.config.intermediate_size);
        let at = &a.at.layers[layer];
        let (middle, normed) = (a.view(at.middle, n * c)?, a.view(a.at.normed, n * c)?);
        let (input, projected) = (a.view(at.input, n * c)?, a.view(a.at.projected, n * c)?);
        let w = self.base.arena().view(self.base.layers[layer].post_norm)?;
        self.norm(s, normed, a.view(at.middle_rstd, n)?, middle, input, Some(projected), w)?;
        let gate_up = a.view(at.gate_up, n * 2 * f)?;
        self.linear(s, a, gate_up, normed, layer, GATE_UP, ad)?;
        let activated = a.view(a.at.activated, n * f)?;
        swiglu::forward(s, activated, gate_up, f)?;
        self.linear(s, a, projected, activated, layer, MLP_OUT, ad)
    }

    /// The final norm over the last residual stream: leaves `hidden`.
    pub(crate) fn final_norm(&self, s: &Stream, a: &Acts) -> Result<()> {
        let (n, c) = (a.size.0, self.config.hidden_size);
        let (hidden, last) = (a.view(a.at.hidden, n * c)?, a.view(a.at.last, n * c)?);
        let before = a.view(a.at.layers[self.base.layers() - 1].middle, n * c)?;
        let w = self.base.arena().view(self.base.final_norm)?;
        self.norm(s, hidden, a.view(a.at.last_rstd, n)?, last, before, Some(a.view(a.at.projected, n * c)?), w)
    }

    fn linear(&self, s: &Stream, a: &Acts, y: View<'_>, x: View<'_>, layer: usize, group: usize, ad: Adapter) -> Result<()> {
        let lora_s = a.view(a.at.layers[layer].lora[group], a.size.0 * self.group_rank(layer, group, ad)?)?;
        self.group(layer, group, ad, |parts| Ok(linear::forward(s, y, lora_s, x, parts)?))
    }
}

/// No family here has a softcap on its logits.
pub(crate) fn scaling(inv_temperature: f32) -> logprob::Scaling {
    logprob::Scaling { softcap: 0.0, inv_temperature }
}
