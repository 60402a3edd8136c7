//! Linear modules over frozen weights with fused LoRA, and their gradients.
//!
//! ```text
//! S_mj   = chain over k ascending        of fma(x_mk, A_jk)                                          S  [M, ΣR]  =
//! y_mn   = chain over k ascending        of fma(x_mk, W_nk),
//!          continued over j              by fma(S_mj, f32(scale·B_nj)), then + bias_n                y  [M, ΣN]  =
//! dS_mj  = chain over n of the part      of fma(dy_mn, f32(scale·B_nj))                              dS [M, ΣR]  =
//! dx_mk  = chain over n of all parts     of fma(dy_mn, W_nk), continued over j by fma(dS_mj, A_jk)   dx [M, K]   =
//! dA_jk += per example chain over its m  of fma(dS_mj, x_mk)                                         dA [R, K]   +=
//! dB_nj += per example scale·(chain over its m of fma(dy_mn, S_mj))                                  dB [N, R]   +=
//! dW_nk += per example chain over its m  of fma(dy_mn, x_mk)        laid out as the weight           dW          +=
//! db_n  += per example sum over its m    of dy_mn                                                    db [N]      +=
//! ```
//! Every chain starts at +0 in one f32 accumulator. The parts of one call (q, k, v; gate, up; or one module) share x; their outputs
//! and their columns of S stand side by side in part order. Activations, adapters and gradients are f32, row-major; weights are a
//! [`Weight`]: panels in f32, bf16 or f16 on the CPU, widened exactly; rows in f32 on CUDA. An example without rows adds nothing.
//!
//! FLOPs: forward 2·M·K·ΣN + 2·M·ΣR·(K + ΣN/parts), backward the same, weight gradient 2·M·K·ΣN, LoRA gradients as much as forward's
//! second term. Bytes: every operand once per task of up to 256 rows; for M = 1 the weights once.
//!
//! On CUDA in f32 a thread owns whole chains: the CPU's bits. Spans of `examples` are cut at M there; the CPU refuses them.
//!
//! On CUDA x, y, dx, dy and the weights may all be bf16 (the parts a whole augmented group in order; where K or an N is no multiple of 8, a
//! slower variant with the same bits). Then S and
//! dS are bf16 [M, T] in the strips of `weight.rs`, A and B are read from the weight's strips, whose copies [`crate::adamw::Copies`] writes, and
//! one k16 step of mma.sync stands for 16 fma, ascending over K, then over the strip of the part (dx: over ΣN, then T; dA, dB, dW: over an
//! example's rows from its first). A step that the reduction ends in is filled with zeros. S_hi + S_lo carry S; dA and dB chain the two
//! halves apart and add once. Every result is rounded once. The tile differs with M; the bits do not.
//!
//! order: law (A1, A6, A7); work is split over outputs, never over a reduction. [`library`] goes through the vendor's products and is not.

mod cases;
mod cpu;
mod cuda;
pub(crate) mod gradient;
pub mod library;
pub(crate) mod mma;
pub(crate) mod pack;
pub(crate) mod parts;
pub(crate) mod product;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod tile;

use crate::weight::{Layout, Weight, strip};
pub(crate) use cases::{cases, cases_by_library, cases_in_bf16};
pub(crate) use cuda::KERNELS;
use parts::Group;
use product::Out;
use runtime::{DType, Result, Stream, View, disjoint, ensure};

/// Parts of one call at most.
pub const PARTS: usize = 4;

/// A LoRA adapter of one module.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// R
    pub rank: usize,
    /// alpha / R
    pub scale: f32,
    /// [R, K] f32
    pub a: View<'a>,
    /// [N, R] f32
    pub b: View<'a>,
}

/// One module of a call.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// [N, K]
    pub weight: Weight<'a>,
    /// `[N]` f32
    pub bias: Option<View<'a>>,
    /// Absent when the adapter is off.
    pub lora: Option<Lora<'a>>,
}

