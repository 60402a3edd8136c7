//! Plain loops in f64 over a row-major head [V, C].

use super::Scaling;

/// Logit after cap and temperature, and its derivative by the raw one.
fn squash(z: f64, scaling: Scaling) -> (f64, f64) {
    let (cap, inv) = (scaling.softcap as f64, scaling.inv_temperature as f64);
    if cap > 0.0 { (cap * (z / cap).tanh() * inv, (1.0 - (z / cap).tanh().powi(2)) * inv) } else { (z * inv, inv) }
}

/// logp of one target after one hidden row [C], and dlogp/dz [V].
pub(crate) fn row(x: &[f32], head: &[f32], target: usize, scaling: Scaling) -> (f64, Vec<f64>) {
    let dot = |w: &[f32]| x.iter().zip(w).map(|(x, w)| *x as f64 * *w as f64).sum::<f64>();
    let z: Vec<(f64, f64)> = head.chunks(x.len()).map(|w| squash(dot(w), scaling)).collect();
    let max = z.iter().fold(f64::MIN, |a, z| a.max(z.0));
    let others: f64 = z.iter().enumerate().filter(|(v, _)| *v != target).map(|(_, z)| (z.0 - max).exp()).sum();
    let all = others + (z[target].0 - max).exp();
    // 1 − p of the target from the others, so that it keeps its digits where p is nearly 1.
    let rest = |v: usize, z: f64| if v == target { others / all } else { -(z - max).exp() / all };
    let dz = z.iter().enumerate().map(|(v, z)| rest(v, z.0) * z.1).collect();
    let near = (z[target].0 - max).exp();
    (if near > 0.5 * all { -(others / near).ln_1p() } else { z[target].0 - max - all.ln() }, dz)
}

/// logp [M], dx [N, C] and dhead [V, C] for dlogp [M].
pub(crate) fn all(
    x: &[f32],
    c: usize,
    head: &[f32],
    rows: &[u32],
    targets: &[u32],
    dlogp: &[f32],
    scaling: Scaling,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut logp, mut dx, mut dhead) = (Vec::new(), vec![0.0; x.len()], vec![0.0; head.len()]);
    for ((&r, &t), &d) in rows.iter().zip(targets).zip(dlogp) {
        let own = r as usize * c..(r as usize + 1) * c;
        let (value, dz) = row(&x[own.clone()], head, t as usize, scaling);
        logp.push(value);
        for (v, dz) in dz.iter().enumerate() {
            let g = d as f64 * dz;
            dx[own.clone()].iter_mut().zip(&head[v * c..]).for_each(|(dx, w)| *dx += g * *w as f64);
            dhead[v * c..(v + 1) * c].iter_mut().zip(&x[own.clone()]).for_each(|(dw, x)| *dw += g * *x as f64);
        }
    }
    (logp, dx, dhead)
}
