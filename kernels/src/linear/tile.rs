//! The one inner loop of every product: a strip of rows times a panel of 32 columns, accumulators in registers over the whole
//! reduction block (LAW A1: per output one chain, k ascending).

// Loops of constant length over the accumulators become registers; iterators over them do not always.
#![allow(clippy::needless_range_loop)]

use crate::cpu::{Avx2, Avx512, Lanes, Portable, Stored, WIDTH};
use crate::panels::PANEL;
use half::{bf16, f16};
use runtime::{Isa, cpu::Level};

/// How many registers an instruction set gives to a tile.
trait Registers: Lanes {
    /// Vectors of 16 lanes side by side: 2 cover a panel at once, 1 covers it in two passes.
    const VECTORS: usize;
}

impl Registers for Portable {
    const VECTORS: usize = 1;
}
impl Registers for Avx2 {
    const VECTORS: usize = 1;
}
impl Registers for Avx512 {
    const VECTORS: usize = 2;
}

/// Widths of packed strips, ascending, as far as an instruction set has registers for them.
const WIDTHS: [usize; 6] = [1, 2, 4, 6, 8, 12];

/// Rows up to which a strip waits for its own panel; wider ones have load ports to spare for what is read next. Never both: at 8 rows
/// the second request cost up to a tenth.
const NARROW: usize = 8;

/// Asks for a cache line that will be written soon.
#[inline(always)]
pub(crate) fn fetch_near<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and faults nowhere.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Asks for a cache line that is read after the present tile: no nearer than the second-level cache.
#[inline(always)]
pub(crate) fn fetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and faults nowhere.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Memory that is read soon after the present tile: a tile asks for it line by line between its own steps, where that costs nothing.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// What the first step asks for.
    pub at: *const u8,
    /// Bytes between what two steps ask for.
    pub step: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Ahead = Ahead { at: std::ptr::null(), step: 0 };

    /// Share `i` of `of` of the elements of `slice`, over `steps` steps.
    pub fn share<T>(slice: &[T], (i, of): (usize, usize), steps: usize) -> Ahead {
        let part = size_of_val(slice) / of.max(1);
        Ahead { at: slice.as_ptr().cast::<u8>().wrapping_add(part * i), step: part.div_ceil(steps.max(1)) }
    }
}

/// Rows of a full strip.
pub(crate) fn strip_rows(isa: Isa) -> usize {
    match isa.level() {
        Level::Avx512 => 12,
        Level::Avx2 => 6,
        Level::Portable => 4,
    }
}

/// The widest strip that has a loop and no more than `rows` rows (at least 1): for cutting rows without padding.
pub(crate) fn strip_below(isa: Isa, rows: usize) -> usize {
    WIDTHS.into_iter().rev().find(|&w| w <= rows.min(strip_rows(isa))).unwrap_or(1)
}

/// Packed width of a strip of `rows` rows (at most [`strip_rows`]): the next one that has a loop.
pub(crate) fn strip_width(rows: usize) -> usize {
    WIDTHS.into_iter().find(|&w| w >= rows).unwrap_or(12)
}

/// `out = (from or +0) + Σ_k a·b + Σ_j tail_a·tail_b + bias`, or `out +=` that when `add`.
///
/// `a` is [len][width], a strip packed with k outside, or lies across ([`Tile::across`]); b is [len][step] with 32 (or for `cols` ≤ 16:
/// 16) readable lanes a row.
pub(crate) struct Tile {
    /// Packed width of the strip, one of [`WIDTHS`].
    pub width: usize,
    /// Rows to write, ≤ width.
    pub rows: usize,
    /// Columns to write, ≤ 32.
    pub cols: usize,
    /// [len][width]
    pub a: *const f32,
    /// 0, or `a` is [len/32][width][32] with this many elements between two groups of 32; then there is no tail.
    pub across: usize,
    /// What this tile asks for on the way.
    pub ahead: Ahead,
    /// [len][step]
    pub b: Lines,
    /// Elements between the rows of `b`.
    pub step: usize,
    /// Length of the reduction block.
    pub len: usize,
    /// [tail][width]: what the chain goes on with, and its [tail][32].
    pub tail_a: *const f32,
    /// [tail][32]
    pub tail_b: *const f32,
    /// Length of the tail.
    pub tail: usize,
    /// [32], or null.
    pub bias: *const f32,
    /// [width][from_ld] accumulators to go on from, or null for +0.
    pub from: *const f32,
    /// Elements between the rows of `from`.
    pub from_ld: usize,
    /// [rows][ld]
    pub out: *mut f32,
    /// Elements between the rows of `out`.
    pub ld: usize,
    /// Whether the result is added to `out`.
    pub add: bool,
}

