//! Losses of `dpo/` and `ple/` and the gradients of all of them: every loss here is a function of the answers' summed
//! log-probabilities, so d loss / d logp of a token is d loss / d sum of its answer. The formulas are the manifest's.

use super::lm::{Lm, Rows};
use super::{number, numbers};
use anyhow::{Context, Result, ensure};
use model::{Adapter, Batch, Keep, Tune};
use ple::config::{Command, Config, LossType};
use ple::method::dpo::Dpo;
use ple::method::{Method, Outputs, Totals};
use ple_tests::pass;

/// A loss's value and its gradient on each row's sum.
struct Loss(f64, Vec<f64>);

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// log(1 + exp(-x))
fn softplus_of_minus(x: f64) -> f64 {
    (-x).max(0.0) + (-x.abs()).exp().ln_1p()
}

/// What the losses read: rows 0..n are chosen (the guided answers b), n..2n rejected (the plain ones a).
struct Pairs {
    sums: Vec<f64>,
    reference: Vec<f64>,
    tokens: Vec<f64>,
    /// Rewards of a and b.
    rewards: [Vec<f64>; 2],
    beta: f64,
    tau: f64,
}

impl Pairs {
    fn n(&self) -> usize {
        self.sums.len() / 2
    }

    /// (pi_w - ref_w) - (pi_l - ref_l)
    fn delta(&self, i: usize) -> f64 {
        let margin = |row: usize| self.sums[row] - self.reference[row];
        margin(i) - margin(i + self.n())
    }

    /// The mean over pairs of a function of delta; `of` gives value and derivative.
    fn of_delta(&self, of: impl Fn(f64) -> (f64, f64)) -> Loss {
        let (n, mut loss) = (self.n(), Loss(0.0, vec![0.0; self.sums.len()]));
        for i in 0..n {
            let (value, slope) = of(self.delta(i));
            loss.0 += value / n as f64;
            (loss.1[i], loss.1[i + n]) = (slope / n as f64, -slope / n as f64);
        }
        loss
    }

    fn dpo(&self, smoothing: f64) -> Loss {
        let (b, e) = (self.beta, smoothing);
        self.of_delta(|d| {
            let value = (1.0 - e) * softplus_of_minus(b * d) + e * softplus_of_minus(-b * d);
            (value, b * (e * sigmoid(b * d) - (1.0 - e) * sigmoid(-b * d)))
        })
    }

    /// The rows of pair i: a, b.
    fn rows(&self, i: usize) -> [usize; 2] {
        [i + self.n(), i]
    }

    fn length(&self, row: usize, norm: bool) -> f64 {
        if norm { self.tokens[row] } else { 1.0 }
    }

    fn weights(&self, i: usize) -> [f64; 2] {
        let [a, b] = [&self.rewards[0], &self.rewards[1]].map(|r| r[i].exp());
        [a / (a + b), b / (a + b)]
    }

    fn weighted(&self, i: usize, norm: bool, loss: &mut Loss) {
        for (row, w) in self.rows(i).into_iter().zip(self.weights(i)) {
            let slope = -w / self.length(row, norm) / self.n() as f64;
            loss.0 += slope * self.sums[row];
            loss.1[row] += slope;
        }
    }

    fn rank(&self, i: usize, norm: bool, loss: &mut Loss) {
        let [a, b] = self.rows(i);
        let (high, low) = if self.rewards[1][i] > self.rewards[0][i] { (b, a) } else { (a, b) };
        let score = |row: usize| self.sums[row] / self.length(row, norm);
        let margin = score(low) - score(high);
        if margin > 0.0 {
            loss.0 += margin / self.n() as f64;
            loss.1[low] += 1.0 / self.length(low, norm) / self.n() as f64;
            loss.1[high] -= 1.0 / self.length(high, norm) / self.n() as f64;
        }
    }

    fn ranked(&self, i: usize) -> bool {
        (self.rewards[0][i] - self.rewards[1][i]).abs() > self.tau
    }

    fn over_pairs(&self, one: impl Fn(&Pairs, usize, &mut Loss)) -> Loss {
        let mut loss = Loss(0.0, vec![0.0; self.sums.len()]);
        (0..self.n()).for_each(|i| one(self, i, &mut loss));
        loss
    }

