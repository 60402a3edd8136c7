//! `methods/golden.json`: values of the methods on the formula logits of its first rows, to 1e-6, and their dlogp against finite
//! differences of their own loss. All but those of PPO, which is not built.

use super::{json, number, numbers};
use anyhow::{Context, Result, ensure};
use model::{Batch, Columns};
use ple::config::{Calib, Command, Config, LossType, Rank, WeightMode};
use ple::method::dpo::Dpo;
use ple::method::grpo::Grpo;
use ple::method::ple::{GUIDED_HIGHER, Ple, WEIGHTED};
use ple::method::release::Release;
use ple::method::rloo::Rloo;
use ple::method::sft::Sft;
use ple::method::{Answer, Group, Method, Outputs, Totals};
use ple_tests::data::{say, shared};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

const LIMIT: f64 = 1e-6;

/// The file, and which of its values have been compared.
struct Values {
    json: Value,
    checked: BTreeSet<String>,
}

impl Values {
    fn list(&mut self, name: &str) -> Result<Vec<f64>> {
        self.checked.insert(name.to_string());
        match &self.json[name] {
            one if one.is_number() => Ok(vec![number(one, name)?]),
            many => numbers(many, name),
        }
    }

    fn close(&mut self, name: &str, ours: &[f64]) -> Result<()> {
        let wanted = self.list(name)?;
        near(name, ours, &wanted, LIMIT)
    }

    fn rows(&mut self, name: &str) -> Result<Vec<Vec<f64>>> {
        self.checked.insert(name.to_string());
        self.json[name].as_array().context("a table")?.iter().map(|row| numbers(row, name)).collect()
    }
}

fn near(name: &str, ours: &[f64], wanted: &[f64], limit: f64) -> Result<()> {
    let close = ours.iter().zip(wanted).all(|(a, b)| (a - b).abs() <= limit);
    ensure!(ours.len() == wanted.len() && close, "{name}: {ours:?}, wanted {wanted:?} within {limit}");
    Ok(())
}

/// Completion rows [sequence][token] of logits 2·sin(.7n + 1.1t + .9v + a) + .3·cos(.5nv − t + b).
fn logps(values: &mut Values, [a, b]: [f64; 2]) -> Result<Vec<Vec<f32>>> {
    let shape = values.list("shape")?;
    let (ids, mask) = (values.rows("ids")?, values.rows("completion_mask")?);
    let logp = |n: usize, t: usize| {
        let (m, before) = (n as f64, t as f64 - 1.0);
        let z = |v: f64| 2.0 * (0.7 * m + 1.1 * before + 0.9 * v + a).sin() + 0.3 * (0.5 * m * v - before + b).cos();
        let total: f64 = (0..shape[2] as usize).map(|v| z(v as f64).exp()).sum();
        (z(ids[n][t]) - total.ln()) as f32
    };
    Ok((0..ids.len()).map(|n| (0..ids[n].len()).filter(|t| mask[n][*t] == 1.0).map(|t| logp(n, t)).collect()).collect())
}

/// Tag, log-probabilities of the answers, weights.
type Given<'a> = (u32, Vec<&'a Vec<f32>>, Vec<f32>);

