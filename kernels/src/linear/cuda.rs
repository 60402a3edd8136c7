//! The CUDA form in f32: launches of linear.cu over checked operands.

use super::{Part, Sizes};
use crate::cuda::{BLOCK, kernel, operand, size};
use crate::weight::{Layout, Rows};
use runtime::{Arg, DType::F32, DType::U32, Kernel, Launch, Ptr, Result, Stream, View, ensure};

pub(crate) const KERNELS: [Kernel; 3] = [
    kernel!("linear_forward", "linear.cu", "linear/tile.cuh"),
    kernel!("linear_backward", "linear.cu", "linear/tile.cuh"),
    kernel!("linear_outer", "linear.cu", "linear/tile.cuh"),
];

/// Outputs on a side of a block's tile.
const TILE: usize = 64;

/// A module as linear.cu's `Part` has it; absent ones have no outputs.
#[derive(Clone, Copy, Default)]
struct Module {
    /// w, a, b, bias.
    at: [Ptr; 4],
    /// n, ld, rank, first, slot.
    sizes: [usize; 5],
    scale: f32,
}

/// The struct `Parts` of linear.cu.
fn bytes(room: &str, modules: &[Module]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for module in (0..super::PARTS).map(|p| modules.get(p).copied().unwrap_or_default()) {
        module.at.iter().for_each(|p| bytes.extend_from_slice(&p.0.to_ne_bytes()));
        for n in module.sizes {
            ensure!(u32::try_from(n).is_ok(), "{room}: a size of {n}, wanted at most {}", u32::MAX);
            bytes.extend_from_slice(&(n as u32).to_ne_bytes());
        }
        bytes.extend_from_slice(&module.scale.to_ne_bytes());
    }
    Ok(bytes)
}

/// The modules of a call.
fn modules(room: &str, parts: &[Part<'_>]) -> Result<Vec<Module>> {
    let (mut first, mut slot) = (0, 0);
    let mut module = |part: &Part<'_>| {
        let w: Rows<'_> = part.weight.rows(room)?;
        ensure!(w.group.dtype() == F32, "{room}: weight: wanted f32 beside f32 activations, got {}", w.group.dtype());
        let (rank, scale, a, b) = part.lora.map_or((0, 0.0, Ptr(0), Ptr(0)), |l| (l.rank, l.scale, l.a.ptr(), l.b.ptr()));
        let at = [w.own()?.ptr(), a, b, part.bias.map_or(Ptr(0), |bias| bias.ptr())];
        let module = Module { at, sizes: [w.n, w.ld(), rank, first, slot], scale };
        first += w.n;
        slot += rank;
        Ok(module)
    };
    parts.iter().map(&mut module).collect()
}

/// Tiles of `down` and of `across` outputs.
fn tiles(down: usize, across: usize) -> Result<Launch> {
    let (x, y) = (down.div_ceil(TILE), across);
    ensure!(x <= i32::MAX as usize && y <= 65535, "linear: a grid of {x} by {y} blocks, wanted at most {} by 65535", i32::MAX);
    Ok(Launch { grid: [x as u32, y as u32, 1], block: BLOCK, ..Launch::default() })
}

/// The address of element `n` of f32.
fn at(view: View<'_>, n: usize) -> Arg<'static> {
    Arg::Ptr(Ptr(view.ptr().0 + 4 * n as u64))
}

pub(super) fn forward(s: &Stream, y: View<'_>, lora_s: View<'_>, x: View<'_>, parts: &[Part<'_>]) -> Result<()> {
    let room = "linear::forward";
    let Sizes { k, n, ranks, .. } = Sizes::of(s, room, parts, x)?;
    let (m, modules) = (x.len() / k, modules(room, parts)?);
    let go = |out: View<'_>, modules: &[Module], width: usize| {
        let across = modules.iter().map(|module| module.sizes[0].div_ceil(TILE)).sum();
        let bytes = bytes(room, modules)?;
        let views = [operand(room, out, F32)?, operand(room, x, F32)?, operand(room, lora_s, F32)?, Arg::Struct(&bytes)];
        let sizes = [size(room, m)?, size(room, k)?, size(room, width)?, size(room, ranks)?];
        // SAFETY: the kernel's arguments; the caller checked what they cover.
        unsafe { s.launch(&KERNELS[0], &tiles(m, across)?, &[views, sizes].concat()) }
    };
    // S is a product with the rows of A.
    let project = |module: &Module| {
        let ([_, a, ..], [_, _, rank, _, slot]) = (module.at, module.sizes);
        Module { at: [a, Ptr(0), Ptr(0), Ptr(0)], sizes: [rank, k, 0, slot, 0], scale: 0.0 }
    };
    if ranks > 0 {
        go(lora_s, &modules.iter().map(project).collect::<Vec<_>>(), ranks)?;
    }
    if y.is_empty() { Ok(()) } else { go(y, &modules, n) }
}

