//! The bf16 copies of an adapter that lie in its base's augmented matrices (`weight.rs`): B times its factor beside the weights, A under
//! them. A step of the optimizer writes them in place; an adapter that takes another's place is written whole.

use super::KERNELS;
use crate::cuda::{elements, operand, size};
use crate::weight::{Rows, STEP, TWICE};
use runtime::{Arg, Buffer, DType, DType::F32, Ptr, Result, Stream, View, ensure};
use std::ops::Range;

/// Which of an adapter's two tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// [R, K]
    A,
    /// [N, R]
    B,
}

/// One tensor of an adapter and where its copy goes.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// Its elements in the arena of the parameters.
    pub elements: Range<usize>,
    /// A or B.
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

impl Target<'_> {
    /// The struct `Strip` of adamw.cu.
    fn bytes(&self) -> Result<Vec<u8>> {
        let (w, r) = (&self.weight, &self.elements);
        let (ld, wanted) = (w.ld(), self.rank * if self.side == Side::A { w.k } else { w.n });
        let twice = self.rank <= TWICE;
        let width = STEP * self.rank.div_ceil(if twice { STEP / 2 } else { STEP });
        ensure!(w.group.dtype() == DType::Bf16, "adamw: strip: wanted a weight in bf16, got {}", w.group.dtype());
        ensure!(r.len() == wanted, "adamw: strip: {:?} at {r:?}, wanted {wanted} elements", self.side);
        ensure!(self.rank > 0 && self.slot + width <= w.tail, "adamw: strip: columns {}.. of {}", self.slot, w.tail);
        let (first, columns, scale) = match self.side {
            Side::A => ((w.group.len() / ld - w.tail + self.slot) * ld, w.k, 1.0),
            Side::B => (w.first * ld + w.k + self.slot, self.rank, self.scale),
        };
        let words = [r.start as u64, r.end as u64, w.group.ptr().0 + 2 * first as u64];
        let mut bytes: Vec<u8> = words.iter().flat_map(|v| v.to_ne_bytes()).collect();
        for n in [columns, self.rank, ld, usize::from(self.side == Side::B)] {
            ensure!(u32::try_from(n).is_ok(), "adamw: strip: a size of {n}, wanted at most {}", u32::MAX);
            bytes.extend_from_slice(&(n as u32).to_ne_bytes());
        }
        bytes.extend_from_slice(&scale.to_ne_bytes());
        bytes.extend_from_slice(&u32::from(twice).to_ne_bytes());
        Ok(bytes)
    }
}

/// Where the copies of one adapter go: a table on a CUDA device. It does not borrow the weights, so that it can lie beside the adapter;
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

/// The copies of one adapter in weights that are there.
#[derive(Clone, Copy, Debug)]
pub struct Strips<'a> {
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
        ensure!(ordered, "adamw: strips: wanted targets in arena order");
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
    pub fn over<'a>(&'a self, weights: View<'a>) -> Result<Strips<'a>> {
        let (held, wanted) = (addresses(weights), &self.memory);
        let fits = held.start <= wanted.start && wanted.end <= held.end;
        ensure!(fits, "adamw: strips: weights at {held:x?}, the table's groups are at {wanted:x?}");
        Ok(Strips { table: self })
    }
}

impl Strips<'_> {
    /// Table and count, for parameters of n elements.
    pub(super) fn within(&self, n: usize) -> Result<(Ptr, usize)> {
        let Table { words, count, end, .. } = self.table;
        ensure!(*end <= n, "adamw: strips: elements up to {end} of {n}");
        Ok((words.view().ptr(), *count))
    }

    /// Writes all of them from the parameters p `[n]` f32.
    pub fn write(&self, s: &Stream, p: View<'_>) -> Result<()> {
        let (table, count) = self.within(p.len())?;
        let args = [operand("adamw::strips", p, F32)?, Arg::Ptr(table), size("adamw", count)?, Arg::U64(p.len() as u64)];
        // SAFETY: the kernel's arguments; the table's addresses lie in weights that the strips borrow.
        unsafe { s.launch(&KERNELS[3], &elements(p.len())?, &args) }
    }
}
