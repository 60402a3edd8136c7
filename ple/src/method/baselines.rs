//! DPO, the reward model, RLOO, GRPO and the release recipe against values worked out by hand, finite differences, and edge cases.

use super::dpo::Dpo;
use super::grpo::Grpo;
use super::release::Release;
use super::reward_model::RewardModel;
use super::rloo::Rloo;
use super::*;
use crate::config::{Command, Config, LossType, Scale, WeightMode};
use crate::data::tests::Random;

fn of(command: Command, change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::defaults(command);
    change(&mut config);
    config
}

#[track_caller]
fn close(got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-6, "{got} {want}");
}

/// Loss and gradient on whichever output the method reads.
fn run(method: &dyn Method, batch: &Batch, out: &[f32]) -> Result<(Loss, Vec<f32>)> {
    let weight = batch.side.weight.iter().map(|w| f64::from(*w)).sum();
    let (examples, answers) = (batch.examples.len() as f64, batch.sequences.len() as f64);
    let totals = Totals { examples, answers, tokens: batch.loss_rows() as f64, weight };
    let mut dout = vec![f32::NAN; out.len()];
    let loss = match method.needs().heads {
        Heads::Scalar => {
            method.loss(&totals, batch, Outputs { logp: &[], value: out }, Outputs { logp: &mut [], value: &mut dout })?
        }
        _ => method.loss(&totals, batch, Outputs { logp: out, value: &[] }, Outputs { logp: &mut dout, value: &mut [] })?,
    };
    Ok((loss, dout))
}

/// The gradient against central differences of the loss itself.
#[track_caller]
fn differentiates(what: &str, method: &dyn Method, batch: &Batch, out: &[f32]) {
    let (_, dout) = run(method, batch, out).unwrap();
    for i in 0..out.len() {
        let moved = |by: f32| {
            let mut out = out.to_vec();
            out[i] += by;
            (f64::from(out[i]), run(method, batch, &out).unwrap().0.value)
        };
        let ((x0, low), (x1, high)) = (moved(-1e-3), moved(1e-3));
        let slope = (high - low) / (x1 - x0);
        assert!((slope - f64::from(dout[i])).abs() < 2e-6, "{what}: d[{i}] is {}, the loss says {slope}", dout[i]);
    }
}

/// Examples of answers with these lengths, their rows one after the other.
fn batch(examples: &[&[usize]]) -> Batch {
    let mut batch = Batch::default();
    for lengths in examples {
        let ids: Vec<Vec<u32>> = lengths.iter().map(|n| vec![1; *n]).collect();
        batch.example(&[1, 2], &ids.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0).unwrap();
    }
    batch
}

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| -(random.below(3000) as f32 / 1000.0) - 0.05).collect()
}

/// S_w = −3, S_l = −2, reference −2.5 and −2.5: h = −0.5 − 0.5 = −1; by token −0.25 − 0.5 = −0.75.
#[test]
fn dpo_by_hand() {
    let mut b = batch(&[&[2, 1]]);
    b.side.ref_logp = vec![-1.25, -1.25, -2.5];
    let logp = [-1.0, -2.0, -2.0];
    let value = |loss_type, label_smoothing| {
        let method = Dpo::new(&of(Command::Dpo, |c| (c.loss_type, c.label_smoothing) = (Some(loss_type), label_smoothing)));
        differentiates("dpo", &method, &b, &logp);
        run(&method, &b, &logp).unwrap().0.value
    };
    // log(1 + e^0.1), log(1 + e^-0.1).
    let (wrong, right) = (0.744_396_660_073_571, 0.644_396_660_073_571);
    close(value(LossType::Sigmoid, 0.0), wrong);
    close(value(LossType::Sigmoid, 0.2), 0.8 * wrong + 0.2 * right);
    close(value(LossType::Robust, 0.2), (0.8 * wrong - 0.2 * right) / 0.6);
    close(value(LossType::Hinge, 0.0), 1.1);
    close(value(LossType::Ipo, 0.0), 5.75 * 5.75);
    close(value(LossType::SigmoidNorm, 0.0), (1.0 + 0.075f64.exp()).ln());
    let metrics = run(&Dpo::new(&of(Command::Dpo, |_| ())), &b, &logp).unwrap().0.metrics;
    let wanted = [("rewards/chosen", -0.05), ("rewards/rejected", 0.05), ("rewards/accuracies", 0.0), ("rewards/margins", -0.1)];
    metrics.iter().zip(wanted).for_each(|((name, got), (other, want))| {
        assert_eq!(*name, other);
        close(*got, want);
    });
    b.side.ref_logp.pop();
    let error = run(&Dpo::new(&of(Command::Dpo, |_| ())), &b, &logp).map_err(|e| e.to_string());
    assert!(error.is_err_and(|e| e.contains("ref_logp of 3 loss rows, got 2")));
}

