//! The truth in f64, with its own angles.

/// Heads [N, heads, d] turned by pos `[N]`; `sign` −1 turns back.
pub fn rotate(x: &[f64], pos: &[u32], frequencies: &[f64], heads: usize, sign: f64) -> Vec<f64> {
    let half = frequencies.len();
    let mut y = x.to_vec();
    for (n, head) in y.chunks_mut(2 * half).enumerate() {
        for (i, f) in frequencies.iter().enumerate() {
            let (sin, cos) = (sign * pos[n / heads] as f64 * f).sin_cos();
            (head[i], head[i + half]) = (head[i] * cos - head[i + half] * sin, head[i + half] * cos + head[i] * sin);
        }
    }
    y
}
