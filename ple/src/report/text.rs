//! A run as a plain table for the terminal.

use super::run::Run;

/// A table per run: a line per iteration, or what a supervised run began and ended with.
pub fn table(run: &Run) -> String {
    let mut out = format!("{} ({})\n", run.folder.display(), run.command());
    if run.iterations.is_empty() {
        let [first, last] = [run.steps.first(), run.steps.last()];
        if let (Some(first), Some(last)) = (first, last) {
            out += &format!("  {} steps, loss {:.4} -> {:.4}", last.step, first.loss, last.loss);
        } else {
            out += "  no step yet";
        }
        if let (Some(first), Some(last)) = (run.held_out.first(), run.held_out.last()) {
            out += &format!(", held-out perplexity {:.3} -> {:.3}", first.loss.exp(), last.loss.exp());
        }
        return out + "\n";
    }
    let heads = ["iter", "step", "plain", "guided", "tau", "ranked", "worse", "loss", "length", "gap", "seconds"];
    out += &heads.map(|head| format!("{head:>8}")).concat();
    out.push('\n');
    for (i, iteration) in run.iterations.iter().enumerate() {
        let m = |name: &str| iteration.metric(name);
        let percent = |x: f64| if x.is_finite() { format!("{:.0} %", 100.0 * x) } else { "-".into() };
        let plain = |x: f64, digits: usize| if x.is_finite() { format!("{x:.digits$}") } else { "-".into() };
        let cells = [
            i.to_string(),
            plain(m("step"), 0),
            plain(iteration.mean(0, |a| a.reward), 3),
            plain(iteration.mean(1, |a| a.reward), 3),
            plain(m("ple/tau"), 3),
            percent(m("ple/rank_frac")),
            percent(m("ple/worse_frac")),
            plain(m("loss"), 4),
            plain(m("completions/mean_length"), 1),
            if m("logp_gap_max").is_finite() { format!("{:.1e}", m("logp_gap_max")) } else { "-".into() },
            plain(m("time/rollout") + m("time/reward") + m("time/train"), 1),
        ];
        out += &cells.map(|cell| format!("{cell:>8}")).concat();
        out.push('\n');
    }
    out
}
