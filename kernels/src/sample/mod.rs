//! Sampling the next id of every row (LAW "Sampling"), and the random numbers it draws.
//!
//! ```text
//! z = softcap·tanh(z/softcap) if any;  for ids seen: z > 0 ? z/repetition : z·repetition;
//!     for ids in the completion: z −= frequency·count, then z −= presence;     then x = z·f32(1/T)
//! top-k    keeps x ≥ the k-th largest x, ties kept
//! mass     = round half to even of exp(x − max)·2^40, an integer (exactly an f32: below 2^24, or with 24 leading bits)
//! top-p    keeps (mass descending, id ascending) until the kept mass reaches max(1, ⌊P·total/2^32⌋), P = round(p·2^32)
//! min-p    keeps mass ≥ round(min_p·2^40)
//! pick     = first id whose cumulative kept mass exceeds ⌊draw·kept/2^64⌋;   logp = f32(ln mass − ln kept) in f64
//! T = 0    the lowest id of the largest z, logp 0
//! ```
//! Each filter works on the mass left by the one before; the roundings of P and of the min-p threshold are half to even.
//! Instead of a sort, top-k and top-p bisect the bits of their threshold; every sum is one of integers, hence exact.
//! logits: [B, V] f32, unchanged. draws: [B, 2] u32 (low, high). seen: [B, V] u32 or empty: bit 31 = in the prompt, the low 31
//! bits = count in the completion. ids: `[B]` u32 `=`. sampling_logps: `[B]` f32 `=`. Bytes: 4 BV, with `seen` 8 BV. FLOPs: about
//! 30 BV. order: law

use runtime::{Error, Result, Stream, View, disjoint, ensure};

mod cpu;
mod random;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use random::{SAMPLES, Tag, draw, key, philox};

/// Bit of `seen` that says: the id occurs in the prompt.
pub const IN_PROMPT: u32 = 1 << 31;

/// How the next id is chosen. The default samples the plain distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// T as it was given: rounding it before the division would miss f32(1/T). 0 is greedy.
    pub temperature: f64,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of ids seen; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once per occurrence in the completion; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted from ids that occur in the completion; 0 is off.
    pub presence_penalty: f32,
    /// cap·tanh(z/cap) before everything else; 0 is off.
    pub softcap: f32,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            softcap: 0.0,
        }
    }
}

impl Sampling {
    /// f32(1/T), rounded once.
    pub fn inv_temperature(&self) -> f32 {
        (1.0 / self.temperature) as f32
    }

    /// Whether every field is in its range; the text names field, wanted and got.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let t = self.temperature;
        if t != 0.0 && !(t > 0.0 && self.inv_temperature().is_normal()) {
            return Err(format!("temperature must be 0 or a positive number with a finite reciprocal in f32, got {t}"));
        }
        let fields = [
            ("top_p", self.top_p, "above 0 (1 is off)", self.top_p > 0.0),
            ("min_p", self.min_p, "in [0, 1]", (0.0..=1.0).contains(&self.min_p)),
            (
                "repetition_penalty",
                self.repetition_penalty,
                "positive and finite",
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
            ),
            ("frequency_penalty", self.frequency_penalty, "finite", self.frequency_penalty.is_finite()),
            ("presence_penalty", self.presence_penalty, "finite", self.presence_penalty.is_finite()),
            ("softcap", self.softcap, "0 or positive and finite", self.softcap >= 0.0 && self.softcap.is_finite()),
        ];
        match fields.iter().find(|(.., right)| !right) {
            Some((name, got, wanted, _)) => Err(format!("{name} must be {wanted}, got {got}")),
            None => Ok(()),
        }
    }
}

/// Picks one id per row; see the room's formula. A NaN logit, or a row without a finite maximum, is [`Error::Numeric`] naming
/// the row. V is below 2^24, so that no sum of masses overflows.
pub fn forward(
    s: &Stream,
    ids: View<'_>,
    sampling_logps: View<'_>,
    logits: View<'_>,
    draws: View<'_>,
    seen: View<'_>,
    sampling: &Sampling,
) -> Result<()> {
    let pool = s.pool("sample::forward")?;
    sampling.validate().map_err(|text| Error::Numeric(format!("sample::forward: {text}")))?;
    let b = ids.len();
    let v = logits.len().checked_div(b).unwrap_or(0);
    let fits = logits.len() == b * v && (b == 0 || v > 0) && v < 1 << 24;
    ensure!(fits, "sample::forward: logits have {} elements, wanted [{b}, V], 0 < V < 2^24", logits.len());
    let (outs, pairs) = (sampling_logps.len(), draws.len());
    ensure!(
        outs == b && pairs == 2 * b,
        "sample::forward: sampling_logps, draws: {outs}, {pairs} elements, wanted {b}, {}",
        2 * b
    );
    let seen_fits = seen.is_empty() || seen.len() == logits.len();
    ensure!(seen_fits, "sample::forward: seen has {} elements, wanted 0 or {}", seen.len(), logits.len());
    disjoint("sample::forward", &[ids, sampling_logps], &[logits, draws, seen])?;
    // SAFETY: the device is the CPU and `disjoint` keeps the outputs apart from everything else.
    let bad = unsafe {
        let out = (ids.host_mut()?, sampling_logps.host_mut()?);
        cpu::forward(pool, out, logits.host()?, draws.host()?, seen.host()?, v, sampling)
    };
    match bad {
        Some(row) => Err(Error::Numeric(format!("sample::forward: row {row} has a NaN logit or no finite maximum"))),
        None => Ok(()),
    }
}