/// Where the lanes of a reduction operand lie, in their storage type.
#[derive(Clone, Copy)]
pub(crate) enum Lines {
    /// 32 bits.
    F32(*const f32),
    /// 16 bits, widened in registers.
    Bf16(*const bf16),
    /// 16 bits, widened in registers.
    F16(*const f16),
}

impl Tile {
    /// Runs it.
    ///
    /// # Safety
    /// Every pointer has the extent its field names and `out` is this thread's alone.
    pub unsafe fn run(&self, isa: Isa) {
        match self.b {
            Lines::F32(b) => run_f32(isa, self, b),
            Lines::Bf16(b) => run_bf16(isa, self, b),
            Lines::F16(b) => run_f16(isa, self, b),
        }
    }

    /// A tile without tail, bias and start: the caller sets what it needs.
    pub fn new(width: usize, rows: usize, cols: usize, out: *mut f32, ld: usize) -> Tile {
        let none = std::ptr::null();
        Tile {
            width,
            rows,
            cols,
            a: none,
            across: 0,
            ahead: Ahead::NONE,
            b: Lines::F32(none),
            step: PANEL,
            len: 0,
            tail_a: none,
            tail_b: none,
            tail: 0,
            bias: none,
            from: none,
            from_ld: PANEL,
            out,
            ld,
            add: false,
        }
    }
}

/// Bytes ahead of a narrow tile, which waits for its panel rather than for its sums: further than the machine looks by itself.
const AHEAD: usize = 4096;

/// `acc + a·b`, k ascending; rows of `a` lie ROW elements apart, its k K elements.
#[inline(always)]
unsafe fn chain<S: Lanes, T: Stored, const MR: usize, const NV: usize, const ROW: usize, const K: usize>(
    mut acc: [[S::V; NV]; MR],
    mut a: *const f32,
    mut b: *const T,
    step: usize,
    len: usize,
    ahead: &mut Ahead,
) -> [[S::V; NV]; MR] {
    for _ in 0..len {
        // SAFETY: the caller of `Tile::run` promised `len` rows of both.
        unsafe {
            if MR <= NARROW {
                for v in 0..NV {
                    fetch_near(b.wrapping_add(v * WIDTH).wrapping_byte_add(AHEAD));
                }
            }
            let lanes: [S::V; NV] = std::array::from_fn(|v| T::lanes::<S>(b.add(v * WIDTH)));
            if MR > NARROW {
                fetch(ahead.at);
                ahead.at = ahead.at.wrapping_add(ahead.step);
            }
            for i in 0..MR {
                let x = S::splat(*a.add(i * ROW));
                for v in 0..NV {
                    acc[i][v] = S::fma(x, lanes[v], acc[i][v]);
                }
            }
            a = a.wrapping_add(K);
            b = b.wrapping_add(step);
        }
    }
    acc
}

