//! The truth in f64.

/// y [N, C] and rstd `[N]` of v [N, C].
pub fn forward(v: &[f64], w: &[f64], eps: f64, offset: f64) -> (Vec<f64>, Vec<f64>) {
    let c = w.len();
    let rstd: Vec<f64> = v.chunks(c).map(|r| 1.0 / (r.iter().map(|v| v * v).sum::<f64>() / c as f64 + eps).sqrt()).collect();
    let y = (0..v.len()).map(|i| v[i] * rstd[i / c] * (offset + w[i % c])).collect();
    (y, rstd)
}

/// dx [N, C] and dw `[C]` for v [N, C] and dy [N, C].
pub fn backward(dy: &[f64], v: &[f64], w: &[f64], eps: f64, offset: f64) -> (Vec<f64>, Vec<f64>) {
    let c = w.len();
    let (_, rstd) = forward(v, w, eps, offset);
    let (mut dx, mut dw) = (vec![0.0; v.len()], vec![0.0; c]);
    for (n, r) in rstd.iter().enumerate() {
        let xhat: Vec<f64> = v[n * c..(n + 1) * c].iter().map(|v| v * r).collect();
        let g: Vec<f64> = (0..c).map(|i| dy[n * c + i] * (offset + w[i])).collect();
        let mean = (0..c).map(|i| g[i] * xhat[i]).sum::<f64>() / c as f64;
        for i in 0..c {
            dx[n * c + i] = r * (g[i] - xhat[i] * mean);
            dw[i] += dy[n * c + i] * xhat[i];
        }
    }
    (dx, dw)
}
