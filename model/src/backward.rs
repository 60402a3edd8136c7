//! The backward pass: gradients of the loss rows to gradients of what is tuned.

use crate::acts::{ATTENTION_OUT, Acts, GATE_UP, Gradients, Keep, MLP_OUT, QKV};
use crate::base::Norm;
use crate::config::Activation;
use crate::grads::{Grads, Tune};
use crate::norm;
use crate::transformer::{Adapter, Head, Transformer};
use crate::{Batch, Error, Result};
use kernels::{attention, embedding, gelu, linear, logprob, panels, rope, score, swiglu};
use runtime::{Buffer, DType, Region, Stream, View};

/// What every step of the backward needs.
struct Pass<'a> {
    s: &'a Stream,
    a: &'a Acts,
    at: Gradients,
    adapter: Adapter,
    grads: &'a Grads,
    /// `[E, 2]` rows of each example's tree.
    trees: View<'a>,
    /// `[E, 2]` loss rows of each example.
    entries: View<'a>,
}

impl Pass<'_> {
    fn full(&self) -> bool {
        self.grads.tune == Tune::Full
    }
    fn view(&self, region: Region, width: usize) -> Result<View<'_>> {
        self.a.view(region, self.a.size.0 * width)
    }
    fn rows(&self, region: Region, width: usize) -> Result<View<'_>> {
        self.a.rows(region, width)
    }
}

impl Transformer {
    /// Adds the gradients of the last forward of the same batch, which kept what a backward reads, to `g`. `dout` `[M]` is d loss / d out.
    pub fn backward(
        &self,
        s: &Stream,
        a: &mut Acts,
        b: &Batch,
        ad: Adapter,
        h: Head<'_>,
        dout: &Buffer<f32>,
        g: &mut Grads,
    ) -> Result<()> {
        let at = a.at.gradients.ok_or_else(|| Error::Batch("these activations were planned without a backward".into()))?;
        if a.size != (b.tokens(), b.loss_rows()) {
            return Err(Error::Batch("backward of another batch than the last forward's".into()));
        }
        if let Tune::Lora(slot) = g.tune
            && ad != Adapter::Slot(slot)
        {
            return Err(Error::Batch("backward must run with the adapter that is tuned".into()));
        }
        if g.tune == Tune::Full && self.library.is_some() {
            return Err(Error::Batch("full tuning goes through own products: the library's biases are rounded once".into()));
        }
        self.reside(s, ad)?;
        let again = a.at.keep == Keep::Inputs;
        // Until the pass is through nobody may rely on it.
        let mut held = a.held.take();
        let dout = dout.view().slice(0..a.size.1)?;
        let trees = a.view(a.at.trees, 2 * b.examples.len())?;
        let entries = a.view(a.at.entries, 2 * b.examples.len())?;
        let p = Pass { s, a, at, adapter: ad, grads: g, trees, entries };
        let mut stream = 0;
        self.head_backward(&p, h, dout)?;
        for layer in (0..self.base.layers()).rev() {
            if again && held != Some(layer) {
                self.layer_again(s, a, layer, ad)?;
                held = Some(layer);
            }
            stream = self.mlp_backward(&p, layer, stream)?;
            stream = self.attention_backward(&p, layer, stream)?;
        }
        if p.full() {
            self.ends_backward(&p, b, h, dout, stream)?;
        }
        a.held = held;
        Ok(())
    }

    /// The head and the final norm; leaves the stream's gradient in `stream[0]`.
    fn head_backward(&self, p: &Pass<'_>, h: Head<'_>, dout: View<'_>) -> Result<()> {
        let (s, a, c, m) = (p.s, p.a, self.config.hidden_size, p.a.size.1);
        let (dhidden, rows) = (p.view(p.at.normed, c)?, a.view(a.at.rows, m)?);
        match h {
            Head::LogProb { inv_temperature } => {
                let kept = logprob::Kept { way: a.view(a.at.way, m * c)?, ..self.kept(a, 0..m)? };
                logprob::backward(s, dhidden, dout, kept, rows, self.scaling(inv_temperature))?;
            }
            Head::Scalar(head) => {
                score::backward(s, dhidden, dout, rows, head)?;
                if let Some(region) = self.trained_head_region(p.grads.tune)? {
                    let hidden = p.view(a.at.hidden, c)?;
                    score::backward_weight(s, p.grads.view(region)?, dout, hidden, rows, p.entries)?;
                }
            }
        }
        let (last, stats) = (p.view(a.at.last, c)?, p.view(a.at.last_stats, norm::stats(&self.config))?);
        self.norm_backward(p, p.at.stream[0], dhidden, last, stats, self.base.final_norm, None)
    }

