//! SFT and PLE against golden values, finite differences, and every row of the table of edge cases.

use super::ple::{GUIDED_HIGHER, PLAIN_HIGHER, Ple, WEIGHTED};
use super::sft::Sft;
use super::*;
use crate::config::{Calib, Command, Config, Keep, Norm, Rank, Truncated, Weight, Worse};
use crate::data::tests::Random;
use model::Span;

/// Completion rows of the golden case, [sequence][token]: logits 2·sin(.7n + 1.1t + .9v) + .3·cos(.5nv − t); `reference`
/// adds .15 and .1 inside.
fn golden_logps(reference: bool) -> Vec<Vec<f32>> {
    let (a, b) = if reference { (0.15, 0.1) } else { (0.0, 0.0) };
    let mask = [[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]];
    let logit = |n: f64, t: f64, v: f64| 2.0 * (0.7 * n + 1.1 * t + 0.9 * v + a).sin() + 0.3 * (0.5 * n * v - t + b).cos();
    let logp = |n: usize, t: usize| {
        let z: Vec<f64> = (0..7).map(|v| logit(n as f64, t as f64 - 1.0, v as f64)).collect();
        let max = z.iter().copied().fold(f64::MIN, f64::max);
        let total = z.iter().map(|z| (z - max).exp()).sum::<f64>().ln() + max;
        (z[(3 * n + 2 * t + n * t) % 7] - total) as f32
    };
    (0..4).map(|n| (0..6).filter(|t| mask[n][*t] == 1).map(|t| logp(n, t)).collect()).collect()
}

/// Tag, answers and weights of an example.
type Given<'a> = (u32, Vec<&'a [f32]>, [f32; 2]);

/// A batch of the given examples; returns the log-probabilities beside it.
fn batch(examples: &[Given<'_>]) -> (Batch, Vec<f32>) {
    let (mut batch, mut logps) = (Batch::default(), Vec::new());
    for (tag, answers, weights) in examples {
        let ids: Vec<Vec<u32>> = answers.iter().map(|a| vec![1; a.len()]).collect();
        batch.example(&[1, 2], &ids.iter().map(Vec::as_slice).collect::<Vec<_>>(), *tag).unwrap();
        batch.side.weight.extend(weights.iter().take(answers.len()));
        logps.extend(answers.iter().flat_map(|a| a.iter().copied()));
    }
    (batch, logps)
}

fn totals(batch: &Batch) -> Totals {
    Totals { examples: batch.examples.len() as f64, tokens: batch.loss_rows() as f64, ..Totals::default() }
}

fn run(method: &dyn Method, totals: &Totals, batch: &Batch, logp: &[f32]) -> Result<(Loss, Vec<f32>)> {
    let (mut dlogp, mut dvalue) = (vec![f32::NAN; logp.len()], vec![]);
    let loss = method.loss(totals, batch, Outputs { logp, value: &[] }, Outputs { logp: &mut dlogp, value: &mut dvalue })?;
    Ok((loss, dlogp))
}

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::defaults(Command::Train);
    change(&mut config);
    config
}

#[track_caller]
fn close(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance, "{got} {want}");
}

#[test]
fn golden_sums_of_the_formula() {
    let sums = |reference| golden_logps(reference).iter().map(|l| l.iter().map(|v| f64::from(*v)).sum()).collect::<Vec<f64>>();
    let want = [-11.4329636463034, -6.045645818263961, -6.919333069677444, -8.330103826156865];
    let want_ref = [-11.299346733932833, -5.861345539460726, -6.745341210345695, -7.515872038212438];
    sums(false).iter().zip(want).for_each(|(g, w)| close(*g, w, 1e-6));
    sums(true).iter().zip(want_ref).for_each(|(g, w)| close(*g, w, 1e-6));
}

