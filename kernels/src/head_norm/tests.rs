use super::*;
use crate::check::{self, Acts, bits, close, differentiates, normal, on_cuda, rounded, rounds_once, stream, streams, wide};

/// Inputs of one case; `rows` picks a cut of them.
struct Case {
    shape: Shape,
    x: Vec<f32>,
    d: Vec<f32>,
    w: [Vec<f32>; 2],
    eps: f32,
    offset: f32,
}

/// What the room makes of it: y, rstd, dx, dwq, dwk.
type Made = [Vec<f32>; 5];

impl Case {
    fn new(n: usize, [queries, keys, d]: [usize; 3], offset: f32) -> Case {
        let stride = (queries + 2 * keys) * d;
        let [x, dy] = [1, 2].map(|seed| normal(seed, n * stride));
        Case { shape: Shape { queries, keys, d, stride }, x, d: dy, w: [normal(3, d), normal(4, d)], eps: 1e-5, offset }
    }

    fn run(&self, s: &Stream, rows: std::ops::Range<usize>, examples: &[u32]) -> Result<Made> {
        self.stored(s, F32, rows, examples)
    }

    fn stored(&self, s: &Stream, dtype: DType, rows: std::ops::Range<usize>, examples: &[u32]) -> Result<Made> {
        let (shape, part) = (self.shape, rows.start * self.shape.stride..rows.end * self.shape.stride);
        let (x, d) = (Acts::put(s, dtype, &self.x[part.clone()])?, Acts::put(s, dtype, &self.d[part.clone()])?);
        let w = [s.upload(&self.w[0])?, s.upload(&self.w[1])?];
        let w = [w[0].view(), w[1].view()];
        let (y, rstd) = (Acts::nan(s, dtype, part.len())?, Acts::nan(s, F32, rows.len() * shape.heads())?);
        let dw = [s.zeros::<f32>(shape.d)?, s.zeros::<f32>(shape.d)?];
        forward(s, y.view(), rstd.view(), x.view(), w, shape, self.eps, self.offset)?;
        let examples = s.upload(examples)?;
        backward_weight(s, [dw[0].view(), dw[1].view()], d.view(), x.view(), rstd.view(), examples.view(), shape)?;
        backward(s, d.view(), x.view(), rstd.view(), w, shape, self.offset)?;
        Ok([y.get()?, rstd.get()?, d.get()?, dw[0].to_vec()?, dw[1].to_vec()?])
    }
}

#[test]
fn against_f64() -> Result<()> {
    accurate(&stream())
}

#[test]
fn on_cuda_against_f64_and_as_on_the_cpu() {
    on_cuda("head_norm", |s| accurate(s).and_then(|()| lawful(std::slice::from_ref(s), 9)));
}

#[test]
fn on_cuda_in_bf16_the_cpus_values_rounded_once() {
    on_cuda("head_norm bf16", |s| {
        for (n, heads, offset) in [(1, [1, 1, 1], 0.0), (5, [4, 2, 16], 1.0), (3, [3, 2, 45], 0.0)] {
            let case = Case::new(n, heads, offset);
            let case = Case { x: rounded(&case.x), d: rounded(&case.d), ..case };
            let examples = [0, n as u32 / 2, n as u32 / 2, n as u32];
            let [y, rstd, dx, dwq, dwk] = case.stored(s, DType::Bf16, 0..n, &examples)?;
            let law = case.run(&streams()[0], 0..n, &examples)?;
            assert!(bits(&y) == bits(&rounded(&law[0])) && bits(&dx) == bits(&rounded(&law[2])));
            assert!(bits(&rstd) == bits(&law[1]) && bits(&dwq) == bits(&law[3]) && bits(&dwk) == bits(&law[4]));
            let (x, d, w) = (wide(&case.x), wide(&case.d), [wide(&case.w[0]), wide(&case.w[1])]);
            let (w, eps, offset) = ([&w[0][..], &w[1][..]], case.eps as f64, offset as f64);
            let stride = case.shape.stride;
            rounds_once("head_norm y", &y, &reference::forward(&x, w, case.shape, eps, offset).0, stride);
            rounds_once("head_norm dx", &dx, &reference::backward(&d, &x, w, case.shape, eps, offset).0, stride);
        }
        Result::Ok(())
    });
}

fn accurate(s: &Stream) -> Result<()> {
    for (n, heads, offset) in [(1, [1, 1, 1], 0.0), (5, [4, 2, 16], 1.0), (17, [3, 3, 45], 0.0), (3, [2, 1, 256], 1.0)] {
        let case = Case::new(n, heads, offset);
        let [y, rstd, dx, dwq, dwk] = case.run(s, 0..n, &[0, n as u32])?;
        let (x, d, w) = (wide(&case.x), wide(&case.d), [wide(&case.w[0]), wide(&case.w[1])]);
        let (w, eps, offset) = ([&w[0][..], &w[1][..]], case.eps as f64, offset as f64);
        let (want_y, want_rstd) = reference::forward(&x, w, case.shape, eps, offset);
        let (want_dx, want_dw) = reference::backward(&d, &x, w, case.shape, eps, offset);
        close("head_norm y", &y, &want_y, 3e-7);
        close("head_norm rstd", &rstd, &want_rstd, 3e-7);
        close("head_norm dx", &dx, &want_dx, 5e-7);
        close("head_norm dwq", &dwq, &want_dw[0], 5e-7);
        close("head_norm dwk", &dwk, &want_dw[1], 5e-7);
        let values = case.shape.heads() * case.shape.d..case.shape.stride;
        for n in (0..n).map(|n| n * case.shape.stride) {
            let part = n + values.start..n + values.end;
            assert_eq!((&y[part.clone()], &dx[part.clone()]), (&case.x[part.clone()], &case.d[part]), "values must stay");
        }
    }
    Ok(())
}

