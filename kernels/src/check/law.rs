//! LAW A8 for rooms whose results have a row each: every stream, every cut.

use super::{bits, streams};
use runtime::Stream;
use std::ops::Range;

/// Every stream writes the bits of the portable CPU for `n` rows, and so does every cut of the rows. `run` gives what the room makes of
/// some of the rows: `each` results that have a row for each, then those that only the whole can be judged by.
pub fn lawful<E, const N: usize>(
    on: &[Stream],
    n: usize,
    each: usize,
    run: impl Fn(&Stream, Range<usize>) -> Result<[Vec<f32>; N], E>,
) -> Result<(), E> {
    let law = run(&streams()[0], 0..n)?;
    for s in on {
        for cut in [0..n, 0..1, 1..4, 4..n.min(21)] {
            let got = run(s, cut.clone())?;
            for (i, (law, got)) in law.iter().zip(&got).enumerate().take(if cut.len() == n { N } else { each }) {
                let width = law.len() / n;
                let want = if i < each { &law[cut.start * width..cut.end * width] } else { law };
                assert_eq!(bits(want), bits(got), "result {i} of rows {cut:?}, {:?}", s.host());
            }
        }
    }
    Ok(())
}

/// Gradients of weights are those of one example after the other (LAW A7). `run` gives them for some of 21 rows and their examples.
pub fn examples_add<E>(run: impl Fn(Range<usize>, &[u32]) -> Result<Vec<Vec<f32>>, E>) -> Result<(), E> {
    let together = run(0..21, &[0, 1, 1, 4, 4, 21])?;
    let mut total: Vec<Vec<f32>> = together.iter().map(|t| vec![0.0; t.len()]).collect();
    for cut in [0..1, 1..4, 4..21] {
        let part = run(cut.clone(), &[0, cut.len() as u32])?;
        total.iter_mut().flatten().zip(part.iter().flatten()).for_each(|(t, p)| *t += p);
    }
    assert!(!together.is_empty());
    together.iter().zip(&total).for_each(|(one, other)| assert_eq!(bits(one), bits(other)));
    Ok(())
}