#[test]
fn golden_sft() {
    let logps = golden_logps(false);
    let (b, logp) = batch(&[(0, vec![&logps[0]], [0.0; 2]), (0, vec![&logps[1]], [0.0; 2])]);
    let (loss, dlogp) = run(&Sft, &totals(&b), &b, &logp).unwrap();
    close(loss.value, 2.9131015774278937, 1e-6);
    close(loss.value * 6.0, 17.478609464567363, 6e-6);
    assert_eq!(dlogp, [-1.0f32 / 6.0; 6]);
    // Two micro-batches of one optimizer batch add up.
    let total = totals(&b);
    let halves: f64 = [0, 1]
        .map(|n: usize| {
            let (b, logp) = batch(&[(0, vec![&logps[n]], [0.0; 2])]);
            run(&Sft, &total, &b, &logp).unwrap().0.value
        })
        .iter()
        .sum();
    close(halves, loss.value, 1e-12);
}

/// Pairs (n, n + 2): sequence n is the guided answer, n + 2 the plain one.
fn golden_pairs<'a>(logps: &'a [Vec<f32>], tags: [u32; 2], weights: [[f32; 2]; 2]) -> (Batch, Vec<f32>) {
    let pair = |n: usize| -> Vec<&'a [f32]> { vec![&logps[n + 2], &logps[n]] };
    batch(&[(tags[0], pair(0), weights[0]), (tags[1], pair(1), weights[1])])
}

#[test]
fn golden_rank_losses() {
    let (logps, reference) = (golden_logps(false), golden_logps(true));
    let cases = [
        (Rank::Hinge, [0.5517965550167019, 0.24612163374635898]),
        (Rank::Logistic, [1.0066321152955326, 0.8237609449462726]),
        (Rank::ProbHinge, [0.04224522764549108, 0.013579842020581441]),
        (Rank::Dpo, [0.6911304708809298, 0.662146540246337]),
    ];
    for (rank, want) in cases {
        let ple = Ple::new(&config(|c| c.ple_rank = rank), true);
        for (n, want) in want.into_iter().enumerate() {
            let (mut b, logp) = batch(&[(GUIDED_HIGHER, vec![&logps[n + 2], &logps[n]], [0.0; 2])]);
            b.side.ref_logp = [reference[n + 2].clone(), reference[n].clone()].concat();
            close(run(&ple, &totals(&b), &b, &logp).unwrap().0.value, want, 1e-6);
            // The same pair with the sides changed and the other tag.
            let (mut b, logp) = batch(&[(PLAIN_HIGHER, vec![&logps[n], &logps[n + 2]], [0.0; 2])]);
            b.side.ref_logp = [reference[n].clone(), reference[n + 2].clone()].concat();
            close(run(&ple, &totals(&b), &b, &logp).unwrap().0.value, want, 1e-6);
        }
    }
}

#[test]
fn golden_ple_from_rewards_to_loss() {
    let logps = golden_logps(false);
    let mut ple = Ple::new(&config(|c| c.reward_calib = Calib::Fixed { mean: 0.5, std: 0.8 }), false);
    let rewards = [(0.3, 1.9), (1.2, 1.0)];
    let group = |n: usize| Group {
        row: n as u32,
        prompt: vec![1, 2],
        sides: [(n + 2, rewards[n].0), (n, rewards[n].1)]
            .map(|(s, reward)| {
                let ids = (0..logps[s].len() as u32).map(|i| 10 + 7 * s as u32 + i).collect();
                vec![Answer { ids, logps: logps[s].clone(), finished: true, reward, ..Answer::default() }]
            })
            .to_vec(),
        ..Group::default()
    };
    let (examples, metrics) = ple.label(0, vec![group(0), group(1)]).unwrap();
    assert_eq!((examples[0].tag, examples[1].tag), (GUIDED_HIGHER, WEIGHTED));
    let want = [[0.11198273136770162, 0.8880172686322984], [0.5676208507336719, 0.43237914926632826]];
    for (e, w) in examples.iter().zip(want) {
        e.weights.iter().zip(w).for_each(|(g, w)| close(f64::from(*g), w, 1e-6));
    }
    let metric = |name: &str| metrics.iter().find(|(n, _)| *n == name).unwrap().1;
    close(metric("ple/delta_mean"), (0.41412930285410865 - 0.05443016317095706) / 2.0, 1e-12);
    close(metric("ple/reward_orig_norm"), (0.43782349911420193 + 0.7057850278370112) / 2.0, 1e-12);
    assert_eq!((metric("ple/tau"), metric("ple/rank_frac"), metric("ple/reward_guided")), (0.2, 0.5, 1.45));
    let weights = [0, 1].map(|i: usize| [examples[i].weights[0], examples[i].weights[1]]);
    let (b, logp) = golden_pairs(&logps, [examples[0].tag, examples[1].tag], weights);
    let (loss, _) = run(&ple, &totals(&b), &b, &logp).unwrap();
    close(loss.value, 1.7174578465088064, 1e-6);
    let share = |name: &str| loss.metrics.iter().find(|(n, _)| *n == name).unwrap().1;
    close(share("ple/loss_rank"), 0.5517965550167019 / 2.0, 1e-6);
    close(share("ple/loss_weighted"), 2.883119138000911 / 2.0, 1e-6);
    assert_eq!((share("ple/order_accuracy"), share("ple/rank_active_frac")), (0.0, 0.5));
}

