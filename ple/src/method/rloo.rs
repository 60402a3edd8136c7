//! RLOO: K answers to every query, each weighed by how much better it is than the mean of the K − 1 others.
//!
//! r'_k = r_k − beta·Σ_t (logp_old − logp_ref), A_k = r'_k − mean of the other r'; with `normalize_advantages` A becomes
//! (A − mean)/(std + 1e-4) over the iteration, std with n − 1. With S = Σ logp and rho = exp(S − S_old), the mean over the answers of
//! the optimizer batch of −min(rho·A, clip(rho, 1 − epsilon, 1 + epsilon)·A).
//! d L / d logp of a token = −A·rho / answers where the first is the smaller, else 0.
//!
//! logp_old is what was stored when the answer was drawn: at temperature 1, the one this method is sampled with.
//! Source: ALGORITHMS §3.2 (TRL's RLOOTrainer; Ahmadian et al. 2024).

use super::{Example, Group, Loss, Method, Metrics, Needs, Outputs, Rollout, Sampling, Side, Totals};
use super::{check_outputs, column, finite, group, sum};
use crate::Result;
use crate::config::Config;
use model::{Batch, Columns};

/// The method with its settings. The rewards of an example's answers travel as their weights.
#[derive(Clone, Debug)]
pub struct Rloo {
    config: Config,
}

impl Rloo {
    /// From the settings; K is `num_generations`.
    pub fn new(config: &Config) -> Rloo {
        Rloo { config: config.clone() }
    }

    /// A of every answer, in order: `examples` with their rewards, and Σ (logp_old − logp_ref) of every answer.
    fn advantages_of(&self, examples: &[Example], kl: &[f64]) -> Vec<f64> {
        let (mut all, mut kl) = (Vec::with_capacity(kl.len()), kl.iter());
        for example in examples {
            let own: Vec<f64> =
                example.weights.iter().zip(&mut kl).map(|(r, kl)| f64::from(*r) - self.config.beta * kl).collect();
            let (total, others) = (own.iter().sum::<f64>(), own.len() as f64 - 1.0);
            all.extend(own.iter().map(|r| r - (total - r) / others));
        }
        if self.config.normalize_advantages {
            let (mean, deviation) = group::moments(&all);
            all.iter_mut().for_each(|a| *a = (*a - mean) / (deviation + group::EPSILON));
        }
        all
    }
}

impl Method for Rloo {
    fn rollout(&self, _: u32) -> Rollout {
        let samples = self.config.num_generations;
        Rollout::Sides(vec![Side { principle: false, samples, sampling: Sampling::of(&self.config) }])
    }

    fn needs(&self) -> Needs {
        Needs { reference: self.config.beta > 0.0, ..Needs::logp() }
    }

    fn label(&mut self, _: u32, groups: Vec<Group>) -> Result<(Vec<Example>, Metrics)> {
        let (kept, metrics) = group::keep("rloo", &self.config, groups, self.config.beta > 0.0)?;
        let example = |(rewards, example): (Vec<f64>, Example)| {
            let weights = rewards.iter().map(|r| *r as f32).collect();
            Example { weights, ..example }
        };
        Ok((kept.into_iter().map(example).collect(), metrics))
    }

    fn remarks(&self, labelled: &Metrics) -> Vec<String> {
        group::remarks(labelled)
    }

    fn advantages(&self, examples: &[Example], side: &mut Columns) -> Result<()> {
        let (mut kl, mut row) = (Vec::new(), 0);
        let lengths: Vec<usize> = examples.iter().flat_map(|e| e.answers.iter().map(Vec::len)).collect();
        for len in &lengths {
            let rows = row..row + len;
            let ratio = side.ref_logp.get(rows.clone()).map_or(0.0, |reference| sum(&side.old_logp[rows]) - sum(reference));
            kl.push(ratio);
            row += len;
        }
        let all = self.advantages_of(examples, &kl);
        side.advantage = all.iter().zip(&lengths).flat_map(|(a, len)| std::iter::repeat_n(*a as f32, *len)).collect();
        Ok(())
    }

    fn loss(&self, totals: &Totals, batch: &Batch, out: Outputs<&[f32]>, dout: Outputs<&mut [f32]>) -> Result<Loss> {
        check_outputs(batch, &out, &dout)?;
        dout.value.fill(0.0);
        let old = column("rloo", "old_logp", &batch.side.old_logp, batch)?;
        let advantage = column("rloo", "advantage", &batch.side.advantage, batch)?;
        let [mut value, mut clipped, mut moved] = [0.0; 3];
        for span in &batch.sequences {
            let a = f64::from(advantage[span.start as usize]);
            let log_ratio = sum(&out.logp[span.range()]) - sum(&old[span.range()]);
            let (loss, slope) = group::clipped(log_ratio, a, self.config.epsilon);
            value += loss / totals.answers;
            clipped += f64::from(slope == 0.0 && a != 0.0);
            moved += log_ratio.abs();
            dout.logp[span.range()].fill((slope / totals.answers) as f32);
        }
        let metrics = vec![("rloo/clip_ratio", clipped / totals.answers), ("rloo/log_ratio_abs", moved / totals.answers)];
        Ok(Loss { value: finite("rloo", value)?, metrics })
    }

    fn branch(&self, _: u32) -> &'static str {
        "group"
    }
}
