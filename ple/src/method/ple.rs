//! PLE: of every query x two answers, y to x alone and y' to x under the principle; both are trained under x alone.
//!
//! With normalised rewards r, r', Delta = r' − r and tau_i = max(tau_min, tau0·alpha^i):
//! - Delta > tau_i: *ranked*, L = lambda_rank·(L_rank + rank_sft_coef·(−m_h)), h = y', l = y;
//! - else *weighted*, L = lambda_sft·−(w·m_o + w'·m_p), w' = σ((r' − r)/T_w), w = σ((r − r')/T_w).
//!
//! m = S/len with `ple_len_norm`, else S with len 1; S = Σ logp of the answer; the mean over the pairs of the optimizer batch.
//! L_rank: hinge max(0, m_l − m_h + margin); logistic softplus(−beta_r·(m_h − m_l)); prob_hinge max(0, e^m_l − e^m_h);
//! dpo −log σ(beta·((S_h − S_h^ref) − (S_l − S_l^ref))). With `ple_kl_coef`: plus coef·mean over tokens of
//! e^d − 1 − d, d = logp^ref − logp (estimator k3).
//! Source: ALGORITHMS §6.2–§6.6; branches and threshold after Liu et al., PLE, ICML 2025, the forms of the losses are ours.

use super::{
    Example, Group, Loss, Method, Metrics, Needs, Outputs, Rollout, Sampling, Side, Totals, check_outputs, finite, softplus, sum,
};
use crate::config::{Config, Rank};
use crate::reward::norm::{Normalisation, sigmoid};
use crate::{Error, Result};
use model::Batch;

mod label;

/// Tag of an example of the weighted branch.
pub const WEIGHTED: u32 = 0;
/// Tag of a ranked pair whose guided answer is the higher one.
pub const GUIDED_HIGHER: u32 = 1;
/// Tag of a ranked pair whose plain answer is the higher one (`ple_worse` swap).
pub const PLAIN_HIGHER: u32 = 2;

/// The method with its settings and the calibration of the rewards.
#[derive(Clone, Debug)]
pub struct Ple {
    config: Config,
    norm: Normalisation,
}

impl Ple {
    /// From the settings; `unit` says whether the rewards lie in [0, 1].
    pub fn new(config: &Config, unit: bool) -> Ple {
        Ple { config: config.clone(), norm: Normalisation::new(config.reward_norm, config.reward_calib, unit) }
    }

    /// The threshold of an iteration, computed from its number.
    pub fn tau(&self, iteration: u32) -> f64 {
        let c = &self.config;
        c.ple_tau_min.max(c.ple_tau0 * c.ple_alpha.powf(f64::from(iteration)))
    }

    /// Loss of a ranked pair and its derivatives by S of the lower and the higher answer.
    fn rank(&self, low: Seq, high: Seq) -> (f64, f64, f64) {
        let c = &self.config;
        let gap = high.m - low.m;
        let (value, d_low, d_high) = match c.ple_rank {
            Rank::Hinge if c.ple_margin > gap => (c.ple_margin - gap, 1.0 / low.len, -1.0 / high.len),
            Rank::Hinge => (0.0, 0.0, 0.0),
            Rank::Logistic => {
                let slope = c.ple_beta_rank * sigmoid(-c.ple_beta_rank * gap);
                (softplus(-c.ple_beta_rank * gap), slope / low.len, -slope / high.len)
            }
            Rank::ProbHinge => {
                let (p_low, p_high) = (low.m.exp(), high.m.exp());
                if p_low > p_high { (p_low - p_high, p_low / low.len, -p_high / high.len) } else { (0.0, 0.0, 0.0) }
            }
            Rank::Dpo => {
                let h = (high.sum - high.reference) - (low.sum - low.reference);
                let slope = c.beta * sigmoid(-c.beta * h);
                (softplus(-c.beta * h), slope, -slope)
            }
        };
        (value - c.ple_rank_sft_coef * high.m, d_low, d_high - c.ple_rank_sft_coef / high.len)
    }

    /// One answer's log-probabilities as sums.
    fn seq(&self, logp: &[f32], reference: &[f32]) -> Seq {
        let len = if self.config.ple_len_norm { logp.len() as f64 } else { 1.0 };
        Seq { sum: sum(logp), reference: sum(reference), len, m: sum(logp) / len }
    }
}

/// One answer in the loss.
#[derive(Clone, Copy)]
struct Seq {
    /// Σ logp.
    sum: f64,
    /// Σ logp under the reference, 0 if there is none.
    reference: f64,
    /// Tokens, or 1 without length normalisation.
    len: f64,
    /// sum / len.
    m: f64,
}

impl Method for Ple {
    fn rollout(&self, _: u32) -> Rollout {
        let sampling = Sampling::of(&self.config);
        Rollout::Sides([false, true].map(|principle| Side { principle, samples: 1, sampling }).to_vec())
    }

    fn needs(&self) -> Needs {
        Needs { reference: self.config.ple_rank == Rank::Dpo || self.config.ple_kl_coef > 0.0, ..Needs::logp() }
    }

    fn label(&mut self, iteration: u32, groups: Vec<Group>) -> Result<(Vec<Example>, Metrics)> {
        let tau = self.tau(iteration);
        label::label(&self.config, &mut self.norm, tau, groups)
    }