/// dlogp against central differences of the loss, every loss row; steps of 2^-8 are exact in f32.
fn check_gradient(method: &dyn Method, b: &Batch, logp: &[f32], name: &str) {
    let totals = Totals { examples: 5.0, tokens: 31.0, ..Totals::default() };
    let (_, dlogp) = run(method, &totals, b, logp).unwrap();
    for n in 0..logp.len() {
        let mut moved = [logp.to_vec(), logp.to_vec()];
        moved[0][n] += 1.0 / 256.0;
        moved[1][n] -= 1.0 / 256.0;
        let [up, down] = moved.map(|m| run(method, &totals, b, &m).unwrap().0.value);
        let difference = (up - down) * 128.0;
        assert!((difference - f64::from(dlogp[n])).abs() < 3e-6, "{name} row {n}: {difference} {}", dlogp[n]);
    }
}

#[test]
fn gradients_are_those_of_the_loss() {
    let mut random = Random::new(3);
    // Multiples of 2^-8, so that the step changes nothing else.
    let mut answer =
        |n: usize, low: f64| (0..n).map(|_| ((low + random.unit()) * 256.0).round() as f32 / 256.0).collect::<Vec<f32>>();
    let answers = [(4, -2.0), (2, -3.0), (3, -3.0), (5, -2.0), (1, -1.0), (6, -2.5)].map(|(n, low)| answer(n, low));
    let [a, b, c, d, e, f] = &answers;
    let (mut pairs, logp) = batch(&[
        (GUIDED_HIGHER, vec![a, b], [0.3, 0.7]),
        (WEIGHTED, vec![c, d], [0.6, 0.4]),
        (PLAIN_HIGHER, vec![e, f], [0.1, 0.9]),
        (GUIDED_HIGHER, vec![c, a], [0.5, 0.5]),
    ]);
    pairs.side.ref_logp = logp.iter().map(|l| l + 0.1875 + 0.25 * random.unit() as f32).collect();
    let (rows, row_logp) = batch(&[(0, vec![a], [0.0; 2]), (0, vec![f], [0.0; 2])]);
    check_gradient(&Sft, &rows, &row_logp, "sft");
    for rank in [Rank::Hinge, Rank::Logistic, Rank::ProbHinge, Rank::Dpo] {
        for len_norm in [true, false] {
            for extra in [false, true] {
                let settings = config(|c| {
                    c.ple_rank = rank;
                    c.ple_len_norm = len_norm;
                    if extra {
                        (c.ple_margin, c.ple_beta_rank, c.ple_rank_sft_coef, c.ple_kl_coef) = (0.4, 0.7, 0.3, 0.2);
                        (c.ple_lambda_rank, c.ple_lambda_sft, c.beta) = (0.8, 1.3, 0.5);
                    }
                });
                check_gradient(&Ple::new(&settings, true), &pairs, &logp, &format!("{rank:?} {len_norm} {extra}"));
            }
        }
    }
}

