//! A whole PLE iteration at fixed shapes: `cargo bench -p ple --bench iteration -- [15m|110m] [THREADS] [ITERATIONS]`. 8 queries of 32
//! random ids; an answer of 64 ids to each alone and one behind a principle of 64 ids (top-p 0.9), a lexicon over ids, labels, one
//! LoRA step: what the peers' script times. Prints one JSON line.

mod shapes;

use kernels::sample::Sampling;
use model::{CacheLimits, KvCache, Request, SampleKey, Settings, generate};
use ple::config::{Command, Config};
use ple::method::{Answer, Example, Group, Method, ple::Ple};
use ple::trainer::{Trainer, Workspace};
use ple::{Result, pack};
use runtime::Arena;
use serde_json::json;
use std::ops::ControlFlow;
use std::time::Instant;

const QUERIES: usize = 8;
const QUERY: usize = 32;
const PRINCIPLE: usize = 64;
const NEW: usize = 64;

/// Good words less bad ones, per token.
fn reward(ids: &[u32]) -> f64 {
    let worth = |id: &u32| f64::from(i8::from((100..4100).contains(id)) - i8::from((5000..9000).contains(id)));
    ids.iter().map(worth).sum::<f64>() / ids.len() as f64
}

/// Answers to all prompts of one side.
fn answers(trainer: &Trainer, kv: &mut KvCache, prompts: &[Vec<u32>], side: u32, iteration: u32) -> Result<Vec<Answer>> {
    let settings =
        Settings { sampling: Sampling { top_p: 0.9, ..Sampling::default() }, max_new_tokens: NEW, ..Settings::default() };
    let key = |row: usize| SampleKey { row: row as u32, side, iteration, ..SampleKey::default() };
    let request = |(row, prompt): (usize, &Vec<u32>)| Request { prompt: prompt.clone(), key: key(row) };
    let requests: Vec<Request> = prompts.iter().enumerate().map(request).collect();
    let (s, model, policy) = (&trainer.stream, &trainer.model, trainer.policy);
    let drawn = generate(s, model, kv, &requests, &settings, policy, &mut |_, _| ControlFlow::Continue(()))?;
    let answer = |a: model::Finished| Answer {
        reward: reward(&a.ids),
        ids: a.ids,
        logps: a.logps,
        finished: a.stopped,
        ..Answer::default()
    };
    Ok(drawn.into_iter().map(answer).collect())
}

/// One iteration over an arena that sampling and training use in turn.
fn iterate(
    trainer: &mut Trainer,
    method: &mut Ple,
    prompts: &[Vec<u32>],
    principle: &[u32],
    iteration: u32,
    arena: Arena,
) -> Result<Arena> {
    let mut kv = KvCache::new(&trainer.stream, &trainer.model, cache(), false, Some(arena))?;
    let guided: Vec<Vec<u32>> = prompts.iter().map(|prompt| [principle, prompt].concat()).collect();
    let sides = [answers(trainer, &mut kv, prompts, 0, iteration)?, answers(trainer, &mut kv, &guided, 1, iteration)?];
    let [plain, guided] = sides;
    let group = |(row, ((prompt, plain), guided)): (usize, ((&Vec<u32>, Answer), Answer))| Group {
        row: row as u32,
        prompt: prompt.clone(),
        sides: vec![vec![plain], vec![guided]],
        ..Group::default()
    };
    let groups = prompts.iter().zip(plain).zip(guided).enumerate().map(group).collect();
    let (examples, _) = method.label(iteration, groups)?;
    let mut w = Workspace::new(&trainer.stream, &trainer.model, pack::limits(TRAINED), Some(kv.into_overlay()))?;
    trainer.step(&mut w, method, &examples.iter().collect::<Vec<&Example>>())?;
    Ok(w.into_overlay())
}

/// Tokens of the training step: a tree of query and two answers a pair.
const TRAINED: usize = QUERIES * (QUERY + 2 * NEW);

fn cache() -> CacheLimits {
    let positions = PRINCIPLE + QUERY + NEW;
    CacheLimits { pages: QUERIES * positions.div_ceil(64), prefill_tokens: QUERIES * positions, batch: QUERIES, positions }
}

fn main() -> Result<()> {
    let name = shapes::argument(0).unwrap_or_else(|| "15m".into());
    let number = |i: usize, default: usize| shapes::argument(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (threads, iterations) = (number(1, 2), number(2, 5));
    let mut trainer = shapes::trainer(&name, threads)?;
    let mut method = Ple::new(&Config::defaults(Command::Train), false);
    let mut ids = shapes::Ids(1);
    let principle = ids.take(PRINCIPLE);
    let model = &trainer.model;
    let bytes = model.cache_plan(cache(), false).max(model.plan(pack::limits(TRAINED), model::Keep::Backward));
    let mut arena = Arena::new(&trainer.stream, bytes)?;
    let mut times = Vec::new();
    for iteration in 0..=iterations {
        let prompts: Vec<Vec<u32>> = (0..QUERIES).map(|_| ids.take(QUERY)).collect();
        let clock = Instant::now();
        arena = iterate(&mut trainer, &mut method, &prompts, &principle, iteration as u32, arena)?;
        if iteration > 0 {
            times.push(clock.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let info = trainer.stream.backend().info();
    let row = json!({
        "bench": "ple_iteration", "shape": name, "dtype": "float32", "threads": threads, "device": info.name, "arch": info.arch,
        "step_s_median": median, "step_s_all": times, "queries_per_s": QUERIES as f64 / median, "peak_rss_mb": shapes::peak_memory(),
    });
    println!("RESULT {row}");
    Ok(())
}
