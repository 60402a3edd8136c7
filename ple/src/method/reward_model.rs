//! A reward model: a scalar head on the last token of each answer, trained so that the chosen answer w of a pair scores above the
//! rejected one l.
//!
//! The mean over the pairs of the optimizer batch of −log σ(r_w − r_l − margin) + c·(r_w + r_l)^2; margin is the row's (0 without
//! one), c is `center_rewards_coefficient`. d L / d r_w = −σ(−(r_w − r_l − margin)) + 2c·(r_w + r_l), d L / d r_l likewise with the
//! first sign turned. This loss reads values, not log-probabilities.
//! Source: ALGORITHMS §3.2 (TRL's RewardTrainer; Bradley and Terry 1952, Ouyang et al. 2022; the centring of Eisenstein et al. 2023).

use super::{Example, Group, Loss, Method, Metrics, Needs, Outputs, Rollout, Totals};
use super::{column, finite, pair_examples, pairs, softplus};
use crate::Result;
use crate::config::Config;
use crate::reward::norm::sigmoid;
use model::Batch;

/// Bradley-Terry with a centring coefficient. The margin of a pair travels as the weight of its chosen answer.
#[derive(Clone, Copy, Debug)]
pub struct RewardModel {
    centring: f64,
}

impl RewardModel {
    /// From the settings.
    pub fn new(c: &Config) -> RewardModel {
        RewardModel { centring: c.center_rewards_coefficient.unwrap_or(0.0) }
    }
}

impl Method for RewardModel {
    fn rollout(&self, _: u32) -> Rollout {
        Rollout::None
    }

    fn needs(&self) -> Needs {
        Needs::scalar()
    }

    fn label(&mut self, _: u32, groups: Vec<Group>) -> Result<(Vec<Example>, Metrics)> {
        let margins: Vec<f32> = groups.iter().map(|g| g.margin as f32).collect();
        let mut examples = pair_examples("reward", groups)?;
        if margins.iter().any(|m| *m != 0.0) {
            examples.iter_mut().zip(margins).for_each(|(example, margin)| example.weights = vec![margin, 0.0]);
        }
        Ok((examples, Vec::new()))
    }

    fn loss(&self, totals: &Totals, batch: &Batch, out: Outputs<&[f32]>, dout: Outputs<&mut [f32]>) -> Result<Loss> {
        let value = column("reward", "values", out.value, batch)?;
        column("reward", "dvalues", dout.value, batch)?;
        dout.logp.fill(0.0);
        let margins = &batch.side.weight;
        let [mut loss, mut w, mut l, mut right] = [0.0; 4];
        for pair in pairs("reward", batch) {
            let [chosen, rejected] = pair?.map(|span| span.start as usize);
            let (r_w, r_l) = (f64::from(value[chosen]), f64::from(value[rejected]));
            // One row per answer: the row is the sequence.
            let gap = r_w - r_l - margins.get(chosen).map_or(0.0, |m| f64::from(*m));
            let (slope, centre) = (sigmoid(-gap), 2.0 * self.centring * (r_w + r_l));
            loss += softplus(-gap) + self.centring * (r_w + r_l) * (r_w + r_l);
            (w, l, right) = (w + r_w, l + r_l, right + f64::from(r_w > r_l));
            dout.value[chosen] = ((centre - slope) / totals.examples) as f32;
            dout.value[rejected] = ((centre + slope) / totals.examples) as f32;
        }
        let sums = [("rewards/chosen", w), ("rewards/rejected", l), ("rewards/accuracies", right), ("rewards/margins", w - l)];
        let metrics = sums.map(|(name, sum)| (name, sum / totals.examples)).to_vec();
        Ok(Loss { value: finite("reward", loss / totals.examples)?, metrics })
    }

    fn branch(&self, _: u32) -> &'static str {
        "pair"
    }
}