#[test]
fn hinge_rests_at_equality_and_lambdas_switch_branches_off() {
    let (a, b) = ([-1.0f32, -2.0], [-1.5f32; 3]);
    let (pairs, logp) = batch(&[(GUIDED_HIGHER, vec![&a, &b], [0.5; 2]), (WEIGHTED, vec![&a, &b], [0.25, 0.75])]);
    let (loss, dlogp) = run(&Ple::new(&config(|_| ()), true), &totals(&pairs), &pairs, &logp).unwrap();
    assert_eq!(dlogp[..5], [0.0; 5]);
    assert_eq!((dlogp[5], dlogp[7]), (-0.25 / 4.0, -0.75 / 6.0));
    assert_eq!(loss.value, 0.75);
    let off = Ple::new(&config(|c| c.ple_lambda_sft = 0.0), true);
    let (loss, dlogp) = run(&off, &totals(&pairs), &pairs, &logp).unwrap();
    assert!(loss.value == 0.0 && dlogp.iter().all(|d| *d == 0.0));
}

#[test]
fn losses_far_from_zero_stay_finite() {
    let (low, high) = ([-3.0e4f32; 2], [-1.0f32; 2]);
    for rank in [Rank::Hinge, Rank::Logistic, Rank::ProbHinge, Rank::Dpo] {
        let ple = Ple::new(&config(|c| c.ple_rank = rank), true);
        for answers in [vec![&low[..], &high[..]], vec![&high[..], &low[..]]] {
            let (mut b, logp) = batch(&[(GUIDED_HIGHER, answers, [0.5; 2])]);
            b.side.ref_logp = vec![-1.0; 4];
            let (loss, dlogp) = run(&ple, &totals(&b), &b, &logp).unwrap();
            assert!(loss.value.is_finite() && dlogp.iter().all(|d| d.is_finite()), "{rank:?}");
        }
    }
    let (b, logp) = batch(&[(WEIGHTED, vec![&[f32::NAN], &[-1.0]], [0.5; 2])]);
    let error = run(&Ple::new(&config(|_| ()), true), &totals(&b), &b, &logp).unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
    let (b, logp) = batch(&[(0, vec![&[f32::NEG_INFINITY]], [0.0; 2])]);
    assert_eq!(run(&Sft, &totals(&b), &b, &logp).unwrap_err().exit_code(), 5);
}

#[test]
fn malformed_batches_are_errors() {
    let a = [-1.0f32];
    let ple = Ple::new(&config(|_| ()), true);
    let dpo = Ple::new(&config(|c| c.ple_rank = Rank::Dpo), true);
    let (good, logp) = batch(&[(WEIGHTED, vec![&a, &a], [0.5; 2])]);
    assert!(run(&ple, &totals(&good), &good, &logp).is_ok());
    assert!(run(&dpo, &totals(&good), &good, &logp).is_err_and(|e| e.to_string().contains("reference")));
    assert!(run(&ple, &totals(&good), &good, &logp[..1]).is_err() && run(&Sft, &totals(&good), &good, &[]).is_err());
    let (one, logp1) = batch(&[(WEIGHTED, vec![&a], [0.5; 2])]);
    assert!(run(&ple, &totals(&one), &one, &logp1).is_err_and(|e| e.to_string().contains("2 answers")));
    let (tagged, _) = batch(&[(9, vec![&a, &a], [0.5; 2])]);
    assert!(run(&ple, &totals(&tagged), &tagged, &logp).is_err_and(|e| e.to_string().contains("tag")));
    let mut unweighted = good.clone();
    unweighted.side.weight.clear();
    assert!(run(&ple, &totals(&good), &unweighted, &logp).is_err_and(|e| e.to_string().contains("weight")));
    let mut broken = good.clone();
    broken.examples[0] = Span { start: 1, end: 3 };
    assert!(run(&ple, &totals(&good), &broken, &logp).is_err());
}

/// An answer of these ids and the end token.
fn answer(reward: f64, ids: &[u32]) -> Answer {
    Answer { ids: [ids, &[2]].concat(), logps: vec![-1.0; ids.len() + 1], finished: true, reward, ..Answer::default() }
}

