//! The truth in f64, element by element.

use super::Curve;
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// erf by its Taylor series; |x| ≤ 6, where the largest term still leaves 1e-3 of 1e-12.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / PI.sqrt()
}

/// gelu(x) and its slope.
pub fn at(x: f64, curve: Curve) -> (f64, f64) {
    match curve {
        Curve::Tanh => {
            let k = (2.0 / PI).sqrt();
            let t = (k * (x + 0.044715 * x * x * x)).tanh();
            let h = 0.5 * (1.0 + t);
            (x * h, h + 0.5 * x * (1.0 - t * t) * k * (1.0 + 3.0 * 0.044715 * x * x))
        }
        Curve::Erf => {
            let h = 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2));
            (x * h, h + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt())
        }
    }
}

/// y of g, and of u where there is one.
pub fn forward(g: &[f64], u: Option<&[f64]>, curve: Curve) -> Vec<f64> {
    g.iter().enumerate().map(|(i, g)| at(*g, curve).0 * u.map_or(1.0, |u| u[i])).collect()
}

/// dg and du (empty without u) of dy, g and u.
pub fn backward(dy: &[f64], g: &[f64], u: Option<&[f64]>, curve: Curve) -> (Vec<f64>, Vec<f64>) {
    let dg = (0..g.len()).map(|i| dy[i] * u.map_or(1.0, |u| u[i]) * at(g[i], curve).1).collect();
    (dg, if u.is_some() { (0..g.len()).map(|i| dy[i] * at(g[i], curve).0).collect() } else { Vec::new() })
}