/// Checked sizes of a call.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    k: usize,
    /// ΣN
    n: usize,
    /// Columns of S and dS: ΣR, or T in bf16.
    ranks: usize,
    /// Storage of the activations.
    stored: DType,
}

impl Sizes {
    fn of(s: &Stream, room: &str, parts: &[Part<'_>], acts: View<'_>) -> Result<Sizes> {
        ensure!((1..=PARTS).contains(&parts.len()), "{room}: wanted 1 to {PARTS} parts, got {}", parts.len());
        let k = parts[0].weight.shape().1;
        let stored = if s.host().is_some() { DType::F32 } else { crate::cuda::stored(room, acts)? };
        let (mut n, mut ranks) = (0, 0);
        for (i, part) in parts.iter().enumerate() {
            match s.host() {
                Some(_) => part.weight.panels(room).map(drop)?,
                None => part.weight.rows(room).map(drop)?,
            }
            let own = part.weight.shape();
            ensure!(own.1 == k && k > 0 && own.0 > 0, "{room}: part {i}: weight {own:?}, wanted [N, {k}], both > 0");
            if let Some(bias) = part.bias {
                check(room, "bias", bias, own.0)?;
            }
            if let Some(lora) = part.lora {
                ensure!(lora.rank > 0, "{room}: part {i}: LoRA rank 0");
                check(room, "A", lora.a, lora.rank * k)?;
                check(room, "B", lora.b, own.0 * lora.rank)?;
                ranks += if stored == DType::Bf16 { strip(lora.rank) } else { lora.rank };
            }
            n += own.0;
        }
        Ok(Sizes { k, n, ranks, stored })
    }
}

/// f32 and of the wanted length.
fn check(room: &str, name: &str, view: View<'_>, len: usize) -> Result<()> {
    check_as(room, name, view, DType::F32, len)
}

/// Of the wanted storage and length.
fn check_as(room: &str, name: &str, view: View<'_>, wanted: DType, len: usize) -> Result<()> {
    ensure!(view.dtype() == wanted, "{room}: {name}: wanted {wanted}, got {}", view.dtype());
    ensure!(view.len() == len, "{room}: {name}: wanted {len} elements, got {}", view.len());
    Ok(())
}

/// Rows of `view` [M, columns].
fn rows(room: &str, name: &str, view: View<'_>, columns: usize) -> Result<usize> {
    ensure!(view.len().is_multiple_of(columns), "{room}: {name}: {} elements are no rows of {columns}", view.len());
    Ok(view.len() / columns)
}

/// Every output apart from the other outputs, `inputs` and the parts' own operands.
fn apart(room: &str, outputs: &[View<'_>], inputs: &[View<'_>], parts: &[Part<'_>]) -> Result<()> {
    disjoint(room, outputs, inputs)?;
    for part in parts {
        let lora = part.lora.map(|l| [l.a, l.b]);
        let own = [Some(part.weight.data()), part.bias, lora.map(|l| l[0]), lora.map(|l| l[1])];
        own.into_iter().flatten().try_for_each(|v| outputs.iter().try_for_each(|out| disjoint(room, &[*out], &[v])))?;
    }
    Ok(())
}

/// y [M, ΣN] = (or nothing if the view is empty) and S [M, ΣR] = (`lora_s`; an empty view if no part has LoRA) from x [M, K].
pub fn forward(s: &Stream, y: View<'_>, lora_s: View<'_>, x: View<'_>, parts: &[Part<'_>]) -> Result<()> {
    let room = "linear::forward";
    let Sizes { k, n, ranks, stored } = Sizes::of(s, room, parts, x)?;
    let m = rows(room, "x", x, k)?;
    let outputs = if y.is_empty() { 0 } else { n };
    for (name, view, len) in [("x", x, m * k), ("y", y, m * outputs), ("lora_s", lora_s, m * ranks)] {
        check_as(room, name, view, stored, len)?;
    }
    apart(room, &[y, lora_s], &[x], parts)?;
    match (s.host(), stored) {
        // SAFETY: the device is the CPU; `apart` keeps both outputs away from every other operand; an empty y is only asked for its length.
        (Some(pool), _) => unsafe { cpu::forward(pool, y.host_mut()?, lora_s.host_mut()?, x.host()?, Group::new(parts)?) },
        (None, DType::Bf16) => mma::forward(s, y, lora_s, x, parts)?,
        (None, _) => cuda::forward(s, y, lora_s, x, parts)?,
    }
    Ok(())
}

/// dx [M, K] = (or nothing if the view is empty) and dS [M, ΣR] = from dy [M, ΣN].
pub fn backward(s: &Stream, dx: View<'_>, ds: View<'_>, dy: View<'_>, parts: &[Part<'_>]) -> Result<()> {
    let room = "linear::backward";
    let Sizes { k, n, ranks, stored } = Sizes::of(s, room, parts, dy)?;
    let m = rows(room, "dy", dy, n)?;
    let columns = if dx.is_empty() { 0 } else { k };
    for (name, view, len) in [("dy", dy, m * n), ("dx", dx, m * columns), ("ds", ds, m * ranks)] {
        check_as(room, name, view, stored, len)?;
    }
    apart(room, &[dx, ds], &[dy], parts)?;
    match (s.host(), stored) {
        // SAFETY: as in `forward`; an empty dx is only asked for its length.
        (Some(pool), _) => unsafe { cpu::backward(pool, dx.host_mut()?, ds.host_mut()?, dy.host()?, Group::new(parts)?) },
        (None, DType::Bf16) => mma::backward(s, dx, ds, dy, parts)?,
        (None, _) => cuda::backward(s, dx, ds, dy, parts)?,
    }
    Ok(())
}

