//! The figures of a run: what is drawn from which numbers.

use super::chart::{Axes, Line, Spread, Stack, histogram, lines, lines_file, stacked};
use super::run::{Iteration, Run, Step};
use super::svg::escape;

/// Colours by meaning, the same in every figure.
const PLAIN: usize = 0;
const GUIDED: usize = 1;
const THIRD: usize = 2;
const REST: usize = 3;
/// Colours of runs side by side; a ninth run has that of the first.
const RUNS: [usize; 8] = [4, 5, 6, 7, 8, 9, 10, 11];

/// Styles of charts.
pub const STYLE: &str = include_str!("chart.css");

/// A figure with its title and what to know of it.
fn figure(title: &str, note: &str, svg: String) -> String {
    format!("<figure><figcaption>{} <span>{}</span></figcaption>{svg}</figure>", escape(title), escape(note))
}

/// A line with a value per iteration.
fn per_iteration(run: &Run, name: &str, colour: usize, of: impl Fn(&Iteration) -> f64) -> Line {
    let points = run.iterations.iter().enumerate().map(|(i, iteration)| (i as f64, of(iteration))).collect();
    Line { name: name.into(), colour, points, spread: Vec::new() }
}

/// A line through the losses of steps.
fn losses(name: &str, colour: usize, steps: &[Step]) -> Line {
    let points = steps.iter().map(|s| (s.step as f64, s.loss)).collect();
    Line { name: name.into(), colour, points, spread: Vec::new() }
}

/// A line through rewards of held-out answers, with their deviations.
fn answered(name: &str, colour: usize, run: &Run, banded: bool) -> Line {
    let points = run.answered.iter().map(|(step, reward, _)| (*step as f64, *reward)).collect();
    let spread = run.answered.iter().filter(|_| banded).map(|(.., std)| *std).collect();
    Line { name: name.into(), colour, points, spread }
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
    if !run.answered.is_empty() {
        figures.push(held_out(run));
    }
    if sampled && !run.held_out.is_empty() {
        figures.push(held_out_loss(vec![losses("held out", GUIDED, &run.held_out)]));
    }
    if !run.steps.is_empty() {
        figures.push(loss(run));
    }
    if pairs {
        figures.extend([tau(run), deltas(run), rewards(run)]);
    }
    if sampled {
        figures.extend([branches(run), lengths(run), time(run)]);
    }
    figures
}

fn loss(run: &Run) -> String {
    let train = losses("trained", PLAIN, &run.steps);
    // What a method that samples calls its loss is no loss on rows.
    let held = losses("held out", GUIDED, if run.iterations.is_empty() { &run.held_out } else { &[] });
    let axes = Axes { name: "loss per step", x: "optimizer step", y: "loss", hold: &[] };
    let note = if run.iterations.is_empty() { "nats per token" } else { "of the method" };
    figure("Loss", note, lines(&axes, &drawn(vec![train, held])))
}

