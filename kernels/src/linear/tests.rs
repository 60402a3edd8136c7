//! Accuracy against f64, and bits against the law written out as scalar chains.

use super::reference::{self, Module};
use super::{Lora, Part, backward, backward_lora, backward_weight, forward};
use crate::check::on_cuda;
pub(crate) use crate::check::within as close;
use crate::cpu::Stored;
use crate::panels::packed_len;
use crate::weight::{self, Layout, Weight};
use half::f16;
use runtime::{Buffer, DType, Isa, Result, Stream, View};

mod bf16;
mod law;
mod library;

/// Reproducible values in [−1, 1).
pub(crate) fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435761) ^ 0x9e37_79b9;
    let next = |_| {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / 8388608.0 - 1.0
    };
    (0..len).map(next).collect()
}

/// `len` NaNs on the device: what every output holds before a checked launch.
pub(crate) fn nans(s: &Stream, len: usize) -> Buffer<f32> {
    s.upload(&vec![f32::NAN; len]).unwrap()
}

/// The first few places where two results differ.
pub(crate) fn same(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let bad: Vec<_> = (0..got.len()).filter(|&i| got[i].to_bits() != want[i].to_bits()).collect();
    let shown: Vec<_> = bad.iter().take(4).map(|&i| (i, got[i], want[i])).collect();
    assert!(bad.is_empty(), "{what}: {} of {} differ: (index, got, want) {shown:?}", bad.len(), got.len());
}

/// One module with everything a test needs.
pub(crate) struct Case {
    pub n: usize,
    pub k: usize,
    pub dtype: DType,
    pub w: Vec<f32>,
    pub bias: Vec<f32>,
    pub rank: usize,
    pub scale: f32,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
}

impl Case {
    pub fn new(n: usize, k: usize, rank: usize, bias: bool, dtype: DType, seed: u32) -> Case {
        let round = |x: f32| match dtype {
            DType::Bf16 => half::bf16::from_f32(x).widen(),
            DType::F16 => f16::from_f32(x).widen(),
            _ => x,
        };
        Case {
            n,
            k,
            dtype,
            w: values(n * k, seed).into_iter().map(round).collect(),
            bias: if bias { values(n, seed + 1) } else { Vec::new() },
            rank,
            scale: 1.7,
            a: values(rank * k, seed + 2),
            b: values(n * rank, seed + 3),
        }
    }

    pub fn module(&self) -> Module<'_> {
        let (w, bias, a, b) = (&self.w[..], &self.bias[..], &self.a[..], &self.b[..]);
        Module { w, bias, a, b, rank: self.rank, scale: self.scale, n: self.n }
    }

    /// The matrix on the device, as a group of one.
    pub fn upload(&self, s: &Stream) -> Packed {
        let len = Layout::of(s, &[]).len(&[self.n], self.k);
        let half = |narrow: fn(f32) -> u16| self.w.iter().map(|&x| narrow(x)).collect::<Vec<_>>();
        let (packed, half) = match self.dtype {
            DType::Bf16 => (Packed::Bf16(s.zeros(len).unwrap()), half(|x| half::bf16::from_f32(x).to_bits())),
            DType::F16 => (Packed::F16(s.zeros(len).unwrap()), half(|x| f16::from_f32(x).to_bits())),
            _ => (Packed::F32(s.zeros(len).unwrap()), Vec::new()),
        };
        let bytes = if half.is_empty() { bytemuck::cast_slice(&self.w) } else { bytemuck::cast_slice(&half) };
        weight::load(s, packed.weight(s, self.n, self.k), bytes).unwrap();
        packed
    }
}

pub(crate) enum Packed {
    F32(Buffer<f32>),
    Bf16(Buffer<half::bf16>),
    F16(Buffer<f16>),
}

impl Packed {
    pub fn view(&self) -> View<'_> {
        match self {
            Packed::F32(b) => b.view(),
            Packed::Bf16(b) => b.view(),
            Packed::F16(b) => b.view(),
        }
    }

    pub fn weight(&self, s: &Stream, n: usize, k: usize) -> Weight<'_> {
        Layout::of(s, &[]).weight(self.view(), &[n], k, 0).unwrap()
    }
}

/// The rows [N, K] of a weight gradient.
fn plain(s: &Stream, dw: &[f32], n: usize, k: usize) -> Result<Vec<f32>> {
    let held = s.upload(dw)?;
    weight::read(s, Layout::of(s, &[]).weight(held.view(), &[n], k, 0)?)
}

