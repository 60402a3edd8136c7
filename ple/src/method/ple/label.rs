//! Which pairs are trained and how: the filters of ALGORITHMS §6.4, then the branch of each pair.

use super::{GUIDED_HIGHER, PLAIN_HIGHER, WEIGHTED};
use crate::config::{Config, Keep, Truncated, Weight, Worse};
use crate::method::{Answer, Example, Group, Metrics};
use crate::reward::norm::{Normalisation, sigmoid};
use crate::{Error, Result};

/// A pair that passed the filters.
struct Pair {
    row: u32,
    /// Which group.
    group: u32,
    prompt: Vec<u32>,
    plain: Vec<u32>,
    guided: Vec<u32>,
    /// Raw rewards of the two.
    raw: [f64; 2],
}

/// What happened to the pairs of an iteration.
#[derive(Default)]
struct Counts {
    nonfinite: usize,
    empty: usize,
    truncated: usize,
    dup: usize,
    ranked: usize,
    worse: usize,
    skipped: usize,
    guided_better: usize,
}

/// Examples in query order, answers always [y, y'], and what the log says.
pub fn label(c: &Config, norm: &mut Normalisation, tau: f64, groups: Vec<Group>) -> Result<(Vec<Example>, Metrics)> {
    let (mut counts, all) = (Counts::default(), groups.len());
    let mut pairs = Vec::with_capacity(all);
    for (i, group) in groups.into_iter().enumerate() {
        pairs.extend(filter(c, i as u32, group, &mut counts)?);
    }
    if counts.nonfinite as f64 > c.ple_max_nonfinite * all as f64 {
        let (n, most) = (counts.nonfinite, c.ple_max_nonfinite);
        return Err(Error::Numeric(format!(
            "{n} of {all} pairs have a reward or log-probability that is not finite; wanted at most {most} of them (ple_max_nonfinite)"
        )));
    }
    let floored = norm.calibrate(&pairs.iter().map(|p| p.raw[0]).collect::<Vec<_>>());
    let kept = pairs.len();
    let mut means = [0.0; 5];
    let mut examples = Vec::with_capacity(kept);
    for pair in pairs {
        let [plain, guided] = pair.raw;
        let delta = norm.delta(plain, guided);
        let seen = [plain, guided, norm.normalise(plain), norm.normalise(guided), delta];
        means.iter_mut().zip(seen).for_each(|(m, v)| *m += v / kept as f64);
        counts.guided_better += usize::from(delta > 0.0);
        examples.extend(branch(c, norm, tau, pair, &mut counts)?);
    }
    let mut metrics = counts.metrics(all, kept, tau, means);
    metrics.push(("ple/scale_floored", f64::from(floored)));
    metrics
        .extend(norm.mean_scale().into_iter().flat_map(|(mean, scale)| [("ple/calib_mean", mean), ("ple/calib_scale", scale)]));
    Ok((examples, metrics))
}

/// The pair of a group, or None if it is left out; counts why.
fn filter(c: &Config, index: u32, group: Group, counts: &mut Counts) -> Result<Option<Pair>> {
    let row = group.row;
    let sides: Vec<Vec<Answer>> = group.sides;
    let answers: Vec<Answer> = sides.into_iter().flatten().collect();
    let [plain, guided]: [Answer; 2] = answers.try_into().map_err(|a: Vec<Answer>| {
        Error::Usage(format!("ple: row {row}: wanted one answer on each of two sides, got {}", a.len()))
    })?;
    let both = [&plain, &guided];
    if both.iter().any(|a| !a.reward.is_finite() || a.logps.iter().any(|l| !l.is_finite())) {
        counts.nonfinite += 1;
        return Ok(None);
    }
    // The end token alone is an empty answer that can be trained; no token at all cannot.
    if both.iter().any(|a| a.ids.len() <= usize::from(a.finished)) {
        counts.empty += 1;
        if c.ple_empty == Keep::Drop || both.iter().any(|a| a.ids.is_empty()) {
            return Ok(None);
        }
    }
    let mut raw = [plain.reward, guided.reward];
    if both.iter().any(|a| !a.finished) {
        counts.truncated += 1;
        match c.ple_truncated {
            Truncated::Keep => {}
            Truncated::Drop => return Ok(None),
            Truncated::Penalize => {
                raw.iter_mut().zip(both).filter(|(_, a)| !a.finished).for_each(|(r, _)| *r -= c.missing_eos_penalty);
            }
        }
    }
    if plain.ids == guided.ids {
        counts.dup += 1;
        if c.ple_dup == Keep::Drop {
            return Ok(None);
        }
        // The same answer has the same reward, even if its source has noise.
        raw[1] = raw[0];
    }
    Ok(Some(Pair { row, group: index, prompt: group.prompt, plain: plain.ids, guided: guided.ids, raw }))
}