fn group(plain: Answer, guided: Answer) -> Group {
    Group { row: 7, prompt: vec![1], sides: vec![vec![plain], vec![guided]], ..Group::default() }
}

/// Labels one pair of rewards in [0, 1] at tau 0.2.
fn label(change: impl FnOnce(&mut Config), pair: Group) -> Result<(Option<Example>, Metrics)> {
    let mut config = config(change);
    config.ple_max_nonfinite = 1.0;
    let (mut examples, metrics) = Ple::new(&config, true).label(0, vec![pair])?;
    Ok((examples.pop(), metrics))
}

/// Tag and weights, or None if the pair was left out; and one count.
fn outcome(change: impl FnOnce(&mut Config), pair: Group, count: &str) -> (Option<(u32, [f32; 2])>, f64) {
    let (example, metrics) = label(change, pair).unwrap();
    let count = metrics.iter().find(|(name, _)| *name == count).unwrap().1;
    (example.map(|e| (e.tag, [e.weights[0], e.weights[1]])), count)
}

const HALF: [f32; 2] = [0.5, 0.5];

#[test]
fn empty_truncated_identical_and_nonfinite_answers() {
    let plain = || answer(0.4, &[5]);
    let (empty, nothing) = (answer(0.4, &[]), Answer { ids: vec![], logps: vec![], ..answer(0.4, &[]) });
    for one in [&empty, &nothing] {
        assert_eq!(outcome(|_| (), group(plain(), one.clone()), "ple/empty"), (None, 1.0));
        assert_eq!(outcome(|_| (), group(one.clone(), plain()), "ple/empty"), (None, 1.0));
    }
    let unfinished_nothing = Answer { finished: false, ..nothing.clone() };
    assert_eq!(outcome(|c| c.ple_empty = Keep::Keep, group(plain(), empty), "ple/empty"), (Some((WEIGHTED, HALF)), 1.0));
    assert_eq!(outcome(|c| c.ple_empty = Keep::Keep, group(plain(), nothing), "ple/empty"), (None, 1.0));
    assert_eq!(outcome(|c| c.ple_empty = Keep::Keep, group(plain(), unfinished_nothing), "ple/empty"), (None, 1.0));

    let cut = |reward| Answer { finished: false, ..answer(reward, &[6]) };
    let truncated = |way, pair| outcome(|c| c.ple_truncated = way, pair, "ple/truncated");
    assert_eq!(truncated(Truncated::Keep, group(plain(), cut(0.4))), (Some((WEIGHTED, HALF)), 1.0));
    assert_eq!(truncated(Truncated::Drop, group(plain(), cut(0.4))), (None, 1.0));
    assert_eq!(truncated(Truncated::Keep, group(plain(), cut(0.9))).0.unwrap().0, GUIDED_HIGHER);
    assert_eq!(truncated(Truncated::Penalize, group(plain(), cut(0.9))).0.unwrap().0, WEIGHTED);
    assert_eq!(truncated(Truncated::Penalize, group(cut(0.9), plain())).0.unwrap().0, GUIDED_HIGHER);
    let both = truncated(Truncated::Penalize, group(cut(0.9), Answer { ids: vec![8], ..cut(0.9) }));
    assert_eq!(both, (Some((WEIGHTED, HALF)), 1.0));

    assert_eq!(outcome(|_| (), group(plain(), answer(0.9, &[5])), "ple/dup"), (Some((WEIGHTED, HALF)), 1.0));
    assert_eq!(outcome(|c| c.ple_dup = Keep::Drop, group(plain(), plain()), "ple/dup"), (None, 1.0));

    for reward in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(outcome(|_| (), group(plain(), answer(reward, &[6])), "ple/drop_nonfinite"), (None, 1.0));
        assert_eq!(outcome(|_| (), group(answer(reward, &[6]), plain()), "ple/drop_nonfinite"), (None, 1.0));
    }
    let broken = Answer { logps: vec![-1.0, f32::NAN], ..answer(0.5, &[6]) };
    assert_eq!(outcome(|_| (), group(plain(), broken), "ple/drop_nonfinite"), (None, 1.0));
}

