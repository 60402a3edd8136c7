//! Direct preference optimisation: of a pair the chosen answer w is made likelier than the rejected one l, measured against a
//! reference.
//!
//! With S = Σ logp of an answer and h = (S_w − S_w^ref) − (S_l − S_l^ref), the mean over the pairs of the optimizer batch of
//! - `sigmoid`: −(1 − e)·log σ(beta·h) − e·log σ(−beta·h), e = `label_smoothing`, 0 unless given;
//! - `hinge`: max(0, 1 − beta·h);
//! - `robust`: (−(1 − e)·log σ(beta·h) + e·log σ(−beta·h)) / (1 − 2e);
//! - `ipo`: (h' − 1/(2·beta))^2, h' as h with each log-ratio divided by its answer's tokens;
//! - `sigmoid_norm`: −log σ(beta·h').
//!
//! d L / d logp of a token is d L / d S of its answer. The reference's log-probabilities are computed once, before the first step.
//! Source: ALGORITHMS §3.2 (TRL's DPOTrainer; Rafailov et al. 2023, Azar et al. 2023 for ipo, Zhao et al. 2023 for hinge, Chowdhury
//! et al. 2024 for robust, Mitchell 2023 for the smoothed sigmoid).

use super::{Example, Group, Loss, Method, Metrics, Needs, Outputs, Rollout, Totals};
use super::{check_outputs, column, finite, pair_examples, pairs, softplus, sum};
use crate::Result;
use crate::config::{Config, LossType};
use crate::reward::norm::sigmoid;
use model::Batch;

/// The form of the loss and its constants.
#[derive(Clone, Copy, Debug)]
pub struct Dpo {
    form: LossType,
    beta: f64,
    smoothing: f64,
}

impl Dpo {
    /// From the settings.
    pub fn new(c: &Config) -> Dpo {
        Dpo { form: c.loss_type.unwrap_or(LossType::Sigmoid), beta: c.beta, smoothing: c.label_smoothing }
    }

    /// Loss of a pair and its derivatives by S of the chosen and the rejected answer.
    fn pair(&self, chosen: Ratio, rejected: Ratio) -> (f64, f64, f64) {
        let (beta, e) = (self.beta, self.smoothing);
        let h = chosen.log - rejected.log;
        let by_token = chosen.log / chosen.len - rejected.log / rejected.len;
        let both = |(value, slope): (f64, f64)| (value, slope, -slope);
        let each = |(value, slope): (f64, f64)| (value, slope / chosen.len, -slope / rejected.len);
        match self.form {
            LossType::Hinge => both(if beta * h < 1.0 { (1.0 - beta * h, -beta) } else { (0.0, 0.0) }),
            LossType::Ipo => {
                let off = by_token - 0.5 / beta;
                each((off * off, 2.0 * off))
            }
            LossType::SigmoidNorm => each(preference(beta, by_token)),
            LossType::Robust => {
                let value = (1.0 - e) * softplus(-beta * h) - e * softplus(beta * h);
                let slope = -(1.0 - e) * sigmoid(-beta * h) - e * sigmoid(beta * h);
                both((value / (1.0 - 2.0 * e), beta * slope / (1.0 - 2.0 * e)))
            }
            _ => {
                let value = (1.0 - e) * softplus(-beta * h) + e * softplus(beta * h);
                both((value, beta * (e * sigmoid(beta * h) - (1.0 - e) * sigmoid(-beta * h))))
            }
        }
    }
}

/// −log σ(beta·h) and its derivative by h.
pub(super) fn preference(beta: f64, h: f64) -> (f64, f64) {
    (softplus(-beta * h), -beta * sigmoid(-beta * h))
}

/// One answer against the reference.
#[derive(Clone, Copy)]
pub(super) struct Ratio {
    /// S.
    pub sum: f64,
    /// S − S^ref.
    pub log: f64,
    /// Tokens.
    pub len: f64,
}

impl Ratio {
    /// Of an answer's rows.
    pub fn of(span: model::Span, logp: &[f32], reference: &[f32]) -> Ratio {
        let (own, other) = (sum(&logp[span.range()]), sum(&reference[span.range()]));
        Ratio { sum: own, log: own - other, len: span.len() as f64 }
    }
}

/// Sums over the pairs of a micro-batch, for the log.
#[derive(Default)]
pub(super) struct Seen {
    chosen: f64,
    rejected: f64,
    right: f64,
    logps: [f64; 2],
}

impl Seen {
    /// Adds a pair.
    pub fn add(&mut self, beta: f64, chosen: Ratio, rejected: Ratio) {
        self.chosen += beta * chosen.log;
        self.rejected += beta * rejected.log;
        self.right += f64::from(chosen.log > rejected.log);
        self.logps[0] += chosen.sum;
        self.logps[1] += rejected.sum;
    }

    /// Their share of the means over `examples`, by TRL's names.
    pub fn metrics(&self, examples: f64) -> Metrics {
        let sums = [
            ("rewards/chosen", self.chosen),
            ("rewards/rejected", self.rejected),
            ("rewards/accuracies", self.right),
            ("rewards/margins", self.chosen - self.rejected),
            ("logps/chosen", self.logps[0]),
            ("logps/rejected", self.logps[1]),
        ];
        sums.map(|(name, sum)| (name, sum / examples)).to_vec()
    }
}

impl Method for Dpo {
    fn rollout(&self, _: u32) -> Rollout {
        Rollout::None
    }

    fn needs(&self) -> Needs {
        Needs { reference: true, ..Needs::logp() }
    }

    fn label(&mut self, _: u32, groups: Vec<Group>) -> Result<(Vec<Example>, Metrics)> {
        Ok((pair_examples("dpo", groups)?, Vec::new()))
    }

    fn loss(&self, totals: &Totals, batch: &Batch, out: Outputs<&[f32]>, dout: Outputs<&mut [f32]>) -> Result<Loss> {
        check_outputs(batch, &out, &dout)?;
        dout.value.fill(0.0);
        let reference = column("dpo", "ref_logp", &batch.side.ref_logp, batch)?;
        let (mut value, mut seen) = (0.0, Seen::default());
        for pair in pairs("dpo", batch) {
            let [chosen, rejected] = pair?;
            let [w, l] = [chosen, rejected].map(|span| Ratio::of(span, out.logp, reference));
            let (loss, d_chosen, d_rejected) = self.pair(w, l);
            value += loss / totals.examples;
            seen.add(self.beta, w, l);
            dout.logp[chosen.range()].fill((d_chosen / totals.examples) as f32);
            dout.logp[rejected.range()].fill((d_rejected / totals.examples) as f32);
        }
        Ok(Loss { value: finite("dpo", value)?, metrics: seen.metrics(totals.examples) })
    }

    fn branch(&self, _: u32) -> &'static str {
        "pair"
    }
}
