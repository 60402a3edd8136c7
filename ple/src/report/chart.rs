//! Charts: lines over steps or iterations, stacked bars per iteration, histograms. Axes have units, series are named where
//! they end, colours are classes of the page's style.

use super::scale::Scale;
use super::svg::{Anchor, Svg};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 112.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 40.0;
/// Pixels between two names at the right.
const NAME: f64 = 15.0;
/// Lines of more points have no dots.
const DOTTED: usize = 40;
/// Lines of more points are drawn by the means of as many stretches.
const MOST: usize = 400;

/// A named line; `colour` counts the colours of the style.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// Stands at its end.
    pub name: String,
    /// 0 to 11.
    pub colour: usize,
    /// In order of x; a y that is not finite is left out.
    pub points: Vec<(f64, f64)>,
    /// Of each point, the half height of a band around it; empty without one.
    pub spread: Vec<f64>,
}

/// What stands at the axes.
#[derive(Clone, Copy, Debug)]
pub struct Axes<'a> {
    /// Of the whole chart, for those who cannot see it.
    pub name: &'a str,
    /// Below.
    pub x: &'a str,
    /// Above the left axis, with the unit.
    pub y: &'a str,
    /// Values the y axis holds whatever the data is.
    pub hold: &'a [f64],
}

/// The frame: grid, ticks and the names of the axes.
fn frame(axes: &Axes<'_>, x: Option<Scale>, y: Scale) -> Svg {
    let mut svg = Svg::new(WIDTH, HEIGHT, axes.name);
    for (value, label) in y.ticks(5) {
        svg.line("grid-line", LEFT, y.at(value), WIDTH - RIGHT, y.at(value));
        svg.text("tick", LEFT - 8.0, y.at(value) + 4.0, Anchor::End, &label);
    }
    svg.line("base", LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM);
    for (value, label) in x.map(|x| x.ticks(7)).unwrap_or_default() {
        let at = x.map_or(0.0, |x| x.at(value));
        svg.line("base", at, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + 4.0);
        svg.text("tick", at, HEIGHT - BOTTOM + 17.0, Anchor::Middle, &label);
    }
    svg.text("axis", 0.0, 12.0, Anchor::Start, axes.y);
    svg.text("axis", (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 5.0, Anchor::Middle, axes.x);
    svg
}

/// Names at the right, moved apart where they would overlap.
fn names(svg: &mut Svg, mut wanted: Vec<(f64, usize, String)>) {
    wanted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut lowest = f64::NEG_INFINITY;
    for one in &mut wanted {
        one.0 = one.0.max(lowest + NAME);
        lowest = one.0;
    }
    let mut most = HEIGHT - BOTTOM + 4.0;
    for one in wanted.iter_mut().rev() {
        one.0 = one.0.min(most);
        most = one.0 - NAME;
    }
    for (y, colour, name) in wanted {
        svg.text(&format!("name s{colour}"), WIDTH - RIGHT + 10.0, y + 4.0, Anchor::Start, &name);
    }
}

/// Means of at most [`MOST`] stretches of a line: x, y, and half the height of its band (0 without one).
fn thinned(line: &Line) -> Vec<(f64, f64, f64)> {
    let spread = line.spread.iter().copied().chain(std::iter::repeat(0.0)).map(|s| if s.is_finite() { s } else { 0.0 });
    let points = line.points.iter().zip(spread).map(|((x, y), s)| (*x, *y, s));
    let finite: Vec<(f64, f64, f64)> = points.filter(|(_, y, _)| y.is_finite()).collect();
    let stretch = finite.len().div_ceil(MOST).max(1);
    let mean = |chunk: &[(f64, f64, f64)]| {
        let of = |part: fn(&(f64, f64, f64)) -> f64| chunk.iter().map(part).sum::<f64>() / chunk.len() as f64;
        (of(|p| p.0), of(|p| p.1), of(|p| p.2))
    };
    finite.chunks(stretch).map(mean).collect()
}

/// Lines over one x axis.
pub fn lines(axes: &Axes<'_>, lines: &[Line]) -> String {
    draw_lines(axes, lines, "")
}

/// The same as a file of its own, with `style` inside.
pub fn lines_file(axes: &Axes<'_>, lines: &[Line], style: &str) -> String {
    draw_lines(axes, lines, &format!("<style>{style}</style>"))
}

fn draw_lines(axes: &Axes<'_>, lines: &[Line], inside: &str) -> String {
    let thin: Vec<Vec<(f64, f64, f64)>> = lines.iter().map(thinned).collect();
    let all = || thin.iter().flatten();
    let reach = all().flat_map(|p| [p.1 - p.2, p.1 + p.2]);
    let y = Scale::over(reach.chain(axes.hold.iter().copied()), (HEIGHT - BOTTOM, TOP), 5);
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), p| (a.min(p.0), b.max(p.0)));
    let domain = if low < high { (low, high) } else { (low.min(0.0), high.max(0.0) + 1.0) };
    let domain = if domain.0.is_finite() { domain } else { (0.0, 1.0) };
    let x = Scale { domain, range: (LEFT + 8.0, WIDTH - RIGHT) };
    let mut svg = frame(axes, Some(x), y);
    svg.raw(inside);
    for (line, points) in lines.iter().zip(&thin).filter(|(line, points)| !line.spread.is_empty() && points.len() > 1) {
        let upper = points.iter().map(|p| (x.at(p.0), y.at(p.1 + p.2)));
        let lower = points.iter().rev().map(|p| (x.at(p.0), y.at(p.1 - p.2)));
        svg.polygon(&format!("band s{}", line.colour), &upper.chain(lower).collect::<Vec<_>>());
    }
    let mut ends = Vec::new();
    for (line, points) in lines.iter().zip(&thin) {
        let Some(last) = points.last() else { continue };
        let on_page: Vec<(f64, f64)> = points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect();
        svg.polyline(&format!("s{}", line.colour), &on_page);
        if points.len() <= DOTTED {
            for (value, (px, py)) in points.iter().zip(&on_page) {
                let title = format!("{}: {} {}, {:.4}", line.name, axes.x, value.0, value.1);
                svg.dot(&format!("s{}", line.colour), *px, *py, &title);
            }
        }
        ends.push((y.at(last.1), line.colour, line.name.clone()));
    }
    names(&mut svg, ends);
    svg.finish()
}

