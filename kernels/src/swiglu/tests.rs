use super::*;
use crate::check::{self, Acts, Golden, apart, beside, bits, close, differentiates, normal, on_cuda, rounded, rounds_once};
use crate::check::{stream, streams, wide};
use runtime::{DType, DType::F32};

/// y and dgate_up.
fn run(s: &Stream, dtype: DType, gate_up: &[f32], dy: &[f32], f: usize) -> Result<[Vec<f32>; 2]> {
    let (y, d) = (Acts::nan(s, dtype, dy.len())?, Acts::nan(s, dtype, gate_up.len())?);
    let (gate_up, dy) = (Acts::put(s, dtype, gate_up)?, Acts::put(s, dtype, dy)?);
    forward(s, y.view(), gate_up.view(), f)?;
    backward(s, d.view(), dy.view(), gate_up.view(), f)?;
    Ok([y.get()?, d.get()?])
}

#[test]
fn against_f64() -> Result<()> {
    accurate(&stream())
}

#[test]
fn on_cuda_against_f64_and_as_on_the_cpu() {
    on_cuda("swiglu", accurate);
    on_cuda("swiglu", |s| lawful(std::slice::from_ref(s)));
}

#[test]
fn on_cuda_in_bf16_the_cpus_values_rounded_once() {
    on_cuda("swiglu bf16", |s| {
        for (n, f) in [(1, 1), (3, 15), (17, 129)] {
            let gate = rounded(&normal(1, n * f).iter().map(|g| 4.0 * g).collect::<Vec<_>>());
            let (up, dy) = (rounded(&normal(2, n * f)), rounded(&normal(3, n * f)));
            let [y, d] = run(s, DType::Bf16, &beside(&gate, &up, f), &dy, f)?;
            let law = run(&streams()[0], F32, &beside(&gate, &up, f), &dy, f)?;
            assert!(bits(&y) == bits(&rounded(&law[0])) && bits(&d) == bits(&rounded(&law[1])));
            let (g, u, dy) = (wide(&gate), wide(&up), wide(&dy));
            rounds_once("swiglu y", &y, &reference::forward(&g, &u), f);
            let ([dg, du], (want_dg, want_du)) = (apart(&d, f), reference::backward(&dy, &g, &u));
            rounds_once("swiglu dg", &dg, &want_dg, f);
            rounds_once("swiglu du", &du, &want_du, f);
        }
        Result::Ok(())
    });
}

fn accurate(s: &Stream) -> Result<()> {
    for (n, f) in [(1, 1), (3, 15), (5, 33), (17, 768)] {
        let gate: Vec<f32> = normal(1, n * f).iter().map(|g| 4.0 * g).collect();
        let (up, dy) = (normal(2, n * f), normal(3, n * f));
        let [y, d] = run(s, F32, &beside(&gate, &up, f), &dy, f)?;
        let (g, u, dy) = (wide(&gate), wide(&up), wide(&dy));
        close("swiglu y", &y, &reference::forward(&g, &u), 4e-7);
        let ([dg, du], (want_dg, want_du)) = (apart(&d, f), reference::backward(&dy, &g, &u));
        close("swiglu dg", &dg, &want_dg, 6e-7);
        close("swiglu du", &du, &want_du, 6e-7);
    }
    Ok(())
}

#[test]
fn the_reference_differentiates() {
    let (g, u, dy) = (wide(&normal(4, 9)), wide(&normal(5, 9)), wide(&normal(6, 9)));
    let (dg, du) = reference::backward(&dy, &g, &u);
    let along = |g: &[f64], u: &[f64]| reference::forward(g, u).iter().zip(&dy).map(|(y, d)| y * d).sum();
    differentiates("dg", &|g| along(g, &u), &g, &dg);
    differentiates("du", &|u| along(&g, u), &u, &du);
}

#[test]
fn the_law() -> Result<()> {
    lawful(&streams())
}

/// Every stream and every cut writes the bits of the portable CPU.
fn lawful(on: &[Stream]) -> Result<()> {
    let (n, f) = (64, 45);
    let (gate_up, dy) = (normal(7, 2 * n * f), normal(8, n * f));
    check::lawful(on, n, 2, |s, cut| {
        run(s, F32, &gate_up[2 * cut.start * f..2 * cut.end * f], &dy[cut.start * f..cut.end * f], f)
    })
}

#[test]
fn far_gates_are_finite() -> Result<()> {
    let gate = [-200.0, -90.0, -0.0, 90.0, 200.0];
    let [y, d] = run(&stream(), F32, &beside(&gate, &[2.0; 5], 5), &[1.0; 5], 5)?;
    close("swiglu y", &y, &[0.0, 0.0, 0.0, 180.0, 400.0], 1e-7);
    close("swiglu d", &d, &[0.0, 0.0, 1.0, 2.0, 2.0, 0.0, 0.0, 0.0, 90.0, 200.0], 1e-7);
    Ok(())
}

#[test]
fn golden() -> Result<()> {
    let Some(file) = Golden::open("swiglu") else { return Ok(()) };
    let f = file.shape("gate")[1];
    let [y, d] = run(&stream(), F32, &beside(&file.f32("gate"), &file.f32("up"), f), &file.f32("g"), f)?;
    let [dg, du] = apart(&d, f);
    close("swiglu y", &y, &file.f64("y"), 4e-7);
    close("swiglu d_gate", &dg, &file.f64("d_gate"), 6e-7);
    close("swiglu d_up", &du, &file.f64("d_up"), 6e-7);
    Ok(())
}

#[test]
fn wrong_operands_are_refused() -> Result<()> {
    let s = stream();
    let (y, x) = (s.zeros::<f32>(6)?, s.zeros::<f32>(12)?);
    assert!(forward(&s, y.view(), x.view(), 3).is_ok() && forward(&s, y.view(), x.view(), 4).is_err());
    assert!(forward(&s, y.view(), x.view(), 0).is_err() && forward(&s, x.view(), x.view(), 6).is_err());
    assert!(backward(&s, x.view(), y.view(), x.view(), 3).is_err());
    Ok(())
}
