//! What methods share that compare the answers of a group: which groups can be trained, the clipped ratio, moments.

use super::{Answer, Example, Group, Metrics};
use crate::config::Config;
use crate::{Error, Result};

/// Added to deviations that divide.
pub const EPSILON: f64 = 1e-4;

impl Answer {
    /// Whether reward and log-probabilities are finite.
    pub fn is_finite(&self) -> bool {
        self.reward.is_finite() && self.logps.iter().all(|l| l.is_finite())
    }
}

/// Stops where more groups than `ple_max_nonfinite` allows hold a number that is not finite.
pub fn bounded(c: &Config, nonfinite: usize, all: usize) -> Result<()> {
    let most = c.ple_max_nonfinite;
    if nonfinite as f64 <= most * all as f64 {
        return Ok(());
    }
    Err(Error::Numeric(format!(
        "{nonfinite} of {all} groups have a reward or log-probability that is not finite; wanted at most {most} of them \
         (ple_max_nonfinite)"
    )))
}

/// A group's rewards, and an example of all its answers.
pub type Kept = (Vec<f64>, Example);

/// Groups that can be trained, each as its rewards and an example of all its answers with their `old_logp`. A group is left out if a
/// number of it is not finite or an answer has no token. If all rewards of every group are equal, and `equal` groups teach nothing,
/// none is left.
pub fn keep(method: &str, c: &Config, groups: Vec<Group>, equal: bool) -> Result<(Vec<Kept>, Metrics)> {
    let (all, mut kept, mut nonfinite, mut empty, mut flat) = (groups.len(), Vec::with_capacity(groups.len()), 0, 0, 0);
    for (i, group) in groups.into_iter().enumerate() {
        let answers: Vec<Answer> = group.sides.into_iter().flatten().collect();
        if answers.len() < 2 {
            let (row, n) = (group.row, answers.len());
            return Err(Error::Usage(format!("{method}: row {row}: wanted a group of at least 2 answers, got {n}")));
        }
        if !answers.iter().all(Answer::is_finite) {
            nonfinite += 1;
        } else if answers.iter().any(|a| a.ids.is_empty()) {
            empty += 1;
        } else {
            let rewards: Vec<f64> = answers.iter().map(|a| a.reward).collect();
            flat += usize::from(rewards.iter().all(|r| *r == rewards[0]));
            let old_logp = answers.iter().flat_map(|a| a.logps.iter().copied()).collect();
            let answers = answers.into_iter().map(|a| a.ids).collect();
            let example =
                Example { row: group.row, prompt: group.prompt, answers, old_logp, group: i as u32, ..Example::default() };
            kept.push((rewards, example));
        }
    }
    bounded(c, nonfinite, all)?;
    let metrics = vec![
        ("groups", all as f64),
        ("groups/kept", kept.len() as f64),
        ("groups/equal_rewards", flat as f64),
        ("groups/drop_nonfinite", nonfinite as f64),
        ("groups/drop_empty", empty as f64),
    ];
    if flat == kept.len() && !equal {
        kept.clear();
    }
    Ok((kept, metrics))
}

/// A line where groups teach nothing or were left out.
pub fn remarks(labelled: &Metrics) -> Vec<String> {
    let of = |name: &str| labelled.iter().find(|(n, _)| *n == name).map_or(0.0, |(_, v)| *v);
    let [all, kept, flat] = ["groups", "groups/kept", "groups/equal_rewards"].map(of);
    let mut lines = Vec::new();
    if flat == kept && kept > 0.0 {
        lines.push(format!("all rewards are equal in each of {kept} groups: no answer is better than its group's others"));
    }
    if kept < all {
        lines.push(format!(
            "{} of {all} groups are left out: numbers that are not finite, or answers without a token",
            all - kept
        ));
    }
    lines
}

/// Mean, and the deviation with n − 1; 0 of fewer than two values.
pub fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let square: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, if n > 1.0 { (square / (n - 1.0)).sqrt() } else { 0.0 })
}

/// −min(rho·a, clip(rho, 1 ± epsilon)·a), rho = e^log_ratio, and its derivative by log_ratio.
pub fn clipped(log_ratio: f64, a: f64, epsilon: f64) -> (f64, f64) {
    let rho = log_ratio.exp();
    let held = rho.clamp(1.0 - epsilon, 1.0 + epsilon);
    if rho * a <= held * a { (-rho * a, -rho * a) } else { (-held * a, 0.0) }
}
