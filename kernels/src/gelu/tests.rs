use super::*;
use crate::check::{self, Acts, Golden, apart, beside, bits, close, differentiates, normal, on_cuda, rounded, rounds_once};
use crate::check::{stream, streams, wide};
use runtime::{DType, DType::F32};

const CURVES: [Curve; 2] = [Curve::Tanh, Curve::Erf];

/// y and dx.
fn run(s: &Stream, x: &[f32], dy: &[f32], f: usize, curve: Curve) -> Result<[Vec<f32>; 2]> {
    stored(s, F32, x, dy, f, curve)
}

fn stored(s: &Stream, dtype: DType, x: &[f32], dy: &[f32], f: usize, curve: Curve) -> Result<[Vec<f32>; 2]> {
    let (y, d) = (Acts::nan(s, dtype, dy.len())?, Acts::nan(s, dtype, x.len())?);
    let (x, dy) = (Acts::put(s, dtype, x)?, Acts::put(s, dtype, dy)?);
    forward(s, y.view(), x.view(), f, curve)?;
    backward(s, d.view(), dy.view(), x.view(), f, curve)?;
    Ok([y.get()?, d.get()?])
}

#[test]
fn against_f64() -> Result<()> {
    accurate(&stream())
}

#[test]
fn on_cuda_against_f64_and_as_on_the_cpu() {
    on_cuda("gelu", |s| accurate(s).and_then(|()| lawful(std::slice::from_ref(s))));
    on_cuda("gelu far", far);
}

#[test]
fn on_cuda_in_bf16_the_cpus_values_rounded_once() {
    on_cuda("gelu bf16", |s| {
        for (curve, (n, f)) in CURVES.into_iter().flat_map(|c| [(1, 1), (3, 15), (17, 129)].map(|size| (c, size))) {
            let gate = rounded(&normal(1, n * f).iter().map(|g| 2.0 * g).collect::<Vec<_>>());
            let (up, dy) = (rounded(&normal(2, n * f)), rounded(&normal(3, n * f)));
            let (g, u, d) = (wide(&gate), wide(&up), wide(&dy));
            let both = beside(&gate, &up, f);
            for x in [&gate, &both] {
                let (got, law) = (stored(s, DType::Bf16, x, &dy, f, curve)?, run(&streams()[0], x, &dy, f, curve)?);
                assert!(bits(&got[0]) == bits(&rounded(&law[0])) && bits(&got[1]) == bits(&rounded(&law[1])));
                let u = (x.len() > dy.len()).then_some(&u[..]);
                rounds_once("gelu y", &got[0], &reference::forward(&g, u, curve), f);
                let (want_dg, want_du) = reference::backward(&d, &g, u, curve);
                let [dg, du] = if u.is_some() { apart(&got[1], f) } else { [got[1].clone(), Vec::new()] };
                rounds_once("gelu dg", &dg, &want_dg, f);
                rounds_once("gelu du", &du, &want_du, f);
            }
        }
        Result::Ok(())
    });
}

fn accurate(s: &Stream) -> Result<()> {
    for (curve, (n, f)) in CURVES.into_iter().flat_map(|c| [(1, 1), (3, 15), (5, 33), (17, 768)].map(|size| (c, size))) {
        let gate: Vec<f32> = normal(1, n * f).iter().map(|g| 2.0 * g).collect();
        let (up, dy) = (normal(2, n * f), normal(3, n * f));
        let (g, u, d) = (wide(&gate), wide(&up), wide(&dy));
        let [y, dx] = run(s, &gate, &dy, f, curve)?;
        close("gelu y", &y, &reference::forward(&g, None, curve), 4e-7);
        close("gelu dx", &dx, &reference::backward(&d, &g, None, curve).0, 6e-7);
        let [y, dx] = run(s, &beside(&gate, &up, f), &dy, f, curve)?;
        close("geglu y", &y, &reference::forward(&g, Some(&u), curve), 4e-7);
        let ([dg, du], (want_dg, want_du)) = (apart(&dx, f), reference::backward(&d, &g, Some(&u), curve));
        close("geglu dg", &dg, &want_dg, 6e-7);
        close("geglu du", &du, &want_du, 6e-7);
    }
    Ok(())
}