    /// Every loss of the manifest by the name of its gradients.
    fn loss(&self, name: &str) -> Option<Loss> {
        Some(match name {
            "dpo" => self.dpo(0.0),
            "ple_weighted_norm" => self.over_pairs(|p, i, l| p.weighted(i, true, l)),
            "ple_weighted_sum" => self.over_pairs(|p, i, l| p.weighted(i, false, l)),
            "ple_rank_norm" => self.over_pairs(|p, i, l| p.rank(i, true, l)),
            "ple_rank_sum" => self.over_pairs(|p, i, l| p.rank(i, false, l)),
            "ple_mixed" => self.over_pairs(|p, i, l| if p.ranked(i) { p.rank(i, true, l) } else { p.weighted(i, true, l) }),
            _ => return None,
        })
    }
}

/// Both answers of a pair under their prompt, which is computed once, and the row of each sequence.
fn pair_batch(rows: &Rows) -> Result<(Batch, Vec<usize>)> {
    let n = rows.texts.len() / 2;
    let mut examples = Vec::new();
    for i in 0..n {
        ensure!(rows.prompt(i) == rows.prompt(i + n), "pair {i}: the two rows have different prompts");
        examples.push((rows.prompt(i), vec![rows.answer(i), rows.answer(i + n)]));
    }
    Ok((pass::batch(&examples)?, (0..n).flat_map(|i| [i, i + n]).collect()))
}

/// Sums of each row's answer.
fn sums(b: &Batch, order: &[usize], out: &[f32]) -> Vec<f64> {
    let mut sums = vec![0.0; order.len()];
    for (span, row) in b.sequences.iter().zip(order) {
        sums[*row] = out[span.range()].iter().map(|l| f64::from(*l)).sum();
    }
    sums
}

fn narrow(v: &[f64]) -> Vec<f32> {
    v.iter().map(|x| *x as f32).collect()
}

fn values(case: &mut Lm, p: &Pairs) -> Result<()> {
    let n = p.n();
    let reward = |rows: std::ops::Range<usize>| rows.map(|i| (p.beta * (p.sums[i] - p.reference[i])) as f32).collect::<Vec<_>>();
    case.close("dpo/policy_logps", &narrow(&p.sums))?;
    case.close("dpo/ref_logps", &narrow(&p.reference))?;
    case.close("dpo/completion_counts", &narrow(&p.tokens))?;
    case.close("dpo/rewards_chosen", &reward(0..n))?;
    case.close("dpo/rewards_rejected", &reward(n..2 * n))?;
    case.close("dpo/loss", &[p.dpo(0.0).0 as f32])?;
    case.close("dpo/loss_smooth01", &[p.dpo(0.1).0 as f32])?;
    case.close("dpo/loss_hinge", &[p.of_delta(|d| ((1.0 - p.beta * d).max(0.0), 0.0)).0 as f32])?;
    case.close("dpo/loss_ipo_sum", &[p.of_delta(|d| ((d - 0.5 / p.beta).powi(2), 0.0)).0 as f32])?;
    for name in ["weighted_norm", "weighted_sum", "rank_norm", "rank_sum", "mixed"] {
        let loss = p.loss(&format!("ple_{name}")).context("a loss without a formula")?;
        case.close(&format!("ple/{name}"), &[loss.0 as f32])?;
    }
    case.close("ple/weights", &(0..n).flat_map(|i| p.weights(i)).map(|w| w as f32).collect::<Vec<_>>())?;
    case.close("ple/mixed_uses_rank", &(0..n).map(|i| p.ranked(i) as u8 as f32).collect::<Vec<_>>())
}

/// Runs forward and backward of the adapter with these d loss / d sum, and compares every tensor's gradient by name.
fn gradients(case: &mut Lm, name: &str, b: &Batch, order: &[usize], dsums: &[f64]) -> Result<()> {
    let tune = Tune::Lora(0);
    let mut grads = case.model.grads(&case.s, tune)?;
    pass::backward(&case.s, &case.model, b, tune, &mut grads, |out| {
        let mut dlogp = vec![0.0; out.len()];
        b.sequences.iter().zip(order).for_each(|(span, row)| dlogp[span.range()].fill(dsums[*row] as f32));
        dlogp
    })?;
    let atol = case.atol(&format!("grad/{name}"))?;
    let prefix = format!("grad/{name}/base_model.model.");
    for tensor in grads.tensors() {
        case.golden.close(&format!("{prefix}{}", tensor.name), &grads.of(&case.s, tensor)?, atol)?;
    }
    Ok(())
}

