//! The room through the vendor's library on CUDA, in bf16: one product for a whole group, forward and back.
//!
//! ```text
//! y  [M, ΣN] = [x | S] · [W | B̂]ᵀ          x  [M, K]: rows that lie apart, behind which columns K .. K+T are written here, S in its strips
//! dx [M, K]  = [dy | dS] · [W ; A]          dy [M, ΣN] likewise, dS in its strips
//! ```
//! Everything else as the room has it in bf16: S and dS are its own kernel's, [M, T], and a copy of them goes beside the rows
//! (4·M·T bytes). [`pitch`] says how far rows lie apart; without an adapter any distance does. The library chooses its order by
//! shape, stride and address, so a row's bits depend on its company. It takes a bias in bf16 only: [`bias`] rounds those of a group.
//!
//! order: repeatable, not the law. Without the library, and for K or ΣN that are no multiples of 8, whose rows start at addresses that
//! it does not take, it is [`Error::Unsupported`].

use super::mma::Group;
use super::{Part, apart, check, check_as, rows};
use crate::cuda::{elements, kernel, operand, rows_of, size};
use crate::weight;
use half::bf16;
use runtime::{Arg, Buffer, DType::Bf16, Error, Gemm, Gemmed, Kernel, Ptr, Result, Stream, View, ensure};

/// Copies strips beside rows.
pub(crate) const STRIP: [Kernel; 1] = [kernel!("linear_strip", "strip.cu")];

/// Elements from row to row of activations `n` wide that leave room for `strips` columns; side by side if there are none.
pub fn pitch(n: usize, strips: usize) -> usize {
    if strips == 0 { n } else { weight::row(n, strips) }
}