/// The example of a pair, or None if it is skipped.
fn branch(c: &Config, norm: &Normalisation, tau: f64, pair: Pair, counts: &mut Counts) -> Result<Option<Example>> {
    let [plain, guided] = pair.raw;
    let delta = norm.delta(plain, guided);
    let mut weights = weights(c, norm.normalise(plain), norm.normalise(guided), pair.row)?;
    let mut tag = if delta > tau { GUIDED_HIGHER } else { WEIGHTED };
    if delta < -tau {
        counts.worse += 1;
        match c.ple_worse {
            Worse::Weighted => {}
            Worse::Swap => tag = PLAIN_HIGHER,
            Worse::BestOnly => weights = [1.0, 0.0],
            Worse::Skip => {
                counts.skipped += 1;
                return Ok(None);
            }
        }
    }
    counts.ranked += usize::from(tag != WEIGHTED);
    let weights = weights.map(|w| w as f32).to_vec();
    Ok(Some(Example {
        row: pair.row,
        prompt: pair.prompt,
        answers: vec![pair.plain, pair.guided],
        weights,
        tag,
        group: pair.group,
        ..Example::default()
    }))
}

/// Weights of y and y' in the weighted branch.
fn weights(c: &Config, plain: f64, guided: f64, row: u32) -> Result<[f64; 2]> {
    match c.ple_weight {
        Weight::Softmax => {
            let x = (guided - plain) / c.ple_weight_temp;
            Ok([sigmoid(-x), sigmoid(x)])
        }
        Weight::Equal => Ok([0.5, 0.5]),
        Weight::Proportional if plain >= 0.0 && guided >= 0.0 && plain + guided > 0.0 => {
            Ok([plain / (plain + guided), guided / (plain + guided)])
        }
        Weight::Proportional => {
            let text = format!("ple_weight proportional: row {row}: wanted rewards above 0, got {plain} and {guided}");
            Err(Error::Numeric(text))
        }
    }
}

impl Counts {
    fn metrics(&self, all: usize, kept: usize, tau: f64, means: [f64; 5]) -> Metrics {
        let share = |n: usize| if kept == 0 { 0.0 } else { n as f64 / kept as f64 };
        let [raw_plain, raw_guided, plain, guided, delta] = means;
        vec![
            ("ple/tau", tau),
            ("ple/rank_frac", share(self.ranked)),
            ("ple/worse_frac", share(self.worse)),
            ("ple/guided_better_frac", share(self.guided_better)),
            ("ple/delta_mean", delta),
            ("ple/reward_orig", raw_plain),
            ("ple/reward_guided", raw_guided),
            ("ple/reward_orig_norm", plain),
            ("ple/reward_guided_norm", guided),
            ("ple/pairs", all as f64),
            ("ple/kept", (kept - self.skipped) as f64),
            ("ple/dup", self.dup as f64),
            ("ple/empty", self.empty as f64),
            ("ple/truncated", self.truncated as f64),
            ("ple/drop_nonfinite", self.nonfinite as f64),
            ("ple/skipped", self.skipped as f64),
        ]
    }
}
