//! Plain loops with f64 accumulation over row-major matrices: what the tests hold every device against.

/// One module: w [N, K], bias [N] or empty, a [R, K], b [N, R], scale.
pub(crate) struct Module<'a> {
    pub w: &'a [f32],
    pub bias: &'a [f32],
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub rank: usize,
    pub scale: f32,
    pub n: usize,
}

/// S [M, R] = x·Aᵀ.
pub(crate) fn project(x: &[f32], k: usize, module: &Module<'_>) -> Vec<f64> {
    let dot = |x: &[f32], a: &[f32]| x.iter().zip(a).map(|(x, a)| *x as f64 * *a as f64).sum();
    x.chunks(k).flat_map(|x| module.a.chunks(k).map(move |a| dot(x, a))).collect()
}

/// y [M, N] = x·Wᵀ + scale·(x·Aᵀ)·Bᵀ + bias.
pub(crate) fn forward(x: &[f32], k: usize, module: &Module<'_>) -> Vec<f64> {
    let s = project(x, k, module);
    let mut y = Vec::new();
    for (m, x) in x.chunks(k).enumerate() {
        for n in 0..module.n {
            let base: f64 = x.iter().zip(&module.w[n * k..]).map(|(x, w)| *x as f64 * *w as f64).sum();
            let delta: f64 = (0..module.rank).map(|j| s[m * module.rank + j] * module.b[n * module.rank + j] as f64).sum();
            y.push(base + module.scale as f64 * delta + module.bias.get(n).copied().unwrap_or(0.0) as f64);
        }
    }
    y
}

/// dS [M, R] = scale·dy·B of one module; dy [M, N].
pub(crate) fn project_back(dy: &[f32], module: &Module<'_>) -> Vec<f64> {
    let rank = module.rank;
    let column =
        |dy: &[f32], j: usize| dy.iter().enumerate().map(|(n, d)| *d as f64 * module.b[n * rank + j] as f64).sum::<f64>();
    dy.chunks(module.n).flat_map(|dy| (0..rank).map(move |j| module.scale as f64 * column(dy, j))).collect()
}

/// dx [M, K] += dy·W + dS·A of one module; dy [M, N].
pub(crate) fn backward(dx: &mut [f64], dy: &[f32], k: usize, module: &Module<'_>) {
    let ds = project_back(dy, module);
    for (m, (dx, dy)) in dx.chunks_mut(k).zip(dy.chunks(module.n)).enumerate() {
        for (n, d) in dy.iter().enumerate() {
            dx.iter_mut().zip(&module.w[n * k..]).for_each(|(dx, w)| *dx += *d as f64 * *w as f64);
        }
        for j in 0..module.rank {
            let d = ds[m * module.rank + j];
            dx.iter_mut().zip(&module.a[j * k..]).for_each(|(dx, a)| *dx += d * *a as f64);
        }
    }
}

/// out [I, C] = leftᵀ·right over the rows; left [M, I], right [M, C].
pub(crate) fn outer(left: &[f64], i: usize, right: &[f64], c: usize) -> Vec<f64> {
    let mut out = vec![0.0; i * c];
    for (left, right) in left.chunks(i).zip(right.chunks(c)) {
        for (out, l) in out.chunks_mut(c).zip(left) {
            out.iter_mut().zip(right).for_each(|(o, r)| *o += l * r);
        }
    }
    out
}
