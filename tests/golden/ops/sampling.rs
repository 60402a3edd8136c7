//! The sampler: picks outside their margins, and the whole filtered distribution, seen through evenly spaced draws.

use super::Op;
use anyhow::{Context, Result};
use kernels::sample::{self, Sampling};
use runtime::{DType, View};

/// Draws that lie evenly over all 64-bit draws.
const EVEN: usize = 4096;
/// Below this an f32 evaluation may pick the neighbour.
const MARGIN: f32 = 1e-6;

fn settings(entry: &serde_json::Value) -> Sampling {
    let number = |field: &str| entry[field].as_f64().unwrap_or(0.0);
    Sampling {
        temperature: number("temperature"),
        top_k: number("top_k") as u32,
        top_p: number("top_p") as f32,
        min_p: number("min_p") as f32,
        ..Sampling::default()
    }
}

/// One draw per row: ids, and their log-probabilities under the filtered distribution.
fn draw(op: &Op, rows: &[f32], draws: &[u64], settings: &Sampling) -> Result<(Vec<u32>, Vec<f32>)> {
    let words: Vec<u32> = draws.iter().flat_map(|d| [*d as u32, (*d >> 32) as u32]).collect();
    let (logits, words) = (op.s.upload(rows)?, op.s.upload(&words)?);
    let (ids, logps) = (op.s.zeros::<u32>(draws.len())?, op.output(draws.len())?);
    let seen = View::none(DType::U32);
    sample::forward(&op.s, ids.view(), logps.view(), logits.view(), words.view(), seen, settings)?;
    Ok((ids.to_vec()?, logps.to_vec()?))
}

pub fn grid(op: &mut Op) -> Result<()> {
    let grid = op.case.entry["grid"].as_array().context("grid")?.clone();
    let (n, v) = op.size("logits")?;
    let logits = op.golden.input("logits")?;
    let half = |op: &mut Op, name: &str| -> Result<Vec<u64>> {
        op.golden.expect(name, true, String::new);
        Ok(op.golden.ints(name)?.into_iter().map(|w| w as u64 & 0xffff_ffff).collect())
    };
    let (low, high) = (half(op, "u64_draws_lo")?, half(op, "u64_draws_hi")?);
    let draws: Vec<u64> = low.iter().zip(&high).map(|(lo, hi)| hi << 32 | lo).collect();
    let per_row = draws.len() / n;
    for (i, entry) in grid.iter().enumerate() {
        let settings = settings(entry);
        picks(op, i, &settings, &logits, &draws, (n, v, per_row))?;
        distribution(op, i, &settings, &logits, (n, v))?;
    }
    Ok(())
}

/// Every golden draw whose distance to the next boundary an f32 evaluation resolves.
fn picks(
    op: &mut Op,
    i: usize,
    settings: &Sampling,
    logits: &[f32],
    draws: &[u64],
    (n, v, per_row): (usize, usize, usize),
) -> Result<()> {
    let (wanted, margins) = (op.golden.ids(&format!("pick_{i}"))?, op.golden.floats(&format!("pick_margin_{i}"))?);
    let probabilities = op.golden.floats(&format!("probs_{i}"))?;
    let probability = |row: usize, id: usize| {
        let tied = (0..v).filter(|other| logits[row * v + other] == logits[row * v + id]);
        tied.map(|other| probabilities[row * v + other]).fold(0.0, f32::max)
    };
    let rows: Vec<f32> = (0..n).flat_map(|row| logits[row * v..(row + 1) * v].repeat(per_row)).collect();
    let (ids, logps) = draw(op, &rows, draws, settings)?;
    let outside = (0..draws.len()).filter(|d| margins[*d] >= MARGIN);
    let wrong: Vec<usize> = outside.filter(|d| ids[*d] != wanted[*d]).collect();
    op.golden.expect(&format!("pick_margin_{i}"), true, String::new);
    op.golden.expect(&format!("pick_{i}"), wrong.is_empty(), || format!("draws {wrong:?} picked other ids"));
    let mut off = ids
        .iter()
        .zip(&logps)
        .enumerate()
        .map(|(d, (id, logp))| (f64::from(*logp) - f64::from(probability(d / per_row, *id as usize)).ln()).abs());
    let close = off.all(|off| off <= 1e-5);
    op.golden.expect(&format!("pick_{i}"), close, || "a sampling log-probability is off by more than 1e-5".into());
    Ok(())
}

/// n evenly spaced draws pick an id n·p times, but for the two ends of its interval. Among equal logits the golden says how many
/// are kept, not which (the law and the golden picks keep the lowest ids), so equals are compared in descending order.
fn distribution(op: &mut Op, i: usize, settings: &Sampling, logits: &[f32], (n, v): (usize, usize)) -> Result<()> {
    let name = format!("probs_{i}");
    let probabilities = op.golden.floats(&name)?;
    let step = u64::MAX / EVEN as u64;
    let draws: Vec<u64> = (0..EVEN as u64).map(|d| d * step + step / 2).collect();
    for row in 0..n {
        let (ids, _) = draw(op, &logits[row * v..(row + 1) * v].repeat(EVEN), &draws, settings)?;
        let mut counts = vec![0usize; v];
        ids.iter().for_each(|id| counts[*id as usize] += 1);
        for (got, p) in by_logit(&logits[row * v..(row + 1) * v], &counts, &probabilities[row * v..(row + 1) * v]) {
            let off = (got as f64 - p * EVEN as f64).abs();
            let holds = off <= 1.0 + 1e-3 && (p > 0.0 || got == 0);
            op.golden.expect(&name, holds, || format!("row {row}: {got} of {EVEN} draws where p is {p}"));
        }
    }
    Ok(())
}

/// Counts and probabilities of the ids of each logit value, both in descending order.
fn by_logit(logits: &[f32], counts: &[usize], probabilities: &[f32]) -> Vec<(usize, f64)> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    let mut pairs = Vec::new();
    for equal in ids.chunk_by(|a, b| logits[*a] == logits[*b]) {
        let mut got: Vec<usize> = equal.iter().map(|id| counts[*id]).collect();
        let mut wanted: Vec<f64> = equal.iter().map(|id| f64::from(probabilities[*id])).collect();
        got.sort_by(|a, b| b.cmp(a));
        wanted.sort_by(|a, b| b.total_cmp(a));
        pairs.extend(got.into_iter().zip(wanted));
    }
    pairs
}