/// The lanes from `lane` on.
#[inline(always)]
unsafe fn strip<S: Lanes, T: Stored, const MR: usize, const NV: usize>(t: &Tile, b: *const T, lane: usize) {
    // SAFETY: the caller of `Tile::run` promised every operand below; `lane + 16·NV` is at most 32, or at most 16 where `cols` is.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        if !t.from.is_null() {
            for i in 0..MR {
                acc[i] = std::array::from_fn(|v| S::load(t.from.add(i * t.from_ld + lane + v * WIDTH)));
            }
        }
        // An address of nobody costs a walk through the page tables at every step.
        let mut ahead = if t.ahead.at.is_null() { Ahead { at: t.out.cast(), step: 0 } } else { t.ahead };
        if t.across == 0 {
            acc = chain::<S, T, MR, NV, 1, MR>(acc, t.a, b.add(lane), t.step, t.len, &mut ahead);
        } else {
            for group in 0..t.len.div_ceil(PANEL) {
                let (k, a) = (group * PANEL, t.a.wrapping_add(group * t.across));
                let len = PANEL.min(t.len - k);
                acc = chain::<S, T, MR, NV, PANEL, 1>(acc, a, b.wrapping_add(k * t.step + lane), t.step, len, &mut ahead);
            }
        }
        if t.tail > 0 {
            acc = chain::<S, f32, MR, NV, 1, MR>(acc, t.tail_a, t.tail_b.add(lane), PANEL, t.tail, &mut ahead);
        }
        if !t.bias.is_null() {
            let bias: [S::V; NV] = std::array::from_fn(|v| S::load(t.bias.add(lane + v * WIDTH)));
            for i in 0..MR {
                acc[i] = std::array::from_fn(|v| S::add(acc[i][v], bias[v]));
            }
        }
        // Every use of the accumulators is a loop of constant length: they must not get an address.
        if t.rows < MR || t.cols < lane + NV * WIDTH {
            let mut block = [[0f32; PANEL]; MR];
            for i in 0..MR {
                for v in 0..NV {
                    S::store(block[i].as_mut_ptr().add(v * WIDTH), acc[i][v]);
                }
            }
            let block = &block.as_flattened()[..t.rows * PANEL];
            ragged(t.out.add(lane), t.ld, block, t.cols.saturating_sub(lane).min(NV * WIDTH), t.add);
            return;
        }
        for i in 0..MR {
            for v in 0..NV {
                let at = t.out.add(i * t.ld + lane + v * WIDTH);
                S::store(at, if t.add { S::add(S::load(at), acc[i][v]) } else { acc[i][v] });
            }
        }
    }
}

/// Writes the first `cols` of each row of a block, [rows][32].
#[inline(never)]
unsafe fn ragged(out: *mut f32, ld: usize, block: &[f32], cols: usize, add: bool) {
    for (i, row) in block.chunks_exact(PANEL).enumerate() {
        for (l, x) in row.iter().enumerate().take(cols) {
            // SAFETY: row i < rows and column l < cols of the tile's output.
            unsafe {
                let at = out.add(i * ld + l);
                *at = if add { *at + x } else { *x };
            }
        }
    }
}

#[inline(always)]
unsafe fn wide<S: Registers, T: Stored, const MR: usize>(t: &Tile, b: *const T) {
    // SAFETY: as in `strip`.
    unsafe {
        if t.cols <= WIDTH {
            strip::<S, T, MR, 1>(t, b, 0);
        } else if S::VECTORS == 2 {
            strip::<S, T, MR, 2>(t, b, 0);
        } else {
            strip::<S, T, MR, 1>(t, b, 0);
            strip::<S, T, MR, 1>(t, b, WIDTH);
        }
    }
}

#[inline(always)]
fn body<S: Registers, T: Stored>(t: &Tile, b: *const T) {
    // SAFETY: only `Tile::run` calls this, whose caller made the promises.
    unsafe {
        match t.width {
            1 => wide::<S, T, 1>(t, b),
            2 => wide::<S, T, 2>(t, b),
            4 => wide::<S, T, 4>(t, b),
            6 => wide::<S, T, 6>(t, b),
            8 => wide::<S, T, 8>(t, b),
            _ => wide::<S, T, 12>(t, b),
        }
    }
}

crate::per_isa! { fn run_f32(t: &Tile, b: *const f32) = body::<f32> }
crate::per_isa! { fn run_bf16(t: &Tile, b: *const bf16) = body::<bf16> }
crate::per_isa! { fn run_f16(t: &Tile, b: *const f16) = body::<f16> }