/// A group of modules on a device.
struct Loaded<'a> {
    cases: &'a [Case],
    weights: Vec<Packed>,
    rest: Vec<[Buffer<f32>; 3]>,
}

impl<'a> Loaded<'a> {
    fn new(s: &Stream, cases: &'a [Case]) -> Loaded<'a> {
        let weights = cases.iter().map(|c| c.upload(s)).collect();
        let rest = cases.iter().map(|c| [&c.bias, &c.a, &c.b].map(|v| s.upload(v).unwrap())).collect();
        Loaded { cases, weights, rest }
    }

    fn parts(&self, s: &Stream) -> Vec<Part<'_>> {
        let part = |(i, c): (usize, &Case)| {
            let [bias, a, b] = &self.rest[i];
            Part {
                weight: self.weights[i].weight(s, c.n, c.k),
                bias: if c.bias.is_empty() { None } else { Some(bias.view()) },
                lora: (c.rank > 0).then(|| Lora { rank: c.rank, scale: c.scale, a: a.view(), b: b.view() }),
            }
        };
        self.cases.iter().enumerate().map(part).collect()
    }
}

fn width(cases: &[Case]) -> (usize, usize) {
    (cases.iter().map(|c| c.n).sum(), cases.iter().map(|c| c.rank).sum())
}

fn run_forward(s: &Stream, x: &[f32], cases: &[Case]) -> Result<(Vec<f32>, Vec<f32>)> {
    let ((n, ranks), m) = (width(cases), x.len() / cases[0].k);
    let (loaded, y, lora_s, x) = (Loaded::new(s, cases), nans(s, m * n), nans(s, m * ranks), s.upload(x)?);
    forward(s, y.view(), lora_s.view(), x.view(), &loaded.parts(s))?;
    let alone = nans(s, m * ranks);
    forward(s, View::none(DType::F32), alone.view(), x.view(), &loaded.parts(s))?;
    same("S without y", &alone.to_vec()?, &lora_s.to_vec()?);
    Ok((y.to_vec()?, lora_s.to_vec()?))
}

fn run_backward(s: &Stream, dy: &[f32], cases: &[Case], with_dx: bool) -> Result<(Vec<f32>, Vec<f32>)> {
    let ((n, ranks), k) = (width(cases), cases[0].k);
    let m = dy.len() / n;
    let (loaded, dx, ds, dy) =
        (Loaded::new(s, cases), nans(s, if with_dx { m * k } else { 0 }), nans(s, m * ranks), s.upload(dy)?);
    backward(s, dx.view(), ds.view(), dy.view(), &loaded.parts(s))?;
    Ok((dx.to_vec()?, ds.to_vec()?))
}

/// dA and dB of each part, added to totals that start at `start`.
fn run_lora(s: &Stream, acts: [&[f32]; 4], cases: &[Case], examples: &[u32], start: f32) -> Result<Vec<[Vec<f32>; 2]>> {
    let loaded = Loaded::new(s, cases);
    let totals = |len: usize| s.upload(&vec![start; len]).unwrap();
    let da: Vec<_> = cases.iter().map(|c| totals(c.rank * c.k)).collect();
    let db: Vec<_> = cases.iter().map(|c| totals(c.rank * c.n)).collect();
    let [x, sv, ds, dy] = acts.map(|v| s.upload(v).unwrap());
    let spans = s.upload(examples)?;
    let (x, sv, ds, dy) = (x.view(), sv.view(), ds.view(), dy.view());
    backward_lora(s, &views(&da), &views(&db), x, sv, ds, dy, &loaded.parts(s), spans.view())?;
    da.iter().zip(&db).map(|(a, b)| Ok([a.to_vec()?, b.to_vec()?])).collect()
}

fn views(buffers: &[Buffer<f32>]) -> Vec<View<'_>> {
    buffers.iter().map(|b| b.view()).collect()
}

