//! The room through the vendor's library, whose stand-in sums in whatever order it likes.

use super::bf16::{Loaded, case, copies, group, outputs, ranks, run_backward, run_forward, run_gradients, tail};
use super::{values, views};
use crate::check::{Acts, rounded, rounds_once, wide, with_both_adders};
use crate::linear::reference::{self, Module};
use crate::linear::tests::{Case, same};
use crate::linear::{Part, backward_lora, library};
use runtime::{DType::Bf16, Result, Stream, View};

/// Rows [M, width] with room for the strips, which hold NaN before.
fn padded(rows: &[f32], width: usize, ld: usize) -> Vec<f32> {
    rows.chunks(width).flat_map(|row| [row, &vec![f32::NAN; ld - width]].concat()).collect()
}

/// y, S, dx, dS, and x and dy with their strips.
fn run(s: &Stream, x: &[f32], dy: &[f32], cases: &[Case]) -> Result<[Vec<f32>; 6]> {
    let (k, n, t) = (cases[0].k, outputs(cases).iter().sum::<usize>(), tail(cases));
    let (m, loaded) = (x.len() / k, Loaded::new(s, cases, &ranks(cases))?);
    let (parts, [x_ld, dy_ld]) = (loaded.parts()?, [k, n].map(|n| library::pitch(n, t)));
    let [y, lora_s, dx, ds] = [n, t, k, t].map(|width| Acts::nan(s, Bf16, m * width));
    let (y, lora_s, dx, ds) = (y?, lora_s?, dx?, ds?);
    let (x, dy) = (Acts::put(s, Bf16, &padded(x, k, x_ld))?, Acts::put(s, Bf16, &padded(dy, n, dy_ld))?);
    let bias = library::bias(s, &parts)?;
    let (rows, drows) = (x.view().apart(k, x_ld)?, dy.view().apart(n, dy_ld)?);
    library::forward(s, y.view(), lora_s.view(), rows, &parts, bias.as_ref().map(|b| b.view()))?;
    library::backward(s, dx.view(), ds.view(), drows, &parts)?;
    let again = Acts::nan(s, Bf16, m * t)?;
    library::backward(s, View::none(Bf16), again.view(), drows, &parts)?;
    same("dS without dx", &again.get()?, &ds.get()?);
    Ok([y.get()?, lora_s.get()?, dx.get()?, ds.get()?, x.get()?, dy.get()?])
}

/// Columns `first`.. of rows.
fn columns(rows: &[f32], ld: usize, first: usize, count: usize) -> Vec<f32> {
    rows.chunks(ld).flat_map(|row| row[first..first + count].to_vec()).collect()
}

#[test]
fn on_cuda_the_library_against_f64() {
    with_both_adders("linear library", |s| {
        for (i, (m, k, n, rank)) in [(1, 8, 8, 0), (7, 72, 136, 8), (65, 104, 72, 64), (16, 96, 56, 70)].into_iter().enumerate() {
            let cases = [rounded_bias(case(n, k, rank, i % 2 == 1, 10 * i as u32))];
            let (x, dy) = (rounded(&values(m * k, 91)), rounded(&values(m * n, 92)));
            let (a, b) = copies(&cases[0]);
            let module = Module { a: &a, b: &b, scale: 1.0, ..cases[0].module() };
            let [y, _, dx, ..] = run(s, &x, &dy, &cases)?;
            let what = format!("[{m}, {k}] -> {n} rank {rank}");
            rounds_once(&format!("y {what}"), &y, &reference::forward(&x, k, &module), n);
            let mut want = vec![0.0; m * k];
            reference::backward(&mut want, &dy, k, &module);
            rounds_once(&format!("dx {what}"), &dx, &want, k);
        }
        Ok(())
    });
}

/// With a bias that the library takes as it is.
fn rounded_bias(c: Case) -> Case {
    Case { bias: rounded(&c.bias), ..c }
}

