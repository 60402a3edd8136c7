//! The figures of a run: what is drawn from which numbers.

use super::chart::{Axes, Line, Spread, Stack, histogram, lines, lines_file, stacked};
use super::run::{Iteration, Run};
use super::svg::escape;

/// Colours by meaning, the same in every figure.
const PLAIN: usize = 0;
const GUIDED: usize = 1;
const THIRD: usize = 2;
const REST: usize = 3;

/// Styles of charts.
pub const STYLE: &str = include_str!("chart.css");

/// A figure with its title and what to know of it.
fn figure(title: &str, note: &str, svg: String) -> String {
    format!("<figure><figcaption>{} <span>{}</span></figcaption>{svg}</figure>", escape(title), escape(note))
}

/// A line with a value per iteration.
fn per_iteration(run: &Run, name: &str, colour: usize, of: impl Fn(&Iteration) -> f64) -> Line {
    let points = run.iterations.iter().enumerate().map(|(i, iteration)| (i as f64, of(iteration))).collect();
    Line { name: name.into(), colour, points }
}

/// Whether a line has anything to draw.
fn drawn(lines: Vec<Line>) -> Vec<Line> {
    lines.into_iter().filter(|line| line.points.iter().any(|(_, y)| y.is_finite())).collect()
}

/// All figures of a run that has what they are drawn from.
pub fn all(run: &Run) -> Vec<String> {
    let sampled = !run.iterations.is_empty();
    let pairs = run.iterations.iter().any(|i| i.metric("ple/tau").is_finite());
    let mut figures = Vec::new();
    if sampled {
        figures.push(reward(run));
    }
    if !run.steps.is_empty() {
        figures.push(loss(run));
    }
    if pairs {
        figures.extend([tau(run), deltas(run)]);
    }
    if sampled {
        figures.extend([branches(run), lengths(run), time(run)]);
    }
    figures
}

fn loss(run: &Run) -> String {
    let points = |steps: &[super::run::Step]| steps.iter().map(|s| (s.step as f64, s.loss)).collect::<Vec<_>>();
    let train = Line { name: "trained".into(), colour: PLAIN, points: points(&run.steps) };
    let held = Line { name: "held out".into(), colour: GUIDED, points: points(&run.held_out) };
    let axes = Axes { name: "loss per step", x: "optimizer step", y: "loss", hold: &[] };
    let note = if run.iterations.is_empty() { "nats per token" } else { "of the method" };
    figure("Loss", note, lines(&axes, &drawn(vec![train, held])))
}

fn reward(run: &Run) -> String {
    let all = vec![
        per_iteration(run, "plain", PLAIN, |i| i.mean(0, |a| a.reward)),
        per_iteration(run, "guided", GUIDED, |i| i.mean(1, |a| a.reward)),
        per_iteration(run, "best", THIRD, |i| i.metric("raft/reward_best")),
    ];
    let axes = Axes { name: "mean reward per iteration", x: "iteration", y: "reward", hold: &[] };
    figure("Reward", "mean over the answers of an iteration", lines(&axes, &drawn(all)))
}

fn tau(run: &Run) -> String {
    let all = vec![
        per_iteration(run, "τ", GUIDED, |i| i.metric("ple/tau")),
        per_iteration(run, "mean Δ", PLAIN, |i| i.metric("ple/delta_mean")),
    ];
    let axes =
        Axes { name: "threshold and mean difference per iteration", x: "iteration", y: "Δ = guided − plain", hold: &[0.0] };
    figure("Threshold", "a pair above τ is ranked", lines(&axes, &drawn(all)))
}

fn deltas(run: &Run) -> String {
    let spread = |index: usize, colour: usize| {
        let iteration = run.iterations.get(index)?;
        let (values, tau) = (run.deltas(iteration), iteration.metric("ple/tau"));
        let mark = tau.is_finite().then(|| (format!("τ = {tau:.3}"), tau));
        Some(Spread { name: format!("iteration {index}"), colour, values, mark })
    };
    let last = run.iterations.len() - 1;
    let series: Vec<Spread> = [spread(0, PLAIN), spread(last, GUIDED).filter(|_| last > 0)].into_iter().flatten().collect();
    let axes = Axes { name: "histogram of the differences", x: "Δ = guided − plain", y: "% of pairs", hold: &[] };
    figure("Difference of the two rewards", "first and last iteration", histogram(&axes, &series))
}

fn branches(run: &Run) -> String {
    let known = [("ranked", GUIDED), ("ranked_plain", THIRD), ("weighted", PLAIN), ("best", THIRD)];
    let share = |i: &Iteration, branch: Option<&str>| 100.0 * i.share(branch);
    let mut parts: Vec<(Option<&str>, String, usize)> = known.iter().map(|(b, c)| (Some(*b), b.replace('_', " "), *c)).collect();
    parts.push((None, "left out".into(), REST));
    parts.retain(|(branch, ..)| run.iterations.iter().any(|i| share(i, *branch) > 0.0));
    let bars = run.iterations.iter().map(|i| parts.iter().map(|(branch, ..)| share(i, *branch)).collect()).collect();
    let stack = Stack { parts: parts.iter().map(|(_, name, colour)| (name.clone(), *colour)).collect(), bars };
    let axes = Axes { name: "what became of the queries", x: "iteration", y: "% of queries", hold: &[100.0] };
    figure("Branches", "what became of the answers to a query", stacked(&axes, &stack))
}

fn lengths(run: &Run) -> String {
    let all = vec![
        per_iteration(run, "plain", PLAIN, |i| i.mean(0, |a| a.tokens as f64)),
        per_iteration(run, "guided", GUIDED, |i| i.mean(1, |a| a.tokens as f64)),
    ];
    let axes = Axes { name: "mean length per iteration", x: "iteration", y: "tokens", hold: &[0.0] };
    figure("Length", "mean tokens of an answer, its end included", lines(&axes, &drawn(all)))
}

fn time(run: &Run) -> String {
    let phases = [("rollout", "time/rollout", PLAIN), ("reward", "time/reward", THIRD), ("train", "time/train", GUIDED)];
    let bars = run.iterations.iter().map(|i| phases.map(|(_, metric, _)| i.metric(metric)).to_vec()).collect();
    let stack = Stack { parts: phases.map(|(name, _, colour)| (name.to_string(), colour)).to_vec(), bars };
    let axes = Axes { name: "seconds per phase and iteration", x: "iteration", y: "seconds", hold: &[] };
    figure("Time", "per phase", stacked(&axes, &stack))
}

const COMPARED: Axes<'_> =
    Axes { name: "reward of plain answers per iteration", x: "iteration", y: "mean reward of plain answers", hold: &[] };

fn compared(ple: &Run, raft: &Run) -> Vec<Line> {
    let of = |run, name, colour| per_iteration(run, name, colour, |i: &Iteration| i.mean(0, |a| a.reward));
    vec![of(ple, "PLE", GUIDED), of(raft, "RAFT", PLAIN)]
}

/// PLE against RAFT as a figure of a page.
pub fn comparison(ple: &Run, raft: &Run) -> String {
    let svg = lines(&COMPARED, &drawn(compared(ple, raft)));
    figure("PLE and RAFT", "plain answers to fresh queries, before the iteration trains", svg)
}

/// The same as a file of its own, in the colours of the page's `:root`.
pub fn comparison_file(ple: &Run, raft: &Run, colours: &str) -> String {
    lines_file(&COMPARED, &drawn(compared(ple, raft)), &format!("{colours}svg{{background:var(--bg)}}{STYLE}"))
}
