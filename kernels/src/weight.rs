//! How a device keeps a frozen matrix. Loading, the rooms and the model ask here; nothing else knows.
//!
//! ```text
//! CPU    panels of 32 outputs, each matrix of a group for itself
//! CUDA   one augmented row-major matrix per group of modules that share an input (q, k, v; gate, up; or one module):
//!
//!          columns   0 .. K      K .. K+T        .. ld           T = Σ strip(R_p) over the modules
//!          rows of module p   W_p     B̂_p in p's own columns     rows and columns that nobody writes are zero
//!          T rows under all   A       zero                       ld = K + T, up to a multiple of 64
//! ```
//! B̂ = bf16(scale·B) and A = bf16(A), from the adapter's f32. A strip has 16 columns (and rows) for every step of 16 of the reduction. Up
//! to rank 64 a step holds 8 ranks twice, for the upper and the lower half of S = S_hi + S_lo; above that 16 ranks once, S rounded to bf16.

use crate::panels::{self, Panels, packed_len};
use half::{bf16, f16};
use runtime::{DType, Element, Result, Stream, View, ensure};

/// Steps of a reduction that one instruction of the tensor cores takes.
pub const STEP: usize = 16;
/// Rows start at multiples of this many elements: 128 bytes in bf16.
pub const ALIGN: usize = 64;
/// The largest rank whose S keeps both halves.
pub const TWICE: usize = 64;

/// Columns of one module's strip.
pub fn strip(rank: usize) -> usize {
    STEP * rank.div_ceil(if rank <= TWICE { STEP / 2 } else { STEP })
}

/// How a device keeps the matrices of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The CPU.
    Panels,
    /// CUDA.
    Rows {
        /// T, 0 without an adapter.
        tail: usize,
    },
}

/// A frozen matrix [N, K] as its device keeps it.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// On the CPU.
    Panels(Panels<'a>),
    /// On a CUDA device.
    Rows(Rows<'a>),
}

/// One matrix of an augmented group.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// [ΣN + T, ld], the whole group, in f32, bf16 or f16.
    pub group: View<'a>,
    /// Its first row.
    pub first: usize,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// T
    pub tail: usize,
}

/// Elements from row to row of an augmented matrix.
pub fn row(k: usize, tail: usize) -> usize {
    (k + tail).next_multiple_of(ALIGN)
}

impl Layout {
    /// What the stream's device wants for a group whose modules have these ranks (empty or 0 without an adapter).
    pub fn of(s: &Stream, ranks: &[usize]) -> Layout {
        match s.host() {
            Some(_) => Layout::Panels,
            None => Layout::Rows { tail: ranks.iter().map(|&r| strip(r)).sum() },
        }
    }

    /// Elements of a group of matrices [n, k].
    pub fn len(self, n: &[usize], k: usize) -> usize {
        match self {
            Layout::Panels => n.iter().map(|&n| packed_len(n, k)).sum(),
            Layout::Rows { tail } => (n.iter().sum::<usize>() + tail) * row(k, tail),
        }
    }

    /// Matrix `part` of the group that lies in `data`.
    pub fn weight<'a>(self, data: View<'a>, n: &[usize], k: usize, part: usize) -> Result<Weight<'a>> {
        let wanted = self.len(n, k);
        ensure!(part < n.len(), "weight: matrix {part} of {}", n.len());
        ensure!(data.len() == wanted, "weight: matrices {n:?} by {k} need {wanted} elements, got {}", data.len());
        match self {
            Layout::Panels => {
                let first = n[..part].iter().map(|&n| packed_len(n, k)).sum::<usize>();
                Ok(Panels::new(data.slice(first..first + packed_len(n[part], k))?, n[part], k)?.into())
            }
            Layout::Rows { tail } => {
                let is_float = matches!(data.dtype(), DType::F32 | DType::Bf16 | DType::F16);
                ensure!(is_float, "weight: wanted f32, bf16 or f16, got {}", data.dtype());
                Ok(Weight::Rows(Rows { group: data, first: n[..part].iter().sum(), n: n[part], k, tail }))
            }
        }
    }
}

impl<'a> From<Panels<'a>> for Weight<'a> {
    fn from(panels: Panels<'a>) -> Weight<'a> {
        Weight::Panels(panels)
    }
}

impl<'a> Rows<'a> {
    /// Elements from row to row.
    pub fn ld(&self) -> usize {
        row(self.k, self.tail)
    }

    /// Its own rows, strips included.
    pub fn own(&self) -> Result<View<'a>> {
        self.group.slice(self.first * self.ld()..(self.first + self.n) * self.ld())
    }
}

impl<'a> Weight<'a> {
    /// Outputs N and inputs K.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Weight::Panels(w) => (w.n, w.k),
            Weight::Rows(w) => (w.n, w.k),
        }
    }

    /// Everything that was allocated for it, on CUDA for its whole group.
    pub fn data(&self) -> View<'a> {
        match self {
            Weight::Panels(w) => w.data,
            Weight::Rows(w) => w.group,
        }
    }

    /// Its form on the CPU, checked.
    pub fn panels(&self, room: &str) -> Result<Panels<'a>> {
        match self {
            Weight::Panels(w) => Panels::new(w.data, w.n, w.k),
            Weight::Rows(_) => Err(runtime::Error::Shape(format!("{room}: wanted a weight in panels, got one in rows"))),
        }
    }

    /// Its form on CUDA, checked.
    pub fn rows(&self, room: &str) -> Result<Rows<'a>> {
        let Weight::Rows(w) = self else {
            return Err(runtime::Error::Shape(format!("{room}: wanted a weight in rows, got one in panels")));
        };
        let fits = w.group.len().is_multiple_of(w.ld()) && w.first + w.n + w.tail <= w.group.len() / w.ld();
        ensure!(
            fits,
            "{room}: rows {}..{} and {} more of a weight of {} elements",
            w.first,
            w.first + w.n,
            w.tail,
            w.group.len()
        );
        Ok(*w)
    }
}