/// The biases of a group `[ΣN]`, rounded, zeros where a part has none; None if no part has one. Made once, at loading: it waits.
pub fn bias(s: &Stream, parts: &[Part<'_>]) -> Result<Option<Buffer<bf16>>> {
    if parts.iter().all(|part| part.bias.is_none()) {
        return Ok(None);
    }
    let mut all = Vec::new();
    for part in parts {
        let mut own = vec![0f32; part.weight.shape().0];
        if let Some(bias) = part.bias {
            check("linear::library::bias", "bias", bias, own.len())?;
            bias.read(s, &mut own)?;
        }
        all.extend(own.iter().map(|v| bf16::from_f32(*v)));
    }
    s.upload(&all).map(Some)
}

/// c [m, n] of a [m, k] and b, with the strides of rows of c, a and b, and what is added to every row.
fn product(
    s: &Stream,
    room: &'static str,
    at: [Ptr; 3],
    size: [usize; 3],
    ld: [usize; 3],
    down: bool,
    bias: Option<Ptr>,
) -> Result<()> {
    let words = |v: [usize; 3]| {
        ensure!(v.iter().all(|n| i32::try_from(*n).is_ok()), "{room}: sizes {v:?}, wanted at most {}", i32::MAX);
        Ok(v.map(|n| n as u32))
    };
    let [c, a, b] = at;
    let gemm = Gemm { c, a, b, size: words(size)?, ld: words(ld)?, down, dtype: Bf16, bias };
    // SAFETY: the caller checked that the matrices are covered.
    match unsafe { s.gemm(&gemm)? } {
        Gemmed::Done => Ok(()),
        Gemmed::Unsupported => Err(unsupported(s, room)),
    }
}

/// The group, if the library takes its sizes.
fn group<'a>(s: &Stream, room: &'static str, parts: &[Part<'a>]) -> Result<Group<'a>> {
    ensure!(!parts.is_empty(), "{room}: no parts");
    let g = Group::new(room, parts)?;
    if g.aligned { Ok(g) } else { Err(unsupported(s, room)) }
}

fn unsupported(s: &Stream, call: &'static str) -> Error {
    Error::Unsupported { call, device: s.backend().name().to_string() }
}

/// How far rows of `width` lie apart, if there is room for `tail` columns behind each.
fn roomy(room: &str, name: &str, rows: View<'_>, width: usize, tail: usize) -> Result<usize> {
    let ld = rows.pitch(width)?;
    let fits = ld >= width + tail && ld.is_multiple_of(8);
    ensure!(fits, "{room}: {name}: rows of {width}, {ld} apart, wanted a multiple of 8 with room for strips of {tail}");
    Ok(ld)
}

/// Columns `width` .. `width` + T of rows [M, `width`], `ld` apart, = strips [M, T].
fn beside(s: &Stream, room: &str, rows: View<'_>, [width, tail, ld]: [usize; 3], strips: View<'_>) -> Result<()> {
    if tail == 0 {
        return Ok(());
    }
    let chunks = strips.len() / 8;
    let views = [Arg::Ptr(Ptr(rows.ptr().0 + 2 * width as u64)), operand(room, strips, Bf16)?];
    let args = [&views[..], &[Arg::U64(chunks as u64), size(room, tail)?, size(room, ld)?]].concat();
    // SAFETY: the kernel's arguments; rows have room for the strips, of which there are a whole number of chunks, at 16 bytes.
    unsafe { s.launch(&STRIP[0], &elements(chunks)?, &args) }
}

/// y [M, ΣN] = (or nothing if the view is empty) and S [M, T] = (`lora_s`; an empty view without an adapter) of x [M, K], whose strips are
/// written where they are read. `bias` [ΣN] bf16 is that of [`bias`], wanted where a part has one.
pub fn forward(s: &Stream, y: View<'_>, lora_s: View<'_>, x: View<'_>, parts: &[Part<'_>], bias: Option<View<'_>>) -> Result<()> {
    let room = "linear::library::forward";
    let g = group(s, room, parts)?;
    let m = rows(room, "x", x, g.k)?;
    let outputs = if y.is_empty() { 0 } else { g.n };
    for (name, view, len) in [("x", x, m * g.k), ("y", y, m * outputs), ("lora_s", lora_s, m * g.tail)] {
        check_as(room, name, view, Bf16, len)?;
    }
    y.together(room)?;
    apart(room, &[y, lora_s, x], &[], parts)?;
    let biased = parts.iter().any(|part| part.bias.is_some());
    ensure!(biased == bias.is_some(), "{room}: bias: wanted that of library::bias exactly where a part has one");
    if let Some(bias) = bias {
        check_as(room, "bias", bias, Bf16, g.n)?;
        apart(room, &[y, lora_s, x], &[bias], &[])?;
    }
    let [to, from] = [operand(room, lora_s, Bf16)?, rows_of(room, x, Bf16)?];
    let ld = roomy(room, "x", x, g.k, g.tail)?;
    g.project(s, to, from, m, [g.tail, ld])?;
    if y.is_empty() {
        return Ok(());
    }
    beside(s, room, x, [g.k, g.tail, ld], lora_s)?;
    let bias = bias.map(|b| b.ptr());
    product(s, room, [y.ptr(), x.ptr(), g.data.ptr()], [m, g.n, g.k + g.tail], [g.n, ld, g.ld], false, bias)
}

/// dx [M, K] = (or nothing if the view is empty) and dS [M, T] = of dy [M, ΣN], whose strips are written where they are read.
pub fn backward(s: &Stream, dx: View<'_>, ds: View<'_>, dy: View<'_>, parts: &[Part<'_>]) -> Result<()> {
    let room = "linear::library::backward";
    let g = group(s, room, parts)?;
    let m = rows(room, "dy", dy, g.n)?;
    let columns = if dx.is_empty() { 0 } else { g.k };
    for (name, view, len) in [("dy", dy, m * g.n), ("dx", dx, m * columns), ("ds", ds, m * g.tail)] {
        check_as(room, name, view, Bf16, len)?;
    }
    dx.together(room)?;
    apart(room, &[dx, ds, dy], &[], parts)?;
    let [to, from] = [operand(room, ds, Bf16)?, rows_of(room, dy, Bf16)?];
    let ld = roomy(room, "dy", dy, g.n, g.tail)?;
    g.project_back(s, to, from, m, [g.tail, ld])?;
    if dx.is_empty() {
        return Ok(());
    }
    beside(s, room, dy, [g.n, g.tail, ld], ds)?;
    product(s, room, [dx.ptr(), dy.ptr(), g.data.ptr()], [m, g.k, g.n + g.tail], [g.k, ld, g.ld], true, None)
}
