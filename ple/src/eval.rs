//! Numbers on finished answers and on held-out text (ALGORITHMS §6.8). Each is a plain function of what the files of a run hold.

use std::collections::HashSet;

pub mod best;
pub mod overlap;

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

/// How far a policy is from its base, over answers that the policy drew: per token by the estimator k3 (the mean of e^d − 1 − d,
/// d = base − policy), and per answer by k1 (the mean of Σ −d). NaN of nothing.
pub fn kl(policy: &[Vec<f32>], base: &[Vec<f32>]) -> (f64, f64) {
    let gap = |(p, b): (&f32, &f32)| f64::from(*b) - f64::from(*p);
    let rows = || policy.iter().zip(base).map(|(p, b)| p.iter().zip(b).map(gap));
    (mean(rows().flatten().map(|d| d.exp_m1() - d)), mean(rows().map(|row| -row.sum::<f64>())))
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

    /// Halves against quarters: d = ln(1/2), so 1/2 − 1 + ln 2 per token; the answers differ by 2 ln 2 and ln 2.
    #[test]
    fn kl_by_hand() {
        let of = |p: f32| [vec![p.ln(); 2], vec![p.ln()]];
        let (per_token, per_answer) = kl(&of(0.5), &of(0.25));
        let ln2 = std::f64::consts::LN_2;
        assert!((per_token - (ln2 - 0.5)).abs() < 1e-6 && (per_answer - 1.5 * ln2).abs() < 1e-6);
        assert_eq!(kl(&of(0.5), &of(0.5)), (0.0, 0.0));
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
