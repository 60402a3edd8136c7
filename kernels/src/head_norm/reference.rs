//! The truth in f64.

use super::Shape;

/// The factor of element i of a head.
fn factor(w: [&[f64]; 2], shape: Shape, head: usize, i: usize, offset: f64) -> f64 {
    offset + w[usize::from(head >= shape.queries)][i]
}

fn rstd(x: &[f64], eps: f64) -> f64 {
    1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt()
}

/// y [N, stride] and rstd [N, H + K] of x [N, stride].
pub fn forward(x: &[f64], w: [&[f64]; 2], shape: Shape, eps: f64, offset: f64) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut kept) = (x.to_vec(), Vec::new());
    for row in y.chunks_mut(shape.stride) {
        for (head, values) in row.chunks_mut(shape.d).take(shape.heads()).enumerate() {
            let rstd = rstd(values, eps);
            values.iter_mut().enumerate().for_each(|(i, v)| *v *= rstd * factor(w, shape, head, i, offset));
            kept.push(rstd);
        }
    }
    (y, kept)
}

/// dx [N, stride] and both dw of d [N, stride].
pub fn backward(d: &[f64], x: &[f64], w: [&[f64]; 2], shape: Shape, eps: f64, offset: f64) -> (Vec<f64>, [Vec<f64>; 2]) {
    let (mut dx, mut dw) = (d.to_vec(), [vec![0.0; shape.d], vec![0.0; shape.d]]);
    for (row, x) in dx.chunks_mut(shape.stride).zip(x.chunks(shape.stride)) {
        for (head, (out, x)) in row.chunks_mut(shape.d).zip(x.chunks(shape.d)).take(shape.heads()).enumerate() {
            let rstd = rstd(x, eps);
            let g: Vec<f64> = (0..shape.d).map(|i| out[i] * factor(w, shape, head, i, offset)).collect();
            let mean = (0..shape.d).map(|i| g[i] * x[i] * rstd).sum::<f64>() / shape.d as f64;
            for i in 0..shape.d {
                dw[usize::from(head >= shape.queries)][i] += out[i] * x[i] * rstd;
                out[i] = rstd * (g[i] - x[i] * rstd * mean);
            }
        }
    }
    (dx, dw)
}
