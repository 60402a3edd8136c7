//! The room through the vendor's library on CUDA, in bf16: one product for a whole group, forward and back.
//!
//! ```text
//! y  [M, ΣN] = [x | S] · [W | B̂]ᵀ          x  [M, ld(K, T)]: columns K .. K+T are written here, S in its strips
//! dx [M, K]  = [dy | dS] · [W ; A]          dy [M, ld(ΣN, T)]: columns ΣN .. ΣN+T are written here, dS in its strips
//! dA, dB                                    as the room's, S and dS read from there
//! ```
//! Everything else as the room has it in bf16; S, dS, dA and dB are its own kernels. ld is [`weight::row`]. The library chooses its order by
//! shape, stride and address, so a row's bits depend on its company. It takes a bias in bf16 only: [`bias`] rounds those of a group.
//!
//! order: repeatable, not the law. Without the library, and for K or ΣN that are no multiples of 8, whose rows start at addresses that
//! it does not take, it is [`Error::Unsupported`].

use super::mma::{Group, Inputs};
use super::{Part, apart, check, check_as};
use crate::cuda::operand;
use crate::weight;
use half::bf16;
use runtime::{Buffer, DType::Bf16, Error, Gemm, Gemmed, Ptr, Result, Stream, View, ensure};

/// Elements from row to row of activations `n` wide beside which these parts have their strips.
pub fn row(n: usize, parts: &[Part<'_>]) -> usize {
    weight::row(n, parts.iter().filter_map(|p| p.lora).map(|l| weight::strip(l.rank)).sum())
}

/// Column `n` of rows in bf16.
fn column(view: View<'_>, n: usize) -> Ptr {
    Ptr(view.ptr().0 + 2 * n as u64)
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
        Gemmed::Unsupported => Err(Error::Unsupported { call: room, device: s.backend().name().to_string() }),
    }
}

/// y [M, ΣN] = of x [M, ld(K, T)], whose strips are written. `bias` [ΣN] bf16 is that of [`bias`], wanted where a part has one.
pub fn forward(s: &Stream, y: View<'_>, x: View<'_>, parts: &[Part<'_>], bias: Option<View<'_>>) -> Result<()> {
    let room = "linear::library::forward";
    ensure!(!parts.is_empty(), "{room}: no parts");
    let g = Group::new(room, parts)?;
    let (m, ld) = (y.len() / g.n, weight::row(g.k, g.tail));
    check_as(room, "y", y, Bf16, m * g.n)?;
    check_as(room, "x", x, Bf16, m * ld)?;
    apart(room, &[y, x], &[], parts)?;
    let biased = parts.iter().any(|part| part.bias.is_some());
    ensure!(biased == bias.is_some(), "{room}: bias: wanted that of library::bias exactly where a part has one");
    if let Some(bias) = bias {
        check_as(room, "bias", bias, Bf16, g.n)?;
        apart(room, &[y, x], &[bias], &[])?;
    }
    let operand = operand(room, x, Bf16)?;
    g.project(s, runtime::Arg::Ptr(column(x, g.k)), operand, m, [ld, ld])?;
    product(s, room, [y.ptr(), x.ptr(), g.data.ptr()], [m, g.n, g.k + g.tail], [g.n, ld, g.ld], false, bias.map(|b| b.ptr()))
}

/// dx [M, K] = of dy [M, ld(ΣN, T)], whose strips are written.
pub fn backward(s: &Stream, dx: View<'_>, dy: View<'_>, parts: &[Part<'_>]) -> Result<()> {
    let room = "linear::library::backward";
    ensure!(!parts.is_empty(), "{room}: no parts");
    let g = Group::new(room, parts)?;
    let (m, ld) = (dx.len() / g.k, weight::row(g.n, g.tail));
    check_as(room, "dx", dx, Bf16, m * g.k)?;
    check_as(room, "dy", dy, Bf16, m * ld)?;
    apart(room, &[dx, dy], &[], parts)?;
    let operand = operand(room, dy, Bf16)?;
    g.project_back(s, runtime::Arg::Ptr(column(dy, g.n)), operand, m, [ld, ld])?;
    product(s, room, [dx.ptr(), dy.ptr(), g.data.ptr()], [m, g.k, g.n + g.tail], [g.k, ld, g.ld], true, None)
}

/// `da[p]` [R, K] += and `db[p]` [N, R] += of x and dy with their strips, one partial per example.
pub fn backward_lora(
    s: &Stream,
    da: &[View<'_>],
    db: &[View<'_>],
    x: View<'_>,
    dy: View<'_>,
    parts: &[Part<'_>],
    examples: View<'_>,
) -> Result<()> {
    let room = "linear::library::backward_lora";
    let count = parts.len();
    ensure!(count > 0 && da.len() == count && db.len() == count, "{room}: {count} parts, {} dA, {} dB", da.len(), db.len());
    let g = Group::new(room, parts)?;
    let [x_ld, dy_ld] = [g.k, g.n].map(|n| weight::row(n, g.tail));
    let m = x.len() / x_ld;
    check_as(room, "x", x, Bf16, m * x_ld)?;
    check_as(room, "dy", dy, Bf16, m * dy_ld)?;
    for (i, part) in parts.iter().enumerate() {
        let rank = part.lora.map_or(0, |l| l.rank);
        check(room, "dA", da[i], rank * g.k)?;
        check(room, "dB", db[i], part.weight.shape().0 * rank)?;
        apart(room, &[da[i], db[i]], &[x, dy, examples], parts)?;
    }
    let inputs = Inputs { x: (x, x_ld), s: (x, g.k, x_ld), ds: (dy, g.n, dy_ld), dy: (dy, dy_ld), rows: (examples, m) };
    g.gradients(s, room, (da, db), &inputs)
}
