//! Every method at the same shapes: `cargo bench -p ple --bench methods -- [15m|110m] [THREADS] [ROUNDS]`. Batch 8 trees of a prompt of 64
//! tokens and two answers of 96, r 8 on all linears. A token-pass is a forward over a computed token; forward and backward are three.
//! Rounds of all methods in turn; one JSON line each, with the time per token-pass against SFT's: the median over the rounds of the ratio
//! within a round, which a machine that slows down for a while does not move.

mod shapes;

use model::Adapter;
use ple::config::{Command, Config};
use ple::method::{Example, Heads, Method};
use ple::method::{dpo::Dpo, grpo::Grpo, ple::Ple, release::Release, reward_model::RewardModel, rloo::Rloo, sft::Sft};
use ple::trainer::Workspace;
use ple::{Result, pack, side};
use serde_json::json;
use std::time::Instant;

const BATCH: usize = 8;
const PROMPT: usize = 64;
const ANSWER: usize = 96;

fn examples(ids: &mut shapes::Ids) -> Vec<Example> {
    let one = |_| Example {
        prompt: ids.take(PROMPT),
        answers: vec![ids.take(ANSWER), ids.take(ANSWER)],
        weights: vec![0.75, 0.25],
        old_logp: vec![-10.0; 2 * ANSWER],
        ..Example::default()
    };
    (0..BATCH).map(one).collect()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let name = shapes::argument(0).unwrap_or_else(|| "15m".into());
    let number = |i: usize, default: usize| shapes::argument(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (threads, rounds) = (number(1, 2), number(2, 3));
    let mut trainer = shapes::trainer_of(&name, threads, true)?;
    let c = Config::defaults(Command::Train);
    let methods: [(&str, Box<dyn Method>); 7] = [
        ("sft", Box::new(Sft)),
        ("ple", Box::new(Ple::new(&c, true))),
        ("reward", Box::new(RewardModel::new(&c))),
        ("dpo", Box::new(Dpo::new(&c))),
        ("rloo", Box::new(Rloo::new(&c))),
        ("grpo", Box::new(Grpo::new(&c))),
        ("release", Box::new(Release::new(&c))),
    ];
    let limits = pack::limits(BATCH * (PROMPT + 2 * ANSWER));
    let mut w = Workspace::new(&trainer.stream, &trainer.model, limits, None)?;
    let (mut ids, mut times) = (shapes::Ids(1), vec![Vec::new(); methods.len()]);
    for round in 0..=rounds {
        for ((_, method), times) in methods.iter().zip(&mut times) {
            let mut examples = examples(&mut ids);
            let (start, scalar) = (Instant::now(), method.needs().heads == Heads::Scalar);
            side::fill(&trainer, &mut w, Adapter::Off, &**method, &mut examples)?;
            let step = trainer.step(&mut w, &**method, &examples.iter().collect::<Vec<_>>())?;
            let passes = if method.needs().reference { 4 } else { 3 };
            if round > 0 {
                times.push(start.elapsed().as_secs_f64() / (passes * step.tokens) as f64);
            }
            assert_eq!(step.tokens, BATCH * (PROMPT + 2 * ANSWER - if scalar { 0 } else { 2 }));
        }
    }
    let (info, times_of_sft) = (trainer.stream.backend().info(), times[0].clone());
    let of_sft = |times: &[f64]| median(times.iter().zip(&times_of_sft).map(|(t, sft)| t / sft));
    for ((method, _), times) in methods.iter().zip(&times) {
        let row = json!({
            "bench": "ple_methods", "method": method, "shape": name, "threads": threads, "device": info.name, "arch": info.arch,
            "us_per_token_pass": 1e6 * median(times.iter().copied()), "all": times.iter().map(|t| 1e6 * t).collect::<Vec<_>>(),
            "of_sft": of_sft(times),
        });
        println!("RESULT {row}");
    }
    Ok(())
}
