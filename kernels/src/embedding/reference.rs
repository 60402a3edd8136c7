//! The truth in f64, over row-major tables.

/// x [N, C] of table [V, C].
pub fn forward(tokens: &[u32], table: &[f64], c: usize, scale: f64) -> Vec<f64> {
    tokens.iter().flat_map(|&id| table[id as usize * c..(id as usize + 1) * c].iter().map(move |w| w * scale)).collect()
}

/// dtable [V, C] of dx [N, C].
pub fn backward(dx: &[f64], tokens: &[u32], v: usize, c: usize) -> Vec<f64> {
    let mut dtable = vec![0.0; v * c];
    for (row, &id) in dx.chunks(c).zip(tokens) {
        dtable[id as usize * c..(id as usize + 1) * c].iter_mut().zip(row).for_each(|(d, dx)| *d += dx);
    }
    dtable
}
