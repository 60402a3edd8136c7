use super::*;
use crate::check::{Acts, below, bits, close, differentiates, normal, on_cuda, rounded, stream, streams, wide};
use runtime::DType;

/// out, dx and dw (over a dw of ones).
fn run(s: &Stream, x: &[f32], rows: &[u32], w: &[f32], dout: &[f32], examples: &[u32]) -> Result<[Vec<f32>; 3]> {
    stored(s, F32, x, rows, w, dout, examples)
}

/// The same with x and dx stored so.
fn stored(s: &Stream, dtype: DType, x: &[f32], rows: &[u32], w: &[f32], dout: &[f32], examples: &[u32]) -> Result<[Vec<f32>; 3]> {
    let (out, dx) = (s.upload(&vec![f32::NAN; rows.len()])?, Acts::nan(s, dtype, x.len())?);
    let dw = s.upload(&vec![1f32; w.len()])?;
    let (x, rows, w, dout) = (Acts::put(s, dtype, x)?, s.upload(rows)?, s.upload(w)?, s.upload(dout)?);
    forward(s, out.view(), x.view(), rows.view(), w.view())?;
    backward(s, dx.view(), dout.view(), rows.view(), w.view())?;
    backward_weight(s, dw.view(), dout.view(), x.view(), rows.view(), s.upload(examples)?.view())?;
    Ok([out.to_vec()?, dx.get()?, dw.to_vec()?])
}

#[test]
fn against_f64() -> Result<()> {
    accurate(&stream(), &[(1, 1, 1), (7, 3, 45), (40, 70, 288), (9, 0, 5)])
}

#[test]
fn on_cuda_against_f64_and_as_on_the_cpu() {
    on_cuda("score", |s| {
        accurate(s, &[(1, 1, 1), (7, 3, 45), (9, 0, 5)])?;
        for dtype in [F32, DType::Bf16] {
            let (n, m, c) = (9, 300, 290);
            let (x, rows, w, dout) = (rounded(&normal(1, n * c)), below(2, m, n as u32 - 1), normal(3, c), normal(4, m));
            let examples = [0, 1, 1, 1, 1, 21, 21, 300];
            let law = run(&streams()[0], &x, &rows, &w, &dout, &examples)?;
            for _ in 0..2 {
                let [out, dx, dw] = stored(s, dtype, &x, &rows, &w, &dout, &examples)?;
                let want_dx = if dtype == F32 { law[1].clone() } else { rounded(&law[1]) };
                assert!(bits(&out) == bits(&law[0]) && bits(&dx) == bits(&want_dx) && bits(&dw) == bits(&law[2]), "{dtype}");
            }
        }
        let [out, dx, dw] = run(s, &[1.0; 6], &[2, 3], &[1.0; 2], &[1.0; 2], &[0, 9])?;
        assert!(out[0] == 2.0 && out[1].is_nan() && dx == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0] && dw[0].is_nan());
        Result::Ok(())
    });
}

fn accurate(s: &Stream, shapes: &[(usize, usize, usize)]) -> Result<()> {
    for &(n, m, c) in shapes {
        let (x, rows, w, dout) = (normal(1, n * c), below(2, m, n as u32), normal(3, c), normal(4, m));
        let [out, dx, dw] = run(s, &x, &rows, &w, &dout, &[0, m as u32])?;
        let (x, w, dout) = (wide(&x), wide(&w), wide(&dout));
        let (want_dx, mut want_dw) = reference::backward(&dout, &x, &rows, &w);
        want_dw.iter_mut().for_each(|d| *d += 1.0);
        close("score out", &out, &reference::forward(&x, &rows, &w), 1e-6);
        close("score dx", &dx, &want_dx, 3e-7);
        close("score dw", &dw, &want_dw, 5e-7);
    }
    Ok(())
}

