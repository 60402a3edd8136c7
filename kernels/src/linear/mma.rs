//! The CUDA form in bf16: launches of mma.cu over an augmented group, and of outer.cu.

use super::{PARTS, Part};
use crate::cuda::{BLOCK, elements, kernel, operand, size};
use crate::weight::{self, TWICE, strip};
use runtime::{Arg, DType::Bf16, DType::F32, DType::U32, Defines, Kernel, Launch, Ptr, Result, Stream, View, ensure};

const PRODUCTS: [Kernel; 2] = [
    kernel!("linear_mma_forward", "mma.cu", "linear/chunks.cuh", "linear/eights.cuh"),
    kernel!("linear_mma_backward", "mma.cu", "linear/chunks.cuh", "linear/eights.cuh"),
];
const OUTER: [Kernel; 2] = [
    kernel!("linear_mma_outer", "outer.cu", "linear/chunks.cuh", "linear/eights.cuh"),
    kernel!("linear_mma_bias", "outer.cu", "linear/chunks.cuh", "linear/eights.cuh"),
];

/// Outputs of a block and of a warp, down and across. The bits do not depend on it.
type Tile = [usize; 4];
/// For many rows.
const WIDE: Tile = [128, 128, 64, 32];
/// For at most 16 rows.
const FLAT: Tile = [16, 128, 16, 16];
/// For the few columns of S and dS.
const NARROW: Tile = [128, 32, 16, 32];
/// Of an outer product with the few columns of S or dS.
const THIN: Tile = [16, 64, 16, 8];
/// Of one with many outputs.
const BROAD: Tile = [64, 128, 32, 32];

/// The variant of a tile.
fn variant([m, n, warp_m, warp_n]: Tile) -> Defines {
    let name = ["TILE_M", "TILE_N", "WARP_M", "WARP_N"].into_iter();
    Defines(name.zip([m, n, warp_m, warp_n].map(|v| v as i64)).collect())
}

/// The variant of a tile for rows that start anywhere, which loads and stores element by element.
fn ragged(tile: Tile) -> Defines {
    let mut defines = variant(tile);
    defines.0.push(("RAGGED", 1));
    defines
}

/// Whether all of these are multiples of 8 elements: then every row starts at 16 bytes.
fn eights(sizes: &[usize]) -> bool {
    sizes.iter().all(|n| n.is_multiple_of(8))
}

/// Every kernel and variant.
pub(crate) fn variants() -> impl Iterator<Item = (Kernel, Defines)> {
    let products = PRODUCTS.into_iter().flat_map(|k| [WIDE, FLAT, NARROW].map(|tile| (k, variant(tile))));
    let odd = [(PRODUCTS[0], FLAT), (PRODUCTS[1], FLAT), (OUTER[0], THIN)].map(|(k, tile)| (k, ragged(tile)));
    let outer = [(OUTER[0], THIN), (OUTER[0], BROAD), (OUTER[1], THIN)].map(|(k, tile)| (k, variant(tile)));
    products.chain(outer).chain(odd)
}

fn tile(rows: usize, columns: usize) -> Tile {
    match (rows, columns) {
        (0..=16, _) => FLAT,
        (_, 0..=32) => NARROW,
        _ => WIDE,
    }
}

/// An augmented group as its kernels see it.
pub(super) struct Group<'a> {
    /// [N + T, ld]
    pub data: View<'a>,
    pub k: usize,
    pub n: usize,
    /// T, 0 without an adapter.
    pub tail: usize,
    pub ld: usize,
    /// First column of each part, and N.
    columns: Vec<usize>,
    /// First column of each part's strip, and T.
    slots: Vec<usize>,
    bias: Vec<Ptr>,
    ranks: Vec<(usize, f32)>,
    /// K and every part's outputs are multiples of 8.
    pub aligned: bool,
}

