use super::*;
use crate::check::{
    self, Acts, Golden, bits, close, differentiates, normal, on_cuda, rounded, rounds_once, stream, streams, summed, wide,
};
use runtime::DType;

/// Inputs of one case; `rows` picks a cut of them.
struct Case {
    c: usize,
    x: Vec<f32>,
    delta: Option<Vec<f32>>,
    dy: Vec<f32>,
    w: Vec<f32>,
    b: Vec<f32>,
    add: Option<Vec<f32>>,
    eps: f32,
}

/// What the room makes of it: y, stats, sum, y again, dx, dw, db.
type Made = [Vec<f32>; 7];

impl Case {
    fn new(n: usize, c: usize, residual: bool) -> Case {
        let some = |seed| residual.then(|| normal(seed, n * c));
        let [x, dy] = [1, 2].map(|seed| normal(seed, n * c));
        Case { c, x, delta: some(4), dy, w: normal(3, c), b: normal(6, c), add: some(5), eps: 1e-5 }
    }

    /// The same with everything that is stored in bf16 rounded beforehand.
    fn rounded(self) -> Case {
        let some = |v: Option<Vec<f32>>| v.map(|v| rounded(&v));
        Case { x: rounded(&self.x), dy: rounded(&self.dy), delta: some(self.delta), add: some(self.add), ..self }
    }

    fn run(&self, s: &Stream, rows: std::ops::Range<usize>, examples: &[u32]) -> Result<Made> {
        self.stored(s, F32, rows, examples)
    }

    fn stored(&self, s: &Stream, dtype: DType, rows: std::ops::Range<usize>, examples: &[u32]) -> Result<Made> {
        let part = rows.start * self.c..rows.end * self.c;
        let nan = |len: usize| Acts::nan(s, dtype, len);
        let up = |v: &Vec<f32>| Acts::put(s, dtype, &v[part.clone()]);
        let (x, dy, w, b) = (up(&self.x)?, up(&self.dy)?, s.upload(&self.w)?, s.upload(&self.b)?);
        let delta: Option<Acts> = self.delta.as_ref().map(up).transpose()?;
        let add = self.add.as_ref().map(up).transpose()?;
        let stats = Acts::nan(s, F32, 2 * rows.len())?;
        let (y, again, dx) = (nan(part.len())?, nan(part.len())?, nan(part.len())?);
        let sum = nan(if delta.is_some() { part.len() } else { 0 })?;
        let (dw, db) = (s.zeros::<f32>(self.c)?, s.zeros::<f32>(self.c)?);
        let vectors = [w.view(), b.view()];
        forward(s, y.view(), stats.view(), sum.view(), x.view(), delta.as_ref().map(Acts::view), vectors, self.eps)?;
        let v = if delta.is_some() { sum.view() } else { x.view() };
        apply(s, again.view(), v, stats.view(), vectors)?;
        backward(s, dx.view(), dy.view(), v, stats.view(), w.view(), add.as_ref().map(Acts::view))?;
        backward_weight(s, dw.view(), db.view(), dy.view(), v, stats.view(), s.upload(examples)?.view())?;
        Ok([y.get()?, stats.get()?, sum.get()?, again.get()?, dx.get()?, dw.to_vec()?, db.to_vec()?])
    }

    /// v as the room sees it.
    fn v(&self) -> Vec<f32> {
        summed(&self.x, self.delta.as_deref())
    }
}

#[test]
fn against_f64() -> Result<()> {
    accurate(&stream())
}

#[test]
fn on_cuda_against_f64_and_as_on_the_cpu() {
    on_cuda("layer_norm", |s| accurate(s).and_then(|()| lawful(std::slice::from_ref(s))));
}

#[test]
fn on_cuda_in_bf16_the_cpus_values_rounded_once() {
    on_cuda("layer_norm bf16", |s| {
        for (n, c, residual) in [(1, 2, true), (5, 45, false), (3, 1030, true)] {
            let case = Case::new(n, c, residual).rounded();
            let examples = [0, n as u32 / 2, n as u32 / 2, n as u32];
            let [y, stats, sum, again, dx, dw, db] = case.stored(s, DType::Bf16, 0..n, &examples)?;
            // The CPU sees the sum as it was stored.
            let v = rounded(&case.v());
            let on_cpu = Case { x: v.clone(), delta: None, ..case };
            let law = on_cpu.run(&streams()[0], 0..n, &examples)?;
            for (got, want) in [(&y, &law[0]), (&again, &law[0]), (&dx, &law[4]), (&sum, if residual { &v } else { &sum })] {
                assert_eq!(bits(got), bits(&rounded(want)));
            }
            assert!(bits(&stats) == bits(&law[1]) && bits(&dw) == bits(&law[5]) && bits(&db) == bits(&law[6]));
            let (v, w, b, dy, eps) = (wide(&v), wide(&on_cpu.w), wide(&on_cpu.b), wide(&on_cpu.dy), on_cpu.eps as f64);
            let [mut want_dx, ..] = reference::backward(&dy, &v, &w, eps);
            let add = wide(&on_cpu.add.unwrap_or(vec![0.0; n * c]));
            want_dx.iter_mut().zip(add).for_each(|(d, a)| *d += a);
            rounds_once("layer_norm y", &y, &reference::forward(&v, &w, &b, eps).0, c);
            rounds_once("layer_norm dx", &dx, &want_dx, c);
        }
        Result::Ok(())
    });
}

