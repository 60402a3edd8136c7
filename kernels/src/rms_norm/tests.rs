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
    add: Option<Vec<f32>>,
    eps: f32,
    offset: f32,
}

/// What the room makes of it: y, rstd, sum, y again, dx, dw.
type Made = [Vec<f32>; 6];

impl Case {
    fn new(n: usize, c: usize, residual: bool, offset: f32) -> Case {
        let some = |seed| residual.then(|| normal(seed, n * c));
        let (x, dy, w) = (normal(1, n * c), normal(2, n * c), normal(3, c));
        Case { c, x, delta: some(4), dy, w, add: some(5), eps: 1e-5, offset }
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
        let (n, part) = (rows.len(), rows.start * self.c..rows.end * self.c);
        let nan = |len: usize| Acts::nan(s, dtype, len);
        let up = |v: &Vec<f32>| Acts::put(s, dtype, &v[part.clone()]);
        let (x, dy, w) = (up(&self.x)?, up(&self.dy)?, s.upload(&self.w)?);
        let delta: Option<Acts> = self.delta.as_ref().map(up).transpose()?;
        let add = self.add.as_ref().map(up).transpose()?;
        let (y, rstd, again, dx) = (nan(part.len())?, Acts::nan(s, F32, n)?, nan(part.len())?, nan(part.len())?);
        let sum = nan(if delta.is_some() { part.len() } else { 0 })?;
        let dw = s.zeros::<f32>(self.c)?;
        let delta = delta.as_ref().map(Acts::view);
        forward(s, y.view(), rstd.view(), sum.view(), x.view(), delta, w.view(), self.eps, self.offset)?;
        let v = if delta.is_some() { sum.view() } else { x.view() };
        apply(s, again.view(), v, rstd.view(), w.view(), self.offset)?;
        backward(s, dx.view(), dy.view(), v, rstd.view(), w.view(), add.as_ref().map(Acts::view), self.offset)?;
        backward_weight(s, dw.view(), dy.view(), v, rstd.view(), s.upload(examples)?.view())?;
        Ok([y.get()?, rstd.get()?, sum.get()?, again.get()?, dx.get()?, dw.to_vec()?])
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
    on_cuda("rms_norm", |s| accurate(s).and_then(|()| lawful(std::slice::from_ref(s))));
}

#[test]
fn on_cuda_in_bf16_the_cpus_values_rounded_once() {
    on_cuda("rms_norm bf16", |s| {
        for (n, c, residual, offset) in [(1, 1, true, 0.0), (5, 45, false, 1.0), (3, 1030, true, 0.0)] {
            let case = Case::new(n, c, residual, offset).rounded();
            let examples = [0, n as u32 / 2, n as u32 / 2, n as u32];
            let [y, rstd, sum, again, dx, dw] = case.stored(s, DType::Bf16, 0..n, &examples)?;
            // The CPU sees the sum as it was stored.
            let v = rounded(&case.v());
            let on_cpu = Case { x: v.clone(), delta: None, ..case };
            let law = on_cpu.run(&streams()[0], 0..n, &examples)?;
            for (got, want) in [(&y, &law[0]), (&again, &law[0]), (&dx, &law[4]), (&sum, if residual { &v } else { &sum })] {
                assert_eq!(bits(got), bits(&rounded(want)));
            }
            assert!(bits(&rstd) == bits(&law[1]) && bits(&dw) == bits(&law[5]));
            let (v, w, dy, eps) = (wide(&v), wide(&on_cpu.w), wide(&on_cpu.dy), on_cpu.eps as f64);
            let mut want_dx = reference::backward(&dy, &v, &w, eps, offset as f64).0;
            let add = wide(&on_cpu.add.unwrap_or(vec![0.0; n * c]));
            want_dx.iter_mut().zip(add).for_each(|(d, a)| *d += a);
            rounds_once("rms_norm y", &y, &reference::forward(&v, &w, eps, offset as f64).0, c);
            rounds_once("rms_norm dx", &dx, &want_dx, c);
        }
        Result::Ok(())
    });
}

fn accurate(s: &Stream) -> Result<()> {
    for (n, c, residual, offset) in
        [(1, 1, true, 0.0), (5, 45, false, 1.0), (17, 288, true, 0.0), (3, 1000, true, 1.0), (2, 2049, true, 0.0)]
    {
        let case = Case::new(n, c, residual, offset);
        let [y, rstd, sum, again, dx, dw] = case.run(s, 0..n, &[0, n as u32])?;
        let v = case.v();
        assert_eq!(bits(&sum), if residual { bits(&v) } else { vec![] });
        assert_eq!(bits(&again), bits(&y));
        let (v, w, dy) = (wide(&v), wide(&case.w), wide(&case.dy));
        let (want_y, want_rstd) = reference::forward(&v, &w, case.eps as f64, offset as f64);
        let (mut want_dx, want_dw) = reference::backward(&dy, &v, &w, case.eps as f64, offset as f64);
        let add = wide(&case.add.unwrap_or(vec![0.0; n * c]));
        want_dx.iter_mut().zip(add).for_each(|(d, a)| *d += a);
        close("rms_norm y", &y, &want_y, 3e-7);
        close("rms_norm rstd", &rstd, &want_rstd, 3e-7);
        close("rms_norm dx", &dx, &want_dx, 5e-7);
        close("rms_norm dw", &dw, &want_dw, 5e-7);
    }
    Ok(())
}

#[test]
fn the_reference_differentiates() {
    let (n, c, eps) = (3, 5, 1e-3);
    let (v, w, dy) = (wide(&normal(6, n * c)), wide(&normal(7, c)), wide(&normal(8, n * c)));
    let (dx, dw) = reference::backward(&dy, &v, &w, eps, 1.0);
    let along = |v: &[f64], w: &[f64]| reference::forward(v, w, eps, 1.0).0.iter().zip(&dy).map(|(y, d)| y * d).sum();
    differentiates("dx", &|v| along(v, &w), &v, &dx);
    differentiates("dw", &|w| along(&v, w), &w, &dw);
}

#[test]
fn the_law() -> Result<()> {
    lawful(&streams())
}

/// Every stream and every cut writes the bits of the portable CPU.
fn lawful(on: &[Stream]) -> Result<()> {
    for (n, c, residual) in [(64, 45, true), (64, 32, false)] {
        let case = Case::new(n, c, residual, 1.0);
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
    let case = Case::new(21, 45, false, 0.0);
    check::examples_add(|cut, examples| Ok(case.run(&stream(), cut, examples)?[5..].to_vec()))
}

#[test]
fn golden() -> Result<()> {
    let s = stream();
    for (name, dy, dx, dw, offset) in
        [("rmsnorm", "g", "d_x", "d_w", 0.0), ("rmsnorm_plus_one", "g", "d_x", "d_w", 1.0), ("rmsnorm_dw", "dy", "dx", "dw", 0.0)]
    {
        let Some(file) = Golden::open(name) else { continue };
        let (x, w, eps) = (file.f32("x"), file.f32("w"), file.number("eps") as f32);
        let c = w.len();
        let n = x.len() / c;
        let case = Case { c, x, delta: None, dy: file.f32(dy), w, add: None, eps, offset };
        let got = case.run(&s, 0..n, &[0, n as u32])?;
        close(&format!("{name} y"), &got[0], &file.f64("y"), 3e-7);
        close(&format!("{name} dx"), &got[4], &file.f64(dx), 5e-7);
        close(&format!("{name} dw"), &got[5], &file.f64(dw), 5e-7);
    }
    Ok(())
}

#[test]
fn wrong_operands_are_refused() -> Result<()> {
    let s = stream();
    let (x, w, r) = (s.zeros::<f32>(12)?, s.zeros::<f32>(4)?, s.zeros::<f32>(3)?);
    let (y, none) = (s.zeros::<f32>(12)?, View::none(F32));
    let go = |y: View, x: View, delta, sum| forward(&s, y, r.view(), sum, x, delta, w.view(), 1e-5, 0.0);
    assert!(go(y.view(), x.view(), None, none).is_ok());
    assert!(go(x.view(), x.view(), None, none).is_err());
    assert!(go(y.view().slice(0..8)?, x.view(), None, none).is_err());
    assert!(go(y.view(), x.view(), Some(x.view()), none).is_err());
    assert!(go(y.view(), x.view(), Some(w.view()), w.view()).is_err());
    let spans = |spans: &[u32]| backward_weight(&s, w.view(), y.view(), x.view(), r.view(), s.upload(spans)?.view());
    assert!(spans(&[0, 3]).is_ok() && spans(&[2, 1]).is_err() && spans(&[0, 4]).is_err() && spans(&[0]).is_err());
    Ok(())
}