fn run_weight(
    s: &Stream,
    x: &[f32],
    dy: &[f32],
    k: usize,
    n: &[usize],
    examples: &[u32],
    start: f32,
) -> Result<Vec<[Vec<f32>; 2]>> {
    let totals = |len: usize| s.upload(&vec![start; len]).unwrap();
    let dw: Vec<_> = n.iter().map(|&n| totals(Layout::of(s, &[]).len(&[n], k))).collect();
    let db: Vec<_> = n.iter().map(|&n| totals(n)).collect();
    let (x, dy, spans) = (s.upload(x)?, s.upload(dy)?, s.upload(examples)?);
    let bias: Vec<_> = db.iter().map(|b| Some(b.view())).collect();
    backward_weight(s, &views(&dw), &bias, x.view(), dy.view(), n, spans.view())?;
    dw.iter().zip(&db).map(|(w, b)| Ok([w.to_vec()?, b.to_vec()?])).collect()
}

fn f64s(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&x| x as f64).collect()
}

/// A chain of K fma steps errs by about √K·2^-25 of the norm of its terms, and signs that cancel cost a factor of a few: 1e-6 over
/// the tensor and 4e-6 in the worst row leave room up to K of a few thousand.
const TENSOR: f64 = 1e-6;
const ROW: f64 = 4e-6;

#[test]
fn accuracy_against_f64() -> Result<()> {
    let shapes = [(1, 1, 1), (2, 7, 33), (3, 64, 45), (7, 288, 45), (17, 33, 1000), (64, 100, 33), (65, 31, 45), (129, 288, 96)];
    accurate(&Stream::cpu(2, Isa::detect()), &shapes)
}

fn accurate(s: &Stream, shapes: &[(usize, usize, usize)]) -> Result<()> {
    for (i, &(m, k, n)) in shapes.iter().enumerate() {
        for (rank, bias) in [(0, false), (1, true), (3, false), (8, true), (16, false), (70, true)] {
            let cases = [Case::new(n, k, rank, bias, DType::F32, i as u32 * 10)];
            let (x, dy) = (values(m * k, 91), values(m * n, 92));
            let what = format!("[{m}, {k}] -> {n} rank {rank}");
            let module = cases[0].module();
            let (y, lora_s) = run_forward(s, &x, &cases)?;
            // One output is one chain: a row of one may cancel to anything, so rows are judged by what went into them.
            let room = if n == 1 || k == 1 { 50.0 } else { 1.0 };
            close(&what, &y, &reference::forward(&x, k, &module), n, TENSOR * room, ROW * room);
            let (dx, ds) = run_backward(s, &dy, &cases, true)?;
            let mut want = vec![0.0; m * k];
            reference::backward(&mut want, &dy, k, &module);
            close(&what, &dx, &want, k, TENSOR * room, ROW * room);
            if rank > 0 {
                close(&what, &lora_s, &reference::project(&x, k, &module), m * rank, TENSOR * room, ROW * room);
                close(&what, &ds, &reference::project_back(&dy, &module), m * rank, TENSOR * room, ROW * room);
                let [da, db] = &run_lora(s, [&x, &lora_s, &ds, &dy], &cases, &[0, m as u32], 0.0)?[0];
                let want = reference::outer(&f64s(&ds), rank, &f64s(&x), k);
                close(&what, da, &want, rank * k, TENSOR * room, ROW * room);
                let want = reference::outer(&f64s(&dy), n, &f64s(&lora_s), rank);
                let want: Vec<f64> = want.iter().map(|w| w * cases[0].scale as f64).collect();
                close(&what, db, &want, n * rank, TENSOR * room, ROW * room);
            }
            let [dw, dbias] = &run_weight(s, &x, &dy, k, &[n], &[0, m as u32], 0.0)?[0];
            let dw = plain(s, dw, n, k)?;
            close(&what, &dw, &reference::outer(&f64s(&dy), n, &f64s(&x), k), n * k, TENSOR, ROW);
            let ones = vec![1.0; m];
            close(&what, dbias, &reference::outer(&f64s(&dy), n, &ones, 1), n, TENSOR * room, ROW * room);
        }
    }
    Ok(())
}

/// Every instruction set with 1, 2 and 4 threads.
pub(crate) fn streams() -> Vec<Stream> {
    let all = |isa: Isa| [1, 2, 4].map(|threads| Stream::cpu(threads, isa));
    Isa::all().into_iter().flat_map(all).collect()
}