#[test]
fn on_cuda_the_library_repeats_itself_and_its_strips_are_the_rooms() {
    let (cases, m) = (group().into_iter().map(rounded_bias).collect::<Vec<_>>(), 19);
    let (k, n, t) = (cases[0].k, outputs(&cases).iter().sum::<usize>(), tail(&cases));
    let (x, dy) = (values(m * k, 33), values(m * n, 34));
    with_both_adders("linear library repeats", |s| {
        let made = run(s, &x, &dy, &cases)?;
        for (one, other) in made.iter().zip(&run(s, &x, &dy, &cases)?) {
            assert!(one.iter().zip(other).all(|(a, b)| a.to_bits() == b.to_bits()), "a repeat has other bits");
        }
        let ([y, lora_s], [dx, ds]) = (run_forward(s, &x, &cases, &ranks(&cases))?, run_backward(s, &dy, &cases)?);
        for (rows, strips, rows_before, width, want) in [(&made[4], &made[1], &x, k, &lora_s), (&made[5], &made[3], &dy, n, &ds)]
        {
            let ld = library::pitch(width, t);
            same("strips", strips, want);
            same("strips beside the rows", &columns(rows, ld, width, t), want);
            same("rows", &columns(rows, ld, 0, width), &rounded(rows_before));
            assert!(columns(rows, ld, width + t, ld - width - t).iter().all(|v| v.is_nan()), "written behind the strips");
        }
        rounds_once("y", &made[0], &wide(&y), n);
        rounds_once("dx", &made[2], &wide(&dx), k);
        let loaded = Loaded::new(s, &cases, &ranks(&cases))?;
        let totals =
            |len: &dyn Fn(&Case) -> usize| cases.iter().map(|c| s.upload(&vec![0.5f32; len(c)])).collect::<Result<Vec<_>>>();
        let (da, db) = (totals(&|c| c.rank * k)?, totals(&|c| c.rank * c.n)?);
        let spans = [0u32, 3, 3, 19];
        let held = |i: usize| Acts::put(s, Bf16, &made[i]);
        let (held_x, held_dy, held_s, held_ds) = (held(4)?, held(5)?, held(1)?, held(3)?);
        let (examples, parts) = (s.upload(&spans)?, loaded.parts()?);
        let (rows, drows) = (held_x.view().apart(k, library::pitch(k, t))?, held_dy.view().apart(n, library::pitch(n, t))?);
        let strips = (held_s.view(), held_ds.view());
        backward_lora(s, &views(&da), &views(&db), rows, strips.0, strips.1, drows, &parts, examples.view())?;
        let want = run_gradients(s, [&x, &lora_s, &ds, &dy], &cases, &spans, 0.5)?;
        for (i, want) in want.chunks(4).enumerate() {
            same("dA", &da[i].to_vec()?, &want[0]);
            same("dB", &db[i].to_vec()?, &want[1]);
        }
        Ok(())
    });
}

#[test]
fn on_cuda_what_the_library_does_not_take_is_named() {
    let Some(cuda) = emulator::cuda() else { return };
    let s = &cuda.stream;
    let text = |r: Result<()>| r.err().map(|e| e.to_string()).unwrap_or_default();
    let with_bias = [case(16, 40, 8, true, 71)];
    let loaded = Loaded::new(s, &with_bias, &[8]).unwrap();
    let [y, lora_s, x] = [16, 16, 64].map(|width| Acts::nan(s, Bf16, 2 * width).unwrap());
    let parts = loaded.parts().unwrap();
    let (y, lora_s, flat) = (y.view(), lora_s.view(), x.view());
    let x = flat.apart(40, 64).unwrap();
    let unbiased = "bias: wanted that of library::bias exactly where a part has one";
    assert!(text(library::forward(s, y, lora_s, x, &parts, None)).contains(unbiased));
    let bare = [Part { bias: None, ..parts[0] }];
    let bias = library::bias(s, &parts).unwrap().unwrap();
    assert!(text(library::forward(s, y, lora_s, x, &bare, Some(bias.view()))).contains(unbiased));
    let short = bias.view().slice(0..8).unwrap();
    assert!(text(library::forward(s, y, lora_s, x, &parts, Some(short))).contains("bias: wanted 16 elements, got 8"));
    assert!(library::bias(s, &bare).unwrap().is_none());
    assert_eq!(text(library::forward(s, y, lora_s, x, &bare, None)), "");
    let go = |y, x: Result<View<'_>>| text(library::forward(s, y, lora_s, x.unwrap(), &bare, None));
    let roomy = "wanted a multiple of 8 with room for strips of 16";
    assert!(go(y, flat.slice(0..80)).contains(roomy));
    assert!(go(y, flat.slice(0..104).and_then(|v| v.apart(40, 52))).contains(roomy));
    assert!(go(y, flat.slice(0..114).and_then(|v| v.apart(40, 57))).contains(roomy));
    assert!(go(y, flat.apart(32, 64)).contains("x: 64 elements are no rows of 40"));
    assert!(go(y.apart(8, 16).unwrap(), Ok(x)).contains("y: wanted 32 elements, got 16"));
    assert!(text(library::forward(s, y, View::none(Bf16), x, &[], None)).contains("no parts"));
    let odd = [case(12, 40, 8, false, 71)];
    let loaded = Loaded::new(s, &odd, &[8]).unwrap();
    let y = y.slice(0..24).unwrap();
    let said = text(library::forward(s, y, lora_s, x, &loaded.parts().unwrap(), None));
    assert!(said.contains("linear::library::forward") && said.contains("not available on cuda:0"), "{said}");
}
