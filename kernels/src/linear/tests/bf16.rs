//! The room in bf16 on the emulated tensor cores: accuracy against f64, bits that no row owes to its company, and the order itself.

use super::{Case, same, values, views};
use crate::adamw::{Side, Table, Target};
use crate::check::{Acts, on_cuda, rounded, rounds_once, wide, with_both_adders, within};
use crate::linear::reference::{self, Module};
use crate::linear::{Lora, Part, backward, backward_lora, backward_weight, forward};
use crate::weight::{self, Layout, TWICE, Weight, strip};
use half::bf16;
use runtime::{Buffer, DType::Bf16, DType::F32, Result, Stream, View};

/// Modules in one augmented group, their adapter's f32 in one arena.
pub(super) struct Loaded<'a> {
    cases: &'a [Case],
    data: Buffer<bf16>,
    layout: Layout,
    bias: Vec<Buffer<f32>>,
    arena: Buffer<f32>,
}

/// Weights, A and B of the sizes that a model has them in.
pub(super) fn case(n: usize, k: usize, rank: usize, bias: bool, seed: u32) -> Case {
    let root = |n: usize| 1.0 / (n.max(1) as f32).sqrt();
    let mut c = Case::new(n, k, rank, bias, Bf16, seed);
    c.w.iter_mut().for_each(|w| *w = bf16::from_f32(*w * root(k)).to_f32());
    c.a.iter_mut().for_each(|a| *a *= root(k));
    c.b.iter_mut().for_each(|b| *b *= 0.5 * root(rank));
    c
}

impl<'a> Loaded<'a> {
    pub fn new(s: &Stream, cases: &'a [Case], ranks: &[usize]) -> Result<Loaded<'a>> {
        let layout = Layout::of(s, ranks);
        let data = s.upload(&vec![bf16::ZERO; layout.len(&outputs(cases), cases[0].k)])?;
        let bias = cases.iter().map(|c| s.upload(&c.bias)).collect::<Result<_>>()?;
        let arena: Vec<f32> = cases.iter().flat_map(|c| [c.a.clone(), c.b.clone()].concat()).collect();
        let loaded = Loaded { cases, data, layout, bias, arena: s.upload(&arena)? };
        let mut targets = Vec::new();
        let (mut at, mut slot) = (0, 0);
        for (i, c) in cases.iter().enumerate() {
            let w: Vec<bf16> = c.w.iter().map(|w| bf16::from_f32(*w)).collect();
            weight::load(s, loaded.weight(i)?, bytemuck::cast_slice(&w))?;
            if c.rank == 0 {
                continue;
            }
            for (side, len) in [(Side::A, c.rank * c.k), (Side::B, c.n * c.rank)] {
                let (weight, elements) = (loaded.weight(i)?.rows("test")?, at..at + len);
                targets.push(Target { elements, side, weight, slot, rank: c.rank, scale: c.scale });
                at += len;
            }
            slot += strip(c.rank);
        }
        if !targets.is_empty() {
            Table::new(s, &targets)?.over(loaded.data.view())?.write(s, loaded.arena.view())?;
        }
        Ok(loaded)
    }

    fn weight(&self, i: usize) -> Result<Weight<'_>> {
        self.layout.weight(self.data.view(), &outputs(self.cases), self.cases[0].k, i)
    }

    pub fn parts(&self) -> Result<Vec<Part<'_>>> {
        let mut at = 0;
        let mut part = |(i, c): (usize, &Case)| {
            let (a, b) = (at..at + c.rank * c.k, at + c.rank * c.k..at + c.rank * (c.k + c.n));
            at = b.end;
            let of = |range| self.arena.view().slice(range);
            let lora = Lora { rank: c.rank, scale: c.scale, a: of(a)?, b: of(b)? };
            let bias = (!c.bias.is_empty()).then(|| self.bias[i].view());
            Ok(Part { weight: self.weight(i)?, bias, lora: (c.rank > 0).then_some(lora) })
        };
        self.cases.iter().enumerate().map(&mut part).collect()
    }
}

pub(super) fn outputs(cases: &[Case]) -> Vec<usize> {
    cases.iter().map(|c| c.n).collect()
}

pub(super) fn ranks(cases: &[Case]) -> Vec<usize> {
    cases.iter().map(|c| c.rank).collect()
}

