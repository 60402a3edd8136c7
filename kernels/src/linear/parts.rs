//! The modules of one group as host slices, and the two products they take part in.

use super::pack::{self, Left, Stock};
use super::product::{Projection, Right, Tail};
use super::tile::{Ahead, Lines};
use super::{PARTS, Part};
use crate::panels::{PANEL, Panels};
use half::{bf16, f16};
use runtime::{DType, Isa, Result, View};
use std::ops::Range;

/// Longest reduction block of a forward product: panels are read in place.
const FORWARD: usize = 2048;
/// Longest reduction block of a backward product: shorter, so that each transposed block serves more rows.
const BACKWARD: usize = 1024;

impl<'a> Stock<'a> {
    /// The packed elements of a matrix.
    ///
    /// # Safety
    /// As `View::host`.
    pub unsafe fn new(panels: Panels<'a>) -> Result<Stock<'a>> {
        // SAFETY: the caller's promise.
        unsafe {
            Ok(match panels.data.dtype() {
                DType::Bf16 => Stock::Bf16(panels.data.host::<bf16>()?),
                DType::F16 => Stock::F16(panels.data.host::<f16>()?),
                _ => Stock::F32(panels.data.host::<f32>()?),
            })
        }
    }

    /// Rows `k` of panel `p` of a matrix with `columns` columns, [len][32]: in place if it is f32 or read only once.
    pub fn block(&self, isa: Isa, p: usize, columns: usize, k: Range<usize>, strips: usize, room: &mut [f32]) -> Lines {
        let range = (p * columns + k.start) * PANEL..(p * columns + k.end) * PANEL;
        match self {
            Stock::F32(w) => Lines::F32(w[range].as_ptr()),
            Stock::Bf16(w) if strips == 1 => Lines::Bf16(w[range].as_ptr()),
            Stock::F16(w) if strips == 1 => Lines::F16(w[range].as_ptr()),
            _ => {
                self.widen(isa, room, range);
                Lines::F32(room.as_ptr())
            }
        }
    }

    /// Share `i` of `of` of what [`Stock::block`] will read.
    pub fn ahead(&self, p: usize, columns: usize, k: Range<usize>, share: (usize, usize), steps: usize) -> Ahead {
        let range = (p * columns + k.start) * PANEL..(p * columns + k.end) * PANEL;
        match self {
            Stock::F32(w) => Ahead::share(&w[range], share, steps),
            Stock::Bf16(w) => Ahead::share(&w[range], share, steps),
            Stock::F16(w) => Ahead::share(&w[range], share, steps),
        }
    }

    /// Transposes columns `k` (at most 32) of outputs `n` of a matrix with `columns` columns to [len of n][32].
    pub fn transpose(&self, isa: Isa, columns: usize, n: Range<usize>, k: Range<usize>, out: &mut [f32]) {
        let mut rows = [0f32; PANEL * PANEL];
        let mut at = n.start;
        while at < n.end {
            let (panel, lane) = (at / PANEL, at % PANEL);
            let lanes = (PANEL - lane).min(n.end - at);
            let range = (panel * columns + k.start) * PANEL..(panel * columns + k.end) * PANEL;
            let rows: &[f32] = match self {
                Stock::F32(w) => &w[range],
                _ => {
                    let rows = &mut rows[..range.len()];
                    self.widen(isa, rows, range);
                    rows
                }
            };
            let to = &mut out[(at - n.start) * PANEL..][..lanes * PANEL];
            let row = |i: usize| if i < k.len() { &rows[i * PANEL + lane..][..lanes] } else { &[] };
            for i in (0..k.len() / 8 * 8).step_by(8) {
                pack::interleave::<8>(isa, &mut to[i..], PANEL, std::array::from_fn(|j| row(i + j)));
            }
            for i in k.len() / 8 * 8..k.len() {
                row(i).iter().enumerate().for_each(|(l, &x)| to[l * PANEL + i] = x);
            }
            at += lanes;
        }
    }
}

/// One module on the host.
#[derive(Clone, Copy)]
pub(crate) struct Module<'a> {
    /// Packed [N, K].
    pub weight: Stock<'a>,
    /// Outputs.
    pub n: usize,
    /// [N]
    pub bias: Option<&'a [f32]>,
    /// R, 0 without an adapter.
    pub rank: usize,
    /// The adapter's factor.
    pub scale: f32,
    /// [R, K]
    pub a: &'a [f32],
    /// [N, R]
    pub b: &'a [f32],
    /// Its first column in y.
    pub first: usize,
    /// Its first column in S.
    pub slot: usize,
    /// Its first panel.
    pub panel: usize,
}