#[test]
fn the_reference_differentiates() {
    let (g, u, dy) = (wide(&normal(4, 9)), wide(&normal(5, 9)), wide(&normal(6, 9)));
    for curve in CURVES {
        let (dg, du) = reference::backward(&dy, &g, Some(&u), curve);
        let along = |g: &[f64], u: &[f64]| reference::forward(g, Some(u), curve).iter().zip(&dy).map(|(y, d)| y * d).sum();
        differentiates("dg", &|g| along(g, &u), &g, &dg);
        differentiates("du", &|u| along(&g, u), &u, &du);
    }
}

#[test]
fn the_law() -> Result<()> {
    lawful(&streams())
}

/// Every stream and every cut writes the bits of the portable CPU.
fn lawful(on: &[Stream]) -> Result<()> {
    let (n, f) = (64, 45);
    for (curve, columns) in CURVES.into_iter().flat_map(|c| [(c, f), (c, 2 * f)]) {
        let (x, dy) = (normal(7, columns * n), normal(8, n * f));
        check::lawful(on, n, 2, |s, cut| {
            run(s, &x[columns * cut.start..columns * cut.end], &dy[cut.start * f..cut.end * f], f, curve)
        })?;
    }
    Ok(())
}

#[test]
fn far_values_are_finite() -> Result<()> {
    far(&stream())
}

fn far(s: &Stream) -> Result<()> {
    let x = [-200.0, -20.0, -0.0, 20.0, 200.0];
    for curve in CURVES {
        let [y, d] = run(s, &x, &[1.0; 5], 5, curve)?;
        close("gelu y", &y, &[0.0, 0.0, 0.0, 20.0, 200.0], 1e-7);
        close("gelu d", &d, &[0.0, 0.0, 0.5, 1.0, 1.0], 1e-7);
    }
    Ok(())
}

#[test]
fn golden() -> Result<()> {
    for (name, curve) in [("gelu_tanh", Curve::Tanh), ("gelu_erf", Curve::Erf)] {
        let Some(file) = Golden::open(name) else { continue };
        let [y, d] = run(&stream(), &file.f32("x"), &file.f32("g"), file.shape("x")[1], curve)?;
        close(&format!("{name} y"), &y, &file.f64("y"), 4e-7);
        close(&format!("{name} d_x"), &d, &file.f64("d_x"), 6e-7);
    }
    let Some(file) = Golden::open("geglu_tanh") else { return Ok(()) };
    let f = file.shape("gate")[1];
    let [y, d] = run(&stream(), &beside(&file.f32("gate"), &file.f32("up"), f), &file.f32("g"), f, Curve::Tanh)?;
    let [dg, du] = apart(&d, f);
    close("geglu y", &y, &file.f64("y"), 4e-7);
    close("geglu d_gate", &dg, &file.f64("d_gate"), 6e-7);
    close("geglu d_up", &du, &file.f64("d_up"), 6e-7);
    Ok(())
}

#[test]
fn wrong_operands_are_refused() -> Result<()> {
    let s = stream();
    let (y, x) = (s.zeros::<f32>(6)?, s.zeros::<f32>(12)?);
    let go = |y: View, x: View, f| forward(&s, y, x, f, Curve::Tanh);
    assert!(go(y.view(), x.view(), 3).is_ok() && go(y.view(), x.view(), 4).is_err());
    assert!(go(y.view(), x.view(), 0).is_err() && go(x.view(), x.view(), 6).is_err() && go(x.view(), y.view(), 6).is_err());
    assert!(backward(&s, x.view(), y.view(), x.view(), 3, Curve::Erf).is_err());
    assert!(backward(&s, y.view(), y.view(), x.view(), 3, Curve::Erf).is_err());
    Ok(())
}
