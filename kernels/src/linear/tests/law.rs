//! LAW A1, A6 and A7 as scalar chains.

use super::Case;

fn chain(acc: f32, a: impl Iterator<Item = f32>, b: impl Iterator<Item = f32>) -> f32 {
    a.zip(b).fold(acc, |acc, (a, b)| a.mul_add(b, acc))
}

/// y [M, ΣN] and S [M, ΣR].
pub fn forward(x: &[f32], cases: &[Case]) -> (Vec<f32>, Vec<f32>) {
    let (mut y, mut all) = (Vec::new(), Vec::new());
    for x in x.chunks(cases[0].k) {
        for c in cases {
            let s: Vec<f32> = c.a.chunks(c.k).map(|a| chain(0.0, x.iter().copied(), a.iter().copied())).collect();
            for n in 0..c.n {
                let acc = chain(0.0, x.iter().copied(), c.w[n * c.k..].iter().copied());
                let acc = chain(acc, s.iter().copied(), c.b[n * c.rank..].iter().map(|b| c.scale * b));
                y.push(c.bias.get(n).map_or(acc, |bias| acc + bias));
            }
            all.extend(s);
        }
    }
    (y, all)
}

/// dx [M, K] and dS [M, ΣR].
pub fn backward(dy: &[f32], cases: &[Case]) -> (Vec<f32>, Vec<f32>) {
    let (n, k) = (cases.iter().map(|c| c.n).sum::<usize>(), cases[0].k);
    let (mut dx, mut all) = (Vec::new(), Vec::new());
    for dy in dy.chunks(n) {
        let (mut first, mut ds) = (0, Vec::new());
        for c in cases {
            let own = &dy[first..first + c.n];
            ds.extend((0..c.rank).map(|j| chain(0.0, own.iter().copied(), (0..c.n).map(|n| c.scale * c.b[n * c.rank + j]))));
            first += c.n;
        }
        for k0 in 0..k {
            let w = cases.iter().flat_map(|c| (0..c.n).map(move |n| c.w[n * k + k0]));
            let a = cases.iter().flat_map(|c| (0..c.rank).map(move |j| c.a[j * k + k0]));
            dx.push(chain(chain(0.0, dy.iter().copied(), w), ds.iter().copied(), a));
        }
        all.extend(ds);
    }
    (dx, all)
}

/// total [I, C] += scale·(per-example chain of left·right), columns of rows [M, ·].
pub fn outer(
    total: &mut [f32],
    left: (&[f32], usize, usize, usize),
    right: (&[f32], usize, usize, usize),
    scale: Option<f32>,
    examples: &[u32],
) {
    let ((l, ll, l0, i), (r, rl, r0, c)) = (left, right);
    for span in examples.chunks(2) {
        let rows = span[0] as usize..span[1] as usize;
        if rows.is_empty() {
            continue;
        }
        for i in 0..i {
            for j in 0..c {
                let part = chain(0.0, rows.clone().map(|m| l[m * ll + l0 + i]), rows.clone().map(|m| r[m * rl + r0 + j]));
                total[i * c + j] += scale.map_or(part, |s| part * s);
            }
        }
    }
}