/// Fills the matrix from the row-major bytes of [N, K] in its storage type; what else its rows hold becomes zero.
pub fn load(s: &Stream, weight: Weight<'_>, bytes: &[u8]) -> Result<()> {
    fn typed<T: Element>(s: &Stream, w: Rows<'_>, bytes: &[u8]) -> Result<()> {
        let (mut rows, ld) = (vec![T::default(); w.n * w.ld()], w.ld());
        for (row, from) in rows.chunks_exact_mut(ld).zip(bytes.chunks_exact(w.k * size_of::<T>())) {
            row.iter_mut().zip(from.chunks_exact(size_of::<T>())).for_each(|(to, b)| *to = bytemuck::pod_read_unaligned(b));
        }
        w.own()?.write(s, &rows)
    }
    let ((n, k), dtype) = (weight.shape(), weight.data().dtype());
    ensure!(bytes.len() == n * k * dtype.size(), "weight: [{n}, {k}] {dtype} from {} bytes", bytes.len());
    match weight {
        Weight::Panels(w) => panels::pack(s, w.data, bytes, n, k),
        Weight::Rows(_) if dtype == DType::F32 => typed::<f32>(s, weight.rows("weight::load")?, bytes),
        Weight::Rows(_) if dtype == DType::F16 => typed::<f16>(s, weight.rows("weight::load")?, bytes),
        Weight::Rows(_) => typed::<bf16>(s, weight.rows("weight::load")?, bytes),
    }
}

/// The matrix [N, K], row-major, widened.
pub fn read(s: &Stream, weight: Weight<'_>) -> Result<Vec<f32>> {
    fn typed<T: Element>(s: &Stream, data: View<'_>, widen: impl Fn(&T) -> f32) -> Result<Vec<f32>> {
        let mut stored = vec![T::default(); data.len()];
        data.read(s, &mut stored)?;
        Ok(stored.iter().map(widen).collect())
    }
    let (data, (n, k)) = (if let Weight::Rows(w) = weight { w.own()? } else { weight.data() }, weight.shape());
    let stored = match data.dtype() {
        DType::Bf16 => typed::<bf16>(s, data, |v| v.to_f32())?,
        DType::F16 => typed::<f16>(s, data, |v| v.to_f32())?,
        _ => typed::<f32>(s, data, |v| *v)?,
    };
    let at = |n: usize, i: usize| match weight {
        Weight::Panels(_) => panels::index(n, i, k),
        Weight::Rows(w) => n * w.ld() + i,
    };
    Ok((0..n).flat_map(|n| (0..k).map(move |i| (n, i))).map(|(n, i)| stored[at(n, i)]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{on_cuda, stream};

    #[test]
    fn strips_hold_both_halves_up_to_rank_64() {
        assert_eq!([0, 1, 8, 9, 16, 64, 65, 80].map(strip), [0, 16, 16, 32, 32, 128, 80, 80]);
    }

    fn returns<T: Element>(s: &Stream, ranks: &[usize], narrow: impl Fn(f32) -> T) -> Result<()> {
        let (n, k, layout) = ([45, 3, 70], 21, Layout::of(s, ranks));
        let data = s.upload(&vec![narrow(f32::NAN); layout.len(&n, k)])?;
        for part in [2, 0, 1] {
            let w: Vec<f32> = (0..n[part] * k).map(|i| (i % 127 + part) as f32).collect();
            let weight = layout.weight(data.view(), &n, k, part)?;
            let stored: Vec<T> = w.iter().map(|v| narrow(*v)).collect();
            load(s, weight, bytemuck::cast_slice(&stored))?;
            assert_eq!(read(s, weight)?, w);
        }
        assert_eq!(read(s, layout.weight(data.view(), &n, k, 1)?)?[0], 1.0);
        let short = data.view().slice(1..data.len())?;
        assert!(layout.weight(short, &n, k, 0).is_err() && layout.weight(data.view(), &n, k, 3).is_err());
        let weight = layout.weight(data.view(), &n, k, 0)?;
        assert!(load(s, weight, &[0; 12]).is_err());
        let (panels, rows) = (weight.panels("here").is_ok(), weight.rows("here").is_ok());
        assert_eq!((panels, rows), (s.host().is_some(), s.host().is_none()));
        Ok(())
    }

    #[test]
    fn what_is_loaded_is_read() -> Result<()> {
        returns(&stream(), &[8, 0, 3], |v| v)?;
        returns(&stream(), &[], bf16::from_f32)
    }

    #[test]
    fn on_cuda_what_is_loaded_is_read() {
        on_cuda("weight", |s| {
            returns(s, &[8, 0, 3], |v| v)?;
            returns(s, &[], f16::from_f32)?;
            returns(s, &[], bf16::from_f32)
        });
    }
}