/// Rows of a scalar head: one per answer.
fn values(pairs: usize) -> Batch {
    let example = Example { prompt: vec![1], answers: vec![vec![2, 3], vec![4]], ..Example::default() };
    let mut batch = Batch::default();
    crate::pack::fill(&mut batch, Heads::Scalar, &vec![&example; pairs]).unwrap();
    batch
}

/// r = (1, 0) and (0, 0.5): the mean of log(1 + e^-1) and log(1 + e^0.5).
#[test]
fn bradley_terry_by_hand() {
    let (mut b, out) = (values(2), [1.0, 0.0, 0.0, 0.5]);
    assert_eq!((b.loss_rows(), b.tokens(), b.rows.as_slice()), (4, 8, &[2, 3, 6, 7][..]));
    let method = RewardModel::new(&of(Command::Reward, |_| ()));
    let (loss, dvalue) = run(&method, &b, &out).unwrap();
    close(loss.value, (0.313_261_687_518_223 + 0.974_076_984_180_107) / 2.0);
    close(f64::from(dvalue[0]), -0.268_941_421_369_995 / 2.0);
    close(f64::from(dvalue[3]), 0.622_459_331_201_855 / 2.0);
    assert_eq!(loss.metrics[2], ("rewards/accuracies", 0.5));
    let centred = RewardModel::new(&of(Command::Reward, |c| c.center_rewards_coefficient = Some(0.1)));
    close(run(&centred, &b, &out).unwrap().0.value, loss.value + 0.1 * (1.0 + 0.25) / 2.0);
    differentiates("centred", &centred, &b, &out);
    b.side.weight = vec![0.5, 0.0, 0.0, 0.0];
    close(run(&method, &b, &out).unwrap().0.value, ((-0.5f64).exp().ln_1p() + 0.974_076_984_180_107) / 2.0);
    differentiates("margin", &method, &b, &out);
    assert!(run(&method, &b, &out[..3]).is_err());
}

fn group(rewards: &[f64], lengths: &[usize]) -> Group {
    let answer = |(reward, n): (&f64, &usize)| Answer {
        ids: vec![1; *n],
        logps: (0..*n).map(|i| -0.5 - 0.25 * i as f32).collect(),
        finished: true,
        reward: *reward,
        ..Answer::default()
    };
    let sides = vec![rewards.iter().zip(lengths).map(answer).collect()];
    Group { row: 3, prompt: vec![1, 2], sides, ..Group::default() }
}

/// The batch of labelled groups as the trainer makes it; `reference` is a constant per row.
fn labelled(method: &mut dyn Method, groups: Vec<Group>, reference: f32) -> (Batch, Vec<f32>) {
    let (mut examples, _) = method.label(0, groups).unwrap();
    let mut side = model::Columns::default();
    for e in &mut examples {
        e.ref_logp = vec![reference; e.old_logp.len()];
        side.old_logp.extend(&e.old_logp);
        side.ref_logp.extend(&e.ref_logp);
        side.weight.extend(&e.weights);
    }
    method.advantages(&examples, &mut side).unwrap();
    let lengths: Vec<Vec<usize>> = examples.iter().map(|e| e.answers.iter().map(Vec::len).collect()).collect();
    let mut b = batch(&lengths.iter().map(Vec::as_slice).collect::<Vec<_>>());
    b.side = side;
    let old = b.side.old_logp.clone();
    (b, old)
}

