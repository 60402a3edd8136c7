//! What a reader sees of a run while it goes and when it is over: a bar per phase on a terminal, a table of the iterations at
//! the end. A bar is gone when its phase is done; nothing of it reaches a file or a pipe.

use crate::config::{Config, LogFormat};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value};
use std::fmt::{self, Display, Formatter};
use std::io::{IsTerminal, stderr, stdout};
use std::time::Instant;

/// The bars of a command.
#[derive(Clone, Debug)]
pub struct Bars {
    all: MultiProgress,
    shown: bool,
}

impl Bars {
    /// Shown where both outputs are a terminal and the settings want text for a reader.
    pub fn new(c: &Config) -> Bars {
        let pretty = !c.quiet && c.log_format == LogFormat::Pretty;
        Bars::drawn(pretty && stdout().is_terminal() && stderr().is_terminal())
    }

    fn drawn(shown: bool) -> Bars {
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Bars { all: MultiProgress::with_draw_target(target), shown }
    }

    /// Whether there is a terminal to draw on.
    pub fn shown(&self) -> bool {
        self.shown
    }

    /// A bar for a phase of `total` of what `phase` names.
    pub fn phase(&self, phase: &str, total: usize) -> Bar {
        let bar = self.all.add(ProgressBar::new(total as u64));
        let paint = if std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) { "" } else { ":.cyan" };
        let template = format!("{{prefix:>16}} {{wide_bar{paint}}} {{pos}}/{{len}} {{msg}} {{eta}} left");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.set_prefix(phase.to_string());
        bar.tick();
        Bar { bar, start: Instant::now() }
    }

    /// Lets `print` write while no bar stands in the way.
    pub fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.all.suspend(print)
    }
}

/// One phase; it takes itself away.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    start: Instant,
}

impl Bar {
    /// `done` of the total, and the tokens that were computed for them.
    pub fn at(&self, done: usize, tokens: usize) {
        let speed = tokens as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        self.bar.set_message(format!("{speed:.0} tok/s"));
        self.bar.set_position(done as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// How a number is written for a reader.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// Four digits behind the point.
    Decimal,
    /// A share.
    Percent,
    /// One digit and a power of ten.
    Power,
    /// Rounded.
    Whole,
}

impl Form {
    fn write(self, value: f64) -> String {
        match self {
            Form::Decimal => format!("{value:.4}"),
            Form::Percent => format!("{:.0} %", 100.0 * value),
            Form::Power => format!("{value:.1e}"),
            Form::Whole => format!("{value:.0}"),
        }
    }
}

/// Metric, label, and how it is written.
pub type Column = (&'static str, &'static str, Form);

/// What a reader is told of an iteration, in order, as far as the method has it.
pub const ITERATION: [Column; 12] = [
    ("iteration", "iter", Form::Whole),
    ("ple/tau", "tau", Form::Decimal),
    ("ple/reward_orig", "plain", Form::Decimal),
    ("ple/reward_guided", "guided", Form::Decimal),
    ("ple/delta_mean", "delta", Form::Decimal),
    ("reward", "reward", Form::Decimal),
    ("ple/rank_frac", "ranked", Form::Percent),
    ("ple/worse_frac", "worse", Form::Percent),
    ("logp_gap_max", "gap", Form::Power),
    ("completions/mean_length", "length", Form::Whole),
    ("loss", "loss", Form::Decimal),
    ("tok_s/rollout", "tok/s", Form::Whole),
];

/// The columns that a row has, as one line: label and value in turn.
pub fn line(columns: &[Column], row: &Map<String, Value>) -> String {
    let cell = |(name, label, form): &Column| Some(format!("{label} {}", form.write(row.get(*name)?.as_f64()?)));
    columns.iter().filter_map(cell).collect::<Vec<_>>().join("  ")
}

/// Rows under their labels; a column that no row has is left out, and what a row has not is a dash.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Map<String, Value>>,
}

impl Table {
    /// Adds a row.
    pub fn add(&mut self, row: Map<String, Value>) {
        self.rows.push(row);
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let value = |row: &Map<String, Value>, name: &str| row.get(name).and_then(Value::as_f64);
        let there = |(name, ..): &&Column| self.rows.iter().any(|row| value(row, name).is_some());
        let column = |(name, label, form): &Column| -> Vec<String> {
            let cells = self.rows.iter().map(|row| value(row, name).map_or("-".into(), |v| form.write(v)));
            [(*label).to_string()].into_iter().chain(cells).collect()
        };
        let columns: Vec<Vec<String>> = ITERATION.iter().filter(there).map(column).collect();
        for i in 0..=self.rows.len() {
            let cell = |column: &Vec<String>| {
                let width = column.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
                format!("{:>width$}", column[i])
            };
            let line = columns.iter().map(cell).collect::<Vec<_>>().join("  ");
            write!(f, "{}{line}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn a_line_and_a_table_have_what_is_there() {
        let first =
            json!({"iteration": 0, "reward": 0.25, "logp_gap_max": 0.0, "loss": -1.5, "other": 3, "ple/rank_frac": 0.125});
        let (first, second) = (row(first), row(json!({"iteration": 10, "reward": 12.5, "loss": null, "logp_gap_max": 1e-3})));
        assert_eq!(line(&ITERATION, &first), "iter 0  reward 0.2500  ranked 12 %  gap 0.0e0  loss -1.5000");
        let mut table = Table::default();
        assert!(table.is_empty());
        [first, second].into_iter().for_each(|row| table.add(row));
        let wanted = [
            "iter   reward  ranked     gap     loss",
            "   0   0.2500    12 %   0.0e0  -1.5000",
            "  10  12.5000       -  1.0e-3        -",
        ];
        assert_eq!(table.to_string().lines().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn nothing_is_drawn_where_nobody_looks() {
        let bars = Bars::drawn(false);
        let bar = bars.phase("answers", 10);
        bar.at(3, 40);
        assert!(bar.bar.is_hidden() && !bars.shown());
        assert_eq!(bars.aside(|| 7), 7);
    }
}