#[test]
fn the_reference_differentiates() {
    let (shape, eps) = (Shape { queries: 2, keys: 1, d: 3, stride: 12 }, 1e-3);
    let (x, d, wq, wk) = (wide(&normal(5, 24)), wide(&normal(6, 24)), wide(&normal(7, 3)), wide(&normal(8, 3)));
    let (dx, dw) = reference::backward(&d, &x, [&wq, &wk], shape, eps, 1.0);
    let along = |x: &[f64], wq: &[f64], wk: &[f64]| {
        reference::forward(x, [wq, wk], shape, eps, 1.0).0.iter().zip(&d).map(|(y, d)| y * d).sum()
    };
    differentiates("dx", &|x| along(x, &wq, &wk), &x, &dx);
    differentiates("dwq", &|w| along(&x, w, &wk), &wq, &dw[0]);
    differentiates("dwk", &|w| along(&x, &wq, w), &wk, &dw[1]);
}

/// A head alone is a row of rms_norm, to the bit.
#[test]
fn a_head_is_a_row_of_rms_norm() -> Result<()> {
    let (s, case) = (stream(), Case::new(7, [1, 1, 45], 1.0));
    let made = case.run(&s, 0..7, &[0, 7])?;
    let heads: Vec<f32> = case.x.chunks(case.shape.stride).flat_map(|row| row[..45].to_vec()).collect();
    let (y, rstd) = (s.zeros::<f32>(heads.len())?, s.zeros::<f32>(7)?);
    let (x, w, none) = (s.upload(&heads)?, s.upload(&case.w[0])?, View::none(F32));
    crate::rms_norm::forward(&s, y.view(), rstd.view(), none, x.view(), None, w.view(), case.eps, 1.0)?;
    let ours: Vec<f32> = made[0].chunks(case.shape.stride).flat_map(|row| row[..45].to_vec()).collect();
    assert_eq!(bits(&ours), bits(&y.to_vec()?));
    Ok(())
}

#[test]
fn the_law() -> Result<()> {
    lawful(&streams(), 64)
}

/// Every stream and every cut of so many rows writes the bits of the portable CPU.
fn lawful(on: &[Stream], n: usize) -> Result<()> {
    for heads in [[4, 2, 45], [2, 2, 32]] {
        let case = Case::new(n, heads, 1.0);
        let (small, all) = (n as u32 / 3, n as u32);
        let examples = [0, 1, 1, small, small, small, small, all];
        check::lawful(on, n, 3, |s, cut| {
            let own = [0, cut.len() as u32];
            case.run(s, cut.clone(), if cut.len() == n { &examples } else { &own })
        })?;
    }
    Ok(())
}

#[test]
fn examples_add_one_by_one() -> Result<()> {
    let case = Case::new(21, [4, 2, 45], 0.0);
    check::examples_add(|cut, examples| Ok(case.run(&stream(), cut, examples)?[3..].to_vec()))
}

#[test]
fn wrong_operands_are_refused() -> Result<()> {
    let s = stream();
    let (x, y, w, r) = (s.zeros::<f32>(24)?, s.zeros::<f32>(24)?, s.zeros::<f32>(2)?, s.zeros::<f32>(6)?);
    let shape = Shape { queries: 2, keys: 1, d: 2, stride: 12 };
    let go = |y: View, x: View, shape| forward(&s, y, r.view(), x, [w.view(), w.view()], shape, 1e-5, 0.0);
    assert!(go(y.view(), x.view(), shape).is_ok());
    assert!(go(x.view(), x.view(), shape).is_err());
    assert!(go(y.view().slice(0..12)?, x.view(), shape).is_err());
    for wrong in [Shape { stride: 5, ..shape }, Shape { d: 0, ..shape }, Shape { d: 3, ..shape }, Shape { queries: 3, ..shape }] {
        assert!(go(y.view(), x.view(), wrong).is_err(), "{wrong:?}");
    }
    let v = s.zeros::<f32>(2)?;
    let spans =
        |spans: &[u32]| backward_weight(&s, [w.view(), v.view()], y.view(), x.view(), r.view(), s.upload(spans)?.view(), shape);
    assert!(spans(&[0, 2]).is_ok() && spans(&[2, 1]).is_err() && spans(&[0, 3]).is_err() && spans(&[0]).is_err());
    let same = backward_weight(&s, [w.view(), w.view()], y.view(), x.view(), r.view(), s.upload(&[0u32, 2])?.view(), shape);
    assert!(same.is_err(), "one gradient for both");
    Ok(())
}