/// Up to [`PARTS`] modules side by side.
pub(crate) struct Group<'a> {
    modules: [Module<'a>; PARTS],
    count: usize,
    /// Inputs.
    pub k: usize,
    /// Outputs of all.
    pub n: usize,
    /// Ranks of all.
    pub ranks: usize,
    panels: usize,
}

impl<'a> Group<'a> {
    /// The host form of checked parts.
    ///
    /// # Safety
    /// The device is the CPU and nobody writes the parts while the group lives.
    pub unsafe fn new(parts: &[Part<'a>]) -> Result<Group<'a>> {
        let none: &[f32] = &[];
        let absent = Module {
            weight: Stock::F32(none),
            n: 0,
            bias: None,
            rank: 0,
            scale: 0.0,
            a: none,
            b: none,
            first: 0,
            slot: 0,
            panel: 0,
        };
        let count = parts.len().min(PARTS);
        let mut group = Group { modules: [absent; PARTS], count, k: 0, n: 0, ranks: 0, panels: 0 };
        let empty = View::none(DType::F32);
        for (part, module) in parts.iter().zip(&mut group.modules) {
            let (rank, scale, a, b) = part.lora.map_or((0, 0.0, empty, empty), |l| (l.rank, l.scale, l.a, l.b));
            let weight = part.weight.panels("linear")?;
            // SAFETY: the caller's promise.
            *module = unsafe {
                Module {
                    weight: Stock::new(weight)?,
                    n: weight.n,
                    bias: part.bias.map(|b| b.host()).transpose()?,
                    rank,
                    scale,
                    a: a.host()?,
                    b: b.host()?,
                    first: group.n,
                    slot: group.ranks,
                    panel: group.panels,
                }
            };
            group.k = weight.k;
            group.n += weight.n;
            group.ranks += rank;
            group.panels += weight.n.div_ceil(PANEL);
        }
        Ok(group)
    }

    /// The modules in order.
    pub fn modules(&self) -> impl Iterator<Item = &Module<'a>> {
        self.modules[..self.count].iter()
    }

    /// Module `p`.
    pub fn module(&self, p: usize) -> &Module<'a> {
        &self.modules[p]
    }

    /// The module of a panel of outputs, and which of its panels that is.
    fn find(&self, panel: usize) -> (&Module<'a>, usize) {
        let p = self.modules().take_while(|m| m.panel <= panel).count();
        let module = self.module(p.saturating_sub(1));
        (module, panel - module.panel)
    }
}

/// y = x · Wᵀ: panels of outputs, reduction over the inputs.
pub(crate) struct Forward<'a>(pub Group<'a>);