#[test]
fn too_many_nonfinite_pairs_stop_the_run() {
    let pairs = |bad: usize| {
        (0..100).map(|i| group(answer(if i < bad { f64::NAN } else { 0.5 }, &[5]), answer(0.5, &[6]))).collect::<Vec<_>>()
    };
    let mut ple = Ple::new(&config(|_| ()), true);
    assert_eq!(ple.label(0, pairs(5)).unwrap().0.len(), 95);
    let error = ple.label(0, pairs(6)).unwrap_err();
    assert!(error.exit_code() == 5 && error.to_string().contains("6 of 100"), "{error}");
    assert!(ple.label(0, Vec::new()).unwrap().0.is_empty());
    let odd = Group { sides: vec![vec![answer(0.1, &[5])]], ..Group::default() };
    assert!(ple.label(0, vec![odd]).is_err());
}

#[test]
fn the_branch_of_a_difference() {
    let pair = |plain, guided| group(answer(plain, &[5]), answer(guided, &[6]));
    let tag = |plain, guided| outcome(|_| (), pair(plain, guided), "ple/worse_frac");
    let weight = |delta: f64| (1.0 / (1.0 + (-delta / 0.2).exp())) as f32;
    assert_eq!(tag(0.0, 0.2), (Some((WEIGHTED, [weight(-0.2), weight(0.2)])), 0.0), "Delta == tau");
    assert_eq!(tag(0.0, 0.2 + 1e-12).0.unwrap().0, GUIDED_HIGHER);
    assert_eq!(tag(0.5, 0.5), (Some((WEIGHTED, HALF)), 0.0));
    assert_eq!(tag(0.2, 0.0), (Some((WEIGHTED, [weight(0.2), weight(-0.2)])), 0.0), "worse by exactly tau");
    assert_eq!(tag(0.75, 0.0), (Some((WEIGHTED, [weight(0.75), weight(-0.75)])), 1.0));
    let worse = |way| outcome(|c| c.ple_worse = way, pair(0.75, 0.0), "ple/kept");
    assert_eq!(worse(Worse::Swap), (Some((PLAIN_HIGHER, [weight(0.75), weight(-0.75)])), 1.0));
    assert_eq!(worse(Worse::BestOnly), (Some((WEIGHTED, [1.0, 0.0])), 1.0));
    assert_eq!(worse(Worse::Skip), (None, 0.0));
    let rank_frac = |way| outcome(|c| c.ple_worse = way, pair(0.75, 0.0), "ple/rank_frac").1;
    assert_eq!((rank_frac(Worse::Weighted), rank_frac(Worse::Swap)), (0.0, 1.0));
    let (example, _) = label(|_| (), pair(0.0, 0.9)).unwrap();
    let example = example.unwrap();
    assert_eq!((example.row, example.prompt, example.answers), (7, vec![1], vec![vec![5, 2], vec![6, 2]]), "always y, y'");
}

#[test]
fn weights_of_each_kind() {
    let weights = |way, plain, guided| {
        let pair = group(answer(plain, &[5]), answer(guided, &[6]));
        label(|c| c.ple_weight = way, pair).map(|(e, _)| e.unwrap().weights)
    };
    assert_eq!(weights(Weight::Proportional, 0.6, 0.2).unwrap(), [0.75, 0.25]);
    assert_eq!(weights(Weight::Equal, 0.6, 0.2).unwrap(), [0.5, 0.5]);
    for (plain, guided) in [(0.0, 0.0), (-0.1, 0.5)] {
        assert!(weights(Weight::Proportional, plain, guided).is_err_and(|e| e.to_string().contains("row 7")));
    }
    let literal = label(|c| c.ple_weight_temp = 1.0, group(answer(0.5, &[5]), answer(0.0, &[6]))).unwrap().0.unwrap();
    close(f64::from(literal.weights[0]), 1.0 / (1.0 + (-0.5f64).exp()), 1e-7);
}

