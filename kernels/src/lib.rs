//! First floor: one room per op, each with its specification, an f64 reference, a CPU form and its tests.
//!
//! Every room follows `spec/LAW.md`'s one reduction order: a row's result is a function of that row's path, the weights and the
//! adapter alone. Launchers take the stream, then outputs, inputs, sizes, scalars.

#[macro_use]
pub mod cpu;
pub mod adamw;
pub mod attention;
pub mod bench;
pub mod conformance;
pub mod cuda;
pub mod decode_attention;
pub mod embedding;
pub mod gelu;
pub mod head_norm;
pub mod kv_store;
pub mod layer_norm;
pub mod linear;
pub mod logprob;
pub mod math;
pub mod panels;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod score;
pub mod selftest;
pub mod swiglu;
pub mod weight;

#[cfg(test)]
mod barriers;
#[cfg(test)]
mod check;
#[cfg(test)]
mod sanitizers;

/// Checks u32 [E, 2] as the {start, end} of spans within `len` elements.
pub(crate) fn spans(room: &str, spans: &[u32], len: usize) -> runtime::Result<()> {
    runtime::ensure!(spans.len().is_multiple_of(2), "{room}: examples has {} elements, wanted [E, 2]", spans.len());
    for (e, span) in spans.chunks_exact(2).enumerate() {
        let (start, end) = (span[0] as usize, span[1] as usize);
        runtime::ensure!(start <= end && end <= len, "{room}: example {e}: rows {start}..{end} of {len}");
    }
    Ok(())
}
