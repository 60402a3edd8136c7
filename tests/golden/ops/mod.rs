//! Operator cases, through the launchers of the kernels crate. Outputs begin as NaN. Where the manifest gives no tolerance of its
//! own it is 2e-6 of the tensor's largest magnitude.

mod adamw;
mod attention;
mod linear;
mod logprob;
mod rows;
mod sampling;

use super::{Case, Outcome};
use anyhow::Result;
use kernels::panels::{self, Panels};
use ple_tests::tensors::Golden;
use runtime::{Buffer, Isa, Stream};

/// A case that is being compared.
pub struct Op<'a> {
    pub case: &'a Case,
    pub golden: Golden,
    pub s: Stream,
}

impl Op<'_> {
    /// An input on the device.
    pub fn upload(&mut self, name: &str) -> Result<Buffer<f32>> {
        Ok(self.s.upload(&self.golden.input(name)?)?)
    }

    /// Rows of a tensor and elements of a row.
    pub fn size(&self, name: &str) -> Result<(usize, usize)> {
        let shape = self.golden.shape(name)?;
        let rows = shape.first().copied().unwrap_or(1);
        Ok((rows, shape.iter().skip(1).product()))
    }

    /// An output, filled with NaN.
    pub fn output(&self, len: usize) -> Result<Buffer<f32>> {
        Ok(self.s.upload(&vec![f32::NAN; len])?)
    }

    /// Compares an output within 2e-6 of the tensor's largest magnitude.
    pub fn close(&mut self, name: &str, ours: &[f32]) -> Result<()> {
        let atol = self.golden.unit(name)?;
        self.golden.close(name, ours, atol)
    }

    /// A matrix `[n, k]` in panels.
    pub fn pack(&self, w: &[f32], n: usize, k: usize) -> Result<Buffer<f32>> {
        let packed = self.s.zeros(panels::packed_len(n, k))?;
        panels::pack(&self.s, packed.view(), bytemuck::cast_slice(w), n, k)?;
        Ok(packed)
    }

    /// A matrix back from panels.
    pub fn unpack(&self, packed: &Buffer<f32>, n: usize, k: usize) -> Result<Vec<f32>> {
        let mut w = vec![f32::NAN; n * k];
        panels::unpack(&self.s, &mut w, Panels::new(packed.view(), n, k)?)?;
        Ok(w)
    }
}

/// Compares one operator.
pub fn run(case: &Case, public: bool) -> Result<Outcome> {
    let rule: fn(&mut Op) -> Result<()> = match case.name.as_str() {
        "rmsnorm" | "rmsnorm_plus_one" | "rmsnorm_dw" => rows::rms_norm,
        name if name.starts_with("rope_") => rows::rope,
        "layernorm" => rows::layer_norm,
        "swiglu" => rows::swiglu,
        "geglu_tanh" => rows::geglu,
        "gelu_tanh" | "gelu_erf" => rows::gelu,
        "embedding" => rows::embedding,
        "lora_linear" | "lora_linear_bias" => linear::lora,
        "linear_dw" => linear::weight,
        "linear_logprob" => logprob::linear_logprob,
        "cross_entropy" => logprob::cross_entropy,
        "adamw_first" | "adamw_later" => adamw::step,
        "sampling" => sampling::grid,
        "attn_shared_prefix" => attention::shared_prefix,
        name if name.starts_with("attn_decode") => attention::decode,
        name if name.starts_with("attn_") => attention::segments,
        _ => return Ok(Outcome::Skip("room not built yet")),
    };
    let mut op = Op { case, golden: Golden::open(&case.path)?, s: Stream::cpu(2, Isa::detect()) };
    rule(&mut op)?;
    Ok(Outcome::Held(op.golden.report(&case.name, public)))
}