/// Named parts of a whole, per iteration.
#[derive(Clone, Debug, Default)]
pub struct Stack {
    /// Names of the parts from the bottom, with their colours.
    pub parts: Vec<(String, usize)>,
    /// Per bar, the parts' values.
    pub bars: Vec<Vec<f64>>,
}

/// A bar per iteration, its parts one on the other.
pub fn stacked(axes: &Axes<'_>, stack: &Stack) -> String {
    let sum = |bar: &Vec<f64>| bar.iter().filter(|v| v.is_finite()).sum::<f64>();
    let y = Scale::over(stack.bars.iter().map(sum).chain([0.0]).chain(axes.hold.iter().copied()), (HEIGHT - BOTTOM, TOP), 5);
    let mut svg = frame(axes, None, y);
    let slot = (WIDTH - RIGHT - LEFT) / stack.bars.len().max(1) as f64;
    let every = stack.bars.len().div_ceil(12).max(1);
    for (i, bar) in stack.bars.iter().enumerate() {
        let (left, mut below) = (LEFT + slot * i as f64, 0.0);
        for (value, (name, colour)) in bar.iter().zip(&stack.parts).filter(|(v, _)| v.is_finite()) {
            let (top, bottom) = (y.at(below + value), y.at(below));
            let title = format!("{} {i}: {name} {value:.3}", axes.x);
            svg.bar(&format!("s{colour}"), left + slot * 0.14, top, slot * 0.72, bottom - top, &title);
            below += value;
        }
        if i % every == 0 {
            svg.text("tick", left + slot / 2.0, HEIGHT - BOTTOM + 17.0, Anchor::Middle, &i.to_string());
        }
    }
    let (mut below, mut ends) = (0.0, Vec::new());
    let last = stack.bars.last().cloned().unwrap_or_default();
    for (value, (name, colour)) in last.iter().map(|v| if v.is_finite() { *v } else { 0.0 }).zip(&stack.parts) {
        ends.push((y.at(below + value / 2.0), *colour, name.clone()));
        below += value;
    }
    names(&mut svg, ends);
    svg.finish()
}

/// Values of one series of a histogram, and a mark on the x axis.
#[derive(Clone, Debug, Default)]
pub struct Spread {
    /// Stands above.
    pub name: String,
    /// 0 to 3.
    pub colour: usize,
    /// What is counted.
    pub values: Vec<f64>,
    /// A named place.
    pub mark: Option<(String, f64)>,
}

/// Bins of a histogram.
const BINS: usize = 24;