pub(super) fn tail(cases: &[Case]) -> usize {
    cases.iter().map(|c| strip(c.rank)).sum()
}

/// y and S.
pub(super) fn run_forward(s: &Stream, x: &[f32], cases: &[Case], room: &[usize]) -> Result<[Vec<f32>; 2]> {
    let (m, n) = (x.len() / cases[0].k, outputs(cases).iter().sum::<usize>());
    let loaded = Loaded::new(s, cases, room)?;
    let (y, lora_s, alone) =
        (Acts::nan(s, Bf16, m * n)?, Acts::nan(s, Bf16, m * tail(cases))?, Acts::nan(s, Bf16, m * tail(cases))?);
    let x = Acts::put(s, Bf16, x)?;
    forward(s, y.view(), lora_s.view(), x.view(), &loaded.parts()?)?;
    forward(s, View::none(Bf16), alone.view(), x.view(), &loaded.parts()?)?;
    same("S without y", &alone.get()?, &lora_s.get()?);
    Ok([y.get()?, lora_s.get()?])
}

/// dx and dS.
pub(super) fn run_backward(s: &Stream, dy: &[f32], cases: &[Case]) -> Result<[Vec<f32>; 2]> {
    let (k, n) = (cases[0].k, outputs(cases).iter().sum::<usize>());
    let loaded = Loaded::new(s, cases, &ranks(cases))?;
    let m = dy.len() / n;
    let (dx, ds) = (Acts::nan(s, Bf16, m * k)?, Acts::nan(s, Bf16, m * tail(cases))?);
    backward(s, dx.view(), ds.view(), Acts::put(s, Bf16, dy)?.view(), &loaded.parts()?)?;
    Ok([dx.get()?, ds.get()?])
}

/// dA, dB, dW and dbias of each part, added to `start`.
pub(super) fn run_gradients(
    s: &Stream,
    acts: [&[f32]; 4],
    cases: &[Case],
    examples: &[u32],
    start: f32,
) -> Result<Vec<Vec<f32>>> {
    let loaded = Loaded::new(s, cases, &ranks(cases))?;
    let k = cases[0].k;
    let totals = |len: &dyn Fn(&Case) -> usize| cases.iter().map(|c| s.upload(&vec![start; len(c)])).collect::<Result<Vec<_>>>();
    let rows = Layout::Rows { tail: 0 };
    let (da, db) = (totals(&|c| c.rank * k)?, totals(&|c| c.rank * c.n)?);
    let (dw, dbias) = (totals(&|c| rows.len(&[c.n], k))?, totals(&|c| c.n)?);
    let [x, lora_s, ds, dy] = acts.map(|v| Acts::put(s, Bf16, v).unwrap());
    let (x, dy, spans) = (x.view(), dy.view(), s.upload(examples)?);
    let parts = loaded.parts()?;
    backward_lora(s, &views(&da), &views(&db), x, lora_s.view(), ds.view(), dy, &parts, spans.view())?;
    let bias: Vec<_> = dbias.iter().map(|b| Some(b.view())).collect();
    backward_weight(s, &views(&dw), &bias, x, dy, &outputs(cases), spans.view())?;
    let mut all = Vec::new();
    for (i, c) in cases.iter().enumerate() {
        all.push(da[i].to_vec()?);
        all.push(db[i].to_vec()?);
        all.push(weight::read(s, rows.weight(dw[i].view(), &[c.n], k, 0)?)?);
        all.push(dbias[i].to_vec()?);
    }
    Ok(all)
}

/// A strip's columns [M, strip] as ranks [M, R]: both halves added where there are two.
fn unstrip(s: &[f32], width: usize, slot: usize, rank: usize) -> Vec<f32> {
    let value = |row: &[f32], j: usize| match rank <= TWICE {
        true => row[slot + j / 8 * 16 + j % 8] + row[slot + j / 8 * 16 + j % 8 + 8],
        false => row[slot + j],
    };
    s.chunks(width).flat_map(|row| (0..rank).map(move |j| value(row, j))).collect()
}

/// What the strips hold: A rounded, and B times its factor, rounded.
pub(super) fn copies(c: &Case) -> (Vec<f32>, Vec<f32>) {
    (rounded(&c.a), rounded(&c.b.iter().map(|b| c.scale * b).collect::<Vec<_>>()))
}

