//! The bf16 copies of parameters that lie in a base's matrices (`weight.rs`): of an adapter, B times its factor beside the weights and A
//! under them; under full tuning, the matrices themselves, whose f32 is the master. A step of the optimizer writes them in place; what
//! takes another's place is written whole.

use super::KERNELS;
use crate::cuda::{elements, operand, size};
use crate::weight::{Rows, STEP, TWICE};
use runtime::{Arg, Buffer, DType, DType::F32, Ptr, Result, Stream, View, ensure};
use std::ops::Range;

/// Which tensor: one of an adapter's two, or the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// [R, K]
    A,
    /// [N, R]
    B,
    /// [N, ld], laid out as the weight, which has no strips.
    Whole,
}

/// One tensor and where its copy goes.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// Its elements in the arena of the parameters.
    pub elements: Range<usize>,
    /// A, B or the matrix.
    pub side: Side,
    /// The module's weight.
    pub weight: Rows<'a>,
    /// First column of the module's strip within its group's: the strips of the modules before it.
    pub slot: usize,
    /// R
    pub rank: usize,
    /// The factor of B.
    pub scale: f32,
}

impl<'a> Target<'a> {
    /// A matrix whose master, laid out as it is, has these elements.
    pub fn whole(elements: Range<usize>, weight: Rows<'a>) -> Target<'a> {
        Target { elements, side: Side::Whole, weight, slot: 0, rank: 0, scale: 1.0 }
    }

    /// The struct `Copy` of adamw.cu.
    fn bytes(&self) -> Result<Vec<u8>> {
        let (w, r) = (&self.weight, &self.elements);
        let ld = w.ld();
        let twice = self.rank <= TWICE;
        let width = STEP * self.rank.div_ceil(if twice { STEP / 2 } else { STEP });
        let wanted = match self.side {
            Side::A => self.rank * w.k,
            Side::B => self.rank * w.n,
            Side::Whole => w.n * ld,
        };
        ensure!(w.group.dtype() == DType::Bf16, "adamw: copy: wanted a weight in bf16, got {}", w.group.dtype());
        ensure!(r.len() == wanted, "adamw: copy: {:?} at {r:?}, wanted {wanted} elements", self.side);
        let fits = if self.side == Side::Whole { w.tail == 0 } else { self.rank > 0 && self.slot + width <= w.tail };
        ensure!(fits, "adamw: copy: {:?} of rank {} from column {} of {}", self.side, self.rank, self.slot, w.tail);
        let (first, columns, scale) = match self.side {
            Side::A => ((w.group.len() / ld - w.tail + self.slot) * ld, w.k, 1.0),
            Side::B => (w.first * ld + w.k + self.slot, self.rank, self.scale),
            Side::Whole => (w.first * ld, ld, 1.0),
        };
        let words = [r.start as u64, r.end as u64, w.group.ptr().0 + 2 * first as u64];
        let mut bytes: Vec<u8> = words.iter().flat_map(|v| v.to_ne_bytes()).collect();
        for n in [columns, self.rank, ld, self.side as usize] {
            ensure!(u32::try_from(n).is_ok(), "adamw: copy: a size of {n}, wanted at most {}", u32::MAX);
            bytes.extend_from_slice(&(n as u32).to_ne_bytes());
        }
        bytes.extend_from_slice(&scale.to_ne_bytes());
        bytes.extend_from_slice(&u32::from(twice).to_ne_bytes());
        Ok(bytes)
    }
}

/// Where copies go: a table on a CUDA device. It does not borrow the weights, so that it can lie beside the parameters;
/// [`Table::over`] asks for them again.
#[derive(Debug)]
pub struct Table {
    words: Buffer<u32>,
    count: usize,
    /// One past the last element that has a copy.
    end: usize,
    /// Addresses of the groups that are written.
    memory: Range<u64>,
}

/// Copies in weights that are there.
#[derive(Clone, Copy, Debug)]
pub struct Copies<'a> {
    table: &'a Table,
}

/// Addresses of a view.
fn addresses(view: View<'_>) -> Range<u64> {
    let first = view.ptr().0;
    first..first + (view.len() * view.dtype().size()) as u64
}

impl Table {
    /// For targets in arena order.
    pub fn new(s: &Stream, targets: &[Target<'_>]) -> Result<Table> {
        let ordered = targets.is_sorted_by(|a, b| a.elements.end <= b.elements.start);
        ensure!(ordered, "adamw: copies: wanted targets in arena order");
        let bytes = targets.iter().map(Target::bytes).collect::<Result<Vec<_>>>()?.concat();
        let words: Vec<u32> = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
        let groups = || targets.iter().map(|t| addresses(t.weight.group));
        let memory = groups().map(|r| r.start).min().unwrap_or(0)..groups().map(|r| r.end).max().unwrap_or(0);
        let end = targets.last().map_or(0, |t| t.elements.end);
        Ok(Table { words: s.upload(&words)?, count: targets.len(), end, memory })
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        4 * self.words.len()
    }

    /// The copies in `weights`, which hold every group of the targets.
    pub fn over<'a>(&'a self, weights: View<'a>) -> Result<Copies<'a>> {
        let (held, wanted) = (addresses(weights), &self.memory);
        let fits = held.start <= wanted.start && wanted.end <= held.end;
        ensure!(fits, "adamw: copies: weights at {held:x?}, the table's groups are at {wanted:x?}");
        Ok(Copies { table: self })
    }
}

impl Copies<'_> {
    /// Table and count, for parameters of n elements.
    pub(super) fn within(&self, n: usize) -> Result<(Ptr, usize)> {
        let Table { words, count, end, .. } = self.table;
        ensure!(*end <= n, "adamw: copies: elements up to {end} of {n}");
        Ok((words.view().ptr(), *count))
    }

    /// Writes all of them from the parameters p `[n]` f32.
    pub fn write(&self, s: &Stream, p: View<'_>) -> Result<()> {
        let (table, count) = self.within(p.len())?;
        let args = [operand("adamw::copies", p, F32)?, Arg::Ptr(table), size("adamw", count)?, Arg::U64(p.len() as u64)];
        // SAFETY: the kernel's arguments; the table's addresses lie in weights that the copies borrow.
        unsafe { s.launch(&KERNELS[3], &elements(p.len())?, &args) }
    }
}