pub(super) fn backward(s: &Stream, dx: View<'_>, ds: View<'_>, dy: View<'_>, parts: &[Part<'_>]) -> Result<()> {
    let room = "linear::backward";
    let Sizes { k, n, ranks, .. } = Sizes::of(s, room, parts, dy)?;
    let (m, modules) = (dy.len() / n, modules(room, parts)?);
    let go = |out: Arg<'static>, modules: &[Module], columns: usize, stride: usize| {
        let bytes = bytes(room, modules)?;
        let views = [out, operand(room, dy, F32)?, operand(room, ds, F32)?, Arg::Struct(&bytes)];
        let sizes = [size(room, m)?, size(room, columns)?, size(room, stride)?, size(room, n)?, size(room, ranks)?];
        // SAFETY: as in `forward`.
        unsafe { s.launch(&KERNELS[1], &tiles(m, columns.div_ceil(TILE))?, &[&views[..], &sizes].concat()) }
    };
    for module in modules.iter().filter(|module| module.sizes[2] > 0) {
        let ([_, _, b, _], [n, _, rank, first, slot]) = (module.at, module.sizes);
        let project = Module { at: [b, Ptr(0), Ptr(0), Ptr(0)], sizes: [n, rank, 0, first, 0], scale: module.scale };
        go(at(ds, slot), &[project], rank, ranks)?;
    }
    if dx.is_empty() {
        return Ok(());
    }
    let unscaled: Vec<Module> = modules.iter().map(|module| Module { scale: 1.0, ..*module }).collect();
    go(operand(room, dx, F32)?, &unscaled, k, k)
}

/// Columns of rows: the first, the stride, how many.
type Columns<'a> = (View<'a>, usize, usize, usize);

/// total[i·down + c·across] += scale·(per-example chain of left·right); no view at all stands for one column of ones.
fn outer(
    s: &Stream,
    room: &str,
    (total, down, across): (View<'_>, usize, usize),
    left: Columns<'_>,
    right: Option<Columns<'_>>,
    scale: f32,
    (examples, m): (View<'_>, usize),
) -> Result<()> {
    ensure!(examples.len().is_multiple_of(2), "{room}: examples has {} elements, wanted [E, 2]", examples.len());
    let operands = [Some(left), right].map(|columns| match columns {
        Some((view, first, stride, count)) => (view.ptr().0 + 4 * first as u64, stride as u32, count as u32),
        None => (0, 0, 1),
    });
    let bytes = operands.map(|(at, stride, count)| [&at.to_ne_bytes()[..], &stride.to_ne_bytes(), &count.to_ne_bytes()].concat());
    let views = [operand(room, total, F32)?, Arg::Struct(&bytes[0]), Arg::Struct(&bytes[1]), operand(room, examples, U32)?];
    let sizes = [size(room, examples.len() / 2)?, size(room, m)?, size(room, down)?, size(room, across)?, Arg::Bits(scale)];
    let columns = right.map_or(1, |right| right.3);
    // SAFETY: the kernel's arguments; the caller checked what they cover, and the kernel cuts spans at the rows there are.
    unsafe { s.launch(&KERNELS[2], &tiles(left.3, columns.div_ceil(TILE))?, &[&views[..], &sizes].concat()) }
}

pub(super) fn backward_lora(
    s: &Stream,
    da: &[View<'_>],
    db: &[View<'_>],
    [x, lora_s, ds, dy]: [View<'_>; 4],
    parts: &[Part<'_>],
    examples: View<'_>,
) -> Result<()> {
    let room = "linear::backward_lora";
    let Sizes { k, n: width, ranks, .. } = Sizes::of(s, room, parts, x)?;
    let rows = (examples, x.len() / k);
    for (i, module) in modules(room, parts)?.iter().enumerate() {
        let [n, _, rank, first, slot] = module.sizes;
        if rank > 0 {
            outer(s, room, (da[i], k, 1), (ds, slot, ranks, rank), Some((x, 0, k, k)), 1.0, rows)?;
            outer(s, room, (db[i], 1, rank), (lora_s, slot, ranks, rank), Some((dy, first, width, n)), module.scale, rows)?;
        }
    }
    Ok(())
}

pub(super) fn backward_weight(
    s: &Stream,
    dw: &[View<'_>],
    dbias: &[Option<View<'_>>],
    x: View<'_>,
    dy: View<'_>,
    n: &[usize],
    examples: View<'_>,
) -> Result<()> {
    let (room, width) = ("linear::backward_weight", n.iter().sum::<usize>());
    let m = dy.len() / width;
    let k = x.len() / m;
    let (rows, ld) = ((examples, m), Layout::of(s, &[]).len(&[1], k));
    let mut first = 0;
    for (i, &n) in n.iter().enumerate() {
        let left = (dy, first, width, n);
        outer(s, room, (dw[i], ld, 1), left, Some((x, 0, k, k)), 1.0, rows)?;
        if let Some(bias) = dbias[i] {
            outer(s, room, (bias, 1, 1), left, None, 1.0, rows)?;
        }
        first += n;
    }
    Ok(())
}