#[test]
fn on_cuda_in_bf16_against_f64() {
    let shapes: [(usize, usize, usize, usize, bool); 10] = [
        (3, 1, 1, 0, true),
        (5, 13, 9, 3, true),
        (33, 50, 27, 70, true),
        (1, 8, 8, 0, false),
        (2, 40, 24, 1, true),
        (7, 72, 136, 8, false),
        (17, 24, 40, 16, true),
        (65, 104, 72, 64, false),
        (129, 16, 136, 4, true),
        (16, 96, 56, 70, true),
    ];
    with_both_adders("linear bf16", |s| {
        for (i, &(m, k, n, rank, bias)) in shapes.iter().enumerate() {
            let cases = [case(n, k, rank, bias, 10 * i as u32)];
            let (x, dy) = (rounded(&values(m * k, 91)), rounded(&values(m * n, 92)));
            let (a, b) = copies(&cases[0]);
            let module = Module { a: &a, b: &b, scale: 1.0, ..cases[0].module() };
            let what = format!("[{m}, {k}] -> {n} rank {rank}");
            let [y, lora_s] = run_forward(s, &x, &cases, &[rank])?;
            rounds_once(&format!("y {what}"), &y, &reference::forward(&x, k, &module), n);
            let [dx, ds] = run_backward(s, &dy, &cases)?;
            let mut want = vec![0.0; m * k];
            reference::backward(&mut want, &dy, k, &module);
            rounds_once(&format!("dx {what}"), &dx, &want, k);
            let grads = run_gradients(s, [&x, &lora_s, &ds, &dy], &cases, &[0, m as u32], 0.0)?;
            within("dW", &grads[2], &reference::outer(&wide(&dy), n, &wide(&x), k), n * k, 1e-6, 1e-6);
            within("dbias", &grads[3], &reference::outer(&wide(&dy), n, &vec![1.0; m], 1), n, 1e-6, 1e-6);
            if rank > 0 {
                // Both halves of S keep it whole; one half rounds it.
                let limit = if rank <= TWICE { 1e-5 } else { 2.2e-3 };
                let [lora_s, ds] = [lora_s, ds].map(|v| unstrip(&v, strip(rank), 0, rank));
                let (want_s, want_ds) = (reference::project(&x, k, &module), reference::project_back(&dy, &module));
                within(&format!("S {what}"), &lora_s, &want_s, m * rank, limit, limit);
                within(&format!("dS {what}"), &ds, &want_ds, m * rank, limit, limit);
                let want = reference::outer(&want_ds, rank, &wide(&x), k);
                within(&format!("dA {what}"), &grads[0], &want, rank * k, limit, limit);
                let want: Vec<f64> = reference::outer(&wide(&dy), n, &want_s, rank);
                let want: Vec<f64> = want.iter().map(|w| w * cases[0].scale as f64).collect();
                within(&format!("dB {what}"), &grads[1], &want, n * rank, limit, limit);
            }
        }
        Ok(())
    });
}

/// q, k, v of uneven widths, one of them without an adapter, and one whose rank keeps one half.
pub(super) fn group() -> Vec<Case> {
    vec![case(72, 40, 8, true, 1), case(40, 40, 0, false, 2), case(136, 40, 20, false, 3), case(16, 40, 70, true, 4)]
}

#[test]
fn on_cuda_in_bf16_rows_do_not_know_their_company() {
    let (cases, m) = (group(), 130);
    let n: usize = outputs(&cases).iter().sum();
    let (x, dy) = (values(m * 40, 33), values(m * n, 34));
    with_both_adders("linear bf16 law", |s| {
        let whole = [run_forward(s, &x, &cases, &ranks(&cases))?, run_backward(s, &dy, &cases)?].concat();
        let again = [run_forward(s, &x, &cases, &ranks(&cases))?, run_backward(s, &dy, &cases)?].concat();
        assert!(whole == again, "a repeat has other bits");
        for (first, rows) in [(0, 1), (129, 1), (5, 3), (40, 17), (66, 64)] {
            let (x, dy) = (&x[first * 40..(first + rows) * 40], &dy[first * n..(first + rows) * n]);
            let part = [run_forward(s, x, &cases, &ranks(&cases))?, run_backward(s, dy, &cases)?].concat();
            for (name, (whole, part)) in ["y", "S", "dx", "dS"].iter().zip(whole.iter().zip(&part)) {
                let width = whole.len() / m;
                same(&format!("{name} of rows {first}.. {rows}"), part, &whole[first * width..(first + rows) * width]);
            }
        }
        Ok(())
    });
}

