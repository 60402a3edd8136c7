//! Axes: a range of values on a range of pixels, and round ticks within.

/// A linear scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Values at the ends.
    pub domain: (f64, f64),
    /// Pixels of the ends.
    pub range: (f64, f64),
}

/// 1, 2 or 5 times a power of ten, so that about `count` steps cover `span`.
fn step(span: f64, count: usize) -> f64 {
    let rough = span / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| rough <= f * power * 1.0001).unwrap_or(10.0);
    factor * power
}

impl Scale {
    /// Over values, widened to round numbers; equal values get room around them. Values that are not finite do not count.
    pub fn over(values: impl IntoIterator<Item = f64>, range: (f64, f64), ticks: usize) -> Scale {
        let finite = values.into_iter().filter(|v| v.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = match (low <= high, low == high) {
            (false, _) => (0.0, 1.0),
            (true, true) => (low - 0.5f64.max(low.abs() * 0.1), high + 0.5f64.max(high.abs() * 0.1)),
            (true, false) => (low, high),
        };
        let step = step(high - low, ticks);
        Scale { domain: ((low / step).floor() * step, (high / step).ceil() * step), range }
    }

    /// The pixel of a value.
    pub fn at(&self, value: f64) -> f64 {
        let ((a, b), (from, to)) = (self.domain, self.range);
        from + (value - a) / (b - a) * (to - from)
    }

    /// Round values within the domain, about `count`, with as many decimals as they need.
    pub fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        let (a, b) = self.domain;
        let step = step(b - a, count);
        let decimals = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
        let first = (a / step - 1e-6).ceil() as i64;
        let last = (b / step + 1e-6).floor() as i64;
        (first..=last).map(|i| i as f64 * step).map(|v| (v, format!("{:.decimals$}", if v == 0.0 { 0.0 } else { v }))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let scale = Scale::over([0.13, 0.87], (100.0, 0.0), 4);
        assert_eq!(scale.domain, (0.0, 1.0));
        let labels: Vec<_> = scale.ticks(4).into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["0.0", "0.5", "1.0"]);
        assert_eq!((scale.at(0.0), scale.at(1.0)), (100.0, 0.0));
        let one = Scale::over([3.0, f64::NAN], (0.0, 1.0), 4);
        assert!(one.domain.0 < 3.0 && one.domain.1 > 3.0 && one.at(3.0).is_finite());
        assert_eq!(Scale::over([], (0.0, 1.0), 4).domain, (0.0, 1.0));
        assert_eq!(Scale { domain: (0.0, 7.0), range: (0.0, 1.0) }.ticks(8).len(), 8);
    }
}