fn reward(run: &Run) -> String {
    let side = |name: &str, side: u64, colour: usize| {
        let spread = run.iterations.iter().map(|i| i.deviation(side, |a| a.reward)).collect();
        Line { spread, ..per_iteration(run, name, colour, |i| i.mean(side, |a| a.reward)) }
    };
    let all = vec![
        side("plain", 0, PLAIN),
        side("guided", 1, GUIDED),
        per_iteration(run, "best", THIRD, |i| i.metric("raft/reward_best")),
    ];
    let axes = Axes { name: "mean reward per iteration", x: "iteration", y: "reward", hold: &[] };
    figure("Reward", "mean and standard deviation over the answers of an iteration", lines(&axes, &drawn(all)))
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

fn rewards(run: &Run) -> String {
    let last = run.iterations.last().map(|i| i.groups.concat()).unwrap_or_default();
    let spread = |name: &str, side: u64, colour: usize| {
        let values = last.iter().filter(|a| a.side == side).map(|a| a.reward).collect();
        Spread { name: name.into(), colour, values, mark: None }
    };
    let axes = Axes { name: "histogram of the rewards", x: "reward", y: "% of answers", hold: &[] };
    figure(
        "Rewards",
        "of the last iteration's answers",
        histogram(&axes, &[spread("plain", 0, PLAIN), spread("guided", 1, GUIDED)]),
    )
}

fn held_out(run: &Run) -> String {
    let axes = Axes { name: "reward of held-out answers", x: "optimizer step", y: "reward", hold: &[] };
    let note = "mean and standard deviation of plain answers to queries that no step sees";
    figure("Held-out reward", note, lines(&axes, &drawn(vec![answered("held out", GUIDED, run, true)])))
}

fn held_out_loss(all: Vec<Line>) -> String {
    let axes = Axes { name: "loss of held-out rows", x: "optimizer step", y: "loss", hold: &[] };
    figure("Held-out loss", "nats per token of given answers", lines(&axes, &drawn(all)))
}

/// What the runs have in common, a line for each: figures that at least two of them have something for.
pub fn side_by_side(runs: &[(&str, &Run)]) -> Vec<String> {
    let mut figures = Vec::new();
    let several = |of: fn(&Run) -> bool| runs.iter().filter(|(_, run)| of(run)).count() > 1;
    let each = |line: &dyn Fn(&str, usize, &Run) -> Line| {
        drawn(runs.iter().enumerate().map(|(i, (name, run))| line(name, RUNS[i % RUNS.len()], run)).collect())
    };
    let axes = |name, x, y| Axes { name, x, y, hold: &[] };
    if several(|run| !run.iterations.is_empty()) {
        let reward = each(&|name, colour, run| Line {
            spread: run.iterations.iter().map(|i| i.deviation(0, |a| a.reward)).collect(),
            ..per_iteration(run, name, colour, |i| i.mean(0, |a| a.reward))
        });
        let drawing = lines(&axes("reward of plain answers, by run", "iteration", "reward"), &reward);
        figures.push(figure("Reward", "mean and standard deviation of plain answers", drawing));
        let ranked = each(&|name, colour, run| per_iteration(run, name, colour, |i| 100.0 * i.metric("ple/rank_frac")));
        if !ranked.is_empty() {
            let drawing = lines(&axes("ranked pairs, by run", "iteration", "% of pairs"), &ranked);
            figures.push(figure("Ranked", "pairs above τ", drawing));
        }
        let tau = each(&|name, colour, run| per_iteration(run, name, colour, |i| i.metric("ple/tau")));
        if !tau.is_empty() {
            let drawing = lines(&Axes { hold: &[0.0], ..axes("threshold, by run", "iteration", "τ") }, &tau);
            figures.push(figure("Threshold", "a pair above τ is ranked", drawing));
        }
        let length = each(&|name, colour, run| per_iteration(run, name, colour, |i| i.mean(0, |a| a.tokens as f64)));
        let drawing = lines(&axes("length of plain answers, by run", "iteration", "tokens"), &length);
        figures.push(figure("Length", "mean tokens of plain answers", drawing));
    }
    if several(|run| !run.answered.is_empty()) {
        let reward = each(&|name, colour, run| answered(name, colour, run, true));
        let drawing = lines(&axes("reward of held-out answers, by run", "optimizer step", "reward"), &reward);
        figures.push(figure("Held-out reward", "mean and standard deviation of plain answers", drawing));
    }
    if several(|run| !run.held_out.is_empty()) {
        figures.push(held_out_loss(each(&|name, colour, run| losses(name, colour, &run.held_out))));
    }
    if several(|run| !run.steps.is_empty()) {
        let loss = each(&|name, colour, run| losses(name, colour, &run.steps));
        let drawing = lines(&axes("loss per step, by run", "optimizer step", "loss"), &loss);
        figures.push(figure("Loss", "of the method", drawing));
    }
    figures
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
