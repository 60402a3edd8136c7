//! The truth in f64.

use super::Params;

/// One step on p, m, v, by the textbook's formula.
pub fn step(p: &mut [f64], m: &mut [f64], v: &mut [f64], g: &[f64], params: &Params) {
    let Params { lr, beta1, beta2, eps, weight_decay, step, grad_scale } = *params;
    let (bc1, bc2) = (1.0 - beta1.powi(step as i32), 1.0 - beta2.powi(step as i32));
    for i in 0..p.len() {
        let g = g[i] * f64::from(grad_scale);
        m[i] = beta1 * m[i] + (1.0 - beta1) * g;
        v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
        p[i] *= 1.0 - lr * weight_decay;
        p[i] -= lr / bc1 * m[i] / ((v[i] / bc2).sqrt() + eps);
    }
}