/// The slower variant is the same room: a module of even sizes has the bits that it has beside one of odd ones.
#[test]
fn on_cuda_in_bf16_odd_sizes_have_the_same_bits() {
    let cases = [case(72, 40, 8, true, 1), case(7, 40, 3, true, 2)];
    let (x, dy) = (values(19 * 40, 35), values(19 * 79, 36));
    with_both_adders("linear bf16 odd sizes", |s| {
        let together = run_forward(s, &x, &cases, &[8, 3])?;
        let alone = run_forward(s, &x, &cases[..1], &[8])?;
        let own: Vec<f32> = together[0].chunks(79).flat_map(|row| row[..72].to_vec()).collect();
        same("y beside odd sizes and alone", &own, &alone[0]);
        // The odd module's dy is zero: what it adds to dx is nothing.
        let silent: Vec<f32> = dy.chunks(79).flat_map(|row| [&row[..72], &[0.0; 7]].concat()).collect();
        let loud: Vec<f32> = dy.chunks(79).flat_map(|row| row[..72].to_vec()).collect();
        let [dx, ds] = run_backward(s, &silent, &cases)?;
        let [dx_alone, ds_alone] = run_backward(s, &loud, &cases[..1])?;
        let own: Vec<f32> = ds.chunks(tail(&cases)).flat_map(|row| row[..16].to_vec()).collect();
        same("dS beside odd sizes and alone", &own, &ds_alone);
        let bits = |v: &[f32]| v.iter().map(|v| v + 0.0).collect::<Vec<_>>();
        same("dx beside odd sizes and alone", &bits(&dx), &bits(&dx_alone));
        Ok(())
    });
}

#[test]
fn on_cuda_in_bf16_a_module_is_itself_in_any_group() {
    let cases = group();
    let x = values(19 * 40, 35);
    with_both_adders("linear bf16 groups", |s| {
        let together = run_forward(s, &x, &cases, &ranks(&cases))?;
        let (n, mut first) = (outputs(&cases).iter().sum::<usize>(), 0);
        for c in &cases {
            let alone = run_forward(s, &x, std::slice::from_ref(c), &[c.rank])?;
            let own: Vec<f32> = together[0].chunks(n).flat_map(|row| row[first..first + c.n].to_vec()).collect();
            same("y in a group and alone", &own, &alone[0]);
            first += c.n;
        }
        let off = [Case { rank: 0, a: Vec::new(), b: Vec::new(), ..case(72, 40, 8, true, 1) }];
        let zero = [Case { b: vec![0.0; 72 * 8], ..case(72, 40, 8, true, 1) }];
        let bare = run_forward(s, &x, &off, &[0])?;
        same("an adapter that is off, beside its strip", &run_forward(s, &x, &off, &[8])?[0], &bare[0]);
        assert_eq!(run_forward(s, &x, &zero, &[8])?[0], bare[0]);
        Ok(())
    });
}

#[test]
fn on_cuda_in_bf16_examples_add_one_by_one() {
    let (cases, m) = (group(), 70);
    let n: usize = outputs(&cases).iter().sum();
    let (x, dy) = (values(m * 40, 43), values(m * n, 44));
    with_both_adders("linear bf16 examples", |s| {
        let ([_, lora_s], [_, ds]) = (run_forward(s, &x, &cases, &ranks(&cases))?, run_backward(s, &dy, &cases)?);
        let (t, spans) = (tail(&cases), [2u32, 4, 5, 5, 5, 24, 24, 70]);
        let together = run_gradients(s, [&x, &lora_s, &ds, &dy], &cases, &spans, 0.5)?;
        let mut totals: Vec<Vec<f32>> = together.iter().map(|v| vec![0.5; v.len()]).collect();
        for span in spans.chunks(2).filter(|span| span[0] < span[1]) {
            let cut = |v: &[f32], width: usize| v[span[0] as usize * width..span[1] as usize * width].to_vec();
            let acts = [cut(&x, 40), cut(&lora_s, t), cut(&ds, t), cut(&dy, n)];
            let alone = run_gradients(s, acts.each_ref().map(|v| &v[..]), &cases, &[0, span[1] - span[0]], 0.0)?;
            totals.iter_mut().zip(alone).for_each(|(t, a)| t.iter_mut().zip(a).for_each(|(t, a)| *t += a));
        }
        together.iter().zip(&totals).for_each(|(got, want)| same("a gradient", got, want));
        Ok(())
    });
}

