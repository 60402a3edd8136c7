//! What the authors' released code does: of K answers to a query the best and the worst, as a pair for DPO, weighed by the gap
//! between their rewards.
//!
//! Chosen is the first answer with the highest reward, rejected the first with the lowest; a query whose rewards are all equal is
//! left out. Pairs are sorted by gap, largest first; of P pairs the first floor(q·P) have weight 1, q = `release_top_frac` of the
//! iteration, the others σ(gap / `release_sigmoid_temp`). With l = −log σ(beta·h), h as in [`super::dpo`], `release_weight_mode`
//! - `intended`: Σ w·l / Σ w over the optimizer batch;
//! - `none`: the mean of l. This is what the released code computes: its loss is a mean before the weights come to it.
//!
//! d L / d logp of a chosen answer's token = −w·beta·σ(−beta·h) / Σ w, of a rejected one's the opposite.
//! Source: ALGORITHMS §2 (palm-biaoliu/PLE, `weighted_reward_diff_processor` and its DPO trainer).

use super::dpo::{Ratio, Seen, preference};
use super::{Answer, Example, Group, Loss, Method, Metrics, Needs, Outputs, Rollout, Sampling, Side, Totals};
use super::{check_outputs, column, finite, group, pairs};
use crate::config::{Config, WeightMode};
use crate::reward::norm::sigmoid;
use crate::{Error, Result};
use model::Batch;

/// The recipe with its settings. The weight of a pair is that of its chosen answer.
#[derive(Clone, Debug)]
pub struct Release {
    config: Config,
}

/// Best and worst of a group.
struct Pair {
    gap: f64,
    example: Example,
}

impl Release {
    /// From the settings; K is `num_generations`.
    pub fn new(config: &Config) -> Release {
        Release { config: config.clone() }
    }

    /// The share of pairs with weight 1.
    fn top(&self, iteration: u32) -> f64 {
        let shares = &self.config.release_top_frac;
        shares.get(iteration as usize).or(shares.last()).copied().unwrap_or(0.0)
    }
}

/// The pair of a group, None if its rewards are all equal.
fn pair(index: usize, row: u32, prompt: Vec<u32>, answers: Vec<Answer>) -> Option<Pair> {
    let mut trained = answers.into_iter().filter(|a| !a.ids.is_empty());
    let first = trained.next()?;
    let (mut best, mut worst) = (first.clone(), first);
    for answer in trained {
        if answer.reward > best.reward {
            best = answer;
        } else if answer.reward < worst.reward {
            worst = answer;
        }
    }
    let gap = best.reward - worst.reward;
    let answers = vec![best.ids, worst.ids];
    (gap > 0.0).then(|| Pair { gap, example: Example { row, prompt, answers, group: index as u32, ..Example::default() } })
}

impl Method for Release {
    fn rollout(&self, _: u32) -> Rollout {
        let samples = self.config.num_generations;
        Rollout::Sides(vec![Side { principle: false, samples, sampling: Sampling::of(&self.config) }])
    }

    fn needs(&self) -> Needs {
        Needs { reference: true, ..Needs::logp() }
    }

    fn label(&mut self, iteration: u32, groups: Vec<Group>) -> Result<(Vec<Example>, Metrics)> {
        let (all, mut kept, mut nonfinite) = (groups.len(), Vec::with_capacity(groups.len()), 0);
        for (i, group) in groups.into_iter().enumerate() {
            let answers: Vec<Answer> = group.sides.into_iter().flatten().collect();
            if !answers.iter().all(Answer::is_finite) {
                nonfinite += 1;
            } else {
                kept.extend(pair(i, group.row, group.prompt, answers));
            }
        }
        group::bounded(&self.config, nonfinite, all)?;
        let equal = all - nonfinite - kept.len();
        if kept.is_empty() {
            return Err(Error::Numeric(format!(
                "release: no pair survives in iteration {iteration}: of {all} queries {equal} have answers of equal reward and \
                 {nonfinite} numbers that are not finite; wanted a reward that tells answers apart"
            )));
        }
        kept.sort_by(|a, b| b.gap.total_cmp(&a.gap));
        let cut = (self.top(iteration) * kept.len() as f64).floor() as usize;
        let intended = self.config.release_weight_mode == WeightMode::Intended;
        let n = kept.len() as f64;
        let gap = kept.iter().map(|p| p.gap).sum::<f64>() / n;
        let weigh = |(rank, pair): (usize, Pair)| {
            let w = if rank < cut || !intended { 1.0 } else { sigmoid(pair.gap / self.config.release_sigmoid_temp) };
            Example { weights: vec![w as f32, 0.0], ..pair.example }
        };
        let examples: Vec<Example> = kept.into_iter().enumerate().map(weigh).collect();
        let weight = examples.iter().map(|e| f64::from(e.weights[0])).sum::<f64>() / n;
        let metrics = vec![
            ("release/pairs", n),
            ("release/equal_rewards", equal as f64),
            ("release/drop_nonfinite", nonfinite as f64),
            ("release/gap_mean", gap),
            ("release/weight_mean", weight),
        ];
        Ok((examples, metrics))
    }

    fn loss(&self, totals: &Totals, batch: &Batch, out: Outputs<&[f32]>, dout: Outputs<&mut [f32]>) -> Result<Loss> {
        check_outputs(batch, &out, &dout)?;
        dout.value.fill(0.0);
        let reference = column("release", "ref_logp", &batch.side.ref_logp, batch)?;
        let (wanted, got) = (batch.sequences.len(), batch.side.weight.len());
        if wanted != got {
            return Err(Error::Model(model::Error::Batch(format!("release: wanted weights of {wanted} answers, got {got}"))));
        }
        let weights = batch.examples.iter().map(|span| f64::from(batch.side.weight[span.start as usize]));
        let (mut value, mut seen) = (0.0, Seen::default());
        for (pair, weight) in pairs("release", batch).zip(weights) {
            let [chosen, rejected] = pair?;
            let [w, l] = [chosen, rejected].map(|span| Ratio::of(span, out.logp, reference));
            let (loss, slope) = preference(self.config.beta, w.log - l.log);
            value += weight * loss / totals.weight;
            seen.add(self.config.beta, w, l);
            dout.logp[chosen.range()].fill((weight * slope / totals.weight) as f32);
            dout.logp[rejected.range()].fill((-weight * slope / totals.weight) as f32);
        }
        Ok(Loss { value: finite("release", value)?, metrics: seen.metrics(totals.examples) })
    }

    fn branch(&self, _: u32) -> &'static str {
        "pair"
    }
}
