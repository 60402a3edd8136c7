//! A case: operands by role, one call, and what the outputs are compared with.

use half::bf16;
use runtime::{DType, Element, Result, Stream, View};
use std::ops::Range;

/// What a call does with an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Input,
    /// Written whole, never read.
    Output,
    /// Read and written.
    Both,
}

/// An operand on the host.
#[derive(Clone, Debug)]
pub struct Operand {
    pub(super) name: &'static str,
    pub(super) role: Role,
    pub(super) dtype: DType,
    /// What it holds before the call; of an output only the length counts.
    pub(super) bytes: Vec<u8>,
    /// Elements of one row; None if cuts leave it whole.
    pub(super) width: Option<usize>,
    /// Activations, which a device may store in bf16.
    acts: bool,
    /// Elements of each of its rows where a device takes them apart.
    pub(super) apart: Option<usize>,
    /// Its own limit; None for the case's.
    pub(super) limit: Option<Limit>,
}

impl Operand {
    fn new<T: Element>(name: &'static str, role: Role, values: &[T]) -> Operand {
        Operand {
            name,
            role,
            dtype: T::DTYPE,
            bytes: bytemuck::cast_slice(values).to_vec(),
            width: None,
            acts: false,
            apart: None,
            limit: None,
        }
    }

    /// Read only.
    pub fn input<T: Element>(name: &'static str, values: &[T]) -> Operand {
        Operand::new(name, Role::Input, values)
    }

    /// Of `len` elements, all of which the call writes.
    pub fn output<T: Element>(name: &'static str, len: usize) -> Operand {
        Operand::new(name, Role::Output, &vec![T::default(); len])
    }

    /// Read and written.
    pub fn both<T: Element>(name: &'static str, values: &[T]) -> Operand {
        Operand::new(name, Role::Both, values)
    }

    /// Has that many elements for each row of the batch.
    pub fn per_row(self, width: usize) -> Operand {
        Operand { width: Some(width), ..self }
    }

    /// Activations: f32 here, rounded to bf16 in a case of that storage ([`Case::in_bf16`]).
    pub fn acts(self) -> Operand {
        Operand { acts: true, ..self }
    }

    /// A device takes its rows, of so many elements, apart from each other too.
    pub fn apart(self, width: usize) -> Operand {
        Operand { apart: Some(width), ..self }
    }

    /// Another limit than the case's.
    pub fn within(self, limit: Limit) -> Operand {
        Operand { limit: Some(limit), ..self }
    }

    /// Stored in bf16 if it is an activation.
    fn narrowed(self) -> Operand {
        if !self.acts {
            return self;
        }
        let narrow = |b: &[u8]| bf16::from_f32(bytemuck::pod_read_unaligned(b)).to_bits();
        let bits: Vec<u16> = self.bytes.chunks_exact(4).map(narrow).collect();
        Operand { dtype: DType::Bf16, bytes: bytemuck::cast_slice(&bits).to_vec(), ..self }
    }

    /// As the CPU takes it: f32 of the same values.
    pub(super) fn widened(&self) -> Operand {
        if self.dtype != DType::Bf16 {
            return self.clone();
        }
        let widen = |b: &[u8]| bf16::from_bits(bytemuck::pod_read_unaligned(b)).to_f32();
        let values: Vec<f32> = self.bytes.chunks_exact(2).map(widen).collect();
        Operand { dtype: DType::F32, bytes: bytemuck::cast_slice(&values).to_vec(), ..self.clone() }
    }

    /// Whether the call writes it.
    pub(super) fn is_written(&self) -> bool {
        self.role != Role::Input
    }

    /// Bytes of these rows; all of them without a cut, or where it has no rows.
    pub(super) fn part(&self, cut: Option<&Range<usize>>) -> Range<usize> {
        match (cut, self.width.map(|width| width * self.dtype.size())) {
            (Some(rows), Some(width)) => rows.start * width..rows.end * width,
            _ => 0..self.bytes.len(),
        }
    }
}

/// How far an output may be from what it should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// The same bits.
    Bits,
    /// ‖out − truth‖ / ‖truth‖ over the tensor, and over its worst row.
    Norm {
        /// Of the tensor.
        tensor: f64,
        /// Of a row of it.
        row: f64,
    },
}

/// What outputs are compared with.
#[derive(Clone, Debug)]
pub enum Truth {
    /// The same call on the portable CPU, of the same values in f32; its bits are rounded once where the device stores bf16.
    Cpu,
    /// These values, for each written operand in order.
    Values(Vec<Vec<f64>>),
}

/// The call: views in the order of the operands.
type Call = Box<dyn Fn(&Stream, &[View<'_>]) -> Result<()>>;

/// One call of a room.
pub struct Case {
    pub(super) name: String,
    pub(super) operands: Vec<Operand>,
    /// Rows of the batch; 0 if it is not cut.
    pub(super) rows: usize,
    pub(super) limit: Limit,
    pub(super) truth: Truth,
    pub(super) call: Call,
}

impl Case {
    /// A call whose outputs have the portable CPU's bits; `name` is its function with its shape.
    pub fn new(name: String, operands: Vec<Operand>, call: impl Fn(&Stream, &[View<'_>]) -> Result<()> + 'static) -> Case {
        Case { name, operands, rows: 0, limit: Limit::Bits, truth: Truth::Cpu, call: Box::new(call) }
    }

    /// The operands have that many rows, and a row's result is its own.
    pub fn cut(self, rows: usize) -> Case {
        Case { rows, ..self }
    }

    /// The same case with its activations in bf16.
    pub fn in_bf16(self) -> Case {
        Case { name: format!("{} bf16", self.name), operands: self.operands.into_iter().map(Operand::narrowed).collect(), ..self }
    }

    /// Another limit than the bits.
    pub fn within(self, limit: Limit) -> Case {
        Case { limit, ..self }
    }

    /// Another truth than the portable CPU.
    pub fn against(self, truth: Truth) -> Case {
        Case { truth, ..self }
    }
}
