//! GRPO: K answers to every query, each weighed by its reward within the group.
//!
//! A_k = (r_k − mean)/(std + 1e-4), std with n − 1, of the group's rewards (`scale_rewards` batch: std of the iteration's; none: 1).
//! With ratio = exp(logp − logp_old) of a token, the mean over all tokens of the optimizer batch (`dapo`) of
//! −min(ratio·A, clip(ratio, 1 − epsilon, 1 + epsilon)·A) + beta·(e^d − 1 − d), d = logp^ref − logp.
//! d L / d logp = (−A·ratio·[the first is the smaller] + beta·(1 − e^d)) / tokens.
//!
//! logp_old is what was stored when the answer was drawn: at temperature 1, the one this method is sampled with.
//! Source: ALGORITHMS §3.2 (TRL's GRPOTrainer; Shao et al. 2024, the mean over tokens after Yu et al. 2025).

use super::{Example, Group, Loss, Method, Metrics, Needs, Outputs, Rollout, Sampling, Side, Totals};
use super::{check_outputs, column, finite, group};
use crate::config::{Config, Scale};
use crate::{Error, Result};
use model::Batch;

/// The method with its settings. The advantages of an example's answers travel as their weights.
#[derive(Clone, Debug)]
pub struct Grpo {
    config: Config,
}

impl Grpo {
    /// From the settings; K is `num_generations`.
    pub fn new(config: &Config) -> Grpo {
        Grpo { config: config.clone() }
    }
}

impl Method for Grpo {
    fn rollout(&self, _: u32) -> Rollout {
        let samples = self.config.num_generations;
        Rollout::Sides(vec![Side { principle: false, samples, sampling: Sampling::of(&self.config) }])
    }

    fn needs(&self) -> Needs {
        Needs { reference: self.config.beta > 0.0, ..Needs::logp() }
    }

    fn label(&mut self, _: u32, groups: Vec<Group>) -> Result<(Vec<Example>, Metrics)> {
        let (kept, metrics) = group::keep("grpo", &self.config, groups, self.config.beta > 0.0)?;
        let whole: Vec<f64> = kept.iter().flat_map(|(rewards, _)| rewards.iter().copied()).collect();
        let (_, whole) = group::moments(&whole);
        let example = |(rewards, example): (Vec<f64>, Example)| {
            let (mean, own) = group::moments(&rewards);
            let scale = match self.config.scale_rewards {
                Scale::Group => own + group::EPSILON,
                Scale::Batch => whole + group::EPSILON,
                Scale::None => 1.0,
            };
            Example { weights: rewards.iter().map(|r| ((r - mean) / scale) as f32).collect(), ..example }
        };
        Ok((kept.into_iter().map(example).collect(), metrics))
    }

    fn remarks(&self, labelled: &Metrics) -> Vec<String> {
        group::remarks(labelled)
    }

    fn loss(&self, totals: &Totals, batch: &Batch, out: Outputs<&[f32]>, dout: Outputs<&mut [f32]>) -> Result<Loss> {
        check_outputs(batch, &out, &dout)?;
        dout.value.fill(0.0);
        let old = column("grpo", "old_logp", &batch.side.old_logp, batch)?;
        let beta = self.config.beta;
        let reference = if beta > 0.0 { column("grpo", "ref_logp", &batch.side.ref_logp, batch)? } else { &[] };
        let (wanted, got) = (batch.sequences.len(), batch.side.weight.len());
        if wanted != got {
            return Err(Error::Model(model::Error::Batch(format!("grpo: wanted weights of {wanted} answers, got {got}"))));
        }
        let [mut value, mut clipped, mut kl] = [0.0; 3];
        for (span, a) in batch.sequences.iter().zip(&batch.side.weight) {
            let a = f64::from(*a);
            for i in span.range() {
                let logp = f64::from(out.logp[i]);
                let (loss, slope) = group::clipped(logp - f64::from(old[i]), a, self.config.epsilon);
                let d = reference.get(i).map_or(0.0, |reference| f64::from(*reference) - logp);
                value += (loss + beta * (d.exp_m1() - d)) / totals.tokens;
                clipped += f64::from(slope == 0.0 && a != 0.0);
                kl += d.exp_m1() - d;
                dout.logp[i] = ((slope - beta * d.exp_m1()) / totals.tokens) as f32;
            }
        }
        let mut metrics = vec![("grpo/clip_ratio", clipped / totals.tokens)];
        metrics.extend((beta > 0.0).then_some(("kl", kl / totals.tokens)));
        Ok(Loss { value: finite("grpo", value)?, metrics })
    }

    fn branch(&self, _: u32) -> &'static str {
        "group"
    }
}