#[test]
fn bradley_terry_differences() {
    let settings = config(|c| c.reward_norm = Norm::Bt);
    let pair = |plain, guided| group(answer(plain, &[5]), answer(guided, &[6]));
    let mut ple = Ple::new(&settings, false);
    let (examples, _) = ple.label(0, vec![pair(3.0, 3.5), pair(3.0, 3.25)]).unwrap();
    // tanh(0.25) = 0.245 is above tau, tanh(0.125) = 0.124 is not; weights come from the raw difference.
    assert_eq!((examples[0].tag, examples[1].tag), (GUIDED_HIGHER, WEIGHTED));
    close(f64::from(examples[1].weights[1]), 1.0 / (1.0 + (-0.25f64 / 0.2).exp()), 1e-7);
}

#[test]
fn flat_rewards_are_all_weighted_and_said_so() {
    let mut ple = Ple::new(&config(|_| ()), false);
    let pair = |ids: [u32; 2]| group(answer(1.5, &ids[..1]), answer(1.5, &ids[1..]));
    let (examples, metrics) = ple.label(0, vec![pair([5, 6]), pair([7, 8])]).unwrap();
    assert!(examples.iter().all(|e| e.tag == WEIGHTED && e.weights == HALF));
    assert!(metrics.contains(&("ple/scale_floored", 1.0)) && metrics.contains(&("ple/calib_mean", 1.5)));
}

#[test]
fn tau_falls_by_iteration_to_its_floor() {
    let ple = Ple::new(&config(|_| ()), true);
    let want = [0.2, 0.18, 0.162, 0.1458, 0.1312, 0.1181, 0.1063, 0.0957];
    (0..8).for_each(|i| close(ple.tau(i), want[i as usize], 5e-5));
    let floor = Ple::new(&config(|c| c.ple_tau_min = 0.15), true);
    assert_eq!((floor.tau(3), floor.tau(0), floor.tau(u32::MAX)), (0.15, 0.2, 0.15));
}

#[test]
fn calibration_is_of_the_first_iteration_and_in_the_state() {
    let mut ple = Ple::new(&config(|_| ()), false);
    let groups = |shift: f64| {
        let pair = |r: f64, id| group(answer(r + shift, &[id]), answer(r + shift + 0.1, &[id + 1]));
        vec![pair(0.0, 5), pair(2.0, 7)]
    };
    assert_eq!(ple.state()["calibration"], serde_json::Value::Null);
    ple.label(0, groups(0.0)).unwrap();
    let first = ple.state();
    assert_eq!(first["calibration"], serde_json::json!([1.0, 1.0]));
    ple.label(1, groups(50.0)).unwrap();
    assert_eq!(ple.state(), first);
    let mut again = Ple::new(&config(|_| ()), false);
    again.restore(&first).unwrap();
    assert_eq!(again.label(1, groups(3.0)).unwrap(), ple.label(1, groups(3.0)).unwrap());
    assert!(again.restore(&serde_json::json!({"calibration": "x"})).is_err());
}

#[test]
fn what_the_methods_ask_for() {
    let settings = config(|c| (c.temperature, c.top_k) = (0.5, 3));
    let Rollout::Sides(sides) = Ple::new(&settings, true).rollout(0) else { panic!("two sides") };
    assert_eq!(sides.iter().map(|s| (s.principle, s.samples)).collect::<Vec<_>>(), [(false, 1), (true, 1)]);
    assert_eq!((sides[0].sampling, sides[1].sampling.top_k, sides[0].sampling.temperature), (sides[1].sampling, 3, 0.5));
    assert!(!Ple::new(&settings, true).needs().reference);
    assert!(Ple::new(&config(|c| c.ple_rank = Rank::Dpo), true).needs().reference);
    assert!(Ple::new(&config(|c| c.ple_kl_coef = 0.1), true).needs().reference);
    assert_eq!((Sft.rollout(3), Sft.needs()), (Rollout::None, Needs::logp()));
    let given = Group { row: 4, prompt: vec![1], sides: vec![vec![answer(f64::NAN, &[9])]], ..Group::default() };
    let (examples, _) = Sft.label(0, vec![given]).unwrap();
    assert_eq!(examples, [Example { row: 4, prompt: vec![1], answers: vec![vec![9, 2]], ..Example::default() }]);
}