/// Rows and modules; `bf16` and `f16` are what stands for these storage types.
fn groups(bf16: DType, f16: DType) -> Vec<(usize, Vec<Case>)> {
    let (bf, half, f32) = (bf16, f16, DType::F32);
    vec![
        (5, vec![Case::new(33, 7, 0, false, f32, 1)]),
        (65, vec![Case::new(45, 33, 8, true, f32, 2)]),
        (23, vec![Case::new(40, 19, 3, true, bf, 3)]),
        (3, vec![Case::new(70, 21, 16, false, half, 4)]),
        // q, k, v: one with bias only, ranks that differ, ragged ends inside the group.
        (17, vec![Case::new(45, 30, 8, false, f32, 5), Case::new(33, 30, 0, true, bf, 6), Case::new(10, 30, 21, true, f32, 7)]),
        // More than one reduction block forward; backward, more than one block and a block that spans parts.
        (2, vec![Case::new(35, 2100, 2, true, f32, 8)]),
        (14, vec![Case::new(1100, 5, 3, true, f32, 9), Case::new(300, 5, 1, false, half, 10)]),
    ]
}

#[test]
fn bits_are_the_law() -> Result<()> {
    lawful(&streams(), groups(DType::Bf16, DType::F16))
}

#[test]
fn on_cuda_against_f64_and_as_the_law() {
    on_cuda("linear", |s| {
        accurate(s, &[(1, 1, 1), (2, 7, 33), (65, 31, 45), (17, 100, 130)])?;
        lawful(std::slice::from_ref(s), groups(DType::F32, DType::F32))?;
        gradients(std::slice::from_ref(s), DType::F32)
    });
}

fn lawful(on: &[Stream], groups: Vec<(usize, Vec<Case>)>) -> Result<()> {
    for (m, cases) in groups {
        let (n, k) = (width(&cases).0, cases[0].k);
        let (x, dy) = (values(m * k, 21), values(m * n, 22));
        let (y, lora_s) = law::forward(&x, &cases);
        let (dx, ds) = law::backward(&dy, &cases);
        for s in on {
            let what = format!("{:?} m {m} k {k} n {n}", s);
            let got = run_forward(s, &x, &cases)?;
            same(&format!("y {what}"), &got.0, &y);
            same(&format!("S {what}"), &got.1, &lora_s);
            let got = run_backward(s, &dy, &cases, true)?;
            same(&format!("dx {what}"), &got.0, &dx);
            same(&format!("dS {what}"), &got.1, &ds);
            same(&format!("dS alone {what}"), &run_backward(s, &dy, &cases, false)?.1, &ds);
        }
    }
    Ok(())
}