/// Shares of values per bin, series side by side; a value on an edge counts to the right, the last edge to the left.
pub fn histogram(axes: &Axes<'_>, series: &[Spread]) -> String {
    let values = || series.iter().flat_map(|s| s.values.iter().chain(s.mark.iter().map(|(_, m)| m))).copied();
    let x = Scale::over(values(), (LEFT, WIDTH - RIGHT), BINS / 2);
    let width = (x.domain.1 - x.domain.0) / BINS as f64;
    let shares = |s: &Spread| {
        let mut bins = [0.0; BINS];
        let finite = s.values.iter().filter(|v| v.is_finite());
        finite.for_each(|v| bins[(((v - x.domain.0) / width) as usize).min(BINS - 1)] += 100.0 / s.values.len() as f64);
        bins
    };
    let all: Vec<[f64; BINS]> = series.iter().map(shares).collect();
    let y = Scale::over(all.iter().flatten().copied().chain([0.0]), (HEIGHT - BOTTOM, TOP), 5);
    let mut svg = frame(axes, Some(x), y);
    let slot = (WIDTH - RIGHT - LEFT) / BINS as f64;
    for (i, (one, bins)) in series.iter().zip(&all).enumerate() {
        let bar = slot * 0.84 / series.len() as f64;
        for (b, share) in bins.iter().enumerate().filter(|(_, share)| **share > 0.0) {
            let left = LEFT + slot * (b as f64 + 0.08) + bar * i as f64;
            let title = format!("{}: {share:.1} % from {:.3}", one.name, x.domain.0 + width * b as f64);
            svg.bar(&format!("s{}", one.colour), left, y.at(*share), bar, y.at(0.0) - y.at(*share), &title);
        }
    }
    let name = |(i, one): (usize, &Spread)| (TOP + 10.0 + 2.0 * NAME * i as f64, one.colour, one.name.clone());
    names(&mut svg, series.iter().enumerate().map(name).collect());
    for (i, (one, (name, value))) in series.iter().filter_map(|s| Some((s, s.mark.as_ref()?))).enumerate() {
        svg.line(&format!("mark s{}", one.colour), x.at(*value), TOP - 6.0, x.at(*value), HEIGHT - BOTTOM);
        let y = TOP + 10.0 + 2.0 * NAME * i as f64 + NAME;
        svg.text(&format!("of s{}", one.colour), WIDTH - RIGHT + 10.0, y + 4.0, Anchor::Start, name);
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AXES: Axes<'_> = Axes { name: "test", x: "iteration", y: "share", hold: &[] };

    fn line(n: usize) -> Line {
        let points = (0..n).map(|i| (i as f64, (i as f64).sin())).collect();
        Line { name: "a<b".into(), colour: 1, points, spread: Vec::new() }
    }

    #[test]
    fn a_line_has_its_points() {
        let svg = lines(&AXES, &[line(12), Line { points: vec![(0.0, f64::NAN), (1.0, 2.0)], ..line(0) }]);
        let counts = |text: &str| svg.matches(text).count();
        assert_eq!((counts("<circle"), counts("<polyline"), counts("a&lt;b")), (13, 2, 2 + 13));
        let svg = lines(&AXES, &[line(2000)]);
        let points = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).map(|p| p.split(' ').count());
        assert_eq!(points, Some(400));
        let band = lines(&AXES, &[Line { spread: vec![0.5; 3], ..line(3) }]);
        let corners = band.split("<polygon").nth(1).and_then(|rest| rest.split('"').nth(3)).map(|p| p.split(' ').count());
        assert_eq!(corners, Some(6), "{band}");
        assert!(!lines(&AXES, &[]).contains("NaN") && !lines(&AXES, &[line(1)]).contains("NaN"));
    }

    #[test]
    fn a_stack_has_its_parts_and_fills_its_sum() {
        let parts = vec![("x".to_string(), 0), ("y".to_string(), 1)];
        let svg = stacked(&AXES, &Stack { parts, bars: vec![vec![1.0, 3.0], vec![2.0, 2.0], vec![4.0, 0.0]] });
        assert_eq!(svg.matches("<rect").count(), 6);
        let height = |rect: &str| rect.split("height=\"").nth(1)?.split('"').next()?.parse::<f64>().ok();
        let heights: Vec<f64> = svg.split("<rect").skip(1).filter_map(height).collect();
        assert!((heights[0] + heights[1] - heights[2] - heights[3]).abs() < 0.21, "{heights:?}");
    }

    #[test]
    fn a_histogram_counts_everything_once() {
        let spread =
            Spread { name: "first".into(), values: vec![-1.0, -1.0, 0.0, 1.0], mark: Some(("τ 0.2".into(), 0.2)), colour: 0 };
        let svg = histogram(&AXES, &[spread]);
        assert_eq!((svg.matches("<rect").count(), svg.matches("class=\"mark s0\"").count()), (3, 1));
        let share = |rect: &str| rect.split("first: ").nth(1)?.split(' ').next()?.parse::<f64>().ok();
        assert_eq!(svg.split("<rect").filter_map(share).sum::<f64>(), 100.0);
    }
}