fn accurate(s: &Stream) -> Result<()> {
    for (n, c, residual) in [(5, 45, false), (17, 288, true), (3, 1000, true), (2, 2049, false)] {
        let case = Case::new(n, c, residual);
        let [y, stats, sum, again, dx, dw, db] = case.run(s, 0..n, &[0, n as u32])?;
        let v = case.v();
        assert_eq!(bits(&sum), if residual { bits(&v) } else { vec![] });
        assert_eq!(bits(&again), bits(&y));
        let (v, w, b, dy, eps) = (wide(&v), wide(&case.w), wide(&case.b), wide(&case.dy), case.eps as f64);
        let (want_y, want_stats) = reference::forward(&v, &w, &b, eps);
        let [mut want_dx, want_dw, want_db] = reference::backward(&dy, &v, &w, eps);
        let add = wide(&case.add.unwrap_or(vec![0.0; n * c]));
        want_dx.iter_mut().zip(add).for_each(|(d, a)| *d += a);
        close("layer_norm y", &y, &want_y, 3e-7);
        close("layer_norm stats", &stats, &want_stats, 3e-7);
        close("layer_norm dx", &dx, &want_dx, 5e-7);
        close("layer_norm dw", &dw, &want_dw, 5e-7);
        close("layer_norm db", &db, &want_db, 5e-7);
    }
    Ok(())
}

/// A row of equal values has no spread but eps, and a row far from zero keeps its digits.
#[test]
fn rows_of_one_value_and_far_rows() -> Result<()> {
    let mut case = Case::new(2, 64, false);
    case.x = [vec![3.0; 64], (0..64).map(|i| 1000.0 + i as f32 / 64.0).collect()].concat();
    let [y, ..] = case.run(&stream(), 0..2, &[0, 2])?;
    let (want, _) = reference::forward(&wide(&case.x), &wide(&case.w), &wide(&case.b), case.eps as f64);
    close("layer_norm one value", &y[..64], &want[..64], 1e-7);
    close("layer_norm far", &y[64..], &want[64..], 1e-4);
    Ok(())
}

#[test]
fn the_reference_differentiates() {
    let (n, c, eps) = (3, 5, 1e-3);
    let (v, w, b, dy) = (wide(&normal(6, n * c)), wide(&normal(7, c)), wide(&normal(9, c)), wide(&normal(8, n * c)));
    let [dx, dw, db] = reference::backward(&dy, &v, &w, eps);
    let along = |v: &[f64], w: &[f64], b: &[f64]| reference::forward(v, w, b, eps).0.iter().zip(&dy).map(|(y, d)| y * d).sum();
    differentiates("dx", &|v| along(v, &w, &b), &v, &dx);
    differentiates("dw", &|w| along(&v, w, &b), &w, &dw);
    differentiates("db", &|b| along(&v, &w, b), &b, &db);
}

#[test]
fn the_law() -> Result<()> {
    lawful(&streams())
}

/// Every stream and every cut writes the bits of the portable CPU.
fn lawful(on: &[Stream]) -> Result<()> {
    for (n, c, residual) in [(64, 45, true), (64, 32, false)] {
        let case = Case::new(n, c, residual);
        let examples = [0, 1, 1, 4, 4, 4, 4, 21, 21, n as u32];
        check::lawful(on, n, 5, |s, cut| {
            let own = [0, cut.len() as u32];
            case.run(s, cut.clone(), if cut.len() == n { &examples } else { &own })
        })?;
    }
    Ok(())
}

#[test]
fn examples_add_one_by_one() -> Result<()> {
    let case = Case::new(21, 45, false);
    check::examples_add(|cut, examples| Ok(case.run(&stream(), cut, examples)?[5..].to_vec()))
}

#[test]
fn golden() -> Result<()> {
    let Some(file) = Golden::open("layernorm") else { return Ok(()) };
    let (x, w, b, eps) = (file.f32("x"), file.f32("w"), file.f32("b"), file.number("eps") as f32);
    let (c, n) = (w.len(), x.len() / w.len());
    let case = Case { c, x, delta: None, dy: file.f32("g"), w, b, add: None, eps };
    let got = case.run(&stream(), 0..n, &[0, n as u32])?;
    for (i, name, limit) in [(0, "y", 3e-7), (4, "d_x", 5e-7), (5, "d_w", 5e-7), (6, "d_b", 5e-7)] {
        close(&format!("layernorm {name}"), &got[i], &file.f64(name), limit);
    }
    Ok(())
}

#[test]
fn wrong_operands_are_refused() -> Result<()> {
    let s = stream();
    let (x, y, w, b, r) = (s.zeros::<f32>(12)?, s.zeros::<f32>(12)?, s.zeros::<f32>(4)?, s.zeros::<f32>(4)?, s.zeros::<f32>(6)?);
    let none = View::none(F32);
    let go = |y: View, x: View, delta, sum, b: View| forward(&s, y, r.view(), sum, x, delta, [w.view(), b], 1e-5);
    assert!(go(y.view(), x.view(), None, none, b.view()).is_ok());
    assert!(go(x.view(), x.view(), None, none, b.view()).is_err());
    assert!(go(y.view().slice(0..8)?, x.view(), None, none, b.view()).is_err());
    assert!(go(y.view(), x.view(), Some(x.view()), none, b.view()).is_err());
    assert!(go(y.view(), x.view(), None, none, b.view().slice(0..3)?).is_err());
    let spans = |spans: &[u32]| backward_weight(&s, w.view(), b.view(), y.view(), x.view(), r.view(), s.upload(spans)?.view());
    assert!(spans(&[0, 3]).is_ok() && spans(&[2, 1]).is_err() && spans(&[0, 4]).is_err() && spans(&[0]).is_err());
    assert!(backward_weight(&s, w.view(), w.view(), y.view(), x.view(), r.view(), s.upload(&[0u32, 3])?.view()).is_err());
    Ok(())
}
