//! The truth in f64.

/// out `[M]` of x [N, C].
pub fn forward(x: &[f64], rows: &[u32], w: &[f64]) -> Vec<f64> {
    let c = w.len();
    rows.iter().map(|&r| (0..c).map(|i| x[r as usize * c + i] * w[i]).sum()).collect()
}

/// dx [N, C] and dw `[C]` of dout `[M]`.
pub fn backward(dout: &[f64], x: &[f64], rows: &[u32], w: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let c = w.len();
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; c]);
    for (d, &r) in dout.iter().zip(rows) {
        for i in 0..c {
            dx[r as usize * c + i] += d * w[i];
            dw[i] += d * x[r as usize * c + i];
        }
    }
    (dx, dw)
}