impl Right for Forward<'_> {
    fn len(&self) -> usize {
        self.0.k
    }
    fn limit(&self) -> usize {
        FORWARD
    }
    fn panels(&self) -> usize {
        self.0.panels
    }
    fn columns(&self, panel: usize) -> Range<usize> {
        let (module, p) = self.0.find(panel);
        module.first + p * PANEL..module.first + ((p + 1) * PANEL).min(module.n)
    }
    fn block(&self, isa: Isa, panel: usize, k: Range<usize>, strips: usize, room: &mut [f32]) -> Lines {
        let (module, p) = self.0.find(panel);
        module.weight.block(isa, p, self.0.k, k, strips, room)
    }
    fn copies(&self) -> bool {
        self.0.modules().any(|m| !matches!(m.weight, Stock::F32(_)))
    }
    fn copy(&self, isa: Isa, panel: usize, out: &mut [f32]) {
        let (module, p) = self.0.find(panel);
        module.weight.widen(isa, out, p * self.0.k * PANEL..(p + 1) * self.0.k * PANEL);
    }
    fn ahead(&self, panel: usize, k: Range<usize>, share: (usize, usize), steps: usize) -> Ahead {
        let (module, p) = self.0.find(panel);
        module.weight.ahead(p, self.0.k, k, share, steps)
    }
    fn tail(&self, panel: usize, room: &mut [f32]) -> Tail {
        let (module, p) = self.0.find(panel);
        let n = p * PANEL..((p + 1) * PANEL).min(module.n);
        let (rows, bias) = room.split_at_mut(module.rank * PANEL);
        for (lane, n) in n.clone().enumerate() {
            for (row, b) in rows.chunks_exact_mut(PANEL).zip(&module.b[n * module.rank..]) {
                row[lane] = module.scale * b;
            }
        }
        if let Some(values) = module.bias {
            bias[..n.len()].copy_from_slice(&values[n]);
        }
        Tail { ranks: module.slot..module.slot + module.rank, bias: module.bias.is_some() }
    }
    fn ranks(&self) -> usize {
        self.0.ranks
    }
    fn projections(&self) -> usize {
        self.0.modules().count()
    }
    fn projection(&self, p: usize) -> Projection {
        let module = self.0.module(p);
        Projection { ranks: module.slot..module.slot + module.rank, span: 0..self.0.k }
    }
    fn project(&self, isa: Isa, p: usize, j: Range<usize>, k: Range<usize>, out: &mut [f32]) {
        pack::strip(isa, out, j.len(), Left::new(self.0.module(p).a, self.0.k), j, k);
    }
}

/// dx = dy · W: panels of inputs, reduction over the outputs of all parts in order.
pub(crate) struct Backward<'a>(pub Group<'a>);

impl Right for Backward<'_> {
    fn len(&self) -> usize {
        self.0.n
    }
    fn limit(&self) -> usize {
        BACKWARD
    }
    fn panels(&self) -> usize {
        self.0.k.div_ceil(PANEL)
    }
    fn columns(&self, panel: usize) -> Range<usize> {
        panel * PANEL..((panel + 1) * PANEL).min(self.0.k)
    }
    fn block(&self, isa: Isa, panel: usize, n: Range<usize>, _: usize, room: &mut [f32]) -> Lines {
        let k = self.columns(panel);
        for module in self.0.modules() {
            let (start, end) = (n.start.max(module.first), n.end.min(module.first + module.n));
            if start < end {
                let to = &mut room[(start - n.start) * PANEL..];
                module.weight.transpose(isa, self.0.k, start - module.first..end - module.first, k.clone(), to);
            }
        }
        Lines::F32(room.as_ptr())
    }
    fn copies(&self) -> bool {
        true
    }
    fn copy(&self, isa: Isa, panel: usize, out: &mut [f32]) {
        self.block(isa, panel, 0..self.0.n, 1, out);
    }
    fn ahead(&self, _: usize, _: Range<usize>, _: (usize, usize), _: usize) -> Ahead {
        Ahead::NONE
    }
    fn tail(&self, panel: usize, room: &mut [f32]) -> Tail {
        let k = self.columns(panel);
        for module in self.0.modules() {
            for j in 0..module.rank {
                let row = &module.a[j * self.0.k..][k.clone()];
                room[(module.slot + j) * PANEL..][..row.len()].copy_from_slice(row);
            }
        }
        Tail { ranks: 0..self.0.ranks, bias: false }
    }
    fn ranks(&self) -> usize {
        self.0.ranks
    }
    fn projections(&self) -> usize {
        self.0.modules().count()
    }
    fn projection(&self, p: usize) -> Projection {
        let module = self.0.module(p);
        Projection { ranks: module.slot..module.slot + module.rank, span: module.first..module.first + module.n }
    }
    fn project(&self, _: Isa, p: usize, j: Range<usize>, n: Range<usize>, out: &mut [f32]) {
        let module = self.0.module(p);
        for (row, n) in out.chunks_exact_mut(j.len()).zip(n.start - module.first..n.end - module.first) {
            let b = &module.b[n * module.rank..][j.clone()];
            row.iter_mut().zip(b).for_each(|(to, b)| *to = module.scale * b);
        }
    }
}
