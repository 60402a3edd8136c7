use super::*;
use crate::check::{Golden, bits, close, normal, on_cuda, stream, streams, wide};

const PARAMS: Params = Params { lr: 3e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 0.37 };

/// p, m, v after `steps` steps from zero moments, with fresh gradients.
fn run(s: &Stream, n: usize, steps: u64) -> Result<[Vec<f32>; 3]> {
    let (p, m, v) = (s.upload(&normal(1, n))?, s.zeros::<f32>(n)?, s.zeros::<f32>(n)?);
    for i in 1..=steps {
        let g = s.upload(&normal(100 + i, n))?;
        step(s, p.view(), m.view(), v.view(), g.view(), &Params { step: i, ..PARAMS })?;
    }
    Ok([p.to_vec()?, m.to_vec()?, v.to_vec()?])
}

#[test]
fn against_f64() -> Result<()> {
    accurate(&stream(), 1000)
}

#[test]
fn on_cuda_against_f64_and_as_on_the_cpu() {
    on_cuda("adamw", |s| {
        accurate(s, 100)?;
        let (n, g) = (9001, normal(7, 9001));
        let [law, got] = [run(&streams()[0], n, 3)?, run(s, n, 3)?];
        assert!((0..3).all(|i| bits(&law[i]) == bits(&got[i])));
        let tensors = [0..9001, 5..5, 0..1, 1..17, 17..4096];
        let norm = |s: &Stream| grad_norm(s, s.upload(&g)?.view(), &tensors);
        let (here, there) = (norm(s)?, norm(&stream())?);
        assert!((here / there - 1.0).abs() < 1e-14 && here.to_bits() == norm(s)?.to_bits(), "{here} {there}");
        assert_eq!(grad_norm(s, s.upload(&[3f32, 4.0])?.view(), &[])?, 0.0);
        Result::Ok(())
    });
}

fn accurate(s: &Stream, many: u64) -> Result<()> {
    let n = 33;
    for (steps, limit) in [(1, 3e-7), (many, 1e-5)] {
        let (mut p, mut m, mut v) = (wide(&normal(1, n)), vec![0.0; n], vec![0.0; n]);
        for i in 1..=steps {
            reference::step(&mut p, &mut m, &mut v, &wide(&normal(100 + i, n)), &Params { step: i, ..PARAMS });
        }
        let got = run(s, n, steps)?;
        for (what, got, want) in [("p", &got[0], p), ("m", &got[1], m), ("v", &got[2], v)] {
            close(&format!("adamw {what} after {steps}"), got, &want, limit);
        }
    }
    Ok(())
}

#[test]
fn the_law() -> Result<()> {
    let n = 9001;
    let law = run(&streams()[0], n, 3)?;
    let g = normal(7, n);
    let tensors = [0..9001, 5..5, 0..1, 1..17, 17..4096];
    let chain = |t: &Range<usize>| g[t.clone()].iter().fold(0f64, |a, g| a + (*g as f64).powi(2));
    let norm = tensors.iter().fold(0.0, |a, t| a + chain(t)).sqrt();
    for s in streams() {
        let got = run(&s, n, 3)?;
        assert!((0..3).all(|i| bits(&law[i]) == bits(&got[i])), "{:?}", s.host());
        assert_eq!(grad_norm(&s, s.upload(&g)?.view(), &tensors)?.to_bits(), norm.to_bits());
    }
    Ok(())
}

#[test]
fn tensors_add_in_order_beyond_one_job() -> Result<()> {
    let (s, g) = (stream(), normal(8, 1500));
    let tensors: Vec<Range<usize>> = (0..150).map(|i| 10 * i..10 * i + 10).collect();
    let sums = g.chunks(10).map(|t| t.iter().fold(0f64, |a, g| a + (*g as f64).powi(2)));
    let want = sums.fold(0.0, |a, sum| a + sum).sqrt();
    assert_eq!(grad_norm(&s, s.upload(&g)?.view(), &tensors)?, want);
    Ok(())
}

#[test]
fn clipping() -> Result<()> {
    assert_eq!((clip_scale(0.5, 1.0), clip_scale(3.0, 0.0), clip_scale(3.0, -1.0)), (1.0, 1.0, 1.0));
    assert_eq!(clip_scale(4.0, 1.0), (1.0 / 4.000001) as f32);
    assert!(clip_scale(f64::NAN, 1.0).is_nan());
    assert_eq!(clip_scale(f64::INFINITY, 1.0), 0.0);
    let s = stream();
    let norm = |g: &[f32]| grad_norm(&s, s.upload(g)?.view(), &[0..1, 1..g.len()]);
    assert_eq!(norm(&[3.0, 4.0])?, 5.0);
    assert!((norm(&[3e38, 3e38])? / (2f64.sqrt() * f64::from(3e38f32)) - 1.0).abs() < 1e-15);
    assert!(norm(&[1.0, f32::NAN])?.is_nan());
    assert_eq!(norm(&[1.0, f32::NEG_INFINITY])?, f64::INFINITY);
    Ok(())
}

#[test]
fn golden() -> Result<()> {
    let s = stream();
    for name in ["adamw_first", "adamw_later"] {
        let Some(file) = Golden::open(name) else { continue };
        let [p, m, v, g] = ["p", "m", "v", "g"].map(|t| s.upload(&file.f32(t)));
        let (p, m, v, g) = (p?, m?, v?, g?);
        let beta = |i: usize| file.settings["betas"][i].as_f64().unwrap();
        let params = Params {
            lr: file.number("lr"),
            beta1: beta(0),
            beta2: beta(1),
            eps: file.number("eps"),
            weight_decay: file.number("weight_decay"),
            step: file.number("step") as u64,
            grad_scale: 1.0,
        };
        step(&s, p.view(), m.view(), v.view(), g.view(), &params)?;
        for (tensor, got) in [("p_new", &p), ("m_new", &m), ("v_new", &v)] {
            close(&format!("{name} {tensor}"), &got.to_vec()?, &file.f64(tensor), 3e-7);
        }
    }
    Ok(())
}

#[test]
fn wrong_operands_are_refused() -> Result<()> {
    let s = stream();
    let [p, m, v, g] = [3, 3, 3, 3].map(|n| s.zeros::<f32>(n));
    let (p, m, v, g) = (p?, m?, v?, g?);
    let go = |g: View, params| step(&s, p.view(), m.view(), v.view(), g, &params);
    assert!(go(g.view(), PARAMS).is_ok());
    assert!(go(g.view().slice(0..2)?, PARAMS).is_err() && go(m.view(), PARAMS).is_err());
    assert!(go(g.view(), Params { step: 0, ..PARAMS }).is_err());
    let error = go(g.view(), Params { beta2: 1.0, ..PARAMS }).unwrap_err().to_string();
    assert!(error.contains("beta2") && error.contains('1'), "{error}");
    assert!(grad_norm(&s, g.view(), &[0..1, 0..4]).is_err());
    Ok(())
}
