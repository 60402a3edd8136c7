//! The truth in f64.

/// Mean and rstd of one row.
fn stats(v: &[f64], eps: f64) -> (f64, f64) {
    let c = v.len() as f64;
    let mean = v.iter().sum::<f64>() / c;
    (mean, 1.0 / (v.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / c + eps).sqrt())
}

/// y [N, C] and stats [N, 2] of v [N, C].
pub fn forward(v: &[f64], w: &[f64], b: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut kept) = (Vec::new(), Vec::new());
    for row in v.chunks(w.len()) {
        let (mean, rstd) = stats(row, eps);
        y.extend(row.iter().zip(w).zip(b).map(|((v, w), b)| (v - mean) * rstd * w + b));
        kept.extend([mean, rstd]);
    }
    (y, kept)
}

/// dx [N, C], dw `[C]` and db `[C]` for v [N, C] and dy [N, C].
pub fn backward(dy: &[f64], v: &[f64], w: &[f64], eps: f64) -> [Vec<f64>; 3] {
    let c = w.len();
    let [mut dx, mut dw, mut db] = [vec![0.0; v.len()], vec![0.0; c], vec![0.0; c]];
    for n in 0..v.len() / c {
        let (row, out) = (&v[n * c..(n + 1) * c], &dy[n * c..(n + 1) * c]);
        let (mean, rstd) = stats(row, eps);
        let xhat: Vec<f64> = row.iter().map(|v| (v - mean) * rstd).collect();
        let g: Vec<f64> = out.iter().zip(w).map(|(d, w)| d * w).collect();
        let m = g.iter().sum::<f64>() / c as f64;
        let k = g.iter().zip(&xhat).map(|(g, x)| g * x).sum::<f64>() / c as f64;
        for i in 0..c {
            dx[n * c + i] = rstd * (g[i] - m - xhat[i] * k);
            dw[i] += out[i] * xhat[i];
            db[i] += out[i];
        }
    }
    [dx, dw, db]
}