#[test]
fn rows_do_not_know_their_company() -> Result<()> {
    let cases = [Case::new(70, 40, 8, true, DType::Bf16, 31), Case::new(45, 40, 3, false, DType::F32, 32)];
    let (n, k, m) = (115, 40, 300);
    let (x, dy) = (values(m * k, 33), values(m * n, 34));
    let fast = Stream::cpu(1, Isa::detect());
    let (y, lora_s) = run_forward(&fast, &x, &cases)?;
    let (dx, ds) = run_backward(&fast, &dy, &cases, true)?;
    for s in streams().iter().filter(|s| s.pool("test").is_ok_and(|p| p.isa() != Isa::portable())) {
        for rows in [1, 3, 17, 64, 300] {
            let mut got = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
            for (x, dy) in x.chunks(rows * k).zip(dy.chunks(rows * n)).take(40) {
                let (y, lora_s) = run_forward(s, x, &cases)?;
                let (dx, ds) = run_backward(s, dy, &cases, true)?;
                got.iter_mut().zip([y, lora_s, dx, ds]).for_each(|(all, part)| all.extend(part));
            }
            for (name, got, want) in [("y", &got[0], &y), ("S", &got[1], &lora_s), ("dx", &got[2], &dx), ("dS", &got[3], &ds)] {
                same(&format!("{name} by {rows} on {s:?}"), got, &want[..got.len()]);
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_are_the_law_example_by_example() -> Result<()> {
    gradients(&streams(), DType::Bf16)
}

fn gradients(on: &[Stream], second: DType) -> Result<()> {
    let cases = [Case::new(45, 397, 3, false, DType::F32, 41), Case::new(64, 397, 16, true, second, 42)];
    let (n, k, m) = (109, 397, 310);
    let (x, dy) = (values(m * k, 43), values(m * n, 44));
    let (_, lora_s) = law::forward(&x, &cases);
    let (_, ds) = law::backward(&dy, &cases);
    // Rows 2..4 belong to no example; one example is longer than a block of rows, one is empty. Then examples that share rows.
    let lists: [&[u32]; 2] = [&[0, 2, 4, 5, 5, 5, 5, 24, 24, 310], &[30, 310, 0, 24, 20, 40]];
    for examples in lists {
        let mut want = Vec::new();
        for (i, c) in cases.iter().enumerate() {
            let (first, slot) = ([0, 45][i], [0, 3][i]);
            let mut totals = [vec![0.5; c.rank * k], vec![0.5; c.rank * c.n], vec![0.5; c.n * k], vec![0.5; c.n]];
            let (rows, s, ds, dy) =
                ((&x[..], k, 0, k), (&lora_s[..], 19, slot, c.rank), (&ds[..], 19, slot, c.rank), (&dy[..], n, first, c.n));
            law::outer(&mut totals[0], ds, rows, None, examples);
            law::outer(&mut totals[1], dy, s, Some(c.scale), examples);
            law::outer(&mut totals[2], dy, rows, None, examples);
            let ones = vec![1.0; m];
            law::outer(&mut totals[3], dy, (&ones, 1, 0, 1), None, examples);
            want.push(totals);
        }
        for s in on {
            let what = format!("{:?}", s);
            let lora = run_lora(s, [&x, &lora_s, &ds, &dy], &cases, examples, 0.5)?;
            let full = run_weight(s, &x, &dy, k, &[45, 64], examples, 0.5)?;
            for i in 0..2 {
                same(&format!("dA {i} {what}"), &lora[i][0], &want[i][0]);
                same(&format!("dB {i} {what}"), &lora[i][1], &want[i][1]);
                same(&format!("dW {i} {what}"), &plain(s, &full[i][0], cases[i].n, k)?, &want[i][2]);
                same(&format!("dbias {i} {what}"), &full[i][1], &want[i][3]);
            }
        }
    }
    Ok(())
}

#[test]
fn one_example_a_call_equals_all_in_one() -> Result<()> {
    let cases = [Case::new(45, 20, 5, false, DType::F32, 51)];
    let (x, dy) = (values(60 * 20, 52), values(60 * 45, 53));
    let s = Stream::cpu(2, Isa::detect());
    let (lora_s, ds) = (run_forward(&s, &x, &cases)?.1, run_backward(&s, &dy, &cases, false)?.1);
    let spans = [0u32, 7, 7, 30, 30, 60];
    let all = run_lora(&s, [&x, &lora_s, &ds, &dy], &cases, &spans, 0.0)?;
    let loaded = Loaded::new(&s, &cases);
    let (da, db) = (s.zeros::<f32>(5 * 20)?, s.zeros::<f32>(45 * 5)?);
    for span in spans.chunks(2) {
        let (from, to) = (span[0] as usize, span[1] as usize);
        let acts = [(&x, 20), (&lora_s, 5), (&ds, 5), (&dy, 45)].map(|(v, w)| s.upload(&v[from * w..to * w]).unwrap());
        let [x, sv, ds, dy] = acts.each_ref().map(|b| b.view());
        let span = s.upload(&[0u32, (to - from) as u32])?;
        backward_lora(&s, &[da.view()], &[db.view()], x, sv, ds, dy, &loaded.parts(&s), span.view())?;
    }
    same("dA", &da.to_vec()?, &all[0][0]);
    same("dB", &db.to_vec()?, &all[0][1]);
    Ok(())
}

#[test]
fn adapter_off_equals_zero_b_and_no_rows_are_fine() -> Result<()> {
    let s = Stream::cpu(2, Isa::detect());
    let mut on = Case::new(45, 20, 4, true, DType::F32, 61);
    on.b.fill(0.0);
    let off = Case { rank: 0, a: Vec::new(), b: Vec::new(), ..Case::new(45, 20, 4, true, DType::F32, 61) };
    let x = values(9 * 20, 62);
    assert_eq!(run_forward(&s, &x, &[on])?.0, run_forward(&s, &x, &[off])?.0);
    let case = [Case::new(45, 20, 4, true, DType::F32, 61)];
    assert_eq!(run_forward(&s, &[], &case)?, (vec![], vec![]));
    assert_eq!(run_backward(&s, &[], &case, true)?, (vec![], vec![]));
    Ok(())
}

#[test]
fn wrong_operands_are_named() -> Result<()> {
    let s = Stream::cpu(1, Isa::portable());
    let cases = [Case::new(33, 6, 2, true, DType::F32, 71)];
    let loaded = Loaded::new(&s, &cases);
    let (x, y, lora_s) = (s.zeros::<f32>(12)?, s.zeros::<f32>(66)?, s.zeros::<f32>(4)?);
    let text = |r: Result<()>| r.err().map(|e| e.to_string()).unwrap_or_default();
    let short = x.view().slice(0..11)?;
    assert!(text(forward(&s, y.view(), lora_s.view(), short, &loaded.parts(&s))).contains("x: 11 elements"));
    assert!(text(forward(&s, x.view(), lora_s.view(), x.view(), &loaded.parts(&s))).contains("y: wanted 66"));
    assert!(text(forward(&s, y.view(), View::none(DType::F32), x.view(), &loaded.parts(&s))).contains("lora_s: wanted 4"));
    assert!(text(forward(&s, y.view(), lora_s.view(), x.view(), &[])).contains("parts"));
    let own = y.view().slice(0..12)?;
    assert!(text(forward(&s, y.view(), lora_s.view(), own, &loaded.parts(&s))).contains("overlaps"));
    let spans = s.upload(&[0u32, 3])?;
    let (dw, n) = (s.zeros::<f32>(packed_len(33, 6))?, [33]);
    let got = backward_weight(&s, &[dw.view()], &[None], x.view(), y.view(), &n, spans.view());
    assert!(text(got).contains("example 0: rows 0..3 of 2"));
    Ok(())
}

/// Tensors of a safetensors file by name, as f32 (i32 as their bits); none if the shared folder is absent.
pub(crate) fn fixture(name: &str) -> Option<impl Fn(&str) -> Vec<f32>> {
    let shared = std::env::var("PLE_SHARED").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").into());
    let path = format!("{shared}/fixtures/ops/{name}.safetensors");
    let Ok(file) = std::fs::read(&path) else {
        eprintln!("skip: {path} is absent");
        return None;
    };
    let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(file[8..8 + len].to_vec()).unwrap();
    Some(move |tensor: &str| {
        let entry = header.split_once(&format!("\"{tensor}\":")).unwrap_or_else(|| panic!("{path}: no {tensor}")).1;
        let offsets = entry.split_once("\"data_offsets\":[").unwrap().1.split(']').next().unwrap();
        let (from, to) = offsets.split_once(',').unwrap();
        let data = &file[8 + len + from.trim().parse::<usize>().unwrap()..8 + len + to.trim().parse::<usize>().unwrap()];
        data.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
    })
}

#[test]
fn fixtures_of_lora_linear() -> Result<()> {
    for name in ["lora_linear", "lora_linear_bias"] {
        let Some(get) = fixture(name) else { return Ok(()) };
        let bias = if name.ends_with("bias") { get("bias") } else { Vec::new() };
        let (w, a, b) = (get("w"), get("a"), get("b"));
        let cases = [Case { n: 96, k: 64, dtype: DType::F32, w, bias, rank: 8, scale: 2.0, a, b }];
        let (x, g) = (get("x"), get("g"));
        for s in streams() {
            let (y, lora_s) = run_forward(&s, &x, &cases)?;
            close(name, &y, &f64s(&get("y")), 96, TENSOR, ROW);
            let (dx, ds) = run_backward(&s, &g, &cases, true)?;
            close(name, &dx, &f64s(&get("d_x")), 64, TENSOR, ROW);
            let grads = run_lora(&s, [&x, &lora_s, &ds, &g], &cases, &[0, 13], 0.0)?;
            close(name, &grads[0][0], &f64s(&get("d_a")), 64, TENSOR, ROW);
            close(name, &grads[0][1], &f64s(&get("d_b")), 8, TENSOR, ROW);
        }
    }
    Ok(())
}

#[test]
fn fixture_of_the_weight_gradient() -> Result<()> {
    let Some(get) = fixture("linear_dw") else { return Ok(()) };
    let cases = [Case { w: get("w"), ..Case::new(56, 40, 0, false, DType::F32, 0) }];
    for s in streams() {
        let (dx, _) = run_backward(&s, &get("dy"), &cases, true)?;
        close("dx", &dx, &f64s(&get("dx")), 40, TENSOR, ROW);
        let dw = &run_weight(&s, &get("x"), &get("dy"), 40, &[56], &[0, 23], 0.0)?[0][0];
        let dw = plain(&s, dw, 56, 40)?;
        close("dw", &dw, &f64s(&get("dw")), 40, TENSOR, ROW);
    }
    Ok(())
}