/// A batch of examples, and its log-probabilities.
fn batch(examples: &[Given<'_>]) -> Result<(Batch, Vec<f32>)> {
    let (mut b, mut out) = (Batch::default(), Vec::new());
    for (tag, answers, weights) in examples {
        let ids: Vec<Vec<u32>> = answers.iter().map(|a| vec![1; a.len()]).collect();
        b.example(&[1, 2], &ids.iter().map(Vec::as_slice).collect::<Vec<_>>(), *tag)?;
        b.side.weight.extend(weights);
        out.extend(answers.iter().flat_map(|a| a.iter().copied()));
    }
    Ok((b, out))
}

fn loss(method: &dyn Method, b: &Batch, logp: &[f32]) -> Result<(f64, Vec<f32>)> {
    let weight = b.side.weight.iter().map(|w| f64::from(*w)).sum();
    let totals =
        Totals { examples: b.examples.len() as f64, answers: b.sequences.len() as f64, tokens: b.loss_rows() as f64, weight };
    let mut dlogp = vec![f32::NAN; logp.len()];
    let loss = method.loss(&totals, b, Outputs { logp, value: &[] }, Outputs { logp: &mut dlogp, value: &mut [] })?;
    Ok((loss.value, dlogp))
}

/// dlogp against central differences of the loss.
fn differences(what: &str, method: &dyn Method, b: &Batch, logp: &[f32]) -> Result<()> {
    let (_, dlogp) = loss(method, b, logp)?;
    for i in 0..logp.len() {
        let moved = |by: f32| {
            let mut logp = logp.to_vec();
            logp[i] += by;
            Ok::<_, anyhow::Error>((f64::from(logp[i]), loss(method, b, &logp)?.0))
        };
        let ((x0, low), (x1, high)) = (moved(-1e-3)?, moved(1e-3)?);
        let slope = (high - low) / (x1 - x0);
        ensure!((slope - f64::from(dlogp[i])).abs() <= LIMIT, "{what}: dlogp[{i}] is {}, the loss says {slope}", dlogp[i]);
    }
    Ok(())
}

fn sft(values: &mut Values, logps: &[Vec<f32>]) -> Result<()> {
    let (b, logp) = batch(&[(0, vec![&logps[0]], vec![]), (0, vec![&logps[1]], vec![])])?;
    let (mean, _) = loss(&Sft, &b, &logp)?;
    values.close("sft_mean", &[mean])?;
    let tokens = values.list("sft_ntok")?[0];
    ensure!(tokens == logp.len() as f64, "sft_ntok: {}", logp.len());
    let sum = values.list("sft_sum")?;
    near("sft_sum", &[mean * tokens], &sum, LIMIT * tokens)?;
    differences("sft", &Sft, &b, &logp)
}

/// Every form of the rank loss, pair (n, n + 2): n is the guided answer.
fn ranks(values: &mut Values, logps: &[Vec<f32>], reference: &[Vec<f32>]) -> Result<()> {
    for (name, rank) in [
        ("ple_hinge", Rank::Hinge),
        ("ple_logistic_b1", Rank::Logistic),
        ("ple_probhinge", Rank::ProbHinge),
        ("dpo_per_pair", Rank::Dpo),
    ] {
        let mut config = Config::defaults(Command::Train);
        config.ple_rank = rank;
        let method = Ple::new(&config, true);
        let mut ours = Vec::new();
        for n in 0..2 {
            let (mut b, logp) = batch(&[(GUIDED_HIGHER, vec![&logps[n + 2], &logps[n]], vec![0.0; 2])])?;
            b.side.ref_logp = [&reference[n + 2][..], &reference[n]].concat();
            ours.push(loss(&method, &b, &logp)?.0);
            differences(name, &method, &b, &logp)?;
        }
        values.close(name, &ours)?;
        if rank == Rank::Dpo {
            values.close("dpo_sigmoid", &[ours.iter().sum::<f64>() / 2.0])?;
        }
    }
    Ok(())
}

/// From raw rewards through label to the loss.
fn ple(values: &mut Values, logps: &[Vec<f32>]) -> Result<()> {
    let golden = values.json["ple"].clone();
    let of = |name: &str| numbers(&golden[name], name);
    let [mean, std] = ["mu", "sd"].map(|name| number(&golden[name], name));
    let mut config = Config::defaults(Command::Train);
    config.reward_calib = Calib::Fixed { mean: mean?, std: std? };
    let mut method = Ple::new(&config, false);
    let raw = [of("raw_o")?, of("raw_p")?];
    let answer = |side: usize, n: usize| {
        let row = if side == 0 { n + 2 } else { n };
        let ids = (0..logps[row].len() as u32).map(|i| 10 * row as u32 + i).collect();
        vec![Answer { ids, logps: logps[row].clone(), finished: true, reward: raw[side][n], ..Answer::default() }]
    };
    let group =
        |n: usize| Group { row: n as u32, prompt: vec![1, 2], sides: vec![answer(0, n), answer(1, n)], ..Group::default() };
    let (examples, metrics) = method.label(0, vec![group(0), group(1)])?;
    let ranked: Vec<bool> = examples.iter().map(|e| e.tag == GUIDED_HIGHER).collect();
    let wanted: Vec<bool> = golden["rank"].as_array().context("ple.rank")?.iter().map(|r| r == true).collect();
    ensure!(ranked == wanted && examples.iter().any(|e| e.tag == WEIGHTED), "branches: {ranked:?}, wanted {wanted:?}");
    for (example, weights) in examples.iter().zip(golden["w"].as_array().context("ple.w")?) {
        let ours: Vec<f64> = example.weights.iter().map(|w| f64::from(*w)).collect();
        near("ple.w", &ours, &numbers(weights, "ple.w")?, LIMIT)?;
    }
    let mean = |name: &str| Ok::<_, anyhow::Error>(of(name)?.iter().sum::<f64>() / 2.0);
    for (metric, name) in [("ple/reward_orig_norm", "r_o"), ("ple/reward_guided_norm", "r_p"), ("ple/delta_mean", "delta")] {
        let ours = metrics.iter().find(|(n, _)| *n == metric).with_context(|| format!("no metric {metric}"))?.1;
        near(name, &[ours], &[mean(name)?], LIMIT)?;
    }
    let given: Vec<_> = (0..2).map(|n| (examples[n].tag, vec![&logps[n + 2], &logps[n]], examples[n].weights.clone())).collect();
    let per_pair: Vec<f64> = given
        .iter()
        .map(|one| {
            let (b, logp) = batch(std::slice::from_ref(one))?;
            Ok(loss(&method, &b, &logp)?.0)
        })
        .collect::<Result<_>>()?;
    near("ple.per_pair", &per_pair, &of("per_pair")?, LIMIT)?;
    let (b, logp) = batch(&given)?;
    near("ple.total", &[loss(&method, &b, &logp)?.0], &[number(&golden["total"], "ple.total")?], LIMIT)?;
    differences("ple", &method, &b, &logp)?;
    values.checked.insert("ple".into());
    Ok(())
}

/// A batch of pairs (n, n + 2), n chosen, with the reference's log-probabilities.
fn preferences(logps: &[Vec<f32>], reference: &[Vec<f32>], ns: &[usize], weights: &[f32]) -> Result<(Batch, Vec<f32>)> {
    let given: Vec<_> = ns.iter().zip(weights).map(|(n, w)| (0, vec![&logps[*n], &logps[n + 2]], vec![*w, 0.0])).collect();
    let (mut b, logp) = batch(&given)?;
    b.side.ref_logp = ns.iter().flat_map(|n| [&reference[*n][..], &reference[n + 2]].concat()).collect();
    Ok((b, logp))
}

fn dpo_with(loss_type: LossType, label_smoothing: f64) -> Dpo {
    Dpo::new(&Config { loss_type: Some(loss_type), label_smoothing, ..Config::defaults(Command::Dpo) })
}

/// Every form of DPO that the file holds, its metrics, and its gradient on logits: c·(onehot − softmax).
fn dpo(values: &mut Values, logps: &[Vec<f32>], reference: &[Vec<f32>]) -> Result<()> {
    let (b, logp) = preferences(logps, reference, &[0, 1], &[0.0; 2])?;
    for (name, form) in [
        ("dpo_sigmoid", LossType::Sigmoid),
        ("dpo_hinge", LossType::Hinge),
        ("dpo_ipo", LossType::Ipo),
        ("dpo_sigmoid_norm", LossType::SigmoidNorm),
    ] {
        let method = dpo_with(form, 0.0);
        values.close(name, &[loss(&method, &b, &logp)?.0])?;
        differences(name, &method, &b, &logp)?;
    }
    for form in [LossType::Sigmoid, LossType::Robust] {
        differences(form.name(), &dpo_with(form, 0.1), &b, &logp)?;
    }
    let method = dpo_with(LossType::Sigmoid, 0.0);
    let per_pair = (0..2).map(|n| {
        let (b, logp) = preferences(logps, reference, &[n], &[0.0])?;
        Ok(loss(&method, &b, &logp)?.0)
    });
    let per_pair = per_pair.collect::<Result<Vec<_>>>()?;
    values.close("dpo_per_pair", &per_pair)?;
    metrics(values, &method, &b, &logp)?;
    let (_, dlogp) = loss(&method, &b, &logp)?;
    gradient(values, &b, &dlogp)
}

/// What TRL logs of the same batch, by the same names; what is of logits is none of a method's.
fn metrics(values: &mut Values, method: &Dpo, b: &Batch, logp: &[f32]) -> Result<()> {
    let (mut dlogp, totals) = (vec![f32::NAN; logp.len()], Totals { examples: 2.0, ..Totals::default() });
    let dout = Outputs { logp: &mut dlogp[..], value: &mut [][..] };
    let got = method.loss(&totals, b, Outputs { logp, value: &[] }, dout)?;
    let wanted = values.json["dpo_metrics"].clone();
    for (name, ours) in got.metrics {
        near(name, &[ours], &[number(&wanted[name], name)?], LIMIT)?;
    }
    ensure!(number(&wanted["num_tokens"], "num_tokens")? == 24.0, "another batch");
    values.checked.insert("dpo_metrics".into());
    Ok(())
}

/// The gradient of the logits [sequence][token][v] that dlogp stands for.
fn gradient(values: &mut Values, b: &Batch, dlogp: &[f32]) -> Result<()> {
    let shape = values.list("shape")?;
    let (ids, mask) = (values.rows("ids")?, values.rows("completion_mask")?);
    let (tokens, v) = (ids[0].len(), shape[2] as usize);
    let (mut grads, mut largest) = (vec![vec![0.0; v]; 4 * tokens], 0f64);
    // The batch holds pair by pair what the file holds chosen first.
    for (span, n) in b.sequences.iter().zip([0, 2, 1, 3]) {
        let predicted = (0..tokens).filter(|t| mask[n][*t] == 1.0);
        for (c, t) in dlogp[span.range()].iter().zip(predicted) {
            let (m, before) = (n as f64, t as f64 - 1.0);
            let z = |v: usize| {
                let v = v as f64;
                2.0 * (0.7 * m + 1.1 * before + 0.9 * v).sin() + 0.3 * (0.5 * m * v - before).cos()
            };
            let total: f64 = (0..v).map(|v| z(v).exp()).sum();
            for (i, g) in grads[n * tokens + t - 1].iter_mut().enumerate() {
                let onehot = f64::from(i == ids[n][t] as usize);
                *g = f64::from(*c) * (onehot - z(i).exp() / total);
                largest = largest.max(g.abs());
            }
        }
    }
    values.close("dpo_sigmoid_grad_logit_0_2", &grads[2])?;
    values.close("dpo_sigmoid_grad_absmax", &[largest])
}

/// The released recipe: its weights change nothing as written, and weigh over the whole batch as intended.
fn release(values: &mut Values, logps: &[Vec<f32>], reference: &[Vec<f32>]) -> Result<()> {
    // Its loss has no dimension: a mean before the weights come to it.
    ensure!(values.list("release_pref_loss_ndim")? == [0.0], "another loss");
    let of = |mode: WeightMode| Release::new(&Config { release_weight_mode: mode, ..Config::defaults(Command::Train) });
    let named: Vec<String> = values.json.as_object().context("golden.json")?.keys().cloned().collect();
    for name in named.iter().filter(|name| name.starts_with("release_") && name.contains("_w[")) {
        let list = &name[name.find('[').context("weights")?..];
        let weights: Vec<f32> = serde_json::from_str(list)?;
        let (intended, label) = (name.starts_with("release_intended"), of(WeightMode::None));
        // As written every weight is as good as 1, which is what label gives.
        let weights = if intended { weights } else { vec![1.0; 2] };
        let (b, logp) = preferences(logps, reference, &[0, 1], &weights)?;
        let method = if intended { of(WeightMode::Intended) } else { label };
        values.close(name, &[loss(&method, &b, &logp)?.0])?;
        differences(name, &method, &b, &logp)?;
    }
    Ok(())
}

/// Rewards of the two groups whose advantages the file holds.
const REWARDS: [[f64; 4]; 2] = [[0.2, 1.0, -0.4, 0.6], [0.5; 4]];

fn groups(logps: &[Vec<f32>]) -> Vec<Group> {
    let group = |(row, rewards): (usize, &[f64; 4])| {
        let answer = |(n, reward): (usize, &f64)| Answer {
            ids: vec![1; logps[n].len()],
            logps: logps[n].clone(),
            finished: true,
            reward: *reward,
            ..Answer::default()
        };
        let sides = vec![rewards.iter().enumerate().map(answer).collect()];
        Group { row: row as u32, prompt: vec![1, 2], sides, ..Group::default() }
    };
    REWARDS.iter().enumerate().map(group).collect()
}

/// Examples as a batch of their own log-probabilities moved by `by`, with their columns.
fn sampled(method: &mut dyn Method, logps: &[Vec<f32>], reference: &[Vec<f32>], by: f32) -> Result<(Batch, Vec<f32>)> {
    let (mut examples, _) = method.label(0, groups(logps))?;
    examples.iter_mut().for_each(|e| e.ref_logp = reference.concat());
    let mut side = Columns::default();
    for e in &examples {
        side.ref_logp.extend(&e.ref_logp);
        side.old_logp.extend(&e.old_logp);
        side.weight.extend(&e.weights);
    }
    method.advantages(&examples, &mut side)?;
    let given: Vec<_> = examples.iter().map(|_| (0, logps.iter().collect(), vec![])).collect();
    let (mut b, out) = batch(&given)?;
    b.side = side;
    // Some up, some down, some beyond the clip.
    Ok((b, out.iter().enumerate().map(|(i, l)| l + by * ((i % 5) as f32 - 1.7)).collect()))
}

/// Advantages without a KL term, and both losses on and off the sampling policy.
fn grouped(values: &mut Values, logps: &[Vec<f32>], reference: &[Vec<f32>]) -> Result<()> {
    let plain = Config { beta: 0.0, num_generations: 4, ..Config::defaults(Command::Rloo) };
    let (b, _) = sampled(&mut Rloo::new(&plain), logps, reference, 0.0)?;
    let ours: Vec<f64> = b.sequences.iter().map(|span| f64::from(b.side.advantage[span.start as usize])).collect();
    let wanted = values.rows("rloo_adv")?.concat();
    near("rloo_adv", &ours, &wanted, LIMIT)?;
    let config = Config { num_generations: 4, ..Config::defaults(Command::Grpo) };
    let (b, _) = sampled(&mut Grpo::new(&config), logps, reference, 0.0)?;
    let ours: Vec<f64> = b.side.weight.iter().map(|w| f64::from(*w)).collect();
    let wanted = values.rows("grpo_adv")?.concat();
    near("grpo_adv", &ours, &wanted, LIMIT)?;
    let held = Config { beta: 0.05, ..config };
    for by in [0.0, 0.02, 0.2] {
        let mut rloo = Rloo::new(&held);
        let (b, logp) = sampled(&mut rloo, logps, reference, by)?;
        differences("rloo", &rloo, &b, &logp)?;
        let mut grpo = Grpo::new(&held);
        let (b, logp) = sampled(&mut grpo, logps, reference, by)?;
        differences("grpo", &grpo, &b, &logp)?;
    }
    Ok(())
}

#[cfg_attr(test, test)]
pub fn methods() -> Result<()> {
    let Some(path) = shared("fixtures/methods/golden.json") else {
        say("case methods skip methods/golden.json is not there");
        return Ok(());
    };
    compare(&path).inspect_err(|e| say(&format!("case methods FAILED {e:#}")))
}

fn compare(path: &Path) -> Result<()> {
    let mut values = Values { json: json(path)?, checked: BTreeSet::new() };
    let (ours, reference) = (logps(&mut values, [0.0, 0.0])?, logps(&mut values, [0.15, 0.1])?);
    let sum = |rows: &[Vec<f32>]| rows.iter().map(|r| r.iter().map(|l| f64::from(*l)).sum()).collect::<Vec<f64>>();
    let lens: Vec<f64> = ours.iter().map(|r| r.len() as f64).collect();
    values.close("policy_sum_logps", &sum(&ours))?;
    values.close("ref_sum_logps", &sum(&reference))?;
    values.close("mean_logps", &sum(&ours).iter().zip(&lens).map(|(s, n)| s / n).collect::<Vec<_>>())?;
    values.close("len", &lens)?;
    sft(&mut values, &ours)?;
    ranks(&mut values, &ours, &reference)?;
    ple(&mut values, &ours)?;
    dpo(&mut values, &ours, &reference)?;
    release(&mut values, &ours, &reference)?;
    grouped(&mut values, &ours, &reference)?;
    let all: Vec<&String> = values.json.as_object().context("golden.json")?.keys().collect();
    let left: Vec<_> = all.iter().filter(|name| !values.checked.contains(**name)).collect();
    say(&format!("case methods ok {}/{}", values.checked.len(), all.len()));
    // PPO is the one method of the file that is not built.
    ensure!(left.iter().all(|name| **name == "ppo"), "methods/golden.json: not compared: {left:?}");
    Ok(())
}