impl<'a> Group<'a> {
    /// The parts are the whole group in order. With an adapter its strips are those of these ranks.
    pub fn new(room: &str, parts: &[Part<'a>]) -> Result<Group<'a>> {
        let first = parts[0].weight.rows(room)?;
        let (data, k, ld, tail) = (first.group, first.k, first.ld(), first.tail);
        ensure!(data.dtype() == Bf16, "{room}: weight: wanted bf16 beside bf16 activations, got {}", data.dtype());
        let (mut columns, mut slots) = (vec![0], vec![0]);
        for (i, part) in parts.iter().enumerate() {
            let w = part.weight.rows(room)?;
            let same = w.group.ptr() == data.ptr() && w.first == columns[i] && w.k == k && w.tail == tail;
            ensure!(same, "{room}: part {i}: wanted row {} of one group, got row {}", columns[i], w.first);
            columns.push(columns[i] + w.n);
            slots.push(slots[i] + part.lora.map_or(0, |l| strip(l.rank)));
        }
        let (n, used) = (columns[parts.len()], slots[parts.len()]);
        ensure!(data.len() == (n + tail) * ld, "{room}: {n} outputs of a group of {} rows", data.len() / ld - tail);
        ensure!(used == 0 || used == tail, "{room}: weight: strips of {tail} columns, the adapter wants {used}");
        let aligned = eights(&columns) && k.is_multiple_of(8);
        let bias = parts.iter().map(|p| p.bias.map_or(Ptr(0), |b| b.ptr())).collect();
        let ranks = parts.iter().map(|p| p.lora.map_or((0, 0.0), |l| (l.rank, l.scale))).collect();
        Ok(Group { data, k, n, tail: used, ld, columns, slots, bias, ranks, aligned })
    }

    /// S [M, T] of x [M, K], rows `ld` apart: a product with the rows under the weights.
    pub fn project(&self, s: &Stream, to: Arg<'_>, x: Arg<'_>, m: usize, ld: [usize; 2]) -> Result<()> {
        if self.tail == 0 {
            return Ok(());
        }
        let sizes = [m, self.tail, self.k, self.ld, 0];
        product(s, &PRODUCTS[0], [to, x, self.at(self.n, 0), x], (&self.parts(true), self.aligned), sizes, ld)
    }

    /// dS [M, T] of dy [M, ΣN]: a product with the columns beside the weights, where other parts' rows hold zeros.
    pub fn project_back(&self, s: &Stream, to: Arg<'_>, dy: Arg<'_>, m: usize, ld: [usize; 2]) -> Result<()> {
        if self.tail == 0 {
            return Ok(());
        }
        let sizes = [m, self.tail, self.n, self.ld, 0];
        product(s, &PRODUCTS[1], [to, dy, self.at(0, self.k), dy], (&self.parts(true), self.aligned), sizes, ld)
    }

    /// The address of element (row, column) of the matrix.
    fn at(&self, row: usize, column: usize) -> Arg<'static> {
        Arg::Ptr(Ptr(self.data.ptr().0 + 2 * (row * self.ld + column) as u64))
    }

    /// The struct `Parts` of mma.cu: of the outputs, or of the columns of S.
    fn parts(&self, of_s: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        for p in 0..PARTS {
            let bias = if of_s { Ptr(0) } else { self.bias.get(p).copied().unwrap_or_default() };
            bytes.extend_from_slice(&bias.0.to_ne_bytes());
        }
        let mut table = |list: &[usize]| {
            let last = list[list.len() - 1];
            let whole = (0..=PARTS).map(|i| list.get(i).copied().unwrap_or(last) as u32);
            whole.for_each(|v| bytes.extend_from_slice(&v.to_ne_bytes()));
        };
        table(if of_s { &self.slots } else { &self.columns });
        table(if of_s { &[0] } else { &self.slots });
        let twice = self.ranks.iter().enumerate().filter(|(_, (rank, _))| *rank <= TWICE).map(|(p, _)| 1u32 << p).sum::<u32>();
        bytes.extend_from_slice(&(if of_s { twice } else { 0 }).to_ne_bytes());
        bytes.extend_from_slice(&(self.ranks.len() as u32).to_ne_bytes());
        bytes
    }
}

/// One product over `[m, columns]` outputs; `args` are out, left, right and tail; `ld` is the weight's. `aligned`: see [`Group`].
fn product(
    s: &Stream,
    kernel: &Kernel,
    args: [Arg<'_>; 4],
    (parts, aligned): (&[u8], bool),
    [m, columns, body, ld, tail]: [usize; 5],
    [out_ld, left_ld]: [usize; 2],
) -> Result<()> {
    let chosen = if aligned { tile(m, columns) } else { FLAT };
    let defines = if aligned { variant(chosen) } else { ragged(chosen) };
    let (x, y) = (m.div_ceil(chosen[0]), columns.div_ceil(chosen[1]));
    ensure!(x <= i32::MAX as usize && y <= 65535, "linear: a grid of {x} by {y} blocks, wanted at most {} by 65535", i32::MAX);
    let launch = Launch { grid: [x as u32, y as u32, 1], block: BLOCK, defines, ..Launch::default() };
    let room = "linear";
    let sizes = [m, columns, body, ld, tail, out_ld, left_ld].map(|n| size(room, n));
    let sizes = sizes.into_iter().collect::<Result<Vec<_>>>()?;
    // SAFETY: the kernel's arguments; the caller checked what they cover.
    unsafe { s.launch(kernel, &launch, &[&args[..], &[Arg::Struct(parts)], &sizes].concat()) }
}

/// y [M, ΣN] = (or nothing if the view is empty) and S [M, T] = (an empty view without an adapter) of x [M, K].
pub(super) fn forward(s: &Stream, y: View<'_>, lora_s: View<'_>, x: View<'_>, parts: &[Part<'_>]) -> Result<()> {
    let room = "linear::forward";
    let g = Group::new(room, parts)?;
    let m = x.len() / g.k;
    let [to_s, x] = [operand(room, lora_s, Bf16)?, operand(room, x, Bf16)?];
    g.project(s, to_s, x, m, [g.tail, g.k])?;
    if y.is_empty() {
        return Ok(());
    }
    let y = operand(room, y, Bf16)?;
    product(s, &PRODUCTS[0], [y, x, g.at(0, 0), to_s], (&g.parts(false), g.aligned), [m, g.n, g.k, g.ld, g.tail], [g.n, g.k])
}

/// dx [M, K] = (or nothing if the view is empty) and dS [M, T] = of dy [M, ΣN].
pub(super) fn backward(s: &Stream, dx: View<'_>, ds: View<'_>, dy: View<'_>, parts: &[Part<'_>]) -> Result<()> {
    let room = "linear::backward";
    let g = Group::new(room, parts)?;
    let m = dy.len() / g.n;
    let [to_s, dy] = [operand(room, ds, Bf16)?, operand(room, dy, Bf16)?];
    g.project_back(s, to_s, dy, m, [g.tail, g.n])?;
    if dx.is_empty() {
        return Ok(());
    }
    let whole = Group { columns: vec![0, g.k], slots: vec![0, g.tail], bias: vec![Ptr(0)], ranks: vec![(0, 0.0)], ..g };
    let args = [operand(room, dx, Bf16)?, dy, whole.at(0, 0), to_s];
    product(
        s,
        &PRODUCTS[1],
        args,
        (&whole.parts(false), whole.aligned),
        [m, whole.k, whole.n, whole.ld, whole.tail],
        [whole.k, whole.n],
    )
}