#[test]
fn the_reference_differentiates() {
    let (x, rows, w, dout) = (wide(&normal(5, 12)), [3, 0, 3], wide(&normal(6, 3)), wide(&normal(7, 3)));
    let (dx, dw) = reference::backward(&dout, &x, &rows, &w);
    let along = |x: &[f64], w: &[f64]| reference::forward(x, &rows, w).iter().zip(&dout).map(|(o, d)| o * d).sum();
    differentiates("dx", &|x| along(x, &w), &x, &dx);
    differentiates("dw", &|w| along(&x, w), &w, &dw);
}

#[test]
fn the_law() -> Result<()> {
    let (n, m, c) = (80, 64, 45);
    let (x, rows, w, dout) = (normal(8, n * c), below(9, m, n as u32), normal(10, c), normal(11, m));
    let (whole, examples) = ([0, 64], [0, 1, 1, 4, 4, 4, 4, 21, 21, 64]);
    let chain = |r: u32| (0..c).fold(0f32, |acc, i| x[r as usize * c + i].mul_add(w[i], acc));
    let law = run(&streams()[0], &x, &rows, &w, &dout, &examples)?;
    assert_eq!(bits(&law[0]), bits(&rows.iter().map(|r| chain(*r)).collect::<Vec<_>>()));
    for s in streams() {
        let got = run(&s, &x, &rows, &w, &dout, &examples)?;
        assert!((0..3).all(|i| bits(&law[i]) == bits(&got[i])), "{:?}", s.host());
        let mut total = vec![1f32; c];
        for cut in [0..1, 1..4, 4..21, 21..64] {
            let own = [0, cut.len() as u32];
            let part = run(&s, &x, &rows[cut.clone()], &w, &dout[cut.clone()], &own)?;
            assert_eq!(bits(&law[0][cut.clone()]), bits(&part[0]), "{cut:?}");
            let alone = partial(&x, &rows[cut.clone()], &dout[cut], c);
            total.iter_mut().zip(alone).for_each(|(t, p)| *t += p);
        }
        assert_eq!(bits(&law[2]), bits(&total), "examples add one by one");
        assert_ne!(bits(&law[2]), bits(&run(&s, &x, &rows, &w, &dout, &whole)?[2]), "one example is another chain");
    }
    Ok(())
}

/// One example's chain.
fn partial(x: &[f32], rows: &[u32], dout: &[f32], c: usize) -> Vec<f32> {
    let entries = || rows.iter().zip(dout);
    (0..c).map(|i| entries().fold(0f32, |p, (r, d)| d.mul_add(x[*r as usize * c + i], p))).collect()
}

#[test]
fn entries_of_one_row_add_in_list_order() -> Result<()> {
    let (w, dout) = ([1.0, 3.0], [1e8, 1.0, -1e8]);
    let [_, dx, _] = run(&stream(), &[0.0; 6], &[2, 2, 2], &w, &dout, &[0, 3])?;
    assert_eq!(dx, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let [_, dx, _] = run(&stream(), &[0.0; 6], &[2, 2, 2], &w, &[1e8, -1e8, 1.0], &[0, 3])?;
    assert_eq!(dx, [0.0, 0.0, 0.0, 0.0, 1.0, 3.0]);
    Ok(())
}

#[test]
fn wrong_operands_are_refused() -> Result<()> {
    let s = stream();
    let go = |rows: &[u32], dout: &[f32], spans: &[u32]| run(&s, &[1.0; 6], rows, &[1.0; 2], dout, spans);
    assert!(go(&[0, 2], &[1.0; 2], &[0, 2]).is_ok());
    let error = go(&[0, 3], &[1.0; 2], &[0, 2]).unwrap_err().to_string();
    assert!(error.contains("entry 1") && error.contains("row 3"), "{error}");
    assert!(go(&[0, 2], &[1.0; 3], &[0, 2]).is_err() && go(&[0, 2], &[1.0; 2], &[0, 3]).is_err());
    assert!(run(&s, &[1.0; 5], &[0], &[1.0; 2], &[1.0], &[0, 1]).is_err());
    Ok(())
}
