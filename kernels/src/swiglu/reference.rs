//! The truth in f64, element by element.

/// y of g and u.
pub fn forward(g: &[f64], u: &[f64]) -> Vec<f64> {
    g.iter().zip(u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

/// dg and du of dy, g and u.
pub fn backward(dy: &[f64], g: &[f64], u: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let each = |i: usize| {
        let sigma = 1.0 / (1.0 + (-g[i]).exp());
        (dy[i] * u[i] * sigma * (1.0 + g[i] * (1.0 - sigma)), dy[i] * g[i] * sigma)
    };
    (0..g.len()).map(each).unzip()
}