/// Columns of bf16 rows: the first, the stride, how many.
type Columns<'a> = (View<'a>, usize, usize, usize);

/// total[j·down + c·across] += scale·(per-example chain of left·right); `halves` as in outer.cu, `rank` how many j there are. `tile` is taken
/// where the rows allow it.
fn outer(
    s: &Stream,
    room: &str,
    (total, down, across): (View<'_>, usize, usize),
    columns: [Columns<'_>; 2],
    (rank, halves, scale): (usize, bool, f32),
    (examples, m): (View<'_>, usize),
    tile: Tile,
) -> Result<()> {
    ensure!(examples.len().is_multiple_of(2), "{room}: examples has {} elements, wanted [E, 2]", examples.len());
    let bytes = columns.map(|(view, first, stride, count)| {
        let at = view.ptr().0 + 2 * first as u64;
        [&at.to_ne_bytes()[..], &(stride as u32).to_ne_bytes(), &(count as u32).to_ne_bytes()].concat()
    });
    let views = [operand(room, total, F32)?, Arg::Struct(&bytes[0]), Arg::Struct(&bytes[1]), operand(room, examples, U32)?];
    let sizes = [size(room, examples.len() / 2)?, size(room, m)?, size(room, rank)?, size(room, down)?, size(room, across)?];
    let aligned = columns.iter().all(|(_, first, stride, count)| eights(&[*first, *stride, *count]));
    let chosen = if aligned { tile } else { THIN };
    let (x, y) = (columns[0].3.div_ceil(chosen[0]), columns[1].3.div_ceil(chosen[1]));
    ensure!(x <= i32::MAX as usize && y <= 65535, "{room}: a grid of {x} by {y} blocks, wanted at most {} by 65535", i32::MAX);
    let defines = if aligned { variant(chosen) } else { ragged(chosen) };
    let launch = Launch { grid: [x as u32, y as u32, 1], block: BLOCK, defines, ..Launch::default() };
    let args = [&views[..], &sizes, &[Arg::U32(halves.into()), Arg::Bits(scale)]].concat();
    // SAFETY: the kernel's arguments; the caller checked what they cover, and the kernel cuts spans at the rows there are.
    unsafe { s.launch(&OUTER[0], &launch, &args) }
}

/// As the room's, with S and dS in strips; rows of x and dy may lie apart.
pub(super) fn backward_lora(
    s: &Stream,
    da: &[View<'_>],
    db: &[View<'_>],
    [x, lora_s, ds, dy]: [View<'_>; 4],
    parts: &[Part<'_>],
    examples: View<'_>,
) -> Result<()> {
    let room = "linear::backward_lora";
    let g = Group::new(room, parts)?;
    let (x_ld, dy_ld, rows) = (x.pitch(g.k)?, dy.pitch(g.n)?, (examples, x.len() / g.k));
    for (i, &(rank, scale)) in g.ranks.iter().enumerate().filter(|(_, (rank, _))| *rank > 0) {
        let strip = |view| (view, g.slots[i], g.tail, g.slots[i + 1] - g.slots[i]);
        let (inputs, outputs) = ((x, 0, x_ld, g.k), (dy, g.columns[i], dy_ld, g.columns[i + 1] - g.columns[i]));
        let halves = rank <= TWICE;
        outer(s, room, (da[i], g.k, 1), [strip(ds), inputs], (rank, halves, 1.0), rows, THIN)?;
        outer(s, room, (db[i], 1, rank), [strip(lora_s), outputs], (rank, halves, scale), rows, THIN)?;
    }
    Ok(())
}

/// As the room's: dW and dbias in f32, laid out as a weight.
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
    let (k, rows) = (x.len() / m, (examples, m));
    let mut first = 0;
    for (i, &n) in n.iter().enumerate() {
        let columns = [(dy, first, width, n), (x, 0, k, k)];
        let tile = if n < BROAD[0] { THIN } else { BROAD };
        outer(s, room, (dw[i], weight::row(k, 0), 1), columns, (n, false, 1.0), rows, tile)?;
        if let Some(bias) = dbias[i] {
            let views = [operand(room, bias, F32)?, Arg::Ptr(Ptr(dy.ptr().0 + 2 * first as u64)), operand(room, examples, U32)?];
            let sizes = [size(room, examples.len() / 2)?, size(room, m)?, size(room, n)?, size(room, width)?];
            let launch = Launch { defines: variant(THIN), ..elements(n)? };
            // SAFETY: as in `outer`.
            unsafe { s.launch(&OUTER[1], &launch, &[&views[..], &sizes].concat())? };
        }
        first += n;
    }
    Ok(())
}
