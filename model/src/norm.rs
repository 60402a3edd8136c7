//! A model's norms, as its configuration says: RMS over w or 1 + w, or LayerNorm; and those of query and key heads.

use crate::Result;
use crate::base;
use crate::config::{Config, Norm};
use crate::transformer::Transformer;
use kernels::{head_norm, layer_norm, rms_norm};
use runtime::{DType, Region, Stream, View};

/// Columns of what a norm keeps of each row: rstd, or mean and rstd.
pub(crate) fn stats(config: &Config) -> usize {
    match config.norm() {
        Norm::Rms { .. } => 1,
        Norm::Layer => 2,
    }
}

fn offset(config: &Config) -> f32 {
    match config.norm() {
        Norm::Rms { offset } => offset,
        Norm::Layer => 0.0,
    }
}

impl Transformer {
    /// Weight and bias; without a bias an empty view.
    fn vectors(&self, norm: base::Norm) -> Result<[View<'_>; 2]> {
        let arena = self.base.arena();
        let bias = norm.bias.map(|b| arena.view(b)).transpose()?.unwrap_or(View::none(DType::F32));
        Ok([arena.view(norm.weight)?, bias])
    }

    /// y and stats of `x`, or of `sum` = x + delta.
    pub(crate) fn norm(
        &self,
        s: &Stream,
        y: View<'_>,
        stats: View<'_>,
        sum: View<'_>,
        x: View<'_>,
        delta: Option<View<'_>>,
        norm: base::Norm,
    ) -> Result<()> {
        let (vectors, eps) = (self.vectors(norm)?, self.config.norm_eps as f32);
        match self.config.norm() {
            Norm::Rms { offset } => Ok(rms_norm::forward(s, y, stats, sum, x, delta, vectors[0], eps, offset)?),
            Norm::Layer => Ok(layer_norm::forward(s, y, stats, sum, x, delta, vectors, eps)?),
        }
    }

    /// y again.
    pub(crate) fn norm_again(&self, s: &Stream, y: View<'_>, x: View<'_>, stats: View<'_>, norm: base::Norm) -> Result<()> {
        let vectors = self.vectors(norm)?;
        match self.config.norm() {
            Norm::Rms { offset } => Ok(rms_norm::apply(s, y, x, stats, vectors[0], offset)?),
            Norm::Layer => Ok(layer_norm::apply(s, y, x, stats, vectors)?),
        }
    }

    /// dx of dy, plus `add`.
    pub(crate) fn norm_gradient(
        &self,
        s: &Stream,
        dx: View<'_>,
        dy: View<'_>,
        x: View<'_>,
        stats: View<'_>,
        norm: base::Norm,
        add: Option<View<'_>>,
    ) -> Result<()> {
        let [w, _] = self.vectors(norm)?;
        match self.config.norm() {
            Norm::Rms { offset } => Ok(rms_norm::backward(s, dx, dy, x, stats, w, add, offset)?),
            Norm::Layer => Ok(layer_norm::backward(s, dx, dy, x, stats, w, add)?),
        }
    }

    /// dw and db += of dy.
    pub(crate) fn norm_weight_gradient(
        &self,
        s: &Stream,
        [dw, db]: [View<'_>; 2],
        dy: View<'_>,
        x: View<'_>,
        stats: View<'_>,
        trees: View<'_>,
    ) -> Result<()> {
        match self.config.norm() {
            Norm::Rms { .. } => Ok(rms_norm::backward_weight(s, dw, dy, x, stats, trees)?),
            Norm::Layer => Ok(layer_norm::backward_weight(s, dw, db, dy, x, stats, trees)?),
        }
    }

    fn head_shape(&self) -> head_norm::Shape {
        let heads = self.heads();
        head_norm::Shape { queries: heads.h, keys: heads.k, d: heads.d, stride: heads.stride() }
    }

    fn head_vectors(&self, norms: [Region; 2]) -> Result<[View<'_>; 2]> {
        Ok([self.base.arena().view(norms[0])?, self.base.arena().view(norms[1])?])
    }

    /// qkv of the raw qkv: query and key heads normed.
    pub(crate) fn head_norm(&self, s: &Stream, qkv: View<'_>, rstd: View<'_>, raw: View<'_>, norms: [Region; 2]) -> Result<()> {
        let (w, eps) = (self.head_vectors(norms)?, self.config.norm_eps as f32);
        Ok(head_norm::forward(s, qkv, rstd, raw, w, self.head_shape(), eps, offset(&self.config))?)
    }

    /// The gradient of qkv becomes that of the raw qkv, after both weights' gradients `dw` if they are wanted.
    pub(crate) fn head_norm_gradient(
        &self,
        s: &Stream,
        dqkv: View<'_>,
        raw: View<'_>,
        rstd: View<'_>,
        norms: [Region; 2],
        dw: Option<[View<'_>; 2]>,
        trees: View<'_>,
    ) -> Result<()> {
        if let Some(dw) = dw {
            head_norm::backward_weight(s, dw, dqkv, raw, rstd, trees, self.head_shape())?;
        }
        Ok(head_norm::backward(s, dqkv, raw, rstd, self.head_vectors(norms)?, self.head_shape(), offset(&self.config))?)
    }
}