/// Rewards 1, 0, 0.5 of answers of 1, 2 and 1 tokens; S_old = −0.5, −1.25, −0.5; S_ref = −1, −2, −1 (beta 0.1): r' = 0.95, −0.075,
/// 0.45. Baselines 0.1875, 0.7, 0.4375.
#[test]
fn rloo_by_hand() {
    let mut method = Rloo::new(&of(Command::Rloo, |c| c.beta = 0.1));
    let (b, old) = labelled(&mut method, vec![group(&[1.0, 0.0, 0.5], &[1, 2, 1])], -1.0);
    let wanted = [0.7625, -0.775, -0.775, 0.0125];
    b.side.advantage.iter().zip(wanted).for_each(|(got, want)| close(f64::from(*got), want));
    // On the sampling policy every ratio is 1: the loss is minus the mean advantage, 0.
    let (loss, dlogp) = run(&method, &b, &old).unwrap();
    close(loss.value, 0.0);
    dlogp.iter().zip(wanted).for_each(|(got, want)| close(f64::from(*got), -want / 3.0));
    // rho = e^0.3 above 1.2: held for the first (A > 0), not for the second (A < 0); e^0 for the third.
    let moved = [-0.2, -0.35, -0.6, -0.5];
    let (loss, dlogp) = run(&method, &b, &moved).unwrap();
    close(loss.value, -(1.2 * 0.7625 - 0.3f64.exp() * 0.775 + 0.0125) / 3.0);
    assert_eq!(dlogp[0], 0.0);
    close(f64::from(dlogp[2]), 0.3f64.exp() * 0.775 / 3.0);
    differentiates("rloo", &method, &b, &moved);
    let mut normal = Rloo::new(&of(Command::Rloo, |c| (c.beta, c.normalize_advantages) = (0.0, true)));
    // A = 1, −1 of deviation √2.
    let (b, _) = labelled(&mut normal, vec![group(&[1.0, 0.0], &[1, 1])], 0.0);
    close(f64::from(b.side.advantage[0]), 1.0 / (2f64.sqrt() + 1e-4));
}

/// Rewards 1, 0: mean 0.5, deviation √0.5. Answers of 1 and 2 tokens.
#[test]
fn grpo_by_hand() {
    let a = 0.5 / (0.5f64.sqrt() + 1e-4);
    let mut method = Grpo::new(&of(Command::Grpo, |c| c.beta = 0.2));
    let (b, old) = labelled(&mut method, vec![group(&[1.0, 0.0], &[1, 2])], -1.0);
    b.side.weight.iter().zip([a, -a]).for_each(|(got, want)| close(f64::from(*got), want));
    // d = −0.5, −0.5, −0.25; the mean over three tokens.
    let k3 = |d: f64| d.exp() - 1.0 - d;
    let (loss, dlogp) = run(&method, &b, &old).unwrap();
    close(loss.value, (-a + 2.0 * a + 0.2 * (2.0 * k3(-0.5) + k3(-0.25))) / 3.0);
    close(f64::from(dlogp[0]), (-a + 0.2 * (1.0 - (-0.5f64).exp())) / 3.0);
    // One token beyond the clip, one within.
    let moved = [-0.2, -0.45, -1.0];
    let (loss, _) = run(&method, &b, &moved).unwrap();
    let policy = -1.2 * a + a * 0.05f64.exp() + a * 0.8;
    close(loss.value, (policy + 0.2 * (k3(-0.8) + k3(-0.55) + k3(0.0))) / 3.0);
    differentiates("grpo", &method, &b, &moved);
    let weights = |scale| {
        let mut method = Grpo::new(&of(Command::Grpo, |c| c.scale_rewards = scale));
        let groups = vec![group(&[1.0, 0.0], &[1, 1]), group(&[3.0, 2.0], &[1, 1])];
        method.label(0, groups).unwrap().0[1].weights[0]
    };
    // 1, 0, 3, 2: deviation √(5/3).
    close(f64::from(weights(Scale::Batch)), 0.5 / ((5.0f64 / 3.0).sqrt() + 1e-4));
    assert_eq!(weights(Scale::None), 0.5);
}