/// The method itself on the case's pairs: the losses that were stored, and the gradient of the formula.
fn method(case: &mut Lm, p: &Pairs, b: &Batch, order: &[usize], out: &[f32], reference: &[f32]) -> Result<()> {
    let mut b = b.clone();
    b.side.ref_logp = reference.to_vec();
    let totals = Totals { examples: p.n() as f64, ..Totals::default() };
    for (name, form, smoothing) in [
        ("dpo/loss", LossType::Sigmoid, 0.0),
        ("dpo/loss_smooth01", LossType::Sigmoid, 0.1),
        ("dpo/loss_hinge", LossType::Hinge, 0.0),
    ] {
        let c = Config { loss_type: Some(form), label_smoothing: smoothing, beta: p.beta, ..Config::defaults(Command::Dpo) };
        let mut dlogp = vec![f32::NAN; out.len()];
        let dout = Outputs { logp: &mut dlogp[..], value: &mut [][..] };
        let loss = Dpo::new(&c).loss(&totals, &b, Outputs { logp: out, value: &[] }, dout)?;
        case.close(name, &[loss.value as f32])?;
        let wanted = if form == LossType::Sigmoid { p.dpo(smoothing).1 } else { continue };
        for (span, row) in b.sequences.iter().zip(order) {
            let off = dlogp[span.range()].iter().map(|d| (f64::from(*d) - wanted[*row]).abs()).fold(0.0, f64::max);
            ensure!(off <= 1e-6, "{name}: d loss / d logp of row {row} is off by {off}");
        }
    }
    Ok(())
}

/// Every loss and gradient of the case.
pub fn compare(case: &mut Lm, sft: &Rows) -> Result<()> {
    let order: Vec<usize> = (0..sft.texts.len()).collect();
    let mean = vec![-1.0 / sft.answer_tokens() as f64; order.len()];
    gradients(case, "sft", &pass::batch(&sft.examples())?, &order, &mean)?;

    let rows = case.rows("pairs")?;
    let (b, order) = pair_batch(&rows)?;
    let policy = Adapter::Slot(0);
    let out = pass::logps(&case.s, &case.model, &b, policy, Keep::Nothing)?;
    let reference = pass::logps(&case.s, &case.model, &b, Adapter::Off, Keep::Nothing)?;
    let mut rewards = [Vec::new(), Vec::new()];
    for (rewards, name) in rewards.iter_mut().zip(["ple/reward_a", "ple/reward_b"]) {
        *rewards = case.golden.input(name)?.iter().map(|r| f64::from(*r)).collect();
    }
    let pairs = Pairs {
        sums: sums(&b, &order, &out),
        reference: sums(&b, &order, &reference),
        tokens: (0..rows.texts.len()).map(|i| rows.answer(i).len() as f64).collect(),
        rewards,
        beta: number(&case.json["beta"], "case.json: beta")?,
        tau: number(&case.json["tau"], "case.json: tau")?,
    };
    let hinges = numbers(&case.json["ple_hinge_active"]["mixed_uses_rank"], "case.json: ple_hinge_active.mixed_uses_rank")?;
    ensure!(hinges == (0..pairs.n()).map(|i| pairs.ranked(i) as u8 as f64).collect::<Vec<_>>(), "case.json ranks other pairs");
    values(case, &pairs)?;
    method(case, &pairs, &b, &order, &out, &reference)?;
    for name in ["dpo", "ple_weighted_norm", "ple_weighted_sum", "ple_rank_norm", "ple_rank_sum", "ple_mixed"] {
        let present = case.golden.under(&format!("grad/{name}/")).len();
        if let Some(loss) = pairs.loss(name).filter(|_| present > 0) {
            gradients(case, name, &b, &order, &loss.1)?;
        }
    }
    Ok(())
}
