//! The backward pass: gradients of the loss rows to gradients of what is tuned.

use crate::acts::{ATTENTION_OUT, Acts, GATE_UP, GROUPS, Gradients, MLP_OUT, QKV};
use crate::forward::scaling;
use crate::transformer::{Adapter, Grads, Head, Transformer, Tune};
use crate::{Batch, Error, Result};
use kernels::{attention, embedding, linear, logprob, panels, rms_norm, rope, score, swiglu};
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
}

impl Transformer {
    /// Adds the gradients of the last [`crate::Keep::Backward`] forward of the same batch to `g`. `dout` `[M]` is d loss / d out.
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
        let dout = dout.view().slice(0..a.size.1)?;
        let trees = a.view(a.at.trees, 2 * b.examples.len())?;
        let entries = a.view(a.at.entries, 2 * b.examples.len())?;
        let p = Pass { s, a, at, adapter: ad, grads: g, trees, entries };
        let mut stream = 0;
        self.head_backward(&p, h, dout)?;
        for layer in (0..self.base.layers()).rev() {
            stream = self.mlp_backward(&p, layer, stream)?;
            stream = self.attention_backward(&p, layer, stream)?;
        }
        if p.full() {
            self.ends_backward(&p, b, h, dout, stream)?;
        }
        Ok(())
    }

    /// The head and the final norm; leaves the stream's gradient in `stream[0]`.
    fn head_backward(&self, p: &Pass<'_>, h: Head<'_>, dout: View<'_>) -> Result<()> {
        let (s, a, c, m) = (p.s, p.a, self.config.hidden_size, p.a.size.1);
        let (dhidden, rows) = (p.view(p.at.normed, c)?, a.view(a.at.rows, m)?);
        match h {
            Head::LogProb { inv_temperature } => {
                let kept = logprob::Kept { way: a.view(a.at.way, m * c)?, ..self.kept(a, 0..m)? };
                logprob::backward(s, dhidden, dout, kept, rows, scaling(inv_temperature))?;
            }
            Head::Scalar(head) => {
                score::backward(s, dhidden, dout, rows, head)?;
                if let Some(region) = self.trained_head_region(p.grads.tune)? {
                    let hidden = p.view(a.at.hidden, c)?;
                    score::backward_weight(s, p.grads.view(region)?, dout, hidden, rows, p.entries)?;
                }
            }
        }
        let (last, rstd) = (p.view(a.at.last, c)?, p.view(a.at.last_rstd, 1)?);
        self.norm_backward(p, p.at.stream[0], dhidden, last, rstd, self.base.final_norm, None)
    }

    fn norm_backward(
        &self,
        p: &Pass<'_>,
        dx: Region,
        dy: View<'_>,
        x: View<'_>,
        rstd: View<'_>,
        w: Region,
        add: Option<View<'_>>,
    ) -> Result<()> {
        let weight = self.base.arena().view(w)?;
        rms_norm::backward(p.s, p.view(dx, self.config.hidden_size)?, dy, x, rstd, weight, add, 0.0)?;
        if p.full() {
            rms_norm::backward_weight(p.s, p.grads.view(w)?, dy, x, rstd, p.trees)?;
        }
        Ok(())
    }

    /// Gradients of one module group: `dx` (empty to skip) from `dy`, and of its parameters with input `x`.
    fn group_backward(&self, p: &Pass<'_>, layer: usize, group: usize, dx: View<'_>, dy: View<'_>, x: View<'_>) -> Result<()> {
        let rank = self.group_rank(layer, group, p.adapter)?;
        let ds = p.view(p.at.lora, rank)?;
        self.group(layer, group, p.adapter, |parts| {
            linear::backward(p.s, dx, ds, dy, parts)?;
            let modules = GROUPS[group];
            if p.full() {
                let of = |m: &usize| self.base.layers[layer].modules[*m];
                let mut dw = [View::none(DType::F32); 3];
                let mut db = [None; 3];
                for (i, m) in modules.iter().enumerate() {
                    dw[i] = p.grads.view(of(m).weight)?;
                    db[i] = of(m).bias.map(|r| p.grads.view(r)).transpose()?;
                }
                let n: [usize; 3] = std::array::from_fn(|i| modules.get(i).map_or(0, |m| of(m).n));
                let count = modules.len();
                return Ok(linear::backward_weight(p.s, &dw[..count], &db[..count], x, dy, &n[..count], p.trees)?);
            }
            let mut da = [View::none(DType::F32); 3];
            let mut db = [View::none(DType::F32); 3];
            let lora = self.slot(p.adapter)?;
            for (i, m) in modules.iter().enumerate() {
                if let Some((a, b)) = lora.and_then(|l| l.regions(layer, *m)) {
                    (da[i], db[i]) = (p.grads.view(a)?, p.grads.view(b)?);
                }
            }
            let count = modules.len();
            let kept = p.view(p.a.at.layers[layer].lora[group], rank)?;
            Ok(linear::backward_lora(p.s, &da[..count], &db[..count], x, kept, ds, dy, parts, p.trees)?)
        })
    }

    /// Returns which of the two stream gradients holds the result.
    fn mlp_backward(&self, p: &Pass<'_>, layer: usize, stream: usize) -> Result<usize> {
        let (s, a, c, f) = (p.s, p.a, self.config.hidden_size, self.config.intermediate_size);
        let at = &a.at.layers[layer];
        let dstream = p.view(p.at.stream[stream], c)?;
        let (gate_up, activated) = (p.view(at.gate_up, 2 * f)?, p.view(a.at.activated, f)?);
        swiglu::forward(s, activated, gate_up, f)?;
        let dactivated = p.view(p.at.activated, f)?;
        self.group_backward(p, layer, MLP_OUT, dactivated, dstream, activated)?;
        let dgate_up = p.view(p.at.gate_up, 2 * f)?;
        swiglu::backward(s, dgate_up, dactivated, gate_up, f)?;
        let (middle, rstd) = (p.view(at.middle, c)?, p.view(at.middle_rstd, 1)?);
        let (normed, norm) = (p.view(a.at.normed, c)?, self.base.layers[layer].post_norm);
        rms_norm::apply(s, normed, middle, rstd, self.base.arena().view(norm)?, 0.0)?;
        let dnormed = p.view(p.at.normed, c)?;
        self.group_backward(p, layer, GATE_UP, dnormed, dgate_up, normed)?;
        self.norm_backward(p, p.at.stream[1 - stream], dnormed, middle, rstd, norm, Some(dstream))?;
        Ok(1 - stream)
    }

    fn attention_backward(&self, p: &Pass<'_>, layer: usize, stream: usize) -> Result<usize> {
        let (s, a, c, heads) = (p.s, p.a, self.config.hidden_size, self.heads());
        let (at, width) = (&a.at.layers[layer], self.qkv_width());
        let dstream = p.view(p.at.stream[stream], c)?;
        let (attended, dattended) = (p.view(at.attended, heads.h * heads.d)?, p.view(p.at.attended, heads.h * heads.d)?);
        self.group_backward(p, layer, ATTENTION_OUT, dattended, dstream, attended)?;
        let (qkv, dqkv) = (p.view(at.qkv, width)?, p.view(p.at.qkv, width)?);
        let (maximum, denominator) = (p.view(at.maximum, heads.h)?, p.view(at.denominator, heads.h)?);
        let segments = a.segments()?;
        attention::backward(s, dqkv, dattended, attended, qkv, maximum, denominator, segments, heads, self.attention())?;
        rope::backward(s, dqkv, p.view(a.at.pos, 1)?, self.rotary.view(), heads.h + heads.k, heads.d, width)?;
        let (input, rstd) = (p.view(at.input, c)?, p.view(at.input_rstd, 1)?);
        let (normed, norm) = (p.view(a.at.normed, c)?, self.base.layers[layer].input_norm);
        rms_norm::apply(s, normed, input, rstd, self.base.arena().view(norm)?, 0.0)?;
        // Below the first layer nothing is tuned unless everything is.
        let needed = layer > 0 || p.full();
        let dnormed = if needed { p.view(p.at.normed, c)? } else { View::none(DType::F32) };
        self.group_backward(p, layer, QKV, dnormed, dqkv, normed)?;
        if needed {
            self.norm_backward(p, p.at.stream[1 - stream], dnormed, input, rstd, norm, Some(dstream))?;
        }
        Ok(1 - stream)
    }

    /// Full tuning: embedding and head, one example's partial at a time; a tied matrix takes head rows first, then look-ups.
    fn ends_backward(&self, p: &Pass<'_>, b: &Batch, h: Head<'_>, dout: View<'_>, stream: usize) -> Result<()> {
        let partial = p.grads.partial.as_ref().ok_or_else(|| Error::Batch("gradients without a partial".into()))?.view();
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
                    scaling(inv_temperature),
                )?;
            }
            if head.is_some_and(|head| head != embedding) {
                panels::accumulate(p.s, p.grads.view(head.unwrap_or(embedding))?, partial)?;
                partial.zero(p.s)?;
            }
            let rows = tree.range();
            let tokens = a.view(a.at.tokens, rows.end)?.slice(rows.clone())?;
            embedding::backward(p.s, partial, dx.slice(rows.start * c..rows.end * c)?, tokens, self.config.vocab_size)?;
            panels::accumulate(p.s, p.grads.view(embedding)?, partial)?;
        }
        Ok(())
    }
}
