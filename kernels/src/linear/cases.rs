//! The room's cases for [`crate::selftest`]: in f32, in bf16 by the room itself, and through the vendor's library.

use super::{Lora, Part, backward, backward_lora, backward_weight, forward, library};
use crate::adamw::{Side, Table, Target};
use crate::selftest::inputs::{Kind, normal, rounded, rows as batch};
use crate::selftest::{Case, Limit, Operand};
use crate::weight::{self, Layout, TWICE, strip};
use half::bf16;
use runtime::{Buffer, DType::F32, Result, Stream, View};
use std::ops::Range;
use std::rc::Rc;

/// One module: outputs, rank (0: no adapter), whether it has a bias.
type Module = (usize, usize, bool);

/// K and the modules of a group: one; uneven ones, of which one has no adapter; sizes that are multiples of nothing, which the library
/// does not take; one whose S is rounded; a wide one.
const SHAPES: [(usize, &[Module]); 5] = [
    (40, &[(24, 8, true)]),
    (72, &[(40, 4, false), (24, 0, true), (16, 16, false)]),
    (37, &[(19, 3, true), (5, 9, true)]),
    (24, &[(56, 70, false)]),
    (104, &[(136, 8, true), (72, 3, false)]),
];

/// A result that was rounded once to bf16.
const ONCE: Limit = Limit::Norm { tensor: 2.2e-3, row: 4e-3 };
/// Chains of f32 in another order, of values that two halves in bf16 keep.
const KEPT: Limit = Limit::Norm { tensor: 1e-5, row: 1e-5 };
/// The same of values that one bf16 keeps.
const ROUNDED: Limit = Limit::Norm { tensor: 4e-3, row: 4e-3 };

/// How a group is computed.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    F32,
    Bf16,
    Library,
}

/// Forward, backward, and the gradients of adapter, weight and bias in f32.
pub fn cases(rows: &[usize], seed: u64) -> Vec<Case> {
    of(rows, seed, Form::F32)
}

/// The same with activations and weights in bf16.
pub fn cases_in_bf16(rows: &[usize], seed: u64) -> Vec<Case> {
    of(rows, seed, Form::Bf16)
}

/// The same by the vendor's library, but for the weight's gradient, which it does not make.
pub fn cases_by_library(rows: &[usize], seed: u64) -> Vec<Case> {
    of(rows, seed, Form::Library)
}

fn of(rows: &[usize], seed: u64, form: Form) -> Vec<Case> {
    rows.iter().enumerate().flat_map(|(i, &m)| shape(i, seed + 64 * i as u64, m, form)).collect()
}

/// A group on the host. Weights, A and B are of a model's sizes; where bf16 keeps them they are exact there.
struct Group {
    form: Form,
    k: usize,
    modules: &'static [Module],
    scale: f32,
    w: Vec<Vec<f32>>,
    a: Vec<Vec<f32>>,
    b: Vec<Vec<f32>>,
    bias: Vec<Vec<f32>>,
}