/// Spans [E, 2] within `m` rows.
fn spans<'a>(room: &str, examples: View<'a>, m: usize) -> Result<&'a [u32]> {
    // SAFETY: the device is the CPU; examples are an input, and u32 so that no f32 output can be them.
    let spans = unsafe { examples.host::<u32>()? };
    crate::spans(room, spans, m)?;
    Ok(spans)
}

/// Start of a gradient, for tasks that write disjoint parts of it.
///
/// # Safety
/// As `View::host_mut`.
unsafe fn out(view: View<'_>) -> Result<Out> {
    // SAFETY: the caller's promise.
    Ok(Out { at: unsafe { view.host_mut::<f32>()? }.as_mut_ptr(), ld: 0 })
}

/// LoRA gradients: `da[p]` [R, K] += and `db[p]` [N, R] +=, one partial per example (`examples` u32 [E, 2]: {start, end} of its rows).
/// Parts without LoRA take empty views.
pub fn backward_lora(
    s: &Stream,
    da: &[View<'_>],
    db: &[View<'_>],
    x: View<'_>,
    lora_s: View<'_>,
    ds: View<'_>,
    dy: View<'_>,
    parts: &[Part<'_>],
    examples: View<'_>,
) -> Result<()> {
    let room = "linear::backward_lora";
    let Sizes { k, n, ranks, stored } = Sizes::of(s, room, parts, x)?;
    let m = rows(room, "x", x, k)?;
    let count = parts.len();
    ensure!(da.len() == count && db.len() == count, "{room}: {count} parts, {} dA, {} dB", da.len(), db.len());
    for (name, view, len) in [("x", x, m * k), ("lora_s", lora_s, m * ranks), ("ds", ds, m * ranks), ("dy", dy, m * n)] {
        check_as(room, name, view, stored, len)?;
    }
    for (i, part) in parts.iter().enumerate() {
        let rank = part.lora.map_or(0, |l| l.rank);
        check(room, "dA", da[i], rank * k)?;
        check(room, "dB", db[i], part.weight.shape().0 * rank)?;
        let inputs = [x, lora_s, ds, dy, examples];
        apart(room, &[da[i], db[i]], &inputs, parts)?;
        disjoint(room, &[da[i], db[i]], &da[i + 1..])?;
        disjoint(room, &[da[i], db[i]], &db[i + 1..])?;
    }
    let Some(pool) = s.host() else {
        let go = if stored == DType::Bf16 { mma::backward_lora } else { cuda::backward_lora };
        return go(s, da, db, [x, lora_s, ds, dy], parts, examples);
    };
    let spans = spans(room, examples, m)?;
    let none = Out { at: std::ptr::null_mut(), ld: 0 };
    let (mut to_a, mut to_b) = ([none; PARTS], [none; PARTS]);
    for i in 0..count {
        // SAFETY: the device is the CPU; the checks above keep these two away from everything else.
        (to_a[i], to_b[i]) = unsafe { (out(da[i])?, out(db[i])?) };
    }
    // SAFETY: as above; the rest is only read.
    unsafe {
        let inputs = (x.host()?, lora_s.host()?, ds.host()?, dy.host()?);
        cpu::backward_lora(pool, (to_a, to_b), inputs, &Group::new(parts)?, spans);
    }
    Ok(())
}

/// Weight gradients for full tuning: `dw[p]` (laid out as a weight without an adapter, f32) += and `dbias[p]` `[N]` +=, one partial per example. x [M, K],
/// dy [M, Σn].
pub fn backward_weight(
    s: &Stream,
    dw: &[View<'_>],
    dbias: &[Option<View<'_>>],
    x: View<'_>,
    dy: View<'_>,
    n: &[usize],
    examples: View<'_>,
) -> Result<()> {
    let room = "linear::backward_weight";
    let count = n.len();
    ensure!((1..=PARTS).contains(&count), "{room}: wanted 1 to {PARTS} parts, got {count}");
    ensure!(dw.len() == count && dbias.len() == count, "{room}: {count} parts, {} dW, {} dbias", dw.len(), dbias.len());
    ensure!(n.iter().all(|&n| n > 0), "{room}: a part has no outputs: {n:?}");
    let m = rows(room, "dy", dy, n.iter().sum())?;
    if m == 0 {
        return Ok(());
    }
    let k = rows(room, "x", x, m)?;
    let stored = if s.host().is_some() { DType::F32 } else { crate::cuda::stored(room, x)? };
    check_as(room, "x", x, stored, m * k)?;
    check_as(room, "dy", dy, stored, dy.len())?;
    for i in 0..count {
        let bias = dbias[i].unwrap_or(View::none(DType::F32));
        check(room, "dW", dw[i], Layout::of(s, &[]).len(&[n[i]], k))?;
        check(room, "dbias", bias, if dbias[i].is_some() { n[i] } else { 0 })?;
        disjoint(room, &[dw[i], bias], &[x, dy, examples])?;
        for j in i + 1..count {
            disjoint(room, &[dw[i], bias], &[dw[j], dbias[j].unwrap_or(View::none(DType::F32))])?;
        }
    }
    let Some(pool) = s.host() else {
        let go = if stored == DType::Bf16 { mma::backward_weight } else { cuda::backward_weight };
        return go(s, dw, dbias, x, dy, n, examples);
    };
    let spans = spans(room, examples, m)?;
    let (mut to, mut to_bias, mut outputs) = ([Out { at: std::ptr::null_mut(), ld: 0 }; PARTS], [None; PARTS], [0; PARTS]);
    for i in 0..count {
        // SAFETY: the device is the CPU; the checks above keep these two away from everything else.
        unsafe {
            to[i] = out(dw[i])?;
            to_bias[i] = dbias[i].map(|bias| out(bias)).transpose()?;
        }
        outputs[i] = n[i];
    }
    // SAFETY: as above; x and dy are only read.
    unsafe { cpu::backward_weight(pool, (to, to_bias), (x.host()?, dy.host()?), (k, outputs), spans) };
    Ok(())
}