    fn norm_backward(
        &self,
        p: &Pass<'_>,
        dx: Region,
        dy: View<'_>,
        x: View<'_>,
        stats: View<'_>,
        norm: Norm,
        add: Option<View<'_>>,
    ) -> Result<()> {
        self.norm_gradient(p.s, p.rows(dx, self.config.hidden_size)?, dy, x, stats, norm, add)?;
        if p.full() {
            let db = norm.bias.map(|b| p.grads.view(b)).transpose()?.unwrap_or(View::none(DType::F32));
            self.norm_weight_gradient(p.s, [p.grads.view(norm.weight)?, db], dy, x, stats, p.trees)?;
        }
        Ok(())
    }

    /// The gradient of what a half of the layer gave its last module for: `dstream`, or by way of the norm after it.
    fn project_backward<'a>(
        &self,
        p: &'a Pass<'_>,
        dstream: View<'a>,
        after: Option<(Norm, Region, Region)>,
    ) -> Result<View<'a>> {
        let Some((norm, out, stats)) = after else { return Ok(dstream) };
        let (out, stats) = (p.view(out, self.config.hidden_size)?, p.view(stats, norm::stats(&self.config))?);
        self.norm_backward(p, p.at.normed, dstream, out, stats, norm, None)?;
        p.rows(p.at.normed, self.config.hidden_size)
    }

    /// Gradients of one module group: `dx` (empty to skip) from `dy`, and of its parameters with input `x`.
    fn group_backward(&self, p: &Pass<'_>, layer: usize, group: usize, dx: View<'_>, dy: View<'_>, x: View<'_>) -> Result<()> {
        let columns = self.columns(layer, group, p.adapter)?;
        let ds = p.view(p.at.lora, columns)?;
        self.group(layer, group, p.adapter, |parts| {
            self.product_back(p.s, dx, ds, dy, parts)?;
            let modules = self.groups[group].clone();
            let count = modules.len();
            if p.full() {
                let of = |m: usize| self.base.layers[layer].modules[m];
                let mut dw = [View::none(DType::F32); 3];
                let mut db = [None; 3];
                for (i, m) in modules.clone().enumerate() {
                    dw[i] = p.grads.view(of(m).weight)?;
                    db[i] = of(m).bias.map(|r| p.grads.view(r)).transpose()?;
                }
                let n: [usize; 3] = std::array::from_fn(|i| modules.clone().nth(i).map_or(0, |m| of(m).n));
                return Ok(linear::backward_weight(p.s, &dw[..count], &db[..count], x, dy, &n[..count], p.trees)?);
            }
            let mut da = [View::none(DType::F32); 3];
            let mut db = [View::none(DType::F32); 3];
            let lora = self.slot(p.adapter)?;
            for (i, m) in modules.enumerate() {
                if let Some((a, b)) = lora.and_then(|l| l.regions(layer, m)) {
                    (da[i], db[i]) = (p.grads.view(a)?, p.grads.view(b)?);
                }
            }
            let kept = p.view(p.a.at.layers[layer].lora[group], columns)?;
            Ok(linear::backward_lora(p.s, &da[..count], &db[..count], x, kept, ds, dy, parts, p.trees)?)
        })
    }

    /// Returns which of the two stream gradients holds the result.
    fn mlp_backward(&self, p: &Pass<'_>, layer: usize, stream: usize) -> Result<usize> {
        let (s, a, c, f) = (p.s, p.a, self.config.hidden_size, self.config.intermediate_size);
        let at = &a.at.layers[layer];
        let dstream = p.rows(p.at.stream[stream], c)?;
        let (gate_up, activated) = (p.view(at.gate_up, self.config.inner_width())?, p.rows(a.at.activated, f)?);
        self.activate(s, activated, gate_up)?;
        let dactivated = p.view(p.at.activated, f)?;
        let weights = &self.base.layers[layer];
        let dout = self.project_backward(p, dstream, self.after_mlp(a, layer))?;
        self.group_backward(p, layer, MLP_OUT, dactivated, dout, activated)?;
        let dgate_up = p.rows(p.at.gate_up, self.config.inner_width())?;
        match self.config.activation() {
            Activation::SwiGlu => swiglu::backward(s, dgate_up, dactivated, gate_up, f)?,
            Activation::GeGlu | Activation::Gelu => gelu::backward(s, dgate_up, dactivated, gate_up, f, gelu::Curve::Tanh)?,
        }
        let (middle, stats) = (p.view(at.middle, c)?, p.view(at.middle_stats, norm::stats(&self.config))?);
        let normed = p.rows(a.at.normed, c)?;
        self.norm_again(s, normed, middle, stats, weights.middle_norm)?;
        let dnormed = p.view(p.at.normed, c)?;
        self.group_backward(p, layer, GATE_UP, dnormed, dgate_up, normed)?;
        self.norm_backward(p, p.at.stream[1 - stream], dnormed, middle, stats, weights.middle_norm, Some(dstream))?;
        Ok(1 - stream)
    }

    fn attention_backward(&self, p: &Pass<'_>, layer: usize, stream: usize) -> Result<usize> {
        let (s, a, c, heads) = (p.s, p.a, self.config.hidden_size, self.heads());
        let (at, width) = (&a.at.layers[layer], self.qkv_width());
        let dstream = p.rows(p.at.stream[stream], c)?;
        let (attended, dattended) = (p.rows(at.attended, heads.h * heads.d)?, p.view(p.at.attended, heads.h * heads.d)?);
        let weights = &self.base.layers[layer];
        let after = weights.attention_norm.map(|norm| (norm, at.attention_out, at.attention_stats));
        let dout = self.project_backward(p, dstream, after)?;
        self.group_backward(p, layer, ATTENTION_OUT, dattended, dout, attended)?;
        let (qkv, dqkv) = (p.view(at.qkv, width)?, p.rows(p.at.qkv, width)?);
        let (maximum, denominator) = (p.view(at.maximum, heads.h)?, p.view(at.denominator, heads.h)?);
        let segments = a.segments()?;
        attention::backward(s, dqkv, dattended, attended, qkv, maximum, denominator, segments, heads, self.attention(layer))?;
        if let Some(table) = self.turn(layer) {
            rope::backward(s, dqkv, p.view(a.at.pos, 1)?, table, heads.h + heads.k, heads.d, width)?;
        }
        if let Some(norms) = weights.head_norms {
            let (raw, rstd) = (p.view(at.raw_qkv, width)?, p.view(at.head_rstd, heads.h + heads.k)?);
            let dw = if p.full() { Some([p.grads.view(norms[0])?, p.grads.view(norms[1])?]) } else { None };
            self.head_norm_gradient(s, dqkv, raw, rstd, norms, dw, p.trees)?;
        }
        let (input, stats) = (p.view(at.input, c)?, p.view(at.input_stats, norm::stats(&self.config))?);
        let normed = p.rows(a.at.normed, c)?;
        self.norm_again(s, normed, input, stats, weights.input_norm)?;
        // Below the first layer nothing is tuned unless everything is.
        let needed = layer > 0 || p.full();
        let dnormed = if needed { p.view(p.at.normed, c)? } else { View::none(self.stored()) };
        self.group_backward(p, layer, QKV, dnormed, dqkv, normed)?;
        if needed {
            self.norm_backward(p, p.at.stream[1 - stream], dnormed, input, stats, weights.input_norm, Some(dstream))?;
        }
        Ok(1 - stream)
    }

    /// Full tuning: embedding, positions and head, one example's partial at a time; a tied matrix takes head rows first, then look-ups.
    fn ends_backward(&self, p: &Pass<'_>, b: &Batch, h: Head<'_>, dout: View<'_>, stream: usize) -> Result<()> {
        let all = p.grads.partial.as_ref().ok_or_else(|| Error::Batch("gradients without a partial".into()))?.view();
        let partial = all.slice(0..self.base.embedding.weight.len())?;
        let (embedding, head) = (self.base.embedding.weight, self.base.head.as_ref().map(|h| h.weight));
        let (a, c) = (p.a, self.config.hidden_size);
        let dx = p.view(p.at.stream[stream], c)?;
        for (example, tree) in b.examples.iter().zip(&b.trees) {
            let spans = b.sequences.get(example.range()).unwrap_or_default();
            let entries = spans.first().map_or(0, |f| f.start as usize)..spans.last().map_or(0, |l| l.end as usize);
            partial.zero(p.s)?;
            if let Head::LogProb { inv_temperature } = h {
                let at = |region: Region| -> Result<View<'_>> { Ok(a.view(region, entries.end)?.slice(entries.clone())?) };
                let hidden = p.view(a.at.hidden, c)?;
                let kept = self.kept(a, entries.clone())?;
                let head = self.base.weight(self.lm_head()?)?;
                let (rows, targets) = (at(a.at.rows)?, at(a.at.targets)?);
                logprob::backward_weight(
                    p.s,
                    partial,
                    dout.slice(entries.clone())?,
                    kept,
                    hidden,
                    rows,
                    targets,
                    head,
                    self.scaling(inv_temperature),
                )?;
            }
            if head.is_some_and(|head| head != embedding) {
                panels::accumulate(p.s, p.grads.view(head.unwrap_or(embedding))?, partial)?;
                partial.zero(p.s)?;
            }
            let rows = tree.range();
            let tokens = a.view(a.at.tokens, rows.end)?.slice(rows.clone())?;
            let dx = dx.slice(rows.start * c..rows.end * c)?;
            embedding::backward(p.s, partial, dx, tokens, self.config.vocab_size, self.config.embedding_scale)?;
            panels::accumulate(p.s, p.grads.view(embedding)?, partial)?;
            if let Some(positions) = &self.base.positions {
                let partial = all.slice(0..positions.weight.len())?;
                partial.zero(p.s)?;
                embedding::backward(p.s, partial, dx, a.view(a.at.pos, rows.end)?.slice(rows)?, positions.n, 1.0)?;
                panels::accumulate(p.s, p.grads.view(positions.weight)?, partial)?;
            }
        }
        Ok(())
    }
}
