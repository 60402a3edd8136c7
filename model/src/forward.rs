//! The forward pass: tokens to log-probabilities of the loss rows.

use crate::acts::{ATTENTION_OUT, Acts, GATE_UP, Keep, MLP_OUT, QKV};
use crate::base::Norm;
use crate::config::Activation;
use crate::kv_cache::KvCache;
use crate::norm;
use crate::transformer::{Adapter, Head, Transformer};
use crate::{Batch, Error, Result};
use kernels::{attention, decode_attention, embedding, gelu, kv_store, linear, logprob, math, rope, score, swiglu};
use runtime::{Region, Stream, View};

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
    /// Runs a micro-batch: leaves `[M]` log-probabilities (or scalars) in [`Acts::out`], and what [`Transformer::backward`] reads unless it
    /// is to keep [`Keep::Nothing`]. Errors: a batch or a `keep` beyond the plan, ids or positions out of range.
    pub fn forward(&self, s: &Stream, a: &mut Acts, b: &Batch, ad: Adapter, h: Head<'_>, keep: Keep) -> Result<()> {
        self.check(s, b)?;
        if keep != Keep::Nothing && keep != a.at.keep {
            let planned = if a.at.keep == Keep::Nothing { "out a backward".into() } else { format!(" {:?}", a.at.keep) };
            return Err(Error::Batch(format!("these activations were planned with{planned}, got {keep:?}")));
        }
        if b.cached() {
            return Err(Error::Batch("a cached parent is for prefill only".into()));
        }
        a.upload(s, b)?;
        a.held = None;
        self.body(s, a, ad, &Context::Forest)?;
        a.held = self.base.layers().checked_sub(1);
        self.final_norm(s, a)?;
        let (n, m) = a.size;
        let hidden = a.view(a.at.hidden, n * self.config.hidden_size)?;
        let (out, rows) = (a.view(a.at.out, m)?, a.view(a.at.rows, m)?);
        match h {
            Head::LogProb { inv_temperature } => {
                let head = self.base.weight(self.lm_head()?)?;
                let targets = a.view(a.at.targets, m)?;
                let way = if keep == Keep::Nothing { 0 } else { m * self.config.hidden_size };
                let kept = logprob::Kept { way: a.view(a.at.way, way)?, ..self.kept(a, 0..m)? };
                logprob::forward(s, out, kept, hidden, rows, targets, head, self.scaling(inv_temperature))?;
            }
            Head::Scalar(head) => score::forward(s, out, hidden, rows, head)?,
        }
        Ok(())
    }

    /// The LM head's logits of the last forward, capped if the model caps them: `[N, V]`, for inspection and tests; training never
    /// stores them.
    pub fn logits(&self, s: &Stream, a: &Acts) -> Result<Vec<f32>> {
        let n = a.size.0;
        let out = s.zeros::<f32>(n * self.config.vocab_size)?;
        self.logits_of(s, out.view(), a.view(a.at.hidden, n * self.config.hidden_size)?)?;
        let (mut logits, cap) = (out.to_vec()?, self.config.final_logit_softcapping);
        if cap > 0.0 {
            logits.iter_mut().for_each(|z| *z = cap * math::tanh(*z / cap));
        }
        Ok(logits)
    }

    /// Logits of normed hidden rows, before a cap.
    pub(crate) fn logits_of(&self, s: &Stream, logits: View<'_>, hidden: View<'_>) -> Result<()> {
        let weight = self.base.weight(self.lm_head()?)?;
        let part = linear::Part { weight, bias: None, lora: None };
        Ok(linear::forward(s, logits, View::none(self.stored()), hidden, &[part])?)
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
        self.reside(s, ad)?;
        let (n, c) = (a.size.0, self.config.hidden_size);
        // A row of learned positions is added to the stream as what a layer adds: by the norm after it.
        let at = &a.at.layers[0];
        let first = a.view(if self.base.positions.is_some() { at.middle } else { at.input }, n * c)?;
        let (tokens, table) = (a.view(a.at.tokens, n)?, self.base.weight(&self.base.embedding)?);
        embedding::forward(s, first, tokens, table, self.config.embedding_scale)?;
        if let Some(positions) = &self.base.positions {
            let (pos, projected) = (a.view(a.at.pos, n)?, a.view(a.at.projected, n * c)?);
            embedding::forward(s, projected, pos, self.base.weight(positions)?, 1.0)?;
        }
        for layer in 0..self.base.layers() {
            let sum = layer > 0 || self.base.positions.is_some();
            self.attention_block(s, a, layer, ad, context, sum)?;
            let activated = self.mlp_block(s, a, layer, ad)?;
            self.project(s, a, activated, layer, MLP_OUT, ad, self.after_mlp(a, layer))?;
        }
        Ok(())
    }

    /// Makes what the backward of a layer reads from the layer's input, by the calls of [`Transformer::body`] on the same numbers. Of the
    /// last product nobody reads more than S, or its norm.
    pub(crate) fn layer_again(&self, s: &Stream, a: &Acts, layer: usize, ad: Adapter) -> Result<()> {
        self.attention_block(s, a, layer, ad, &Context::Forest, false)?;
        let activated = self.mlp_block(s, a, layer, ad)?;
        match self.after_mlp(a, layer) {
            None => self.linear(s, a, View::none(self.stored()), activated, layer, MLP_OUT, ad),
            after => self.project(s, a, activated, layer, MLP_OUT, ad, after),
        }
    }

    /// Attention and its norms; the layer's input is the `sum` of what the layer before has left, or is there.
    fn attention_block(&self, s: &Stream, a: &Acts, layer: usize, ad: Adapter, context: &Context<'_>, sum: bool) -> Result<()> {
        let (n, c, heads) = (a.size.0, self.config.hidden_size, self.heads());
        let at = &a.at.layers[layer];
        let weights = &self.base.layers[layer];
        let (input, normed) = (a.view(at.input, n * c)?, a.rows(a.at.normed, c)?);
        let stats = a.view(at.input_stats, n * norm::stats(&self.config))?;
        if sum {
            let before = a.view(a.at.layers[layer.saturating_sub(1)].middle, n * c)?;
            let delta = a.view(a.at.projected, n * c)?;
            self.norm(s, normed, stats, input, before, Some(delta), weights.input_norm)?;
        } else {
            self.norm(s, normed, stats, View::none(self.stored()), input, None, weights.input_norm)?;
        }
        let qkv = a.view(at.qkv, n * self.qkv_width())?;
        let pos = a.view(a.at.pos, n)?;
        if let Some(norms) = weights.head_norms {
            let raw = a.view(at.raw_qkv, n * self.qkv_width())?;
            self.linear(s, a, raw, normed, layer, QKV, ad)?;
            self.head_norm(s, qkv, a.view(at.head_rstd, n * (heads.h + heads.k))?, raw, norms)?;
        } else {
            self.linear(s, a, qkv, normed, layer, QKV, ad)?;
        }
        if let Some(table) = self.turn(layer) {
            rope::forward(s, qkv, pos, table, heads.h + heads.k, heads.d, self.qkv_width())?;
        }
        let attended = a.rows(at.attended, heads.h * heads.d)?;
        match context {
            Context::Forest => self.attend(s, a, layer, None)?,
            Context::Prefill { cache, cached } => {
                kv_store::forward(s, cache.layer(layer)?, qkv, cache.slots(n)?, heads)?;
                self.attend(s, a, layer, cached.then_some(*cache))?;
            }
            Context::Decode { cache } => {
                kv_store::forward(s, cache.layer(layer)?, qkv, cache.slots(n)?, heads)?;
                let (pieces, first) = cache.pieces()?;
                let params = self.attention(layer);
                decode_attention::forward(s, attended, qkv, cache.layer(layer)?, pieces, first, pos, heads, params)?;
            }
        }
        let after = weights.attention_norm.map(|norm| (norm, at.attention_out, at.attention_stats));
        self.project(s, a, attended, layer, ATTENTION_OUT, ad, after)
    }

    /// What a half of the layer adds to the stream: `projected`, by way of a norm, of which it leaves operand and stats, where there is
    /// one.
    fn project(
        &self,
        s: &Stream,
        a: &Acts,
        x: View<'_>,
        layer: usize,
        group: usize,
        ad: Adapter,
        after: Option<(Norm, Region, Region)>,
    ) -> Result<()> {
        let (n, c) = (a.size.0, self.config.hidden_size);
        let projected = a.view(a.at.projected, n * c)?;
        let Some((norm, out, stats)) = after else { return self.linear(s, a, projected, x, layer, group, ad) };
        let (out, stats) = (a.view(out, n * c)?, a.view(stats, n * norm::stats(&self.config))?);
        self.linear(s, a, out, x, layer, group, ad)?;
        self.norm(s, projected, stats, View::none(self.stored()), out, None, norm)
    }

    /// Attention of a forest's rows over each other, or over the pages of a layer.
    fn attend(&self, s: &Stream, a: &Acts, layer: usize, pages: Option<&KvCache>) -> Result<()> {
        let (n, heads, at) = (a.size.0, self.heads(), &a.at.layers[layer]);
        let (maximum, denominator) = (a.view(at.maximum, n * heads.h)?, a.view(at.denominator, n * heads.h)?);
        let (out, qkv) = (a.rows(at.attended, heads.h * heads.d)?, a.view(at.qkv, n * self.qkv_width())?);
        let (segments, params) = (a.segments()?, self.attention(layer));
        if let Some(cache) = pages {
            let (m, l, pages, (pieces, first)) = (maximum, denominator, cache.layer(layer)?, cache.pieces()?);
            return Ok(decode_attention::prefill(s, out, m, l, qkv, segments, pages, pieces, first, heads, params)?);
        }
        Ok(attention::forward(s, out, maximum, denominator, qkv, segments, heads, params)?)
    }

    /// The MLP up to its last product, of which it gives the operand.
    fn mlp_block<'a>(&self, s: &Stream, a: &'a Acts, layer: usize, ad: Adapter) -> Result<View<'a>> {
        let (n, c, f) = (a.size.0, self.config.hidden_size, self.config.intermediate_size);
        let at = &a.at.layers[layer];
        let (middle, normed) = (a.view(at.middle, n * c)?, a.rows(a.at.normed, c)?);
        let (input, projected) = (a.view(at.input, n * c)?, a.view(a.at.projected, n * c)?);
        let (weights, stats) = (&self.base.layers[layer], a.view(at.middle_stats, n * norm::stats(&self.config))?);
        self.norm(s, normed, stats, middle, input, Some(projected), weights.middle_norm)?;
        let gate_up = a.view(at.gate_up, n * self.config.inner_width())?;
        self.linear(s, a, gate_up, normed, layer, GATE_UP, ad)?;
        let activated = a.rows(a.at.activated, f)?;
        self.activate(s, activated, gate_up)?;
        Ok(activated)
    }

    /// The norm after a layer's MLP, if there is one, and where its operand and stats lie.
    pub(crate) fn after_mlp(&self, a: &Acts, layer: usize) -> Option<(Norm, Region, Region)> {
        let at = &a.at.layers[layer];
        self.base.layers[layer].mlp_norm.map(|norm| (norm, at.mlp_out, at.mlp_stats))
    }

    /// `[N, F]` of the MLP's first half.
    pub(crate) fn activate(&self, s: &Stream, activated: View<'_>, gate_up: View<'_>) -> Result<()> {
        let f = self.config.intermediate_size;
        match self.config.activation() {
            Activation::SwiGlu => Ok(swiglu::forward(s, activated, gate_up, f)?),
            Activation::GeGlu | Activation::Gelu => Ok(gelu::forward(s, activated, gate_up, f, gelu::Curve::Tanh)?),
        }
    }

    /// The final norm over the last residual stream: leaves `hidden`.
    pub(crate) fn final_norm(&self, s: &Stream, a: &Acts) -> Result<()> {
        let (n, c) = (a.size.0, self.config.hidden_size);
        let (hidden, last) = (a.view(a.at.hidden, n * c)?, a.view(a.at.last, n * c)?);
        let before = a.view(a.at.layers[self.base.layers() - 1].middle, n * c)?;
        let (stats, delta) = (a.view(a.at.last_stats, n * norm::stats(&self.config))?, a.view(a.at.projected, n * c)?);
        self.norm(s, hidden, stats, last, before, Some(delta), self.base.final_norm)
    }

    fn linear(&self, s: &Stream, a: &Acts, y: View<'_>, x: View<'_>, layer: usize, group: usize, ad: Adapter) -> Result<()> {
        let lora_s = a.view(a.at.layers[layer].lora[group], a.size.0 * self.columns(layer, group, ad)?)?;
        self.group(layer, group, ad, |parts| self.product(s, y, lora_s, x, (layer, group), parts))
    }
}
