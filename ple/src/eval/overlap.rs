//! How much answers overlap with references, and how varied their words are (ALGORITHMS §6.8).
//!
//! Words of BLEU and ROUGE: lower-cased runs of letters and digits; for BLEU every other character that is no white space is a word
//! of its own. Words of MSTTR as of Distinct-n: parted by white space, lower-cased.

use std::collections::HashMap;

/// Longest n-gram of BLEU.
const GRAMS: usize = 4;

/// Words of a text; `marks` says whether other characters are words.
fn words(text: &str, marks: bool) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_alphanumeric() {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if marks && !c.is_whitespace() {
            words.push(c.to_string());
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

/// How often each n-gram occurs.
fn grams(words: &[String], n: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    words.windows(n).for_each(|gram| *counts.entry(gram).or_insert(0) += 1);
    counts
}

/// N-grams of `a` that `b` has too, each at most as often.
fn shared(a: &[String], b: &[String], n: usize) -> usize {
    let others = grams(b, n);
    grams(a, n).into_iter().map(|(gram, count)| count.min(others.get(gram).copied().unwrap_or(0))).sum()
}

/// BLEU-4 of a corpus of (answer, reference): brevity penalty times the geometric mean of the clipped n-gram precisions, n = 1…4, all
/// counts over the whole corpus; 0 where a precision is 0 (no smoothing), NaN of nothing.
pub fn bleu<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> f64 {
    let ([mut hits, mut all], [mut own, mut other]) = ([[0usize; GRAMS]; 2], [0usize; 2]);
    for (answer, reference) in pairs {
        let (answer, reference) = (words(answer, true), words(reference, true));
        (own, other) = (own + answer.len(), other + reference.len());
        for n in 1..=GRAMS {
            hits[n - 1] += shared(&answer, &reference, n);
            all[n - 1] += (answer.len() + 1).saturating_sub(n);
        }
    }
    if other == 0 {
        return f64::NAN;
    }
    if hits.contains(&0) {
        return 0.0;
    }
    let precision = hits.iter().zip(all).map(|(h, a)| (*h as f64 / a as f64).ln()).sum::<f64>() / GRAMS as f64;
    let brevity = if own < other { 1.0 - other as f64 / own as f64 } else { 0.0 };
    (brevity + precision).exp()
}

/// F1 of a number of hits among `own` and `other`.
fn f1(hits: usize, own: usize, other: usize) -> f64 {
    if hits == 0 { 0.0 } else { 2.0 * hits as f64 / (own + other) as f64 }
}

/// ROUGE-1, ROUGE-2 and ROUGE-L of an answer and its reference: F1 of shared words, of shared bigrams, of the longest common
/// subsequence of words. Without stemming.
pub fn rouge(answer: &str, reference: &str) -> [f64; 3] {
    let (a, b) = (words(answer, false), words(reference, false));
    let count = |n: usize, words: &[String]| (words.len() + 1).saturating_sub(n);
    let of = |n: usize| f1(shared(&a, &b, n), count(n, &a), count(n, &b));
    [of(1), of(2), f1(common(&a, &b), a.len(), b.len())]
}

/// Length of the longest common subsequence.
fn common(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for a in a {
        let mut before = 0;
        for (j, b) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if a == b { before + 1 } else { above.max(row[j]) };
            before = above;
        }
    }
    row[b.len()]
}

/// MSTTR: the mean share of different words in consecutive segments of `length` words of all texts one after the other; what is left
/// at the end is dropped. NaN where there is no whole segment.
pub fn msttr<'a>(length: usize, texts: impl IntoIterator<Item = &'a str>) -> f64 {
    let words: Vec<String> = texts.into_iter().flat_map(str::split_whitespace).map(str::to_lowercase).collect();
    let ratio = |segment: &[String]| segment.iter().collect::<std::collections::HashSet<_>>().len() as f64 / length as f64;
    super::mean(words.chunks_exact(length.max(1)).map(ratio))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} {want}");
    }

    #[test]
    fn words_by_their_kind() {
        assert_eq!(words("It's 2 a.m.", false), ["it", "s", "2", "a", "m"]);
        assert_eq!(words("Hi, you!", true), ["hi", ",", "you", "!"]);
    }

    /// the cat the cat on the mat | the cat is on the mat: 5 of 7 words (the: 2 of 3, cat: 1 of 2, on, mat), of 6 bigrams "the cat"
    /// once, "on the", "the mat": 3, of 5 trigrams "on the mat": 1, no 4-gram.
    #[test]
    fn bleu_by_hand() {
        let (a, b) = ("the cat the cat on the mat", "The cat is on the mat");
        let count = |n| shared(&words(a, true), &words(b, true), n);
        assert_eq!([1, 2, 3, 4].map(count), [5, 3, 1, 0]);
        assert_eq!(bleu([(a, b)]), 0.0);
        assert_eq!(bleu([("a b c d e", "a b c d e")]), 1.0);
        // 4 words of 5: precisions 1; exp(1 - 5/4).
        close(bleu([("a b c d", "a b c d e")]), (-0.25f64).exp());
        // Counts add over the corpus: 9 of 10 words, 7 of 8, 5 of 6, 3 of 4; both have 10 words.
        let precision: f64 = 0.9 * (7.0 / 8.0) * (5.0 / 6.0) * (3.0 / 4.0);
        close(bleu([("a b c d x", "a b c d e"), ("f g h i j", "f g h i j")]), precision.powf(0.25));
        assert!(bleu([]).is_nan());
    }

    /// police killed the gunman | police kill the gunman: 3 of 4 words, 1 of 3 bigrams, subsequence of 3.
    #[test]
    fn rouge_by_hand() {
        let [one, two, longest] = rouge("police killed the gunman", "Police kill the gunman.");
        close(one, 0.75);
        close(two, 1.0 / 3.0);
        close(longest, 0.75);
        // The gunman kill police: all but killed, but only two of them in order.
        close(rouge("the gunman kill police", "police kill the gunman")[2], 0.5);
        assert_eq!(rouge("", "a b"), [0.0; 3]);
        // Lengths differ: 2 of 2 and 2 of 4.
        close(rouge("a b", "a b c d")[0], 2.0 * 2.0 / 6.0);
    }

    /// a b a b | c c c c, with a tail of two: (2/4 + 1/4)/2.
    #[test]
    fn msttr_by_hand() {
        close(msttr(4, ["A b a", "b c c", "c c d e"]), 0.375);
        assert!(msttr(100, ["too short"]).is_nan());
    }
}