impl Group {
    fn new((k, modules): (usize, &'static [Module]), seed: u64, form: Form) -> Group {
        let scaled = |seed: u64, len: usize, by: usize| {
            let values: Vec<f32> = normal(seed, len).iter().map(|v| v / (by.max(1) as f32).sqrt()).collect();
            if form == Form::F32 { values } else { rounded(&values) }
        };
        let each = |f: &dyn Fn(Module, u64) -> Vec<f32>| (0u64..).zip(modules).map(|(i, m)| f(*m, seed + 4 * i)).collect();
        Group {
            form,
            k,
            modules,
            // A power of two keeps what bf16 keeps.
            scale: if form == Form::F32 { 1.7 } else { 2.0 },
            w: each(&|(n, ..), seed| scaled(seed, n * k, k)),
            a: each(&|(_, r, _), seed| scaled(seed + 1, r * k, k)),
            b: each(&|(n, r, _), seed| scaled(seed + 2, n * r, 4 * r)),
            bias: each(&|(n, _, bias), seed| scaled(seed + 3, if bias { n } else { 0 }, 1)),
        }
    }

    fn outputs(&self) -> Vec<usize> {
        self.modules.iter().map(|m| m.0).collect()
    }

    fn ranks(&self) -> Vec<usize> {
        self.modules.iter().map(|m| m.1).collect()
    }

    /// ΣN
    fn n(&self) -> usize {
        self.outputs().iter().sum()
    }

    /// ΣR
    fn rank(&self) -> usize {
        self.ranks().iter().sum()
    }

    /// T
    fn tail(&self) -> usize {
        self.ranks().iter().map(|&r| strip(r)).sum()
    }

    /// In how the device stores it: strips only there and only in bf16.
    fn on(&self, s: &Stream) -> Form {
        if s.host().is_some() { Form::F32 } else { self.form }
    }

    /// Calls `f` with the group's modules on the device.
    fn with<R>(&self, s: &Stream, f: impl FnOnce(&[Part<'_>]) -> Result<R>) -> Result<R> {
        let (n, k, wide) = (self.outputs(), self.k, self.on(s) == Form::F32);
        let layout = if wide { Layout::of(s, &[]) } else { Layout::of(s, &self.ranks()) };
        let len = layout.len(&n, k);
        let (in_f32, in_bf16) = (s.zeros::<f32>(if wide { len } else { 0 })?, s.zeros::<bf16>(if wide { 0 } else { len })?);
        let data = if wide { in_f32.view() } else { in_bf16.view() };
        let arena: Vec<f32> = self.a.iter().zip(&self.b).flat_map(|(a, b)| [&a[..], b].concat()).collect();
        let (arena, biases) = (s.upload(&arena)?, self.bias.iter().map(|b| s.upload(b)).collect::<Result<Vec<_>>>()?);
        let (mut parts, mut targets, mut at, mut slot) = (Vec::new(), Vec::new(), 0, 0);
        for (i, &(n_own, rank, bias)) in self.modules.iter().enumerate() {
            let weight = layout.weight(data, &n, k, i)?;
            let stored: Vec<bf16> = self.w[i].iter().map(|w| bf16::from_f32(*w)).collect();
            let bytes = if wide { bytemuck::cast_slice(&self.w[i]) } else { bytemuck::cast_slice(&stored) };
            weight::load(s, weight, bytes)?;
            let ends = [at, at + rank * k, at + rank * (k + n_own)];
            let of = |range: Range<usize>| arena.view().slice(range);
            let lora = Lora { rank, scale: self.scale, a: of(ends[0]..ends[1])?, b: of(ends[1]..ends[2])? };
            if rank > 0 && !wide {
                for (side, elements) in [(Side::A, ends[0]..ends[1]), (Side::B, ends[1]..ends[2])] {
                    targets.push(Target { elements, side, weight: weight.rows("linear")?, slot, rank, scale: self.scale });
                }
                slot += strip(rank);
            }
            at = ends[2];
            parts.push(Part { weight, bias: bias.then(|| biases[i].view()), lora: (rank > 0).then_some(lora) });
        }
        if !targets.is_empty() {
            Table::new(s, &targets)?.over(data)?.write(s, arena.view())?;
        }
        f(&parts)
    }

    /// Columns of S in a strip [T], by rank: the rounded value's, and what rounding lost's.
    fn columns(&self) -> Vec<(usize, Option<usize>)> {
        let (mut columns, mut slot) = (Vec::new(), 0);
        for rank in self.ranks() {
            columns.extend((0..rank).map(|j| match rank <= TWICE {
                true => (slot + j / 8 * 16 + j % 8, Some(slot + j / 8 * 16 + j % 8 + 8)),
                false => (slot + j, None),
            }));
            slot += strip(rank);
        }
        columns
    }

    /// S [M, ΣR] of rows whose strips begin at a column.
    fn of_strips(&self, rows: &[bf16], ld: usize, first: usize) -> Vec<f32> {
        let columns = self.columns();
        let value = |row: &[bf16], (high, low): (usize, Option<usize>)| {
            row[first + high].to_f32() + low.map_or(0.0, |low| row[first + low].to_f32())
        };
        rows.chunks(ld).flat_map(|row| columns.iter().map(move |c| value(row, *c))).collect()
    }

    /// `m` rows of `ld`: `width` columns of activations, then the strips of S [M, ΣR], or NaN where there is none to give.
    fn padded(&self, m: usize, acts: &[bf16], [width, ld]: [usize; 2], s: Option<&[f32]>) -> Vec<bf16> {
        let (columns, rank) = (self.columns(), self.rank());
        let mut all = vec![if s.is_some() { bf16::ZERO } else { bf16::NAN }; m * ld];
        for (m, row) in all.chunks_mut(ld).enumerate() {
            row[..width].copy_from_slice(&acts[m * width..(m + 1) * width]);
            let Some(s) = s else { continue };
            for ((high, low), value) in columns.iter().zip(&s[m * rank..(m + 1) * rank]) {
                row[width + high] = bf16::from_f32(*value);
                if let Some(low) = low {
                    row[width + low] = bf16::from_f32(value - bf16::from_f32(*value).to_f32());
                }
            }
        }
        all
    }
}

fn values<T: runtime::Element>(s: &Stream, v: View<'_>) -> Result<Vec<T>> {
    let mut values = vec![T::default(); v.len()];
    v.read(s, &mut values)?;
    Ok(values)
}

fn shape(i: usize, seed: u64, m: usize, form: Form) -> Vec<Case> {
    let group = Rc::new(Group::new(SHAPES[i % SHAPES.len()], seed, form));
    let (kind, k, n, rank) = (Kind::nth(i), group.k, group.n(), group.rank());
    let (x, dy) = (batch(kind, seed + 40, m, k), batch(kind, seed + 41, m, n));
    let s_of = |seed| if form == Form::F32 { normal(seed, m * rank) } else { rounded(&normal(seed, m * rank)) };
    let acts = |name, values: &[f32], width| Operand::input(name, values).per_row(width).acts();
    let out = |name, width| Operand::output::<f32>(name, m * width).per_row(width);
    let kept = if form == Form::F32 {
        Limit::Bits
    } else if group.ranks().iter().any(|&r| r > TWICE) {
        ROUNDED
    } else {
        KEPT
    };
    let once = match form {
        Form::F32 => Limit::Bits,
        // One value may be off by 2^-8: so few, and rows that are all the same, are judged as a row. S of large ranks is rounded itself.
        _ if m * n.min(k) < 16 || kind == Kind::EqualRows || kept == ROUNDED => ROUNDED,
        _ => ONCE,
    };
    let named = |what: &str| format!("linear::{what} {m}x{k}x{:?} {kind:?}", group.modules);
    let stored = |case: Case| if form == Form::F32 { case } else { case.in_bf16() };
    let there = vec![out("y", n).acts().within(once), out("s", rank).within(kept), acts("x", &x, k)];
    let back = vec![out("dx", k).acts().within(once), out("ds", rank).within(kept), acts("dy", &dy, n)];
    let mut lora = Vec::new();
    for (i, (n, rank, _)) in (0u64..).zip(group.modules.iter().filter(|m| m.1 > 0)) {
        lora.push(Operand::both("da", &normal(seed + 50 + i, rank * k)).within(kept));
        lora.push(Operand::both("db", &normal(seed + 54 + i, n * rank)).within(kept));
    }
    let spans = Operand::input("examples", &[0, m as u32 / 3, m as u32 / 3, m as u32]);
    let inputs =
        [acts("x", &x, k), Operand::input("s", &s_of(seed + 42)), Operand::input("ds", &s_of(seed + 43)), acts("dy", &dy, n)];
    let lora = [&lora[..], &inputs, std::slice::from_ref(&spans)].concat();
    let mut cases = vec![
        stored(Case::new(named("forward"), there, forward_call(group.clone()))).cut(m),
        stored(Case::new(named("backward"), back, backward_call(group.clone()))).cut(m),
        stored(Case::new(named("backward_lora"), lora, lora_call(group.clone()))),
    ];
    if form != Form::Library {
        let exact = if form == Form::F32 { Limit::Bits } else { KEPT };
        let total = |name, len| Operand::output::<f32>(name, len).within(exact);
        let weight = vec![total("dw", n * k), total("dbias", n), acts("x", &x, k), acts("dy", &dy, n), spans];
        cases.push(stored(Case::new(named("backward_weight"), weight, weight_call(group))));
    }
    cases
}

/// y, S of x.
fn forward_call(g: Rc<Group>) -> impl Fn(&Stream, &[View<'_>]) -> Result<()> {
    move |s, v| {
        g.with(s, |parts| match g.on(s) {
            Form::F32 => forward(s, v[0], v[1], v[2], parts),
            Form::Bf16 => {
                let strips = s.upload(&vec![bf16::NAN; v[2].len() / g.k * g.tail()])?;
                forward(s, v[0], strips.view(), v[2], parts)?;
                v[1].write(s, &g.of_strips(&strips.to_vec()?, g.tail(), 0))
            }
            Form::Library => {
                let ld = library::pitch(g.k, g.tail());
                let x = s.upload(&g.padded(v[2].len() / g.k, &values(s, v[2])?, [g.k, ld], None))?;
                let (bias, strips) = (library::bias(s, parts)?, s.upload(&vec![bf16::NAN; v[2].len() / g.k * g.tail()])?);
                library::forward(s, v[0], strips.view(), x.view().apart(g.k, ld)?, parts, bias.as_ref().map(Buffer::view))?;
                v[1].write(s, &g.of_strips(&x.to_vec()?, ld, g.k))
            }
        })
    }
}

/// dx, dS of dy.
fn backward_call(g: Rc<Group>) -> impl Fn(&Stream, &[View<'_>]) -> Result<()> {
    move |s, v| {
        let n = g.n();
        g.with(s, |parts| match g.on(s) {
            Form::F32 => backward(s, v[0], v[1], v[2], parts),
            Form::Bf16 => {
                let strips = s.upload(&vec![bf16::NAN; v[2].len() / n * g.tail()])?;
                backward(s, v[0], strips.view(), v[2], parts)?;
                v[1].write(s, &g.of_strips(&strips.to_vec()?, g.tail(), 0))
            }
            Form::Library => {
                let ld = library::pitch(n, g.tail());
                let dy = s.upload(&g.padded(v[2].len() / n, &values(s, v[2])?, [n, ld], None))?;
                let strips = s.upload(&vec![bf16::NAN; v[2].len() / n * g.tail()])?;
                library::backward(s, v[0], strips.view(), dy.view().apart(n, ld)?, parts)?;
                v[1].write(s, &g.of_strips(&dy.to_vec()?, ld, n))
            }
        })
    }
}

/// dA and dB of each adapter, of x, S, dS, dy and the spans.
fn lora_call(g: Rc<Group>) -> impl Fn(&Stream, &[View<'_>]) -> Result<()> {
    move |s, v| {
        let none = View::none(F32);
        let (mut da, mut db, mut at) = (Vec::new(), Vec::new(), 0);
        for rank in g.ranks() {
            da.push(if rank > 0 { v[at] } else { none });
            db.push(if rank > 0 { v[at + 1] } else { none });
            at += if rank > 0 { 2 } else { 0 };
        }
        let [x, lora_s, ds, dy, spans] = [0, 1, 2, 3, 4].map(|i| v[at + i]);
        let (n, m) = (g.n(), x.len() / g.k);
        let strips = |of| s.upload(&g.padded(m, &[], [0, g.tail()], Some(&values(s, of)?)));
        g.with(s, |parts| match g.on(s) {
            Form::F32 => backward_lora(s, &da, &db, x, lora_s, ds, dy, parts, spans),
            Form::Bf16 => {
                let (lora_s, ds) = (strips(lora_s)?, strips(ds)?);
                backward_lora(s, &da, &db, x, lora_s.view(), ds.view(), dy, parts, spans)
            }
            Form::Library => {
                let (lora_s, ds, [x_ld, dy_ld]) = (strips(lora_s)?, strips(ds)?, [g.k, n].map(|n| library::pitch(n, g.tail())));
                let apart = |acts, width, ld| s.upload(&g.padded(m, &values(s, acts)?, [width, ld], None));
                let (x, dy) = (apart(x, g.k, x_ld)?, apart(dy, n, dy_ld)?);
                let (x, dy) = (x.view().apart(g.k, x_ld)?, dy.view().apart(n, dy_ld)?);
                backward_lora(s, &da, &db, x, lora_s.view(), ds.view(), dy, parts, spans)
            }
        })
    }
}

/// dW [ΣN, K] and dbias [ΣN], row-major, from +0.
fn weight_call(g: Rc<Group>) -> impl Fn(&Stream, &[View<'_>]) -> Result<()> {
    move |s, v| {
        let (n, layout) = (g.outputs(), Layout::of(s, &[]));
        let dw = n.iter().map(|&n| s.zeros::<f32>(layout.len(&[n], g.k))).collect::<Result<Vec<_>>>()?;
        let dbias = n.iter().map(|&n| s.zeros::<f32>(n)).collect::<Result<Vec<_>>>()?;
        let views: Vec<_> = dw.iter().map(Buffer::view).collect();
        let biases: Vec<_> = dbias.iter().map(|b| Some(b.view())).collect();
        backward_weight(s, &views, &biases, v[2], v[3], &n, v[4])?;
        let (mut all, mut all_biases) = (Vec::new(), Vec::new());
        for i in 0..n.len() {
            all.extend(weight::read(s, layout.weight(views[i], &n[i..=i], g.k, 0)?)?);
            all_biases.extend(dbias[i].to_vec()?);
        }
        v[0].write(s, &all)?;
        v[1].write(s, &all_biases)
    }
}