    fn remarks(&self, labelled: &Metrics) -> Vec<String> {
        let floored = labelled.contains(&("ple/scale_floored", 1.0));
        let text = "the plain answers' rewards hardly differ: the scale of reward_norm is at its floor";
        floored.then(|| text.to_string()).into_iter().collect()
    }

    fn loss(&self, totals: &Totals, batch: &Batch, out: Outputs<&[f32]>, dout: Outputs<&mut [f32]>) -> Result<Loss> {
        check_outputs(batch, &out, &dout)?;
        dout.value.fill(0.0);
        let invalid = |text: String| Error::Model(model::Error::Batch(text));
        let (weights, reference) = (&batch.side.weight, &batch.side.ref_logp);
        if weights.len() != batch.sequences.len() || self.needs().reference && reference.len() != batch.loss_rows() {
            return Err(invalid(
                "ple: wanted a weight per answer and, with dpo or KL, a reference log-probability per row".into(),
            ));
        }
        let c = &self.config;
        let mut sums = Sums::default();
        for (span, tag) in batch.examples.iter().zip(&batch.tags) {
            let Some([plain, guided]) = batch.sequences.get(span.range()) else {
                return Err(invalid(format!("ple: wanted 2 answers per example, got {}", span.len())));
            };
            let rows = |span: &model::Span| (&out.logp[span.range()], reference.get(span.range()).unwrap_or(&[]));
            let [o, p] = [plain, guided].map(rows).map(|(logp, reference)| self.seq(logp, reference));
            let (value, d_o, d_p) = match *tag {
                WEIGHTED => {
                    let [w_o, w_p] = [0, 1].map(|i| f64::from(weights[span.start as usize + i]));
                    let value = -c.ple_lambda_sft * (w_o * o.m + w_p * p.m);
                    sums.weighted += value;
                    (value, -c.ple_lambda_sft * w_o / o.len, -c.ple_lambda_sft * w_p / p.len)
                }
                GUIDED_HIGHER | PLAIN_HIGHER => {
                    let guided_higher = *tag == GUIDED_HIGHER;
                    let (low, high) = if guided_higher { (o, p) } else { (p, o) };
                    let (value, d_low, d_high) = self.rank(low, high);
                    sums.ranked += c.ple_lambda_rank * value;
                    sums.active += f64::from(d_low > 0.0);
                    let (d_low, d_high) = (c.ple_lambda_rank * d_low, c.ple_lambda_rank * d_high);
                    let (d_o, d_p) = if guided_higher { (d_low, d_high) } else { (d_high, d_low) };
                    (c.ple_lambda_rank * value, d_o, d_p)
                }
                other => return Err(invalid(format!("ple: wanted a tag of 0, 1 or 2, got {other}"))),
            };
            sums.value += value;
            sums.plain += o.m;
            sums.guided += p.m;
            sums.ordered += f64::from(p.m > o.m);
            dout.logp[plain.range()].fill((d_o / totals.examples) as f32);
            dout.logp[guided.range()].fill((d_p / totals.examples) as f32);
        }
        let kl = if reference.is_empty() { None } else { Some(self.kl(totals, &out, reference, dout.logp)) };
        let value = sums.value / totals.examples + kl.filter(|_| c.ple_kl_coef > 0.0).map_or(0.0, |kl| c.ple_kl_coef * kl);
        let value = finite("ple", value)?;
        Ok(Loss { value, metrics: sums.metrics(totals.examples, kl) })
    }

    fn branch(&self, tag: u32) -> &'static str {
        match tag {
            GUIDED_HIGHER => "ranked",
            PLAIN_HIGHER => "ranked_plain",
            _ => "weighted",
        }
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({ "calibration": self.norm.state() })
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        self.norm.restore(state.get("calibration").unwrap_or(&serde_json::Value::Null))
    }
}

impl Ple {
    /// Mean k3 per token of the optimizer batch; adds its gradient if it is part of the loss.
    fn kl(&self, totals: &Totals, out: &Outputs<&[f32]>, reference: &[f32], dlogp: &mut [f32]) -> f64 {
        let mut sum = 0.0;
        for ((logp, reference), dlogp) in out.logp.iter().zip(reference).zip(dlogp) {
            let d = f64::from(*reference) - f64::from(*logp);
            sum += d.exp_m1() - d;
            if self.config.ple_kl_coef > 0.0 {
                *dlogp = (f64::from(*dlogp) - self.config.ple_kl_coef * d.exp_m1() / totals.tokens) as f32;
            }
        }
        sum / totals.tokens
    }
}

/// Sums over the pairs of a micro-batch.
#[derive(Default)]
struct Sums {
    value: f64,
    ranked: f64,
    weighted: f64,
    plain: f64,
    guided: f64,
    ordered: f64,
    active: f64,
}

impl Sums {
    /// Shares of the optimizer batch's means; `rank_active` and `order` are shares of all its pairs.
    fn metrics(&self, pairs: f64, kl: Option<f64>) -> Metrics {
        let means = [
            ("ple/loss_rank", self.ranked),
            ("ple/loss_weighted", self.weighted),
            ("ple/logp_orig", self.plain),
            ("ple/logp_guided", self.guided),
            ("ple/order_accuracy", self.ordered),
            ("ple/rank_active_frac", self.active),
        ];
        means.map(|(name, sum)| (name, sum / pairs)).into_iter().chain(kl.map(|kl| ("kl", kl))).collect()
    }
}