/// The order itself, where a step of the tensor cores is the chain of the law.
#[test]
fn on_cuda_in_bf16_the_order_is_ascending() {
    let chain = |acc: f32, a: &[f32], b: &[f32]| a.iter().zip(b).fold(acc, |acc, (a, b)| a.mul_add(*b, acc));
    let (c, m) = (case(40, 136, 12, true, 5), 3);
    let x = rounded(&values(m * 136, 6));
    let (a, b) = copies(&c);
    let split = |v: f32| [rounded(&[v])[0], rounded(&[v - rounded(&[v])[0]])[0]];
    let mut want = Vec::new();
    for x in x.chunks(136) {
        let halves: Vec<[f32; 2]> = a.chunks(136).map(|a| split(chain(0.0, x, a))).collect();
        for n in 0..40 {
            let mut acc = chain(0.0, x, &c.w[n * 136..(n + 1) * 136]);
            for (halves, b) in halves.chunks(8).zip(b[n * 12..(n + 1) * 12].chunks(8)) {
                for half in 0..2 {
                    acc = chain(acc, &halves.iter().map(|h| h[half]).collect::<Vec<_>>(), b);
                }
            }
            want.push(acc + c.bias[n]);
        }
    }
    let cases = [c];
    on_cuda("linear bf16 order", |s| {
        let [y, lora_s] = run_forward(s, &x, &cases, &[12])?;
        same("y", &y, &rounded(&want));
        // What is not rounded to bf16 shows that the other adder is another one.
        let dy = values(m * 40, 7);
        let acts = [&x, &lora_s, &lora_s, &dy].map(|v| &v[..]);
        let dw = &run_gradients(s, acts, &cases, &[0, m as u32], 0.0)?[2];
        emulator::cuda().unwrap().hostile(true);
        let other = &run_gradients(s, acts, &cases, &[0, m as u32], 0.0)?[2];
        emulator::cuda().unwrap().hostile(false);
        assert_ne!(dw, other);
        Result::Ok(())
    });
}

#[test]
fn on_cuda_in_bf16_wrong_operands_are_named() {
    on_cuda("linear bf16", |s| {
        let cases = [case(16, 40, 8, false, 71), case(24, 40, 0, false, 72)];
        let loaded = Loaded::new(s, &cases, &[8, 0])?;
        let (x, y, lora_s) = (Acts::nan(s, Bf16, 80)?, Acts::nan(s, Bf16, 80)?, Acts::nan(s, Bf16, 32)?);
        let go = |x: View<'_>, parts: &[Part<'_>]| {
            let (n, t) = (
                parts.iter().map(|p| p.weight.shape().0).sum::<usize>(),
                if parts.iter().any(|p| p.lora.is_some()) { 32 } else { 0 },
            );
            let (y, lora_s) = (y.view().slice(0..2 * n)?, lora_s.view().slice(0..t)?);
            forward(s, y, lora_s, x, parts)
        };
        let text = |r: Result<()>| r.err().map(|e| e.to_string()).unwrap_or_default();
        let parts = loaded.parts()?;
        assert_eq!(text(go(x.view(), &parts)), "");
        assert!(text(go(x.view(), &parts[..1])).contains("16 outputs of a group of 40 rows"));
        assert!(text(go(x.view(), &[parts[1], parts[0]])).contains("part 0: wanted row 0 of one group, got row 16"));
        let wide = Part { lora: parts[0].lora.map(|l| Lora { rank: 9, ..l }), ..parts[0] };
        assert!(text(go(x.view(), &[wide, parts[1]])).contains("A: wanted 360 elements"));
        assert!(text(go(Acts::nan(s, F32, 80)?.view(), &parts)).contains("y: wanted f32, got bf16"));
        Result::Ok(())
    });
}
