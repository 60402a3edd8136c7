//! How the CPU keeps a frozen matrix: panels of 32 outputs, lanes over outputs for one row as for a thousand.

use half::{bf16, f16};
use runtime::{DType, Element, Result, Stream, View, disjoint, ensure};

/// Outputs of one panel.
pub const PANEL: usize = 32;

/// A matrix `[N, K]` stored as `[⌈N/32⌉][K][32]` in f32, bf16 or f16: element (n, k) lies at `(n/32·K + k)·32 + n%32`. Rows beyond N
/// are zero.
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a> {
    /// The packed elements.
    pub data: View<'a>,
    /// Rows of the matrix: outputs.
    pub n: usize,
    /// Columns: the length of a dot product.
    pub k: usize,
}

/// Elements that `[n, k]` takes when packed.
pub fn packed_len(n: usize, k: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * k
}

impl<'a> Panels<'a> {
    /// Checks length and dtype.
    pub fn new(data: View<'a>, n: usize, k: usize) -> Result<Panels<'a>> {
        ensure!(data.len() == packed_len(n, k), "panels: [{n}, {k}] needs {} elements, got {}", packed_len(n, k), data.len());
        ensure!(matches!(data.dtype(), DType::F32 | DType::Bf16 | DType::F16), "panels: dtype {}", data.dtype());
        Ok(Panels { data, n, k })
    }
}

/// Index of element (n, k) of a matrix with K columns.
#[inline(always)]
pub fn index(n: usize, k: usize, columns: usize) -> usize {
    (n / PANEL * columns + k) * PANEL + n % PANEL
}

fn pack_slice<T: Element>(out: &mut [T], w: &[T], k: usize) {
    out.fill(T::default());
    for (n, row) in w.chunks_exact(k).enumerate() {
        for (i, &value) in row.iter().enumerate() {
            out[index(n, i, k)] = value;
        }
    }
}

fn unpack_slice<T: Element>(out: &mut [T], packed: &[T], k: usize) {
    for (n, row) in out.chunks_exact_mut(k).enumerate() {
        for (i, value) in row.iter_mut().enumerate() {
            *value = packed[index(n, i, k)];
        }
    }
}

/// Packs the row-major bytes of `[n, k]`, given in the storage type of `out`.
pub fn pack(s: &Stream, out: View<'_>, bytes: &[u8], n: usize, k: usize) -> Result<()> {
    fn typed<T: Element>(s: &Stream, out: View<'_>, bytes: &[u8], k: usize) -> Result<()> {
        // The bytes may lie at any address of a mapped file.
        let rows: Vec<T> = bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect();
        if s.host().is_none() {
            let mut packed = vec![T::default(); out.len()];
            pack_slice(&mut packed, &rows, k);
            return out.write(s, &packed);
        }
        // SAFETY: the device is the CPU; nothing else touches `out` during this call.
        pack_slice(unsafe { out.host_mut::<T>()? }, &rows, k);
        Ok(())
    }
    let panels = Panels::new(out, n, k)?;
    ensure!(bytes.len() == n * k * out.dtype().size(), "panels: [{n}, {k}] {} from {} bytes", out.dtype(), bytes.len());
    match panels.data.dtype() {
        DType::Bf16 => typed::<bf16>(s, out, bytes, k),
        DType::F16 => typed::<f16>(s, out, bytes, k),
        _ => typed::<f32>(s, out, bytes, k),
    }
}

/// The reverse of [`pack`], for f32.
pub fn unpack(s: &Stream, out: &mut [f32], from: Panels<'_>) -> Result<()> {
    ensure!(out.len() == from.n * from.k, "panels: [{}, {}] into {} elements", from.n, from.k, out.len());
    if s.host().is_none() {
        let mut packed = vec![0f32; from.data.len()];
        from.data.read(s, &mut packed)?;
        unpack_slice(out, &packed, from.k);
        return Ok(());
    }
    // SAFETY: the device is the CPU; `out` is host memory apart from every buffer.
    unpack_slice(out, unsafe { from.data.host::<f32>()? }, from.k);
    Ok(())
}

/// `total += part`, element by element: how an example's partial gradient joins (LAW A7).
pub fn accumulate(s: &Stream, total: View<'_>, part: View<'_>) -> Result<()> {
    ensure!(total.len() == part.len(), "accumulate: {} += {}", total.len(), part.len());
    disjoint("accumulate", &[total], &[part])?;
    let Some(pool) = s.host() else { return crate::embedding::add(s, total, part) };
    // SAFETY: `disjoint` showed that the two do not overlap.
    let (total, part) = unsafe { (total.host_mut::<f32>()?, part.host::<f32>()?) };
    pool.rows(total, 1, 1 << 14, 0, &|first, rows, _| {
        rows.iter_mut().zip(&part[first..]).for_each(|(t, p)| *t += p);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_and_unpack_are_inverse_and_pad_with_zero() -> Result<()> {
        let s = Stream::cpu(1, runtime::Isa::portable());
        let (n, k) = (45, 7);
        let w: Vec<f32> = (0..n * k).map(|i| i as f32 + 1.0).collect();
        let packed = s.zeros::<f32>(packed_len(n, k))?;
        pack(&s, packed.view(), bytemuck::cast_slice(&w), n, k)?;
        let all = packed.to_vec()?;
        assert_eq!(all[index(33, 5, k)], w[33 * k + 5]);
        assert_eq!(all.iter().filter(|v| **v == 0.0).count(), (64 - 45) * k);
        let mut back = vec![0.0; n * k];
        unpack(&s, &mut back, Panels::new(packed.view(), n, k)?)?;
        assert_eq!(back, w);
        assert!(pack(&s, packed.view(), &[0; 12], n, k).is_err() && Panels::new(packed.view(), 65, k).is_err());
        Ok(())
    }
}