#[test]
fn groups_that_teach_nothing_are_told() {
    let flat = || vec![group(&[0.5; 3], &[1; 3]), group(&[2.0; 3], &[1; 3])];
    let mut free = Grpo::new(&of(Command::Grpo, |_| ()));
    let (examples, metrics) = free.label(0, flat()).unwrap();
    assert!(examples.is_empty());
    assert!(free.remarks(&metrics)[0].contains("all rewards are equal in each of 2 groups"));
    // A KL term still teaches.
    let mut held = Rloo::new(&of(Command::Rloo, |_| ()));
    assert_eq!(held.label(0, flat()).unwrap().0.len(), 2);
    let alone = held.label(0, vec![group(&[1.0], &[1])]).map_err(|e| e.to_string());
    assert!(alone.is_err_and(|e| e.contains("row 3: wanted a group of at least 2 answers, got 1")));
    let broken = || vec![group(&[1.0, f64::NAN], &[1, 1]), group(&[1.0, 0.0], &[1, 1])];
    let stopped = held.label(0, broken()).map_err(|e| (e.exit_code(), e.to_string()));
    assert!(stopped.is_err_and(|(code, text)| code == 5 && text.contains("1 of 2 groups")));
    let mut patient = Rloo::new(&of(Command::Rloo, |c| c.ple_max_nonfinite = 0.5));
    let (examples, metrics) = patient.label(0, broken()).unwrap();
    assert_eq!(examples.len(), 1);
    assert!(patient.remarks(&metrics)[0].contains("1 of 2 groups are left out"));
}

fn release(mode: WeightMode) -> Release {
    Release::new(&of(Command::Train, |c| (c.release_weight_mode, c.release_top_frac) = (mode, vec![0.5, 0.0])))
}

/// Gaps 1, none, 4 and 2: sorted 4, 2, 1; half of three is one pair of weight 1; the others σ(0.2) and σ(0.1).
#[test]
fn release_pairs_best_and_worst() {
    let groups = || {
        let rewards: [&[f64]; 4] = [&[0.0, 1.0, 1.0, 0.5], &[2.0; 4], &[4.0, 0.0, 0.0, 4.0], &[1.0, 3.0, 2.0, 1.0]];
        rewards.map(|r| group(r, &[1, 2, 3, 4])).to_vec()
    };
    let (examples, metrics) = release(WeightMode::Intended).label(0, groups()).unwrap();
    let seen: Vec<_> = examples.iter().map(|e| (e.group, e.answers[0].len(), e.answers[1].len(), e.weights[0])).collect();
    let sigmoid = |x: f64| (1.0 / (1.0 + (-x).exp())) as f32;
    // The first of equals, on both ends.
    assert_eq!(seen, [(2, 1, 2, 1.0), (3, 2, 1, sigmoid(0.2)), (0, 2, 1, sigmoid(0.1))]);
    assert_eq!(metrics[..2], [("release/pairs", 3.0), ("release/equal_rewards", 1.0)]);
    let later = release(WeightMode::Intended).label(7, groups()).unwrap().0;
    assert_eq!(later[0].weights, [sigmoid(0.4), 0.0], "the last share holds on");
    let plain = release(WeightMode::None).label(0, groups()).unwrap().0;
    assert!(plain.iter().all(|e| e.weights == [1.0, 0.0]));
    let none = release(WeightMode::Intended).label(2, vec![group(&[1.0; 4], &[1; 4]); 3]).map_err(|e| e.to_string());
    assert!(none.is_err_and(|e| e.contains("no pair survives in iteration 2: of 3 queries 3 have answers of equal reward")));
}

#[test]
fn release_weighs_over_the_whole_batch() {
    let mut b = batch(&[&[2, 1], &[1, 3]]);
    let logp = random(7, 3);
    b.side.ref_logp = random(7, 4);
    b.side.weight = vec![1.0, 0.0, 0.55, 0.0];
    let method = release(WeightMode::Intended);
    differentiates("release", &method, &b, &logp);
    let whole = run(&method, &b, &logp).unwrap().0.value;
    let one = |weights: [f32; 4]| {
        let mut b = b.clone();
        b.side.weight = weights.to_vec();
        run(&method, &b, &logp).unwrap().0.value
    };
    let (first, second) = (one([1.0, 0.0, 0.0, 0.0]), one([0.0, 0.0, 1.0, 0.0]));
    close(whole, (first + 0.55 * second) / 1.55);
}
