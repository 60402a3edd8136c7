//! Numbers on finished answers and on held-out text (ALGORITHMS §6.8). Each is a plain function of what the files of a run hold.

use std::collections::HashSet;

pub mod best;

/// Arithmetic mean; NaN of nothing.
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = values.into_iter().fold((0.0, 0u64), |(sum, n), value| (sum + value, n + 1));
    sum / n as f64
}

/// Mean and (population) standard deviation of the values that are finite.
pub fn moments(values: &[f64]) -> (f64, f64) {
    let finite = || values.iter().copied().filter(|v| v.is_finite());
    let mean = mean(finite());
    (mean, self::mean(finite().map(|r| (r - mean) * (r - mean))).sqrt())
}

/// Distinct-n: unique n-grams over all n-grams of all texts together. Words are parted by white space and lower-cased; no
/// n-gram spans two texts. NaN where no text has n words.
pub fn distinct<'a>(n: usize, texts: impl IntoIterator<Item = &'a str>) -> f64 {
    let (mut seen, mut all) = (HashSet::new(), 0u64);
    for text in texts {
        let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        for gram in words.windows(n.max(1)) {
            seen.insert(gram.to_vec());
            all += 1;
        }
    }
    seen.len() as f64 / all as f64
}

/// exp(Σ −logp / tokens) over every token of every row.
pub fn perplexity<'a>(rows: impl IntoIterator<Item = &'a [f32]>) -> f64 {
    (-mean(rows.into_iter().flatten().map(|l| f64::from(*l)))).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means() {
        assert_eq!(mean([1.0, 2.0, 6.0]), 3.0);
        assert!(mean([]).is_nan());
    }

    /// a b | b a | a b are six words in three bigrams, two of them unique; of the words a, b are unique.
    #[test]
    fn distinct_counts_over_all_texts() {
        let texts = ["A b", "b\n a", "a  b", "c"];
        assert_eq!(distinct(2, texts), 2.0 / 3.0);
        assert_eq!(distinct(1, texts), 3.0 / 7.0);
        assert_eq!(distinct(2, ["the cat the cat sat"]), 3.0 / 4.0);
        assert!(distinct(2, ["one", ""]).is_nan());
    }

    /// Three tokens of probability 1/2, 1/4, 1/8 have geometric mean 1/4; tokens count, not rows.
    #[test]
    fn perplexity_is_by_token() {
        let ln = |p: f32| p.ln();
        let rows: [&[f32]; 2] = [&[ln(0.5), ln(0.25)], &[ln(0.125)]];
        assert!((perplexity(rows) - 4.0).abs() < 1e-6);
        assert!((perplexity([&[ln(0.1); 5][..]]) - 10.0).abs() < 1e-5);
    }
}
